"""Training rows that are held out: settings are chosen on them, results reported on validation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from glue import QNLI_STYLE, rows_of

from kd_prune import atomic_io

THIRD = 3


def held_out(task: str, arguments: argparse.Namespace) -> list[str]:
    """Return the settings of a task that is evaluated on a third of its training rows.

    Every third row is held out, so that both parts have the rows' order and mixture; of rows that
    were made from one text, all or none (`parts_of`).
    """
    folder = held_out_folder(task, arguments)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{task}.lock")):
        if not folder.is_dir():
            source = rows_of(task, arguments.data)
            name = "train_constructed" if task == "qnli_style" else "train"
            source = source if task == "qnli_style" else source / task
            rows = pq.read_table(source / f"{name}.parquet")
            with atomic_io.folder(folder) as scratch:
                for split, part in parts_of(task, rows).items():
                    pq.write_table(rows.take(pa.array(part)), scratch / f"{split}.parquet")
    chosen = QNLI_STYLE if task == "qnli_style" else [f"task={task}", "task.subset=null"]
    return [*chosen, f"task.path={folder}"]


def held_out_folder(task: str, arguments: argparse.Namespace) -> Path:
    """Return the folder of both parts of a task's rows."""
    folder: Path = arguments.work / "held_out" / task
    return folder


def parts_of(task: str, rows: pa.Table) -> dict[str, list[int]]:
    """Divide rows into those to train on and those held out, by index.

    QNLI-style has several questions on one paragraph and both labels of a question, so a third of
    its articles is held out. SST-2 has the sentences of a corpus together with their phrases: of
    every third sentence, all phrases are left out of training, and the sentence alone is held out.
    """
    groups: Sequence[object] = range(rows.num_rows)
    whole = set(groups)
    if task == "qnli_style":
        groups = rows["title"].to_pylist()
    if task == "sst2":
        groups = sentences_of([text.split() for text in rows["sentence"].to_pylist()])
        whole = set(groups)
    chosen = set(list(dict.fromkeys(groups))[::THIRD])
    return {
        "train": [i for i, group in enumerate(groups) if group not in chosen],
        "validation": [i for i, group in enumerate(groups) if group in chosen and i in whole],
    }


def sentences_of(texts: Sequence[Sequence[str]]) -> list[int]:
    """Return, for each text, the index of a sentence that contains it; of a sentence, its own.

    >>> sentences_of([["a", "good"], ["a", "good", "film"], ["dull"]])
    [1, 1, 2]
    """
    sentence: dict[int, int] = {}  # hash of a span of words → sentence
    found = [0] * len(texts)
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        words = tuple(texts[i])
        found[i] = sentence.get(hash(words), i)
        if found[i] == i:
            for begin in range(len(words)):
                for end in range(begin + 1, len(words) + 1):
                    sentence.setdefault(hash(words[begin:end]), i)
    return found
