"""Does the mean of two students with one mask beat either? ``make bench-soup DATA=… MODEL=…``.

The student of ``experiment=best`` is fitted on with its mask fixed: twice for as many steps as the
half of its own fit, with two orders of the batches, and once for as many as both together. The
weights of the first two are averaged (Wortsman et al. 2022, arXiv 2203.05482). All are evaluated on
training rows that were held out. Writes ``benchmarks/results/study/soup``; fits whose result
exists are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from common import ROOT, figures, job_parser, machine, parsed, print_table, run_job, save
from glue import METRIC, TASKS
from held_out import held_out
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from study import BATCHES, FOLDER

from kd_prune.cli.job import make_job
from kd_prune.pipeline import evaluate_saved
from kd_prune.results import RunResult

RATE = "1e-3"
"""Learning rate at which a student is fitted on: half of `best`'s."""


def main() -> None:
    """Fit and average the students of every task and seed; print what they score."""
    parser = job_parser(__doc__, "bench-soup")
    parser.add_argument("--tasks", nargs="+", default=["sst2"], choices=list(BATCHES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    arguments = parsed(parser)
    if not arguments.table:
        for task in arguments.tasks:
            for seed in arguments.seeds:
                if not (FOLDER / "soup" / f"{task}-s{seed}.json").is_file():
                    save(of_seed(task, seed, arguments), f"{task}-s{seed}", FOLDER / "soup")
    table()


def of_seed(task: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of a student, of the three that are fitted on, and of the mean of two."""
    work = arguments.work / f"{task}-s{seed}"
    budget = TASKS[task]
    steps = budget.student * BATCHES[task]
    common = [
        "experiment=best",
        *held_out(task, arguments),
        "model=minilm",
        f"model.path={arguments.model}",
        f"teacher.max_epochs={budget.teacher}",
        *([] if budget.batches is None else [f"trainer.limit_train_batches={budget.batches}"]),
        f"trainer.precision={arguments.precision}",
        "trainer.max_epochs=-1",
    ]
    first = fitted(work / "first", [*common, f"seed={seed}", f"trainer.max_steps={steps}"])
    assert first.teacher is not None
    further = [
        *common,
        "sparsity=fixed",
        f"student.init={work / 'first' / 'student'}",
        f"student.masks_from={work / 'first' / 'student'}",
        f"teacher.path={first.teacher.path}",
        f"optimizer.lr={RATE}",
    ]
    results = {"first": first}
    half = steps // 2
    for name, length, order in (("a", half, 11), ("b", half, 12), ("longer", 2 * half, 11)):
        given = [*further, f"seed={10 * seed + order}", f"trainer.max_steps={length}"]
        results[name] = fitted(work / name, given)
    soup = averaged([work / name / "student" for name in "ab"], work / "soup")
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        job = make_job(compose("train", overrides=common), work / "evaluation")
    mean = evaluate_saved(job, str(soup))
    found = {name: figures(result, [])["student"] for name, result in results.items()}
    shutil.rmtree(work)
    return {
        "task": task,
        "seed": seed,
        "teacher": dict(first.teacher.metrics),
        "students": {**found, "soup": dict(mean.metrics)},
        "sparsity": mean.sparsity,
        "machine": machine(),
        "precision": arguments.precision,
    }


def fitted(out: Path, overrides: list[str]) -> RunResult:
    """Return the result of a job, which is resumed or read where it was run before."""
    if (out / "result.json").is_file():
        return RunResult.read(out)
    last = out / "last.ckpt"
    return run_job([*overrides, *([f"ckpt_path={last}"] if last.is_file() else [])], out)


def averaged(students: list[Path], folder: Path) -> Path:
    """Write the mean of the weights of models of one architecture; return its folder."""
    weights = [load_file(student / "model.safetensors") for student in students]
    mean = {name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]}
    shutil.copytree(students[0], folder, dirs_exist_ok=True)
    save_file(mean, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def table() -> None:
    """Print every student's difference to the teacher."""
    rows = []
    for file in sorted((FOLDER / "soup").glob("*.json")):
        run = json.loads(file.read_text())
        metric = METRIC.get(run["task"], "accuracy").removeprefix("test/")
        teacher = run["teacher"][metric]
        for name, student in run["students"].items():
            row = (f"{run['task']}, seed {run['seed']}: {name}", f"{100 * student[metric]:.1f}")
            rows.append((*row, f"{100 * (student[metric] - teacher):+.1f}"))
    if rows:
        print_table("students fitted on with one mask", ("", "score", "to the teacher"), rows)


if __name__ == "__main__":
    main()
