"""Measurement of one folder for ``kd-prune bench``: its engines, their turns, its table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from kd_prune.cli.bench_sentences import choose_sentences
from kd_prune.errors import ConfigError
from kd_prune.export.source import Source
from kd_prune.hf import encoder_weights, load_error
from kd_prune.inference import benchmark, library, report, rivals
from kd_prune.inference.benchmark import Batch, Engine, Timing

HEADER = (
    f"{'':24}{'batch':>6}{'sentences/s':>13}{'median ms':>11}{'p95 ms':>9}"
    f"{'speed-up':>10}{'difference':>12}"
)


class Meter:
    """Shows on a terminal what is being done; nothing elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("")

    def started(self, text: str, total: int | None = None) -> None:
        """Name what begins."""
        self.progress.reset(self.task, description=text, total=total)

    def rounds(self, numbers: Iterator[int]) -> Iterator[int]:
        """Pass rounds on, and count them."""
        for number in numbers:
            yield number
            self.progress.advance(self.task)


@contextmanager
def progress_meter() -> Iterator[Meter]:
    """Show a progress bar while the context lasts; yield the `Meter` that moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield Meter(progress)


def measure_folder(
    folder: Path, options: argparse.Namespace, opponents: Sequence[rivals.Rival]
) -> list[dict[str, Any]]:
    """Measure one model, and with ``--curve`` its shape at other sparsities; print the tables.

    Args:
        folder: Run folder or model folder.
        options: The command's options.
        opponents: The rivals to measure as well.

    Raises:
        ConfigError: The model cannot be read, a setting does not suit it, or llvmlite is missing.
    """
    library.kernels()  # raises without llvmlite
    from kd_prune.inference.jit.target import host

    source = Source.find(str(folder))
    if (form := source.record.get("format")) in ("onnx", "openvino"):
        raise ConfigError("folder", str(folder), f"exported as {form}, for its own runtime")
    model = load_model(Path(source.path))
    sentences = choose_sentences(source, model, options)
    work = {size: benchmark.padded(sentences.tokens, size) for size in options.batch}
    threads, vectors = torch.get_num_threads(), host().vectors
    print(f"{source.path}: {sentences}; {threads} threads, {vectors}")
    warn_if_busy()
    scope = encoder_weights(model)
    rows = []
    with progress_meter() as shown:
        # Zeros do not matter to these, so they are built once for all compressions.
        dense = prepare([one for one in opponents if not one.reads_zeros], model, work, shown)
        apart = differences({benchmark.BLAS: model} | dense, work)
        opponents = [one for one in opponents if one.reads_zeros]
        for wanted in (None, *(options.curve or ())):
            shape = model
            if wanted is not None:
                shape = benchmark.with_sparsity(model, scope, 1 - 1 / wanted)
            shown.started("preparing kd_prune")
            engines = benchmark.engines(shape) | prepare(opponents, shape, work, shown)
            sparsity = benchmark.sparsity_of(shape, scope)
            common = {
                "folder": str(folder),
                "threads": threads,
                "vectors": vectors,
                "sparsity": sparsity,
                "compression": 1 / max(1 - sparsity, 1e-9),
            }
            print(f"\ncompression {common['compression']:.3g}×: {converted(engines)}")
            here = differences(engines, work)
            for size, batches in work.items():
                shown.started(f"batch {size}", options.rounds + 1)
                every = engines | dense
                timings = benchmark.measure(every, batches, options.rounds, shown.rounds)
                rows += [common | row for row in table(timings, apart[size] | here[size])]
    return rows


def warn_if_busy() -> None:
    """Print a line if other processes use more than half of the processor's cores."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores / 2:
        print(f"warning: the machine is busy (load {load:.1f}, {cores} cores): times vary")


def converted(engines: Mapping[str, Engine]) -> str:
    """Describe what `accelerate` made of the model, and in int8 where that gains."""
    ours: Any = engines[benchmark.OURS]
    rounded: Any = engines.get(benchmark.INT8)
    return str(report(ours)) + (f"\n{benchmark.INT8}: {report(rounded)}" if rounded else "")


def differences(
    engines: Mapping[str, Engine], work: Mapping[int, Sequence[Batch]]
) -> dict[int, dict[str, float]]:
    """Return the difference of every engine's output to the model's at every batch size."""
    return {size: benchmark.differences(engines, batches[0]) for size, batches in work.items()}


def prepare(
    opponents: Sequence[rivals.Rival],
    model: Any,
    work: Mapping[int, Sequence[Batch]],
    shown: Meter,
) -> dict[str, Engine]:
    """Build the engines of some rivals for a model; print a line for each that fails."""
    engines, failures = rivals.build(
        opponents,
        model,
        [batch for batches in work.values() for batch in batches],
        torch.get_num_threads(),
        lambda name: shown.started(f"preparing {name}"),
    )
    for failure in failures:
        print(failure)
    return engines


def table(timings: Sequence[Timing], apart: Mapping[str, float]) -> list[dict[str, Any]]:
    """Print the table of one batch size and return its rows.

    Args:
        timings: The times of every engine.
        apart: Difference of its outputs to the model's, by name.
    """
    print(HEADER)
    rows: list[dict[str, Any]] = []
    for timing in timings:
        ratio = benchmark.speed_up(timings, timing.engine)
        row = described(timing, ratio, apart[timing.engine])
        print(
            f"{timing.engine:24}{timing.batch_size:6}{timing.sentences_per_second:13.1f}"
            f"{timing.median * 1e3:11.2f}{timing.p95 * 1e3:9.2f}"
            f"{ratio:9.2f}×{row['difference']:12.1e}"
        )
        rows.append(row)
    for row in rows:
        if benchmark.suspicious(row["engine"], row["difference"]):
            print(
                f"warning: {row['engine']} does not compute what the model does: "
                f"its outputs differ by {row['difference']:.1e} of the largest"
            )
    sys.stdout.flush()  # the next table may take minutes
    return rows


def described(timing: Timing, ratio: float, difference: float) -> dict[str, Any]:
    """Return a row of the table as plain data, times in milliseconds."""
    return {
        "engine": timing.engine,
        "batch_size": timing.batch_size,
        "sentences_per_second": timing.sentences_per_second,
        "median_ms": timing.median * 1e3,
        "p95_ms": timing.p95 * 1e3,
        "speed_up": ratio,
        "difference": difference,
    }


def load_model(folder: Path) -> Any:
    """Load a model folder with the head that it was saved with.

    Raises:
        ConfigError: It cannot be loaded.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        named = " ".join(config.architectures or [])
        classifies = "ForSequenceClassification" in named
        kind = AutoModelForSequenceClassification if classifies else AutoModel
        model = kind.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # of any type: each kind of damage raises another
        raise load_error("folder", str(folder), error) from error
    return model.eval()
