"""Padding of one epoch, as token slots per real token: ``make bench-padding DATA=<GLUE folder>``.

Compares batches grouped by length with random batches, and with padding every row to 128 tokens as
the reference code does. MODEL is the folder or hub id of a tokenizer.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import print_table, save

from kd_prune import hf

TASKS = {"mrpc": ("sentence1", "sentence2"), "sst2": ("sentence",)}


def slots(lengths: np.ndarray, batches: list[list[int]]) -> float:
    """Sum of padded length times rows, divided by the sum of lengths."""
    return sum(int(lengths[rows].max()) * len(rows) for rows in batches) / int(lengths.sum())


def main() -> None:
    """Measure both tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with <task>/train.parquet")
    parser.add_argument("--model", default="google-bert/bert-base-uncased")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    tokenizer = hf.PretrainedEncoder(path=arguments.model).tokenizer()
    results = {}
    for name, text in TASKS.items():
        task = hf.Task(name=name, path=arguments.data, subset=name, text=text)
        with tempfile.TemporaryDirectory() as cache:
            data = hf.load_data(task, tokenizer, Path(cache))
        lengths = np.array([len(ids) for ids in data.splits["train"]["input_ids"]])
        grouped = list(hf.LengthGroupedBatches(lengths, batch_size=arguments.batch_size))
        order = np.random.default_rng(0).permutation(len(lengths)).tolist()
        size = arguments.batch_size
        shuffled = [order[i : i + size] for i in range(0, len(order), size)]
        results[name] = {
            "rows": len(lengths),
            "grouped": slots(lengths, grouped),
            "random batches": slots(lengths, shuffled),
            "padded to 128": 128 * len(lengths) / int(lengths.sum()),
        }
    columns = ("grouped", "random batches", "padded to 128")
    print_table(
        f"token slots per real token, batches of {arguments.batch_size}",
        ("task", "rows", *columns),
        [
            (name, f"{row['rows']:,}", *(f"{row[column]:.3f}" for column in columns))
            for name, row in results.items()
        ],
    )
    save(results, "padding")


if __name__ == "__main__":
    main()
