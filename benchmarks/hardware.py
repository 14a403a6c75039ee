"""Speed of sparse models on this machine: ``make bench-hardware``.

Models of BERT-base's and MiniLM's shape with random weights, which suffice for speed, pruned at
random: dense by torch's default BLAS and by oneDNN against `kd_prune.inference`, taking turns in
one process; the ratio is the median over rounds, to the better of the two. The processor can be
restricted to AVX2, in kd_prune, torch, oneDNN and MKL alike. Then the figure: sentences per second
over compression, with sentences as long as MRPC's pairs, and with ONNX Runtime, OpenVINO and
SparseLab where they are installed.

    python benchmarks/hardware.py --cpu avx2 --threads 1 --cases "base 1" "base 32"

Adds to benchmarks/results/hardware.json and draws docs/speed.png from it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
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
SHAPES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
    "mini": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}
# Every twentieth length of MRPC's validation pairs, in word pieces of BERT.
MRPC = (26, 32, 37, 40, 42, 44, 45, 47, 49, 51, 53, 55, 57, 58, 60, 62, 64, 67, 69, 72, 79, 86)
COMPRESSIONS = (1, 2, 4, 8, 16, 20)


def main() -> None:
    """Measure the cases and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
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
        shape, sparsity, size, length, rounds = CASES[name]
        add(measure(name, shape, sparsity, [length] * size, size, arguments.rounds or rounds))
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
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from kd_prune.inference import benchmark
    from kd_prune.inference.jit.target import host

    torch.manual_seed(0)
    config = BertConfig(num_attention_heads=12, vocab_size=1000, **SHAPES[shape])
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.bert.encoder.named_parameters():
            if weight.dim() == 2 and "LayerNorm" not in name:
                weight *= torch.rand_like(weight) >= sparsity
    models = benchmark.engines(model, bfloat16=False)
    work = benchmark.batches(lengths, size, 1000)
    with torch.inference_mode():
        logits = [models[name](**work[0]).logits for name in (benchmark.BLAS, benchmark.OURS)]
    if opponents is not None:
        models |= opponents(model, work)
    timings = benchmark.measure(models, work, rounds)
    row = {
        "case": case,
        "shape": shape,
        "sparsity": sparsity,
        "batch": size,
        "threads": torch.get_num_threads(),
        "cpu": host().name,
        "vectors": host().vectors,
        "torch": torch.backends.cpu.get_cpu_capability(),
        "peak_gmac": benchmark.peak_multiply_adds() / 1e9,
        "rounds": rounds,
        "difference": float((logits[0] - logits[1]).abs().max()),
        "milliseconds": {timing.engine: timing.median * 1e3 for timing in timings},
        "sentences_per_second": {t.engine: t.sentences_per_second for t in timings},
        "speed_up": benchmark.speed_up(timings),
    }
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in row["milliseconds"].items())
    print(f"{row['vectors']}, {row['threads']} threads, {case}: {row['speed_up']:.2f}× ({times})")
    return row


def results() -> Path:
    """Return the file of the figures."""
    return Path(os.environ.get("KD_PRUNE_RESULTS", ROOT / "benchmarks/results")) / "hardware.json"


def add(row: dict[str, Any]) -> None:
    """Add a row to the results, or replace that of the same case."""
    path = results()
    rows = json.loads(path.read_text()) if path.exists() else []
    same = ("case", "threads", "vectors")
    rows = [other for other in rows if any(other[key] != row[key] for key in same)]
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
