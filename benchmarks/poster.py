"""The poster's table: ``make bench-poster DATA=<folder> MODEL=<…> TEXT=<folder>``.

Every row on every task, at the share of weights it keeps in the poster and at 5 %: with the same
teacher, the same number of steps on the task (of tickets, in every round) and a common budget of
steps on plain text. First both learning rates of a row are tried on two thirds of the training rows
(their teacher too), and compared on the other third; the better one is taken for the seeds.

Writes one JSON file per run under ``benchmarks/results/poster``, and ``poster.html``, the page of a
sweep, to the work folder. A run whose file exists is not repeated; an interrupted run resumes from
its last checkpoint. Several processes share the work. Rows with a stage on plain text are left out
without ``--text``. ``--table`` only prints the results so far and writes the page.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from common import RESULTS, job_parser, mean_std, parsed, print_table, run_once
from glue import METRIC, TASKS, task_of
from held_out import held_out, held_out_folder
from poster_page import write_figure
from poster_rows import ROWS, at_rate, overrides, shares

from kd_prune.hf import PretrainedEncoder
from kd_prune.hf.kinds import Classification
from kd_prune.hf.layers import encoder_scope
from kd_prune.lit import NonFiniteError
from kd_prune.results import RunResult

FOLDER = RESULTS / "poster"
SEEDS = {"mrpc": [1, 2, 3]}
"""Seeds of a task; of the others, the first."""
STEPS = {"mrpc": 920, "qnli_style": 1024, "stsb": 1440, "sst2": 1400, "rte": 1248, "cola": 2144}
"""Steps of every row on a task."""
BATCH_SIZE = 8
"""Rows of a step: with a quarter of the usual 32, four times as many steps see as many rows."""


def main() -> None:
    """Run every row that has no result yet; print the table at the end."""
    parser = job_parser(__doc__, "bench-poster")
    parser.add_argument("--text", type=Path, help="folder with a .txt, .txt.gz or .jsonl file")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "qnli_style"], choices=list(TASKS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of three on MRPC")
    parser.add_argument(
        "--first-share", action="store_true", help="only at the share of weights in the poster"
    )
    parser.add_argument("--pretraining-steps", type=int, default=500)
    parser.add_argument(
        "--settings",
        nargs="*",
        default=[],
        help="further overrides of every run, for a trial that is kept apart from the table",
    )
    arguments = parsed(parser)
    if arguments.text is not None and not arguments.text.is_dir():
        parser.error(f"--text={arguments.text}: no such folder")
    if not arguments.table:
        run_rows(arguments)
    runs = results()
    table(runs)
    write_figure(runs, METRIC, arguments.work / "poster.html")


def run_rows(arguments: argparse.Namespace) -> None:
    """Run all rows with their first seed, then with the next."""
    rows = [row for row in arguments.rows if arguments.text is not None or not ROWS[row].text]
    for row in set(arguments.rows) - set(rows):
        print(f"{row}: left out, as there is no --text")
    seeds = {task: arguments.seeds or SEEDS.get(task, [1]) for task in arguments.tasks}
    for round_ in range(max(map(len, seeds.values()))):
        for task in arguments.tasks:
            for row in rows:
                for kept in shares(row, task)[: 1 if arguments.first_share else None]:
                    for seed in seeds[task][round_ : round_ + 1]:
                        run_row(task, row, kept, seed, arguments)


def run_row(task: str, row: str, kept: float, seed: int, arguments: argparse.Namespace) -> None:
    """Choose the learning rate of a row, and run a seed, as far as no result exists."""
    name = f"{task}-{row.replace('/', '_')}-{kept:g}"
    common = [*of_row(task, row, kept, arguments), *arguments.settings]
    extra = {"row": row, "kept_in_table": kept}
    folder = FOLDER / "trial" if arguments.settings else FOLDER
    trials = {}
    for rate in ROWS[row].rates:
        file = folder / "rates" / f"{name}-lr{rate}.json"
        given = [*held_out(task, arguments), *common, *at_rate(row, rate), "seed=1"]
        run_or_fail(file, given, arguments.work / "rates", **extra)
        if not file.is_file():
            return  # another process runs it; the table is completed by the next command
        trials[rate] = json.loads(file.read_text())
    labels = pq.read_table(held_out_folder(task, arguments) / "validation.parquet")["label"]
    positives = sum(label == 1 for label in labels.to_pylist()) / len(labels)
    rate = max(trials, key=lambda rate: value_of(trials[rate], positives))
    given = [*task_of(task, arguments.data), *common, *at_rate(row, rate), f"seed={seed}"]
    run_or_fail(folder / f"{name}-s{seed}.json", given, arguments.work, rate=rate, **extra)


def value_of(trial: dict[str, Any], positives: float) -> float:
    """Return the metric by which two learning rates are compared; a failed run is the worst.

    Of MRPC, whose majority class has 69 % of the rows, it is Matthews' correlation: one answer for
    all rows, which is often the more accurate one at 5 %, is worth 0 there.
    """
    metrics = trial["student"]
    if not metrics:
        return -1.0
    if "f1" in metrics:
        return matthews(metrics["accuracy"], metrics["f1"], positives)
    return next(iter(metrics.values()))


def matthews(accuracy: float, f1: float, positives: float) -> float:
    """Compute Matthews' correlation from accuracy, F1 and the share of positive rows.

    ``F1 = 2 TP / (2 TP + errors)`` gives the true positives, and these the other three cells.
    """
    errors = 1.0 - accuracy
    true_positives = f1 * errors / (2.0 - 2.0 * f1) if f1 < 1.0 else positives
    false_negatives = positives - true_positives
    false_positives = errors - false_negatives
    true_negatives = accuracy - true_positives
    found = true_positives + false_positives
    square = positives * (1.0 - positives) * found * (1.0 - found)
    if square < 1e-6:  # one answer for all rows, up to rounding
        return 0.0
    product = true_positives * true_negatives - false_positives * false_negatives
    return float(product / square**0.5)


def run_or_fail(file: Path, given: list[str], work: Path, **extra: Any) -> None:
    """Run a job; of one whose loss is no number any more, the file says so."""
    try:
        run_once(file, given, work, measure=encoder_shares, **extra)
    except NonFiniteError as error:
        file.parent.mkdir(parents=True, exist_ok=True)
        failed = {"failed": error.found, "student": {}, "teacher": {}, "overrides": []}
        file.write_text(json.dumps(failed | extra, indent=1) + "\n")


def encoder_shares(result: RunResult, out: Path) -> dict[str, Any]:
    """Count the weights of the encoder's matrices that are left, and those of the teacher's.

    The metrics of all stages are kept too: those on plain text tell how well a model guesses words.
    """
    teacher = result.teacher
    assert teacher is not None  # every job has one
    counts = {}
    for name, path in {"left": out / "student", "dense": Path(teacher.path)}.items():
        model = PretrainedEncoder(path=str(path)).load(kind=Classification(), num_outputs=0)
        weights = encoder_scope(model).select(model).values()
        counts[name] = sum(int(weight.count_nonzero()) for weight in weights)
    stages = {name: dict(stage.metrics) for name, stage in result.stages.items()}
    return {"encoder": counts, "kept": counts["left"] / counts["dense"], "stages": stages}


def of_row(task: str, row: str, kept: float, arguments: argparse.Namespace) -> list[str]:
    """Return the settings of a row that do not depend on seed, rate and place of the data."""
    budget = TASKS[task]
    text = [
        "task@pretraining.task=corpus_words",
        f"pretraining.task.path={arguments.text}",
        *(f"+stages.{stage}.seed=0" for stage in ROWS[row].text),  # one for all seeds
        # Some hundred steps on text that is read once: nothing to regularize.
        *(f"stages.{stage}.dropout=0" for stage in ROWS[row].text),
    ]
    return [
        *overrides(row, task, kept, STEPS[task], arguments.pretraining_steps),
        *(text if ROWS[row].text else []),
        "model=minilm",
        f"model.path={arguments.model}",
        f"task.batch_size={BATCH_SIZE}",
        "teacher.batch_size=32",
        f"teacher.max_epochs={budget.teacher}",
        "teacher.optimizer.lr=1e-4",
        "optimizer.warmup=0.05",
        *([] if budget.batches is None else [f"trainer.limit_train_batches={budget.batches}"]),
        f"trainer.precision={arguments.precision}",
    ]


def results() -> list[dict[str, Any]]:
    """Read the figures of all runs of the table."""
    return [json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))]


def table(runs: list[dict[str, Any]]) -> None:
    """Print mean ± standard deviation over the seeds of every task, row and share."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        if "failed" not in run:
            groups[run["task"], run["row"], run["kept_in_table"]].append(run)
    lines = []
    for (task, row, _), found in groups.items():
        metric = METRIC.get(task, "accuracy")
        poster = dict(zip(("mrpc", "qnli_style"), ROWS[row].poster, strict=True)).get(task)
        lines.append(
            (
                f"{task}: {row}",
                f"{100 * found[0]['kept']:.1f}",
                mean_std(run["student"][metric] for run in found),
                mean_std(run["student"][metric] - run["teacher"][metric] for run in found),
                str(len(found)),
                found[0]["rate"],
                f"{sum(map(seconds_of, found)) / len(found):.0f}",
                f"{poster:g}" if poster else "–",
            )
        )
    lines.sort(key=lambda line: line[0].split(":")[0])
    columns = ("task: row", "kept, %", "student", "difference", "seeds", "rate", "s", "poster")
    print_table("The poster's systems, all-MiniLM-L6-v2", columns, lines)


def seconds_of(run: dict[str, Any]) -> float:
    """Return the time of a row's own stages on the task, without the teacher and those on text."""
    shared = {"data", "evaluation", "teacher", *ROWS[run["row"]].text}
    return sum(seconds for stage, seconds in run["seconds"].items() if stage not in shared)


if __name__ == "__main__":
    main()
