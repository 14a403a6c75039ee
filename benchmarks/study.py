"""What brings a student at 95 % nearer to its teacher: ``make bench-study DATA=… MODEL=…``.

The first rows change one thing of ``experiment=recovery_global``, above all what ranks the weights.
``taylor`` is ``experiment=best``, and the rows after it change one thing of that.

Writes one JSON file per run under ``benchmarks/results/study``. A run whose file exists is not
repeated; an interrupted run resumes from its last checkpoint. ``--table`` only prints the results
so far.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from common import RESULTS, job_parser, mean_std, parsed, print_table, run_once
from glue import FILES, METRIC, QNLI_STYLE, TASKS, VALIDATION

FOLDER = RESULTS / "study"
TAYLOR = ["sparsity/criterion=taylor"]
UNIFORM = ["sparsity/allocation=uniform"]
RELATIONS = "{_target_: kd_prune.distillation.HeadRelations, left: queries, right: keys}"
VALUES = "{_target_: kd_prune.distillation.HeadRelations, left: values, right: values}"
SQUARE_HEAD = (
    "{_target_: kd_prune.distillation.Custom, requires: [hidden_states],"
    " function: {_target_: hydra.utils.get_method, path: square_head.square_head}}"
)
AVERAGE = "{_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.98}"
RANKING = {
    "recovery_global": [],
    "taylor": TAYLOR,  # experiment=best
    "fisher": ["sparsity/criterion=fisher"],
    "platon": ["sparsity/criterion=platon"],
    "movement": ["sparsity/criterion=movement"],
    "wanda": ["sparsity/criterion=wanda"],
    "block_fisher_8_updates": ["sparsity/criterion=block_fisher", "sparsity.updates=8"],
    "taylor_uniform": [*TAYLOR, *UNIFORM],
    "fisher_uniform": ["sparsity/criterion=fisher", *UNIFORM],
    "platon_uniform": ["sparsity/criterion=platon", *UNIFORM],
    "initial_0.3": ["sparsity.initial=0.3"],
}
"""What ranks the weights of experiment=recovery_global."""
CHANGES = {
    "0.8": ["sparsity.final=0.8"],
    "0.9": ["sparsity.final=0.9"],
    "0.97": ["sparsity.final=0.97"],
    "1x4": ["sparsity/granularity=block_1x4"],
    "initial_0.3": ["sparsity.initial=0.3"],
    "end_0.5": ["sparsity.end=0.5"],
    "end_0.9": ["sparsity.end=0.9"],
    "decay_0.99": ["sparsity.criterion.decay=0.99"],
    "lr_1e-3": ["optimizer.lr=1e-3"],
    "lr_3e-3": ["optimizer.lr=3e-3"],
    "rewinds": ["optimizer.rewinds=[0.7]", "optimizer.floor=0.1"],
    "model_dropout": ["student.dropout=null"],
    "from_teacher": ["student.init=teacher"],
    "frozen_embeddings": ["student.freeze=[embeddings]"],
    "teachers_embeddings": ["student.init=teacher", "student.freeze=[embeddings]"],
    "no_embeddings": ["distillation.terms.embeddings.weight=0"],
    "no_hidden_states": ["distillation.terms.hidden_states.weight=0"],
    "no_attention_scores": ["distillation.terms.attention_scores.weight=0"],
    "no_soft_targets": ["distillation.terms.soft_targets.weight=0"],
    "hard_labels": ["distillation.terms.hard_labels.weight=1"],
    "relations": [
        "distillation.terms.attention_scores.weight=0",
        f"+distillation.terms.relations={RELATIONS}",
    ],
    "value_relations": [f"+distillation.terms.values={VALUES}"],
    "square_head": [
        "distillation.terms.hidden_states.weight=0",
        f"+distillation.terms.square_head={SQUARE_HEAD}",
    ],
    "augmented": ["task/augment=tinybert", "task.augment.copies=3"],
    "batch_16": ["task.batch_size=16"],
    "batch_8": ["task.batch_size=8"],
    "average": [f"+callbacks.average={AVERAGE}"],
}
"""What is changed of experiment=best."""
ROWS = RANKING | {f"taylor_{name}": [*TAYLOR, *change] for name, change in CHANGES.items()}
BATCHES = {"mrpc": 115, "stsb": 180, "sst2": 700, "qnli_style": 514}
"""Batches in an epoch, to which rows with augmented texts are limited too."""
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
        *([f"trainer.limit_train_batches={BATCHES[task]}"] if "augmented" in row else []),
    ]
    if row.startswith("taylor_batch"):  # the same teacher, and as many rows in an epoch
        overrides.append("teacher.batch_size=32")
        if budget.batches is not None:
            batches = budget.batches * 32 // int(row.rpartition("_")[2])
            overrides.append(f"trainer.limit_train_batches={batches}")
            overrides.append(f"+teacher.max_steps={budget.batches}")
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
