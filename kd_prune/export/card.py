"""Model card: README.md of a saved folder, with the metadata that the Hub reads."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kd_prune.export.card_facts import Facts
from kd_prune.export.card_text import body
from kd_prune.results import is_loss

FILE = "README.md"
METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
"""Our name of a metric → its name on the Hub, where they differ."""


def model_card(facts: Facts) -> str:
    """Return the text of README.md: metadata, then what a reader wants to know."""
    data = metadata(facts)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body(facts)}")
    return str(card)


def metadata(facts: Facts) -> ModelCardData:
    """Return the metadata of a card, as the Hub defines them."""
    results = evaluation_results(facts)
    kind = {"onnx": "onnx", "openvino": "openvino"}.get(facts.form, "transformers")
    tags = ["kd_prune", *(["pruned", "sparse"] if facts.counted.sparsity else [])]
    tags += [facts.form] if facts.form != "student" else []
    settings: dict[str, Any] = {
        "library_name": kind,
        "tags": tags,
        "pipeline_tag": pipeline_tag(facts.architecture),
        "base_model": facts.base_model,
        "datasets": [facts.hub_dataset] if facts.hub_dataset else None,
        "metrics": sorted({result.metric_type for result in results}) or None,
    }
    if facts.base_model:
        settings["base_model_relation"] = "finetune"
    if results:
        settings |= {"model_name": facts.title, "eval_results": results}
    return ModelCardData(**{key: value for key, value in settings.items() if value is not None})


def evaluation_results(facts: Facts) -> list[EvalResult]:
    """Return one result per metric, the mean over seeds; losses are left out."""
    task, validation = facts.task, facts.task.get("validation")
    first = validation[0] if isinstance(validation, list) and validation else "validation"
    found = []
    for row in facts.statistics():
        split, _, name = row.metric.rpartition("/")
        if is_loss(row.metric):
            continue
        found.append(
            EvalResult(
                task_type=pipeline_tag(facts.architecture) or "text-classification",
                dataset_type=facts.hub_dataset or facts.results[0].task,
                dataset_name=facts.results[0].task,
                dataset_config=task.get("subset"),
                dataset_split=split or str(first),
                metric_type=METRICS.get(name, name),
                metric_name=f"{name}, mean of {len(facts.results)} seeds"
                if len(facts.results) > 1
                else name,
                metric_value=round(row.student.mean, 5),
            )
        )
    return found


def pipeline_tag(architecture: str) -> str | None:
    """Return the Hub's name of what a model does; None where its class does not say it.

    >>> pipeline_tag("BertForSequenceClassification"), pipeline_tag("BertModel")
    ('text-classification', 'feature-extraction')
    """
    tags = {
        "ForSequenceClassification": "text-classification",
        "ForTokenClassification": "token-classification",
        "ForQuestionAnswering": "question-answering",
        "ForMaskedLM": "fill-mask",
        "Model": "feature-extraction",
    }
    return next((tag for end, tag in tags.items() if architecture.endswith(end)), None)
