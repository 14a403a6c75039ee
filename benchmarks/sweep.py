"""Sweep of the README's figure: ``make bench-sweep DATA=<folder> MODEL=<folder or id>``.

MRPC, STS-B and SST-2, with and without distillation, three seeds; 50, 80, 90 and 95 % are
milestones of runs to 97 %. Eighteen runs, five hours on one core; several processes share the runs.
Writes ``summary.csv`` and ``runs.csv`` to ``benchmarks/results/sweep`` and the page to the sweep's
folder. ``--table`` only writes these, from the results so far.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from common import RESULTS, ROOT, job_parser, parsed

from kd_prune.sweep import summarize_folders

FOLDER = RESULTS / "sweep"
COMMON = [
    "model=minilm",
    "sparsity.final=0.97",
    "sparsity.milestones=[0.5,0.8,0.9,0.95]",
    "sparsity.end=0.85",
    "sparsity.milestone_length=0.12",
    "optimizer.warmup=0.05",
    "teacher.optimizer.lr=1e-4",
    "seed=1,2,3",
]
# SST-2: 700 of 2,105 batches; a full epoch takes as long as both other tasks.
TASKS = {
    "mrpc": [
        "task.validation=[validation,test]",
        "teacher.max_epochs=5",
        "trainer.max_epochs=6",
    ],
    "sst2": [
        "trainer.limit_train_batches=700",
        "teacher.max_epochs=1",
        "trainer.max_epochs=1",
    ],
    "stsb": ["teacher.max_epochs=4", "trainer.max_epochs=6"],
}
# Each with its best learning rate on MRPC; of two for labels alone.
METHODS = {
    "sparsebert": ["distillation=sparsebert", "optimizer.lr=2e-3"],
    "none": ["distillation=none", "optimizer.lr=3e-4"],
}


def main() -> None:
    """Run a multirun per task and method, then keep the summary's figures."""
    arguments = parsed(job_parser(__doc__, "bench-sweep"))
    work = arguments.work.resolve()
    if not arguments.table:
        common = [
            *COMMON,
            f"model.path={arguments.model}",
            f"task.path={arguments.data.resolve()}",
            f"trainer.precision={arguments.precision}",
            f"hydra.sweep.dir={work}",
        ]
        for task, budget in TASKS.items():
            for method in METHODS.values():
                overrides = [*common, f"task={task}", *budget, *method]
                # Failed jobs are in the summary; the other tasks continue.
                subprocess.run([sys.executable, ROOT / "train.py", "-m", *overrides], check=False)
    summarize_folders(
        [work], title="MRPC, SST-2, STS-B: sparsity 0.5–0.97, with and without teacher"
    )
    keep(work)


def keep(work: Path) -> None:
    """Copy the summary's files, without paths of this machine."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "summary.csv").write_text((work / "summary.csv").read_text())
    with (work / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (FOLDER / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"folder": Path(row["folder"]).name} for row in rows)


if __name__ == "__main__":
    main()
