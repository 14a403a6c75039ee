"""Rows and tasks that the tests of data share."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kd_prune.hf import Regression, Task

REGRESSION = {"kind": Regression(), "metrics": ["pearson"], "monitor": "pearson"}


TEXTS = ["the old fox", "hammer", "the small green canoe and the lute", "zinc", "oak", "pear"]


def rows(labels, texts=TEXTS):
    return [{"text": texts[i % 6], "label": label} for i, label in enumerate(labels)]


def write(folder: Path, split: str, table: list[dict], suffix: str = "jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(table), file)
    elif suffix in ("csv", "tsv"):
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, table[0], delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(table)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in table))


def task(path, **settings):
    return Task(**({"name": "t", "path": str(path), "text": ["text"], "max_length": 16} | settings))


def labels_of(tokens, split="train"):
    return list(tokens.splits[split]["labels"])
