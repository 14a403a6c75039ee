"""What brings a student at 95 % nearer to its teacher: ``make bench-study DATA=… MODEL=…``.

Every row changes one thing of ``experiment=recovery_global``. Writes one JSON file per run under
``benchmarks/results/study``. A run whose file exists is not repeated; an interrupted run resumes
from its last checkpoint. ``--table`` only prints the results so far.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from common import RESULTS, job_parser, mean_std, parsed, print_table, run_once
from glue import FILES, METRIC, QNLI_STYLE, TASKS, VALIDATION

FOLDER = RESULTS / "study"
UNIFORM = ["sparsity/allocation=uniform"]
ROWS = {
    "recovery_global": [],
    "taylor": ["sparsity/criterion=taylor"],
    "fisher": ["sparsity/criterion=fisher"],
    "platon": ["sparsity/criterion=platon"],
    "movement": ["sparsity/criterion=movement"],
    "wanda": ["sparsity/criterion=wanda"],
    "taylor_uniform": ["sparsity/criterion=taylor", *UNIFORM],
    "fisher_uniform": ["sparsity/criterion=fisher", *UNIFORM],
    "platon_uniform": ["sparsity/criterion=platon", *UNIFORM],
    "initial_0.3": ["sparsity.initial=0.3"],
    "taylor_initial_0.3": ["sparsity/criterion=taylor", "sparsity.initial=0.3"],
    "taylor_end_0.5": ["sparsity/criterion=taylor", "sparsity.end=0.5"],
    "taylor_lr_3e-3": ["sparsity/criterion=taylor", "optimizer.lr=3e-3"],
    "taylor_0.97": ["sparsity/criterion=taylor", "sparsity.final=0.97"],
    "taylor_1x4": [
        "sparsity/criterion=taylor",
        "sparsity/granularity=block",
        "sparsity.granularity.rows=1",
        "sparsity.granularity.columns=4",
    ],
    "block_fisher_8_updates": ["sparsity/criterion=block_fisher", "sparsity.updates=8"],
}
STUDIED = ("mrpc", "stsb", "sst2", "qnli_style")


def main() -> None:
    """Run every row that has no result yet; print the table at the end."""
    parser = job_parser(__doc__, "bench-study")
    parser.add_argument("--tasks", nargs="+", default=list(STUDIED), choices=list(STUDIED))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--epochs-times",
        type=int,
        default=1,
        help="factor of the student's epochs, such as 3 or 10",
    )
    arguments = parsed(parser)
    if not arguments.table:
        for seed in arguments.seeds:
            for task in arguments.tasks:
                for row in arguments.rows:
                    run_row(task, row, seed, arguments)
    table()


def run_row(task: str, row: str, seed: int, arguments: argparse.Namespace) -> None:
    """Run one row with one seed, unless its result exists."""
    budget = TASKS[task]
    times = arguments.epochs_times
    overrides = [
        "experiment=recovery_global",
        *([*QNLI_STYLE, *FILES] if task == "qnli_style" else [f"task={task}"]),
        f"task.path={rows_of(task, arguments.data)}",
        "model=minilm",
        f"model.path={arguments.model}",
        f"seed={seed}",
        f"trainer.max_epochs={times * budget.student}",
        f"teacher.max_epochs={budget.teacher}",
        *VALIDATION.get(task, []),
        *([] if budget.batches is None else [f"trainer.limit_train_batches={budget.batches}"]),
        f"trainer.precision={arguments.precision}",
        *ROWS[row],
    ]
    longer = f"-{times}x" if times > 1 else ""
    file = FOLDER / f"{task}-{row}{longer}-s{seed}.json"
    run_once(file, overrides, arguments.work, row=f"{row}{longer}")


def rows_of(task: str, data: Path) -> Path:
    """Return the folder of a task's rows; that of `qnli_style` may lie beside `data`."""
    if task != "qnli_style":
        return data
    return data / task if (data / task).is_dir() else data.parent / task


def table() -> None:
    """Print mean ± standard deviation over the seeds of every task and row."""
    runs: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for file in sorted(FOLDER.glob("*.json")):
        run = json.loads(file.read_text())
        runs[run["task"], run["row"]].append(run)
    rows = []
    for (task, row), found in runs.items():
        metric = METRIC.get(task, "accuracy")
        rows.append(
            (
                f"{task}: {row}",
                mean_std(run["teacher"][metric] for run in found),
                mean_std(run["student"][metric] for run in found),
                mean_std(run["student"][metric] - run["teacher"][metric] for run in found),
                str(len(found)),
                f"{sum(run['seconds']['student'] for run in found) / len(found):.0f}",
            )
        )
    columns = ("task: row", "teacher", "student", "difference", "seeds", "seconds")
    print_table("all-MiniLM-L6-v2 at 95 %, experiment=recovery_global", columns, rows)


if __name__ == "__main__":
    main()
