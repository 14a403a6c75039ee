"""Texts without labels for a task's layer losses: the rows of another task, or plain text."""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from kd_prune import atomic_io

COLUMNS = {
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "qnli_style": ("question", "sentence"),
}
OTHER = {"mrpc": "stsb", "stsb": "mrpc"}
"""A task of the same kind, with the same columns."""
WORDS = range(5, 41)
"""Numbers of words of a sentence that is taken from plain text."""
ROWS = 6000
"""Rows of plain text: about as many as STS-B has."""


def rows_of_other(task: str, arguments: argparse.Namespace) -> list[str]:
    """Return the setting that adds the training rows of a task of the same kind.

    Raises:
        KeyError: There is no such task.
    """
    return [f"task.unlabelled=[{arguments.data / OTHER[task] / 'train.parquet'}]"]


def rows_of_text(task: str, arguments: argparse.Namespace) -> list[str]:
    """Return the setting that adds `ROWS` rows of plain text.

    A task of one text gets sentences, one of pairs a sentence and the next of its paragraph.
    """
    file: Path = arguments.work / "further_texts" / f"{task}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = COLUMNS[task]
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            rows = islice(neighbours(arguments.text, len(columns)), ROWS)
            table = pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True)))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            atomic_io.write_bytes(file, sink.getvalue().to_pybytes())
    return [f"task.unlabelled=[{file}]"]


def neighbours(folder: Path, count: int) -> Iterator[tuple[str, ...]]:
    """Yield groups of sentences that follow each other in a paragraph of a folder's text files."""
    for file in sorted(folder.glob("*.txt*")):
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            for line in lines:
                taken = [one for one in sentences(line) if len(one.split()) in WORDS]
                for i in range(0, len(taken) - count + 1, count):
                    yield tuple(taken[i : i + count])


def sentences(paragraph: str) -> list[str]:
    """Divide a paragraph after each closing mark that a capital follows.

    >>> sentences("It is 1.5 m. Really? Yes.")
    ['It is 1.5 m.', 'Really?', 'Yes.']
    """
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph.strip())
