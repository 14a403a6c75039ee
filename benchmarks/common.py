"""What benchmarks share: composing and running jobs, tables, and a record of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does

import torch
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
# Figures are kept in the repository, or where KD_PRUNE_RESULTS says.
RESULTS = Path(os.environ.get("KD_PRUNE_RESULTS", ROOT / "benchmarks" / "results"))

sys.path.insert(0, str(ROOT))


def machine() -> dict[str, Any]:
    """Hardware and versions a figure depends on."""
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
    """The options of a command that runs jobs on real data, in the folder `work`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--data", type=Path, help="folder with <task>/train.parquet …")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument(
        "--precision", default="bf16-mixed", help="32-true where the hardware has no bf16"
    )
    parser.add_argument("--work", type=Path, default=Path("outputs") / work)
    parser.add_argument("--table", action="store_true", help="only make the table of what there is")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the command was given; runs need data, a table does not."""
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.table:
        parser.error("--data is needed: a folder with a subfolder per task")
    return arguments


def run_job(overrides: Sequence[str], out: Path) -> dict[str, Any]:
    """Run ``train.py`` with these overrides in this process; return its result."""
    from kd_prune.run import run
    from train import make_job, quiet

    quiet()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return run(make_job(compose("train", overrides=list(overrides)), out))


def record(result: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The part of a result that is worth keeping: figures without paths."""
    teacher = {k: v for k, v in result["teacher"].items() if k != "path"}
    keys = ("task", "seed", "student", "sparsity", "model_sparsity", "seconds", "versions")
    shown = [o for o in overrides if not o.startswith(("task.path", "model.path", "cache_dir"))]
    kept = {key: result[key] for key in keys}
    return {"overrides": shown, "teacher": teacher, **kept, "machine": machine()}


def run_once(result: Path, overrides: Sequence[str], work: Path, **extra: Any) -> None:
    """Run a job and keep its figures in `result`, unless they are there or in the making.

    What was cut off goes on from its last checkpoint, so a table is made by starting its command
    again, or several times at once.
    """
    out = work / result.stem
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f"{out.name}.lock"), timeout=0):
            if result.is_file():
                return
            last = out / "last.ckpt"
            resume = [f"ckpt_path={last}"] if last.is_file() else []
            found = run_job([*overrides, *resume], out)
            result.parent.mkdir(parents=True, exist_ok=True)
            kept = record(found, overrides) | {"resumed": bool(resume)} | extra
            result.write_text(json.dumps(kept, indent=1) + "\n")
            shutil.rmtree(out)
    except Timeout:
        return


def mean_std(values: Iterable[float], scale: float = 100.0) -> str:
    """``mean ± standard deviation`` of the values, or the one value there is."""
    scaled = [scale * value for value in values]
    if not scaled:
        return "–"
    if len(scaled) == 1:
        return f"{scaled[0]:.1f}"
    return f"{statistics.mean(scaled):.1f} ± {statistics.stdev(scaled):.1f}"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table that reads as Markdown too."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def save(values: Any, name: str, folder: Path = RESULTS) -> Path:
    """Write ``benchmarks/results/<name>.json``, or in another folder; return where it is."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path
