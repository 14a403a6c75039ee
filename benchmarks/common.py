"""Shared by the benchmarks: composing and running jobs, tables, description of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as kd_prune.cli does

import torch
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from kd_prune import atomic_io
from kd_prune.results import RunResult

ROOT = Path(__file__).resolve().parent.parent
# Figures are kept in the repository, or in the folder KD_PRUNE_RESULTS.
RESULTS = Path(os.environ.get("KD_PRUNE_RESULTS", ROOT / "benchmarks" / "results"))


def machine() -> dict[str, Any]:
    """Describe the hardware and the versions that a figure depends on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    flags = torch.backends.cpu.get_cpu_capability()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {flags}",
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def job_parser(doc: str | None, work: str) -> argparse.ArgumentParser:
    """Make the parser of a command that runs jobs on real data, in the folder `work`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--data", type=Path, help="folder with <task>/train.parquet …")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument(
        "--precision", default="bf16-mixed", help="32-true where the hardware has no bf16"
    )
    parser.add_argument("--work", type=Path, default=Path("outputs") / work)
    parser.add_argument(
        "--table", action="store_true", help="only print the table of the results so far"
    )
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; runs need data, a table does not."""
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.table:
        parser.error("--data is needed: a folder with a subfolder per task")
    return arguments


def run_job(overrides: Sequence[str], out: Path) -> RunResult:
    """Run the job that these overrides of ``train.py`` describe, in this process."""
    from kd_prune.cli.job import make_job
    from kd_prune.cli.quiet import quiet_libraries
    from kd_prune.pipeline import run

    quiet_libraries()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        result = run(make_job(compose("train", overrides=list(overrides)), out))
    assert result is not None  # None in the processes of further devices only
    return result


def figures(result: RunResult, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a run that are kept: no paths, one form for all runs ever made."""
    paths = (
        "task.path",
        "model.path",
        "pretraining.task.path",
        "stages.base.task.path",
        "task.unlabelled",
        "cache_dir",
    )
    stages = {name: stage.seconds for name, stage in result.stages.items()}
    return {
        "overrides": [o for o in overrides if not o.startswith(paths)],
        "teacher": dict(result.teacher.metrics) if result.teacher else {},
        "task": result.task,
        "seed": result.seed,
        "student": dict(result.student.metrics),
        "sparsity": result.student.sparsity,
        "model_sparsity": result.student.model_sparsity,
        "seconds": {**result.seconds, **stages},
        "versions": dict(result.versions),
        "machine": machine(),
    }


def run_once(
    result: Path,
    overrides: Sequence[str],
    work: Path,
    *,
    measure: Callable[[RunResult, Path], dict[str, Any]] | None = None,
    **extra: Any,
) -> None:
    """Run a job and write its figures to `result`, unless they exist or another process runs it.

    `measure` returns further figures, given the run's result and its folder, which is then removed.

    An interrupted job resumes from its last checkpoint, so a table is completed by running its
    command again, or several times at once.
    """
    out = work / result.stem
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f"{out.name}.lock"), timeout=0):
            if result.is_file():
                return
            last = out / "last.ckpt"
            resume = [f"ckpt_path={last}"] if last.is_file() else []
            done = run_job([*overrides, *resume], out)
            found = figures(done, overrides) | (measure(done, out) if measure else {})
            result.parent.mkdir(parents=True, exist_ok=True)
            kept = found | {"resumed": bool(resume)} | extra
            atomic_io.write(result, json.dumps(kept, indent=1) + "\n")
            shutil.rmtree(out)
    except Timeout:
        return


def mean_std(values: Iterable[float], scale: float = 100.0) -> str:
    """Write ``mean ± sample standard deviation``, or the value if there is one only."""
    scaled = [scale * value for value in values]
    if not scaled:
        return "–"
    if len(scaled) == 1:
        return f"{scaled[0]:.1f}"
    return f"{statistics.mean(scaled):.1f} ± {statistics.stdev(scaled):.1f}"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, in a file or pipe as wide as it needs to be."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def save(values: Any, name: str, folder: Path = RESULTS) -> Path:
    """Write ``<name>.json`` to a folder, ``benchmarks/results`` by default; return its path."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path
