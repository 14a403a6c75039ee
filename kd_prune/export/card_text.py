"""Text of a model card, below its metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_prune.export.card_facts import Facts, weighted_terms
from kd_prune.hf import OWN_ARCHITECTURES
from kd_prune.results import target_sparsity

LINK = "https://arxiv.org/abs/2104.08682"
AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
}


def body(facts: Facts) -> str:
    """Return the card's text: what it is, figures, how to load it, how it was made, limits."""
    parts = [f"# {facts.title}", summary(facts)]
    if facts.students:
        parts += ["## Evaluation", evaluation(facts)]
    parts += ["## Sparsity and size", sparsity(facts), "## How to load it", loading(facts)]
    if facts.results:
        parts += ["## How it was made", making(facts)]
    parts += ["## Limits", limits(facts)]
    return "\n\n".join(parts) + "\n"


def summary(facts: Facts) -> str:
    """Return one sentence on what the model is."""
    base = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    origin = f"{base}, " if facts.base_model else ""
    if not facts.results:
        return f"`{facts.architecture}`, exported with kd_prune."
    taught = "distilled from a fine-tuned teacher" if facts.distilled else "fine-tuned"
    pruned = f"pruned to {percent(facts.counted.sparsity)} sparsity"
    return (
        f"{origin or 'An encoder, '}{pruned if facts.counted.sparsity else 'dense'}, {taught} on "
        f"{facts.results[0].task}, by kd_prune."
    )


def evaluation(facts: Facts) -> str:
    """Return the table of metrics, over seeds."""
    seeds = [str(result.seed) for result in facts.results]
    rows = [
        [
            row.metric,
            row.teacher.text(row.metric) if row.teacher else "–",
            row.student.text(row.metric),
            row.delta.text(row.metric, sign=True) if row.delta else "–",
        ]
        for row in facts.statistics()
    ]
    head = f"Seed {seeds[0]}"
    if len(seeds) > 1:
        head = f"Mean ± standard deviation of {len(seeds)} seeds ({', '.join(seeds)})"
    note = "in percent; losses unchanged"
    if facts.form != "student":
        note += "; measured on the trained model, before this export"
    if len(seeds) > 1:
        note += f"; this model is the one of seed {seeds[0]}"
    return f"{head}, {note}.\n\n" + table(["", "teacher", "student", "difference"], rows)


def sparsity(facts: Facts) -> str:
    """Return the table of counts and sizes."""
    counted = facts.counted
    dense = f"{megabytes(4 * counted.parameters)} in float32"
    return table(
        ["", ""],
        [
            ["sparsity of the weights in scope", percent(counted.sparsity)],
            ["sparsity of the whole model", percent(counted.model_sparsity)],
            ["non-zero weights", f"{counted.nonzero:,} of {counted.parameters:,}"],
            ["pattern", pattern(facts.config)],
            ["weights on disk", f"{megabytes(facts.bytes)} ({dense})"],
            ["format", ", ".join([facts.form, *facts.options])],
        ],
    )


def loading(facts: Facts) -> str:
    """Return how to load the folder."""
    auto = next((a for end, a in AUTO.items() if facts.architecture.endswith(end)), "AutoModel")
    if facts.form == "onnx":
        return (
            "```python\nfrom onnxruntime import InferenceSession\n"
            "from transformers import AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("<this folder>")\n'
            'session = InferenceSession("<this folder>/model.onnx")\n'
            'tokens = tokenizer(["a text"], return_tensors="np")\n'
            "inputs = {each.name: tokens[each.name] for each in session.get_inputs()}\n"
            "logits = session.run(None, inputs)[0]\n```"
        )
    if facts.form == "openvino":
        return (
            "```python\nimport openvino\nfrom transformers import AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("<this folder>")\n'
            'model = openvino.compile_model("<this folder>/openvino_model.xml", "CPU")\n'
            'tokens = tokenizer(["a text"], return_tensors="np")\n'
            "inputs = {each.any_name: tokens[each.any_name] for each in model.inputs}\n"
            'logits = model(inputs)["logits"]\n```'
        )
    packed, own = facts.form == "packed", facts.architecture in OWN_ARCHITECTURES
    first = "import kd_prune  # reads packed folders\n" if packed else ""
    first = "import kd_prune.hf  # has this architecture\n" if own else first
    code = (
        f"```python\n{first}"
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("<this folder or id>")\n'
        'tokenizer = AutoTokenizer.from_pretrained("<this folder or id>")\n```'
    )
    if own:
        return (
            code + "\n\n`import kd_prune.hf` is needed (`pip install kd_prune`): it has the model."
        )
    if not packed:
        return code + "\n\nkd_prune need not be installed: pruned weights are stored as zeros."
    return (
        code
        + "\n\n`import kd_prune` is needed (`pip install kd_prune`): the matrices are stored as "
        "positions and values, in `packed.safetensors`, and become plain dense modules while they "
        "are read. Without it transformers would not know them and start with random matrices, "
        "with no more than a warning; so the file has a name that `from_pretrained` does not look "
        "for, the architecture in `config.json` is one that no other program has, and loading "
        "stops with an error. Do not rename the file and do not remove `quantization_config`."
    )


def making(facts: Facts) -> str:
    """Return what made the model: data, method, versions."""
    config, result, task = facts.config, facts.results[0], facts.task
    model = config.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    rows = [
        ["pre-trained model", facts.base_model or described(path)],
        ["task", f"{result.task} ({', '.join(map(str, task.get('text') or ['text']))})"],
        ["hash of its rows", f"`{result.data}`"],
        ["seed", str(result.seed)],
        ["teacher", "fine-tuned on the same task" if result.teacher else "none"],
        ["loss terms", ", ".join(weighted_terms(config)) or "–"],
        *([name, text] for name, text in method(config)),
        ["versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())],
    ]
    meanwhile = f"\n\nPruned while it was distilled from the teacher, as in [SparseBERT]({LINK})."
    both = facts.distilled and pruning_stage(config)[0] == "student"
    return table(["", ""], rows) + (meanwhile if both else "")


def limits(facts: Facts) -> str:
    """Return what the model cannot do."""
    found = [
        "Only the task above was measured; accuracy on other texts, biases and robustness were not."
        if facts.students
        else "No measurement of this model is recorded."
    ]
    if facts.form in ("student", "fp16"):
        found.append(
            "Zeros are stored as numbers: dense hardware computes with them as with others."
        )
    if facts.form == "packed":
        found.append("Once loaded, the matrices are dense in memory.")
    if rounding := ", ".join([*facts.options, *(["fp16"] if facts.form == "fp16" else [])]):
        found.append(f"Rounded ({rounding}): outputs differ slightly from the trained model's.")
    if facts.tokens is not None:
        found.append(
            f"The vocabulary was reduced to {facts.tokens:,} tokens: the texts it was reduced for "
            "have the same tokens as before, others are split into shorter pieces."
        )
    return "\n".join(f"- {line}" for line in found)


def method(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the parts of the pruning method, as configured."""
    stage, sparsity = pruning_stage(config)
    if stage not in ("", "student"):
        yield "pruned in the stage", stage
    for name in ("criterion", "allocation", "granularity", "ramp"):
        if name in sparsity:
            yield name, described(sparsity[name])
    if "updates" in sparsity:
        yield "mask updates", str(sparsity["updates"])


def pruning_stage(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the stage that prunes the student, and its settings; ``("", {})`` if none does.

    It is the student's own, or else the last one that comes before it.
    """
    stages = config.get("stages")
    earlier = stages if isinstance(stages, Mapping) else {}
    for name, stage in [("student", config), *reversed(list(earlier.items()))]:
        if isinstance(stage, Mapping) and target_sparsity(stage):
            return name, stage["sparsity"]
    return "", {}


def pattern(config: Mapping[str, Any]) -> str:
    """Return what is pruned together, in the field's words."""
    sparsity = pruning_stage(config)[1] or config.get("sparsity")
    granularity = sparsity.get("granularity") if isinstance(sparsity, Mapping) else None
    if granularity is None:
        return "not recorded"
    text = described(granularity)
    return "single weights (unstructured)" if text == "unstructured" else text


def described(part: Any) -> str:
    """Describe a part of a configuration: its last name and its numbers.

    >>> described({"_target_": "kd_prune.pruning.NM", "n": 2, "m": 4})
    'NM(n=2, m=4)'
    >>> described({"_target_": "hydra.utils.get_method", "path": "kd_prune.pruning.cubic"})
    'cubic'
    """
    if isinstance(part, str):
        return (
            part if "/" not in part else f"`{part.rstrip('/').rpartition('/')[2]}`, a local folder"
        )
    if not isinstance(part, dict):
        return "–" if part is None else str(part)
    target = str(part.get("_target_", "?")).rpartition(".")[2]
    if target == "get_method":
        return str(part.get("path", "?")).rpartition(".")[2]
    given = [
        f"{key}={value}"
        for key, value in part.items()
        if key != "_target_" and isinstance(value, (int, float, str)) and "/" not in str(value)
    ]
    return f"{target}({', '.join(given)})" if given else target


def percent(share: float) -> str:
    """Format a share.

    >>> percent(0.94999)
    '95.00 %'
    """
    return f"{100 * share:.2f} %"


def megabytes(size: int) -> str:
    """Format bytes.

    >>> megabytes(1_234_567)
    '1.23 MB'
    """
    return f"{size / 1e6:.2f} MB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines
    )
