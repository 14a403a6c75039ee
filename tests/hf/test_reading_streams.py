"""Reading of the first rows of a training split, without the rest of it."""

from __future__ import annotations

import gzip

import pytest
from datasets import Dataset, IterableDataset

from kd_prune.errors import ConfigError
from kd_prune.hf import Text, reading
from kd_prune.hf.reading import read_splits

from .helpers import TEXTS, rows, task, write

LABELS = [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "json"])
@pytest.mark.parametrize("count", [1, 4, 100])
def test_first_rows_are_those_of_the_whole_split(tmp_path, suffix, count):
    for split in ("train", "validation"):
        write(tmp_path / "data", split, rows(LABELS), suffix)
    whole, first = (
        read_splits(task(tmp_path / "data", train_rows=wanted), tmp_path / "cache")
        for wanted in (None, count)
    )
    assert first["train"].to_list() == whole["train"].to_list()[:count]
    assert first["train"].features == whole["train"].features
    assert first["validation"].to_list() == whole["validation"].to_list()


def test_first_lines_of_a_compressed_text_are_not_blank(tmp_path):
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "train.txt.gz", "wt") as file:
        file.write("\n\n".join(TEXTS))
    text = {"kind": Text(), "metrics": [], "monitor": "loss", "holdout": 1}
    found = read_splits(task(tmp_path / "data", train_rows=4, **text), tmp_path / "cache")
    assert list(found["train"]["text"]) == TEXTS[:3]
    assert list(found["validation"]["text"]) == TEXTS[3:4]


def test_rows_of_the_hub_are_streamed_and_the_rest_is_not_read(tmp_path, monkeypatch):
    read = []

    def source():
        for i in range(10_000):
            read.append(i)
            yield {"text": f"row {i}", "label": i % 2}

    def load(path, name=None, *, split, streaming=False, **settings):
        assert (path, name) == ("someone/corpus", None)
        assert streaming == (split == "train")
        return IterableDataset.from_generator(source) if streaming else Dataset.from_list(rows([0]))

    monkeypatch.setattr(reading, "load_dataset", load)
    found = read_splits(task("someone/corpus", train_rows=5), tmp_path / "cache")
    assert list(found["train"]["text"]) == [f"row {i}" for i in range(5)]
    assert len(read) < 20


def test_fewer_than_one_row_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="train_rows=0: expected at least 1"):
        task(tmp_path, train_rows=0)
