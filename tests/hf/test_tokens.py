"""Tokens: what they are, when they are found again."""

from __future__ import annotations

import copy
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer

from kd_prune.hf import load_data
from kd_prune.hf.tokens import MOST_BYTES, rows_hash
from kd_prune.source_hash import source_hash

from .helpers import TEXTS, labels_of, rows, task, write


def test_tokens_of_a_pair_of_texts(tmp_path, tokenizer):
    table = [{"a": "the old fox", "b": "first", "label": i % 2} for i in range(2)]
    for split in ("train", "validation"):
        write(tmp_path, split, table)
    found = load_data(task(tmp_path, text=["a", "b"]), tokenizer, tmp_path / "cache")
    assert found.splits["train"]["input_ids"][0] == tokenizer("the old fox", "first")["input_ids"]
    assert max(found.splits["train"]["token_type_ids"][0]) == 1


def test_missing_text_is_read_as_empty(tmp_path, tokenizer, caplog):
    for split, text in (("train", None), ("validation", "")):
        write(tmp_path, split, rows([0, 1], [text, *TEXTS[1:]]))
    found = load_data(task(tmp_path), tokenizer, tmp_path / "cache")
    assert caplog.messages == [
        "task.text=text: 1 of 2 rows of the train split have none; it is read as empty"
    ]
    assert found.splits["train"]["input_ids"][0] == tokenizer("")["input_ids"]


def test_tokenizer_written_in_python_has_a_stable_fingerprint(folder, tokenizer, tmp_path):
    from transformers import BertweetTokenizer

    (tmp_path / "words").mkdir()
    (tmp_path / "words/vocab.txt").write_text("fox 3\noak 2\n")
    keys = []
    for merges in ("f o 2\nfo x 1\n", "o x 1\n"):
        (tmp_path / "words/bpe.codes").write_text(merges)
        files = [str(tmp_path / "words" / name) for name in ("vocab.txt", "bpe.codes")]
        slow = BertweetTokenizer(*files)
        first, again = (load_data(task(folder), slow, tmp_path / "cache") for _ in range(2))
        assert first.fingerprint == again.fingerprint
        keys.append(first.fingerprint)
        slow.init_kwargs["local_files_only"] = slow.init_kwargs["is_local"] = True
        assert load_data(task(folder), slow, tmp_path / "cache").fingerprint == keys[-1]
    assert keys[0] != keys[1]
    assert load_data(task(folder), tokenizer, tmp_path / "cache").rows == first.rows


def test_tokens_are_found_again(folder, tokenizer, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    fresh = AutoTokenizer.from_pretrained(tokenizer.name_or_path)  # using one leaves traces in it
    first = load_data(task(folder), fresh, cache)
    made = sorted((cache / "tokens").glob("*/*/"))
    assert len(made) == 2
    shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.setattr(Dataset, "map", None)  # tokenising anew would fail
    second = load_data(task(tmp_path / "elsewhere"), tokenizer, cache)
    assert second.fingerprint == first.fingerprint
    assert second.splits["train"][:] == first.splits["train"][:]
    assert sorted((cache / "tokens").glob("*/*/")) == made


def test_tokens_of_other_code_are_made_again(folder, tokenizer, tmp_path, monkeypatch):
    """A run that goes on after an update has the same data, but takes no old tokens."""
    cache = tmp_path / "cache"
    first = load_data(task(folder), tokenizer, cache)
    monkeypatch.setattr("kd_prune.hf.data.source_hash", lambda *parts: "other")
    assert load_data(task(folder), tokenizer, cache).fingerprint == first.fingerprint
    assert len(list((cache / "tokens").iterdir())) == 2


def test_source_hash_is_that_of_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr("kd_prune.source_hash.PACKAGE", tmp_path)
    (tmp_path / "part" / "inner").mkdir(parents=True)
    (tmp_path / "other.py").touch()
    part, both = [], []
    for name in ("part/a.py", "part/inner/b.py", "other.py"):
        (tmp_path / name).write_text(name)
        part.append(source_hash.__wrapped__("part"))
        both.append(source_hash.__wrapped__("part", "other.py"))
    assert (len(set(part)), len(set(both))) == (2, 3)  # the third file is in both only


def test_hash_of_rows_does_not_depend_on_how_they_lie_in_memory(monkeypatch):
    """Strings of more than 2 GiB are hashed as another type; short ones stand for them here."""
    whole = Dataset.from_dict({"text": ["a", "bc", None, "d"]})
    parts = concatenate_datasets([whole.select(range(2)), whole.select(range(2, 4))])
    for most in (MOST_BYTES, 1):
        monkeypatch.setattr("kd_prune.hf.tokens.MOST_BYTES", most)
        assert rows_hash(parts, [1]) == rows_hash(whole, [1]) != rows_hash(whole, [2])


def test_segments_are_made_for_another_model(folder, tokenizer, tmp_path):
    none = copy.deepcopy(tokenizer)
    none.model_input_names = ["input_ids", "attention_mask"]
    for split in ("train", "validation"):
        write(folder, split, [row | {"other": "the fox"} for row in rows([0, 1, 1, 0, 1, 0])])
    pairs = task(folder, text=["text", "other"])
    theirs, ours = (
        load_data(pairs, tokenizer, tmp_path),
        load_data(pairs, none, tmp_path, segments=True),
    )
    assert ours.splits["train"][:] == theirs.splits["train"][:]
    assert max(ours.splits["train"][0]["token_type_ids"]) == 1
    assert "token_type_ids" not in load_data(pairs, none, tmp_path).splits["train"].column_names


def test_fingerprint_depends_on_the_use_of_each_split(folder, tokenizer, tmp_path):
    splits = ["validation"], ["train", "validation"], ["validation", "train"]
    prints = [
        load_data(task(folder, validation=v), tokenizer, tmp_path).fingerprint for v in splits
    ]
    assert len(set(prints)) == 3


CHANGES = ["text", "labels", "names", "tokenizer", "inputs", "max_length", "padding", "nothing"]


@pytest.mark.parametrize("change", CHANGES)
def test_tokens_are_made_again_after_a_change(folder, tokenizer, tmp_path, change):
    cache = tmp_path / "cache"
    before = load_data(task(folder), tokenizer, cache)
    labels, texts, max_length = [0, 1, 1, 0, 1, 0], TEXTS, 16
    if change == "text":
        texts = [*TEXTS[:5], "plum"]
    elif change == "labels":
        labels = [0, 1, 1, 0, 1, 1]
    elif change == "tokenizer":
        other = tmp_path / "tokenizer"
        tokenizer.save_pretrained(other)
        tokenizer = AutoTokenizer.from_pretrained(other)
        tokenizer.add_tokens(["unheard"])
    elif change == "inputs":  # the same words, for a model that reads no segments
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    elif change == "padding":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "left"
    elif change == "max_length":
        max_length = 4
    write(folder, "train", rows(labels, texts))
    names = ["no", "yes"] if change == "names" else None
    after = load_data(task(folder, max_length=max_length, labels=names), tokenizer, cache)
    assert (after.fingerprint == before.fingerprint) == (change == "nothing")
    if change == "text":
        assert after.splits["train"][5]["input_ids"] == tokenizer("plum")["input_ids"]
    if change == "labels":
        assert labels_of(after) == labels
    has_segments = "token_type_ids" in after.splits["train"].column_names
    assert has_segments == (change != "inputs")
    if change == "max_length":
        assert max(map(len, after.splits["train"]["input_ids"])) == 4


def test_jobs_that_begin_at_once_tokenise_once(folder, tokenizer, tmp_path, monkeypatch):
    made, real = [], task(folder).kind.__class__.encode

    def encode(self, *args):
        time.sleep(0.2)
        made.append(1)
        return real(self, *args)

    monkeypatch.setattr(task(folder).kind.__class__, "encode", encode)
    with ThreadPoolExecutor(2) as jobs:
        runs = [
            jobs.submit(load_data, task(folder), tokenizer, tmp_path / "cache") for _ in range(2)
        ]
    assert len(made) == 2  # one batch for each of the two splits
    one, other = (run.result() for run in runs)
    assert one.splits["train"][:] == other.splits["train"][:]


def test_tokens_made_twice_at_once_are_kept_once(folder, tokenizer, tmp_path, monkeypatch):
    """Where locks do not work two processes tokenise a split at once: one folder, no litter."""
    cache = tmp_path / "cache"
    expected = load_data(task(folder), tokenizer, tmp_path / "other")
    real, seen = Dataset.save_to_disk, []

    def save_after_the_winner(self, path, **options):
        real(self, path, **options)
        winner = Path(path).with_name(Path(path).name.split(".")[0])
        seen.append(winner)
        shutil.copytree(path, winner)

    monkeypatch.setattr(Dataset, "save_to_disk", save_after_the_winner)
    found = load_data(task(folder), tokenizer, cache)
    assert found.splits["train"][:] == expected.splits["train"][:]
    assert sorted((cache / "tokens").glob("*/*/")) == sorted(seen)
