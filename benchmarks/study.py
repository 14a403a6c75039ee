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
from collections.abc import Mapping
from pathlib import Path

from common import RESULTS, job_parser, mean_std, parsed, print_table, run_once
from further_texts import OTHER, rows_of_other, rows_of_text
from glue import METRIC, TASKS, task_of
from held_out import held_out

FOLDER = RESULTS / "study"
HELD_OUT = FOLDER / "held_out"
TAYLOR = ["sparsity/criterion=taylor"]
UNIFORM = ["sparsity/allocation=uniform"]
RELATIONS = "{_target_: kd_prune.distillation.HeadRelations, left: queries, right: keys}"
VALUES = "{_target_: kd_prune.distillation.HeadRelations, left: values, right: values}"
SQUARE_HEAD = (
    "{_target_: kd_prune.distillation.Custom, requires: [hidden_states],"
    " function: {_target_: hydra.utils.get_method, path: square_head.square_head}}"
)
DIVERGENCE = (
    "{_target_: kd_prune.distillation.Custom, requires: [attention_scores],"
    " function: {_target_: hydra.utils.get_method, path: levers.attention_divergence}}"
)
AVERAGE = "{_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.98}"
RANKING = {
    "recovery_global": [],
    "taylor": TAYLOR,  # experiment=best
    "fisher": ["sparsity/criterion=fisher"],  # w² v, v the second moment that AdamW keeps too
    "platon": ["sparsity/criterion=platon"],
    "movement": ["sparsity/criterion=movement"],
    "wanda": ["sparsity/criterion=wanda"],
    "block_fisher_8_updates": ["sparsity/criterion=block_fisher", "sparsity.updates=8"],
    "taylor_uniform": [*TAYLOR, *UNIFORM],
    "fisher_uniform": ["sparsity/criterion=fisher", *UNIFORM],
    "platon_uniform": ["sparsity/criterion=platon", *UNIFORM],
    "initial_0.3": ["sparsity.initial=0.3"],
    "admm": [
        "sparsity.update_schedule.path=kd_prune.pruning.last_update",
        "+callbacks.admm._target_=levers.ADMM",
    ],
}
"""What ranks the weights of experiment=recovery_global."""
CHANGES = {
    "0.8": ["sparsity.final=0.8"],
    "0.9": ["sparsity.final=0.9"],
    "0.97": ["sparsity.final=0.97"],
    "1x4": ["sparsity/granularity=block_1x4"],
    "initial_0.3": ["sparsity.initial=0.3"],
    "end_0.3": ["sparsity.end=0.3"],
    "end_0.5": ["sparsity.end=0.5"],
    "initial_0.3_end_0.5": ["sparsity.initial=0.3", "sparsity.end=0.5"],
    "end_0.9": ["sparsity.end=0.9"],
    "decay_0.99": ["sparsity.criterion.decay=0.99"],
    "updates_20": ["sparsity.updates=20"],
    "updates_400": ["sparsity.updates=400"],
    "regrow": ["sparsity.regrow=true"],
    "ceiling_0.97": ["sparsity.allocation.ceiling=0.97"],
    "ceiling_1": ["sparsity.allocation.ceiling=1.0"],
    "repair_20_updates": ["sparsity._target_=levers.Repair", "sparsity.updates=20"],
    "lr_1e-3": ["optimizer.lr=1e-3"],
    "lr_3e-3": ["optimizer.lr=3e-3"],
    "rewinds": ["optimizer.rewinds=[0.7]", "optimizer.floor=0.1"],
    "norms_and_biases_x5": ["+optimizer.rates={*LayerNorm.weight:5,*.bias:5}"],
    "model_dropout": ["student.dropout=null"],
    "from_teacher": ["student.init=teacher"],
    "frozen_embeddings": ["student.freeze=[embeddings]"],
    "teachers_embeddings": ["student.init=teacher", "student.freeze=[embeddings]"],
    "last_layer": [
        "distillation.terms.embeddings.weight=0",
        "distillation.terms.hidden_states.layer_map={6:6}",
        "distillation.terms.attention_scores.layer_map={6:6}",
    ],
    "no_embeddings": ["distillation.terms.embeddings.weight=0"],
    "no_hidden_states": ["distillation.terms.hidden_states.weight=0"],
    "no_attention_scores": ["distillation.terms.attention_scores.weight=0"],
    "no_soft_targets": [  # else nothing trains the head
        "distillation.terms.soft_targets.weight=0",
        "distillation.terms.hard_labels.weight=1",
    ],
    "hard_labels": ["distillation.terms.hard_labels.weight=1"],
    "relations": [
        "distillation.terms.attention_scores.weight=0",
        f"+distillation.terms.relations={RELATIONS}",
    ],
    "attention_divergence": [
        "distillation.terms.attention_scores.weight=0",
        f"+distillation.terms.divergence={DIVERGENCE}",
    ],
    "value_relations": [f"+distillation.terms.values={VALUES}"],
    "square_head": [
        "distillation.terms.hidden_states.weight=0",
        f"+distillation.terms.square_head={SQUARE_HEAD}",
    ],
    "fading_layers": ["+callbacks.fading._target_=levers.FadingLayers"],
    "sharpness_aware": ["optimizer._target_=levers.SharpnessAwareWithSchedule"],
    "augmented": ["task/augment=tinybert", "task.augment.copies=3"],
    "batch_16": ["task.batch_size=16"],
    "batch_8": ["task.batch_size=8"],
    "average": [f"+callbacks.average={AVERAGE}"],
}
"""What is changed of experiment=best."""
SPARSE_BASE = [
    "+task@stages.base.task=corpus",
    "+sparsity@stages.base.sparsity=taylor_global",
    "+distillation@stages.base.objective=layers",
    "+optimizer@stages.base.optimizer=adamw",
    "+stages.base={_target_: kd_prune.pipeline.Stage, init: pretrained, teacher: pretrained,"
    " max_epochs: null, max_steps: 500, dropout: 0.0, seed: 0}",
    "stages.base.sparsity.end=0.7",
    "stages.base.optimizer.lr=1e-3",
    "stages.base.optimizer.warmup=0.05",
    "student.init=base",
]
"""Before the task the encoder is pruned on 500 batches of plain text, as a student of itself."""
ON_TEXT = {
    "sparse_base": [*SPARSE_BASE, "sparsity=fixed"],
    "sparse_base_0.8": [
        *SPARSE_BASE,
        "stages.base.sparsity.final=0.8",
        "sparsity.initial=0.8",
        *TAYLOR,
    ],
}
"""A start that was pruned on text: to 95 %, where masks stay, or to 80 %, where they move on."""
FURTHER = {"taylor_rows_of_other": rows_of_other, "taylor_rows_of_text": rows_of_text}
"""What adds texts without labels to experiment=best, from another task or from plain text."""
ROWS = RANKING | ON_TEXT | dict.fromkeys(FURTHER, TAYLOR)
ROWS |= {f"taylor_{name}": [*TAYLOR, *change] for name, change in CHANGES.items()}
NEED_TEXT = {*ON_TEXT, "taylor_rows_of_text"}
BATCHES = {"mrpc": 115, "stsb": 180, "sst2": 700, "qnli_style": 514}
"""Batches in an epoch, to which rows with further texts are limited too."""
STUDIED = ("mrpc", "stsb", "sst2", "qnli_style")


def main() -> None:
    """Run every row that has no result yet; print the table at the end."""
    parser = job_parser(__doc__, "bench-study")
    parser.add_argument("--tasks", nargs="+", default=list(STUDIED), choices=list(STUDIED))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--text", type=Path, help="folder with a .txt, .txt.gz or .jsonl file")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--epochs-times",
        type=int,
        default=1,
        help="factor of the student's epochs, such as 3 or 10",
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="evaluate on a third of the training rows, to choose a row without validation's",
    )
    arguments = parsed(parser)
    if not arguments.table:
        rows = [row for row in arguments.rows if arguments.text or row not in NEED_TEXT]
        for row in set(arguments.rows) - set(rows):
            print(f"{row}: left out, as there is no --text")
        for seed in arguments.seeds:
            for task in arguments.tasks:
                for row in rows:
                    if row == "taylor_rows_of_other" and task not in OTHER:
                        print(f"{row}: left out on {task}, as no other task has its columns")
                    else:
                        run_row(task, row, seed, arguments)
    table(FOLDER, METRIC, "")
    held_out_metrics = {task: metric.removeprefix("test/") for task, metric in METRIC.items()}
    table(HELD_OUT, held_out_metrics, ", on held-out training rows")


def run_row(task: str, row: str, seed: int, arguments: argparse.Namespace) -> None:
    """Run one row with one seed, unless its result exists."""
    budget = TASKS[task]
    times = arguments.epochs_times
    epochs = times * budget.student
    smaller = 32 // int(row.rpartition("_")[2]) if row.startswith("taylor_batch") else 1
    if arguments.held_out:
        rows = held_out(task, arguments)
        steps = epochs * BATCHES[task] * smaller  # as many as with all rows
        length = ["trainer.max_epochs=-1", f"trainer.max_steps={steps}"]
    else:
        rows = task_of(task, arguments.data)
        length = [f"trainer.max_epochs={epochs}"]
    overrides = [
        "experiment=recovery_global",
        *rows,
        *length,
        "model=minilm",
        f"model.path={arguments.model}",
        f"seed={seed}",
        f"teacher.max_epochs={budget.teacher}",
        *([] if budget.batches is None else [f"trainer.limit_train_batches={budget.batches}"]),
        f"trainer.precision={arguments.precision}",
        *ROWS[row],
        *([f"stages.base.task.path={arguments.text}"] if row in ON_TEXT else []),
    ]
    if row in FURTHER:
        overrides += FURTHER[row](task, arguments)
    if row in FURTHER or "augmented" in row:
        overrides.append(f"trainer.limit_train_batches={BATCHES[task]}")
    if smaller > 1:  # the same teacher, and as many rows in an epoch
        overrides.append("teacher.batch_size=32")
        if budget.batches is not None:
            overrides.append(f"trainer.limit_train_batches={budget.batches * smaller}")
            overrides.append(f"+teacher.max_steps={budget.batches}")
    longer = f"-{times}x" if times > 1 else ""
    folder = HELD_OUT if arguments.held_out else FOLDER
    file = folder / f"{task}-{row}{longer}-s{seed}.json"
    work = arguments.work / "on_held_out" if arguments.held_out else arguments.work
    run_once(file, overrides, work, row=f"{row}{longer}")


def table(folder: Path, metrics: Mapping[str, str], where: str) -> None:
    """Print mean ± standard deviation over the seeds of every task and row."""
    runs: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text())
        runs[run["task"], run["row"]].append(run)
    rows = []
    for (task, row), found in runs.items():
        metric = metrics.get(task, "accuracy")
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
    if rows:
        print_table(f"all-MiniLM-L6-v2 at 95 %, experiment=recovery_global{where}", columns, rows)


if __name__ == "__main__":
    main()
