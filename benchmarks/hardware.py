"""Speed of sparse models on this machine: ``make bench-hardware``.

Models of BERT-base's and MiniLM's shape with random weights, which suffice for speed, pruned at
random: dense by torch's default BLAS and by oneDNN against `kd_prune.inference`, taking turns in
one process; the ratio is the median over rounds, to the better of the two. The processor can be
restricted to AVX2, in kd_prune, torch, oneDNN and MKL alike. Then the figure: sentences per second
over compression, with sentences as long as MRPC's pairs, and with ONNX Runtime, OpenVINO and
SparseLab where they are installed.

The cases of two patterns compare zeros in any place, in float32, with zeros in 1×4 blocks, in int8,
and both with dense engines: float32, bfloat16, and ONNX Runtime's dynamic int8, which needs the
packages of kd_prune[onnx].

    python benchmarks/hardware.py --cpu avx2 --threads 1 --cases "base 1" "base 32"
    python benchmarks/hardware.py --cases "base 1, two patterns"

Adds to benchmarks/results/hardware.json and draws docs/speed.png from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESTRICTED = {  # what a processor without AVX-512 would choose by itself
    "KD_PRUNE_CPU": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
# Sparsity, batch size, tokens, rounds of a case; rounds are few where a dense call takes seconds.
CASES = {
    "base 1": ("base", 0.95, 1, 128, 15),
    "base 32": ("base", 0.95, 32, 128, 3),
    "base 1 at 0.9": ("base", 0.9, 1, 128, 15),
    "base 1 at 0.8": ("base", 0.8, 1, 128, 15),
    "base 32 at 0.9": ("base", 0.9, 32, 128, 2),
    "base 32 at 0.8": ("base", 0.8, 32, 128, 2),
    "mini 1": ("mini", 0.95, 1, 128, 50),
    "mini 32": ("mini", 0.95, 32, 128, 5),
}
# Both patterns of zeros beside every dense engine: as above.
PATTERN_CASES = {
    "base 1, two patterns": ("base", 0.95, 1, 128, 20),
    "base 32, two patterns": ("base", 0.95, 32, 128, 3),
    "mini 1, two patterns": ("mini", 0.95, 1, 128, 60),
    "mini 32, two patterns": ("mini", 0.95, 32, 128, 8),
}
SINGLE, BLOCKS = "kd_prune fp32, single weights", "kd_prune int8, 1×4 blocks"
SINGLE_INT8, BLOCKS_FLOAT = "kd_prune int8, single weights", "kd_prune fp32, 1×4 blocks"
OURS = (SINGLE, SINGLE_INT8, BLOCKS_FLOAT, BLOCKS)
BFLOAT16_ONEDNN, ONNX_INT8 = "torch bf16 (oneDNN)", "ONNX Runtime int8"
SHAPES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
    "mini": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}
# Every twentieth length of MRPC's validation pairs, in word pieces of BERT.
MRPC = (26, 32, 37, 40, 42, 44, 45, 47, 49, 51, 53, 55, 57, 58, 60, 62, 64, 67, 69, 72, 79, 86)
COMPRESSIONS = (1, 2, 4, 8, 16, 20)
VOCABULARY = 1000


def main() -> None:
    """Measure the cases and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = CASES | PATTERN_CASES
    parser.add_argument("--cases", nargs="*", default=list(cases), choices=list(cases))
    parser.add_argument(
        "--curve", nargs="*", type=int, default=[], help="batch sizes of the figure"
    )
    parser.add_argument("--compressions", nargs="*", type=float, default=list(COMPRESSIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", choices=["avx2"], help="restrict the processor")
    parser.add_argument("--rounds", type=int, help="rounds of every case")
    arguments = parser.parse_args()
    if arguments.cpu and os.environ.get("KD_PRUNE_CPU") != arguments.cpu:
        # Libraries read these when they are loaded.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | RESTRICTED)  # noqa: S606
    import torch

    torch.set_num_threads(arguments.threads)
    for name in arguments.cases:
        shape, sparsity, size, length, rounds = cases[name]
        measured = measure if name in CASES else measure_patterns
        add(measured(name, shape, sparsity, [length] * size, size, arguments.rounds or rounds))
    for size in arguments.curve:
        opponents = Opponents()
        for compression in arguments.compressions:
            row = measure(
                f"curve {size} {compression:g}×",
                "base",
                1 - 1 / compression,
                list(MRPC) * (1 if size == 1 else 3),
                size,
                arguments.rounds or 2,
                opponents,
            )
            add(row | {"compression": compression})
    draw()


class Opponents:
    """Engines of the installed rivals; those to which zeros do not matter are built once."""

    def __init__(self) -> None:
        self.built: dict[str, dict[str, Any]] = {}

    def __call__(self, model: Any, work: list[Any]) -> dict[str, Any]:
        """Return the engines for a model of the same shape as the first."""
        import torch

        from kd_prune.inference import rivals

        found = {}
        for rival in rivals.installed(rivals.RIVALS):
            if rival.reads_zeros or rival.name not in self.built:
                made, failures = rivals.build([rival], model, work, torch.get_num_threads())
                print(*failures, sep="\n", end="\n" if failures else "")
                self.built[rival.name] = made
            found |= self.built[rival.name]
        return found


def measure(
    case: str,
    shape: str,
    sparsity: float,
    lengths: list[int],
    size: int,
    rounds: int,
    opponents: Opponents | None = None,
) -> dict[str, Any]:
    """Measure one model, print and return the row."""
    from kd_prune.inference import accelerate, benchmark

    model = pruned(shape, sparsity)
    models: dict[str, Any] = {
        benchmark.BLAS: model,
        benchmark.ONEDNN: benchmark.with_onednn(copy.deepcopy(model)),
        benchmark.OURS: accelerate(model),
    }
    work = benchmark.batches(lengths, size, VOCABULARY)
    difference = differing(models, work[0], benchmark.BLAS, benchmark.OURS)
    if opponents is not None:
        models |= opponents(model, work)
    timings = benchmark.measure(models, work, rounds)
    row = described(case, shape, sparsity, timings, rounds) | {
        "difference": difference,
        "speed_up": benchmark.speed_up(timings),
    }
    show(row, f"{row['speed_up']:.2f}×")
    return row


def measure_patterns(
    case: str, shape: str, sparsity: float, lengths: list[int], size: int, rounds: int
) -> dict[str, Any]:
    """Measure both patterns of zeros and every dense engine, print and return the row."""
    import torch

    from kd_prune.inference import accelerate, benchmark, report

    model, blocks = pruned(shape, sparsity), pruned(shape, sparsity, columns=4)
    half = copy.deepcopy(model).to(torch.bfloat16)
    models: dict[str, Any] = {
        benchmark.BLAS: model,
        benchmark.ONEDNN: benchmark.with_onednn(copy.deepcopy(model)),
        benchmark.BFLOAT16: half,
        BFLOAT16_ONEDNN: benchmark.with_onednn(copy.deepcopy(half)),
        SINGLE: accelerate(model),
        SINGLE_INT8: accelerate(model, int8=True),
        BLOCKS_FLOAT: accelerate(blocks),
        BLOCKS: accelerate(blocks, int8=True),
    }
    if not os.environ.get("KD_PRUNE_CPU"):  # ONNX Runtime would use all of the processor
        models[ONNX_INT8] = OnnxInt8(model, torch.get_num_threads())
    work = benchmark.batches(lengths, size, VOCABULARY)
    difference = differing(models | {"dense": blocks}, work[0], "dense", BLOCKS)
    timings = benchmark.measure(models, work, rounds)
    rounds_of = {timing.engine: timing.rounds for timing in timings}
    ratios = {
        name: statistics.median(
            other / own for other, own in zip(taken, rounds_of[BLOCKS], strict=True)
        )
        for name, taken in rounds_of.items()
    }
    row = described(case, shape, sparsity, timings, rounds) | {
        "difference": difference,
        "speed_up": benchmark.speed_up(timings, BLOCKS),
        "speed_up_single": benchmark.speed_up(timings, SINGLE),
        "blocks_over": ratios,
        "converted": {name: str(report(models[name])) for name in OURS},
    }
    show(row, f"{row['speed_up_single']:.2f}× and {row['speed_up']:.2f}×")
    return row


def pruned(shape: str, sparsity: float, columns: int = 1) -> Any:
    """Build a model with random weights, pruned at random, some neighbouring inputs together."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(num_attention_heads=12, vocab_size=VOCABULARY, **SHAPES[shape])
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.bert.encoder.named_parameters():
            if weight.dim() == 2 and "LayerNorm" not in name:
                kept = torch.rand(weight.shape[0], weight.shape[1] // columns) >= sparsity
                weight *= kept.repeat_interleave(columns, 1)
    return model


class OnnxInt8:
    """A model in ONNX Runtime's dynamic int8, called as the others are."""

    def __init__(self, model: Any, threads: int) -> None:
        from onnxruntime import InferenceSession, SessionOptions

        from kd_prune.export import onnx_format

        options = SessionOptions()
        options.intra_op_num_threads = threads
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / onnx_format.FILE
            names = ("input_ids", "attention_mask")
            onnx_format.export_graph(model, names, file, onnx_format.OPSETS[0])
            onnx_format.quantize_int8(file)
            providers = ["CPUExecutionProvider"]
            self.session = InferenceSession(str(file), options, providers=providers)

    def __call__(self, **batch: Any) -> Any:
        """Return the outputs."""
        return self.session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def differing(models: dict[str, Any], batch: dict[str, Any], one: str, other: str) -> float:
    """Return the largest difference of two models' logits."""
    import torch

    with torch.inference_mode():
        logits = [models[name](**batch).logits for name in (one, other)]
    return float((logits[0] - logits[1]).abs().max())


def described(
    case: str, shape: str, sparsity: float, timings: list[Any], rounds: int
) -> dict[str, Any]:
    """Return what the rows of all cases have in common."""
    import torch

    from kd_prune.inference import benchmark
    from kd_prune.inference.jit.target import host

    return {
        "case": case,
        "shape": shape,
        "sparsity": sparsity,
        "batch": timings[0].batch_size,
        "threads": torch.get_num_threads(),
        "cpu": host().name,
        "vectors": host().vectors,
        "int8": host().int8,
        "processor": cpu(),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "peak_gmac": benchmark.peak_multiply_adds() / 1e9,
        "rounds": rounds,
        "milliseconds": {timing.engine: timing.median * 1e3 for timing in timings},
        "sentences_per_second": {t.engine: t.sentences_per_second for t in timings},
    }


def show(row: dict[str, Any], ratio: str) -> None:
    """Print a row."""
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in row["milliseconds"].items())
    print(f"{row['vectors']}, {row['threads']} threads, {row['case']}: {ratio} ({times})")


def results() -> Path:
    """Return the file of the figures."""
    return Path(os.environ.get("KD_PRUNE_RESULTS", ROOT / "benchmarks/results")) / "hardware.json"


def add(row: dict[str, Any]) -> None:
    """Add a row to the results, or replace that of the same case."""
    path = results()
    rows = json.loads(path.read_text()) if path.exists() else []
    same = ("case", "threads", "vectors", "processor")
    rows = [other for other in rows if any(other.get(key) != row[key] for key in same)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*rows, row], indent=1) + "\n")


def draw() -> None:
    """Draw the figure from the rows with a compression."""
    from kd_prune.inference import figure

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in json.loads(results().read_text()) if results().exists() else []:
        if "compression" in row:
            name = f"batch {row['batch']}, {row['vectors']}, {row['threads']} threads"
            for engine, value in row["sentences_per_second"].items():
                lines = panels.setdefault(name, {})
                lines.setdefault(engine, []).append((row["compression"], value))
    if panels:
        out = os.environ.get("KD_PRUNE_RESULTS")
        path = (Path(out) if out else ROOT / "docs") / "speed.png"
        figure.draw(panels, path, "BERT-base's shape, sentences as long as MRPC's pairs")


if __name__ == "__main__":
    main()
