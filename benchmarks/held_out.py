"""Training rows that are held out: settings are chosen on them, results reported on validation."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from glue import QNLI_STYLE, rows_of


def held_out(task: str, arguments: argparse.Namespace, every: int) -> list[str]:
    """Return the settings of a task that is evaluated on a part of its training rows.

    Row 0, `every`, 2 · `every`, … is held out, so that both parts have the rows' order and mixture.
    """
    folder = held_out_folder(task, arguments)
    if not (folder / "validation.parquet").is_file():
        source = rows_of(task, arguments.data)
        name = "train_constructed" if task == "qnli_style" else "train"
        source = source if task == "qnli_style" else source / task
        rows = pq.read_table(source / f"{name}.parquet")
        index = range(rows.num_rows)
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in {
            "train": [i for i in index if i % every],
            "validation": [i for i in index if i % every == 0],
        }.items():  # the validation split last: its presence says that both are there
            pq.write_table(rows.take(pa.array(part)), folder / f"{split}.parquet")
    chosen = QNLI_STYLE if task == "qnli_style" else [f"task={task}", "task.subset=null"]
    return [*chosen, f"task.path={folder}"]


def held_out_folder(task: str, arguments: argparse.Namespace) -> Path:
    """Return the folder of both parts of a task's rows."""
    folder: Path = arguments.work / "held_out" / task
    return folder
