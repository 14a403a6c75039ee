"""Data: every format and kind of label, every refusal, the token cache and the batches."""

from __future__ import annotations

import copy
import csv
import datetime
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kd_prune.hf import Task, data, load, loaders
from kd_prune.hf.data import (
    Classes,
    LengthGroupedBatches,
    ResumableLoader,
    read_csv,
    target_values,
    validation_batches,
)
from kd_prune.hf.tiny import make_model

TEXTS = ["the old fox", "hammer", "the small green canoe and the lute", "zinc", "oak", "pear"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = make_model(str(tmp_path_factory.mktemp("tiny")), layers=1, hidden_size=16, heads=2)
    return AutoTokenizer.from_pretrained(folder)


def rows(labels, texts=TEXTS):
    return [{"text": texts[i % 6], "label": label} for i, label in enumerate(labels)]


def write(folder: Path, split: str, table: list[dict], suffix: str = "jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(table), file)
    elif suffix == "csv":
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, table[0])
            writer.writeheader()
            writer.writerows(table)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in table))


def task(path, **settings):
    return Task(**({"name": "t", "path": str(path), "text": ["text"], "max_length": 16} | settings))


def labels_of(tokens, split="train"):
    return list(tokens.splits[split]["labels"])


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data", "train", rows([0, 1, 1, 0, 1, 0]))
    write(tmp_path / "data", "validation", rows([1, 0]))
    return tmp_path / "data"


# What is read


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "json"])
def test_local_formats(tmp_path, tokenizer, suffix):
    for split, labels in (("train", [0, 1, 1]), ("validation", [1, 0])):
        write(tmp_path, split, rows(labels), suffix)
    found = load(task(tmp_path), tokenizer, tmp_path / "cache")
    assert found.labels == ("0", "1")
    assert (labels_of(found), labels_of(found, "validation")) == ([0, 1, 1], [1, 0])
    assert found.splits["train"]["input_ids"][0] == tokenizer("the old fox")["input_ids"]


def test_a_folder_whose_name_is_a_pattern(tmp_path, tokenizer):
    for split in ("train", "validation"):
        write(tmp_path / "set [1]*", split, rows([0, 1, 1]))
        write(tmp_path / "set 1", split, rows([1, 0, 0]))
    found = load(task(tmp_path / "set [1]*"), tokenizer, tmp_path / "cache")
    assert labels_of(found) == [0, 1, 1]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_truncated_file_is_named_in_one_line(tmp_path, tokenizer, folder, suffix, capfd, caplog):
    (folder / "train.jsonl").unlink()
    write(folder, "train", rows([0, 1, 1]), suffix)
    file = folder / f"train.{suffix}"
    file.write_bytes(file.read_bytes()[:-20])
    says = (
        rf"^task\.path={folder}: {file} cannot be read \(.*\); make it anew, or name another: .*$"
    )
    with pytest.raises(ValueError, match=says):
        load(task(folder), tokenizer, tmp_path / "cache")
    assert not caplog.records
    assert "rror" not in "".join(capfd.readouterr())


def test_pairs_of_texts(tmp_path, tokenizer):
    table = [{"a": "the old fox", "b": "first", "label": i % 2} for i in range(2)]
    for split in ("train", "validation"):
        write(tmp_path, split, table)
    found = load(task(tmp_path, text=["a", "b"]), tokenizer, tmp_path / "cache")
    assert found.splits["train"]["input_ids"][0] == tokenizer("the old fox", "first")["input_ids"]
    assert max(found.splits["train"]["token_type_ids"][0]) == 1


def test_a_subset_is_a_subfolder(folder, tokenizer, tmp_path):
    for split in ("train", "validation"):
        write(folder / "sub", split, rows([2, 1, 0]))
    found = load(task(folder, subset="sub"), tokenizer, tmp_path / "cache")
    assert labels_of(found) == [2, 1, 0]
    found = load(task(folder, subset="not_there"), tokenizer, tmp_path / "cache")
    assert labels_of(found) == [0, 1, 1, 0, 1, 0]


def test_files_by_name(folder, tokenizer, tmp_path):
    (folder / "validation.jsonl").rename(folder / "dev.json")
    found = load(task(folder, files={"validation": "dev.json"}), tokenizer, tmp_path / "cache")
    assert labels_of(found, "validation") == [1, 0]


@pytest.mark.parametrize(
    ("labels", "settings", "names", "targets"),
    [
        ([2, 0, 2], {}, ("0", "2"), [1, 0, 1]),
        (["no", "yes", "no"], {}, ("no", "yes"), [0, 1, 0]),
        (["no", "yes", "no"], {"labels": ["yes", "no"]}, ("yes", "no"), [1, 0, 1]),
        ([1, 0, 1], {"labels": ["bad", "good"]}, ("bad", "good"), [1, 0, 1]),
        ([True, False, True], {}, ("False", "True"), [1, 0, 1]),
        ([True, False, True], {"labels": ["true", "false"]}, ("true", "false"), [0, 1, 0]),
        ([True, False, True], {"labels": ["bad", "good"]}, ("bad", "good"), [1, 0, 1]),
        (["Yes", "no", " YES"], {"labels": ["yes", "no"]}, ("yes", "no"), [0, 1, 0]),
        (["a", "A", "b"], {}, ("A", "a", "b"), [1, 0, 2]),
        ([2, 1, 4], {}, ("1", "2", "4"), [1, 0, 2]),
        ([0, 10**15, 0], {}, ("0", str(10**15)), [0, 1, 0]),
        ([2, 1, 5], {"labels": ["1", "2", "3", "4", "5"]}, ("1", "2", "3", "4", "5"), [1, 0, 4]),
        ([4, 1, 2], {"labels": ["1", "2", "3", "4", "5"]}, ("1", "2", "3", "4", "5"), [3, 0, 1]),
        ([1.0, 2.0, 1.0], {"labels": ["2", "1"]}, ("2", "1"), [1, 0, 1]),
        ([1.0, 0.0, 1.0], {}, ("0", "1"), [1, 0, 1]),
        ([0.5, 4.0, 3.25], {"regression": True}, (), [0.5, 4.0, 3.25]),
        ([1, 0, 5], {"regression": True}, (), [1.0, 0.0, 5.0]),
        (["1.5", "2", "3"], {"regression": True}, (), [1.5, 2.0, 3.0]),
    ],
)
def test_kinds_of_labels(tmp_path, tokenizer, labels, settings, names, targets):
    for split in ("train", "validation"):
        write(tmp_path, split, rows(labels))
    settings = {"metrics": ["pearson"], "monitor": "pearson"} | settings
    chosen = task(tmp_path, **settings)
    found = load(chosen, tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (names, targets)
    assert found.num_labels == (len(names) or 1)
    batch = next(iter(loaders(chosen, found, tokenizer, seed=0)[0]))
    assert batch["labels"].dtype == (torch.float32 if chosen.regression else torch.int64)


def test_class_names_from_the_data(tmp_path, tokenizer):
    """As the hub has them; the order is the data's, not the alphabet's."""
    kinds = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    for split in ("train", "validation"):
        Dataset.from_list(rows([1, 0, 0]), features=kinds).to_parquet(tmp_path / f"{split}.parquet")
    found = load(task(tmp_path), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("yes", "no"), [1, 0, 0])
    # Named otherwise, they are what they are declared to be, in another order;
    found = load(task(tmp_path, labels=["no", "yes"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("no", "yes"), [0, 1, 1])
    # names of one's own take their place,
    found = load(task(tmp_path, labels=["good", "bad"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("good", "bad"), [1, 0, 0])
    # in whatever case;
    found = load(task(tmp_path, labels=["NO", "Yes"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("NO", "Yes"), [0, 1, 1])
    # and a file that declares nothing means what the training split declares.
    write(tmp_path, "plain", rows([1, 0]), "csv")
    chosen = task(tmp_path, labels=["no", "yes"], validation=["plain"])
    found = load(chosen, tokenizer, tmp_path / "cache")
    assert labels_of(found, "plain") == [0, 1]


@pytest.mark.parametrize(
    ("train", "numbers", "targets"),
    [(["no", "yes"], [1, 0], [1, 0]), (["1", "2"], [2, 1], [1, 0])],
)
def test_whole_numbers_beside_a_split_of_text(tmp_path, tokenizer, train, numbers, targets):
    """Indices, unless the names are numbers themselves."""
    write(tmp_path, "train", rows(train))
    write(tmp_path, "validation", rows(numbers))
    found = load(task(tmp_path), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found, "validation")) == (tuple(train), targets)


def test_a_missing_text_is_an_empty_one(tmp_path, tokenizer, caplog):
    for split, text in (("train", None), ("validation", "")):
        write(tmp_path, split, rows([0, 1], [text, *TEXTS[1:]]))
    found = load(task(tmp_path), tokenizer, tmp_path / "cache")
    assert caplog.messages == [
        "task.text=text: 1 of 2 rows of the train split have none; it is read as empty"
    ]
    assert found.splits["train"]["input_ids"][0] == tokenizer("")["input_ids"]


def test_a_csv_is_read_as_it_is_written(tmp_path, tokenizer):
    """Readers that guess take "null" for nothing, 007 for 7, and an empty column for numbers."""
    lines = ["text,more,label", "null,,01", "NA,,02", "007,,None", "1.0,,01"]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    found = load(task(tmp_path, text=["text", "more"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("01", "02", "None"), [0, 1, 2, 0])
    assert list(read_csv(tmp_path / "train.csv", task(tmp_path))["text"]) == [
        "null", "NA", "007", "1.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "settings", "names", "targets"),
    [
        (["0", "1", "0"], {"labels": ["bad", "good"]}, ("bad", "good"), [0, 1, 0]),
        (["10", "9", "9"], {}, ("9", "10"), [1, 0, 0]),
        (["True", "False", "True"], {"labels": ["True", "False"]}, ("True", "False"), [0, 1, 0]),
        (["1.0", "2.", "1.0"], {}, ("1", "2"), [0, 1, 0]),
        (["0", " 1", "1"], {}, ("0", "1"), [0, 1, 1]),
        ([str(2**53), str(2**53 + 1), str(2**53)], {}, (str(2**53), str(2**53 + 1)), [0, 1, 0]),
        (["0.5", "1e-1", "-3"], {"regression": True}, (), [0.5, 0.1, -3.0]),
    ],
)
def test_labels_of_a_csv(tmp_path, tokenizer, labels, settings, names, targets):
    for split in ("train", "validation"):
        write(tmp_path, split, rows(labels), "csv")
    settings = {"metrics": ["pearson"], "monitor": "pearson"} | settings
    found = load(task(tmp_path, **settings), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (names, targets)


def test_a_csv_whose_rows_are_longer_than_its_header_is_refused(tmp_path, tokenizer):
    """A comma that nobody quoted; what stood before it would be lost."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text,label\nfox, red,a\noak, old,b\n")
    with pytest.raises(ValueError, match=r"csv cannot be read \(Length of header") as refusal:
        load(task(tmp_path), tokenizer, tmp_path / "cache")
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_written_in_python_will_do(folder, tokenizer, tmp_path):
    from transformers import BertweetTokenizer

    (tmp_path / "words").mkdir()
    (tmp_path / "words/vocab.txt").write_text("fox 3\noak 2\n")
    keys = []
    for merges in ("f o 2\nfo x 1\n", "o x 1\n"):
        (tmp_path / "words/bpe.codes").write_text(merges)
        files = [str(tmp_path / "words" / name) for name in ("vocab.txt", "bpe.codes")]
        slow = BertweetTokenizer(*files)
        first, again = (load(task(folder), slow, tmp_path / "cache") for _ in range(2))
        assert first.fingerprint == again.fingerprint
        keys.append(first.fingerprint)
        slow.init_kwargs["local_files_only"] = slow.init_kwargs["is_local"] = True
        assert load(task(folder), slow, tmp_path / "cache").fingerprint == keys[-1]
    assert keys[0] != keys[1]
    assert load(task(folder), tokenizer, tmp_path / "cache").rows == first.rows


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "a"]])
def test_names_of_classes_have_to_be_two_or_more(labels):
    with pytest.raises(ValueError, match=r"task\.labels=.*: expected two names or more, each once"):
        task("", labels=labels)


# What is refused

REGRESSION = {"regression": True, "metrics": ["pearson"], "monitor": "pearson"}


@pytest.mark.parametrize(
    ("train", "settings", "says"),
    [
        ([0, 1], {"text": ["txt"]}, ["task.text=txt", "no such column", "text, label"]),
        ([0, 1], {"text": ["label"]}, ["task.text=label", "int64", "name another column"]),
        ([0, 1], {"label": "gold"}, ["task.label=gold", "no such column", "text, label"]),
        ([0, None, 1], {}, ["task.label=label", "row 1 of the train split", "no label", "remove"]),
        ([0, 1, float("nan")], {}, ["row 2 of the train split", "no label", "remove"]),
        ([0, 1, -1], {}, ["row 2", "is -1", "not one of the 2 classes", "task.labels"]),
        ([1, 2, 0], {"labels": ["1", "2"]}, ["row 2", "is 0", "['1', '2']", "task.labels"]),
        ([0, 1, 2], {"labels": ["a", "b"]}, ["row 2", "is 2", "['a', 'b']", "task.labels"]),
        (["No", "YES"], {"labels": ["No", "Yes", "yes"]}, ["row 1", "is 'YES'", "not one of"]),
        (["a", "c"], {"labels": ["a", "b"]}, ["row 1", "is 'c'", "['a', 'b']", "task.labels"]),
        ([0.5, 1.5], {}, ["task.label=label", "fractional", "task.regression=true"]),
        ([0.0, 0.5], {"labels": ["a", "b"]}, ["row 1", "is 0.5", "not one of the 2 classes"]),
        ([1, 1], {}, ["task.label=label", "1 class"]),
        ([[0], [1]], {}, ["task.label=label", "holds lists or mixed values there", "name another"]),
        (
            [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)],
            {},
            ["task.label=label", "holds date32", "not numbers or text"],
        ),
        ([0, 0], {}, ["task.label=label", "1 class", "task.regression=true"]),
        ([-1, -1], {}, ["task.label=label", "0 class"]),
        (["x", "x"], {}, ["task.label=label", "1 class"]),
        (["x", ""], {"labels": ["x", "y"]}, ["row 1", "no label", "remove"]),
        (list(range(300)), {}, ["task.label=label", "300 classes in 300 rows", "another"]),
        ([0.5, float("nan")], REGRESSION, ["row 1", "no label", "remove"]),
        ([0.5, None], REGRESSION, ["row 1", "no label", "remove"]),
        ([0.5, float("inf")], REGRESSION, ["row 1", "inf", "finite numbers", "remove"]),
        (["a", "b"], REGRESSION, ["row 0", "is 'a'", "finite numbers"]),
    ],
)
def test_refusals_name_key_value_and_remedy(tmp_path, tokenizer, train, settings, says):
    write(tmp_path, "train", rows(train), "parquet")
    write(tmp_path, "validation", rows(train), "parquet")
    with pytest.raises(ValueError, match="task") as refused:
        load(task(tmp_path, **settings), tokenizer, tmp_path / "cache")
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in says), refused.value


def test_a_label_only_validation_has_is_refused(folder, tokenizer, tmp_path):
    write(folder, "validation", rows([0, 2]))
    with pytest.raises(ValueError, match="row 1 of the validation split is 2: not one of the 2"):
        load(task(folder), tokenizer, tmp_path / "cache")


def test_a_csv_with_a_missing_label_is_refused_for_that(tmp_path, tokenizer):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text,label\nfox,1\noak,\npear,0\n")
    with pytest.raises(ValueError, match="row 1 of the train split has no label"):
        load(task(tmp_path), tokenizer, tmp_path / "cache")


def test_missing_files_are_refused(folder, tokenizer, tmp_path):
    (folder / "validation.jsonl").unlink()
    with pytest.raises(ValueError, match=r"task\.path=.*no validation\.parquet.*task\.files"):
        load(task(folder), tokenizer, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"found no dev\.csv .*task\.files=\{validation: "):
        load(task(folder, files={"validation": "dev.csv"}), tokenizer, tmp_path / "cache")
    (folder / "validation.tsv").write_text("fox")
    with pytest.raises(ValueError, match=r"no validation\.parquet.*validation\.tsv .* convert it$"):
        load(task(folder), tokenizer, tmp_path / "cache")
    (folder / "dev.txt").write_text("fox")
    with pytest.raises(ValueError, match=r"task\.files\.validation=dev\.txt: expected .*parquet"):
        load(task(folder, files={"validation": "dev.txt"}), tokenizer, tmp_path / "cache")


def test_a_split_the_hub_has_not_is_refused(tokenizer, tmp_path, monkeypatch):
    def refuse(**source):
        raise ValueError('Unknown split "dev". Should be one of ["train", "validation"].')

    monkeypatch.setattr(data, "load_dataset", refuse)
    chosen = task("nyu-mll/glue", train="dev")
    with pytest.raises(ValueError, match=r'task\.train=dev: .*nyu-mll/glue \(.*\["train", "valid'):
        load(chosen, tokenizer, tmp_path)


def test_an_unreachable_path_is_refused(tokenizer, tmp_path):
    with pytest.raises(
        ValueError, match=r"task\.path=.*nowhere: there is no such folder; pass task\.pa"
    ):
        load(task(tmp_path / "nowhere"), tokenizer, tmp_path / "cache")


def test_a_broken_file_is_refused(folder, tokenizer, tmp_path):
    (folder / "train.jsonl").write_text('{"text": "fox", "la')
    with pytest.raises(ValueError, match=r"task\.path=.*cannot be read") as refused:
        load(task(folder), tokenizer, tmp_path / "cache")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_an_empty_split_is_refused(tmp_path, tokenizer, suffix):
    write(tmp_path, "train", rows([0, 1]), suffix)
    if suffix == "parquet":
        empty = pa.Table.from_pylist(rows([0])).slice(0, 0)
        pq.write_table(empty, tmp_path / "validation.parquet")
    else:
        header = "text,label\n" if suffix == "csv" else ""
        (tmp_path / f"validation.{suffix}").write_text(header)
    with pytest.raises(ValueError, match=r"task\.path=.*the validation split is empty"):
        load(task(tmp_path), tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_anything_in_it_is_refused_in_one_line(tmp_path, tokenizer, suffix, text):
    write(tmp_path, "train", rows([0, 1]), suffix)
    (tmp_path / f"validation.{suffix}").write_text(text)
    with pytest.raises(ValueError, match=r"^task\.path=[^\n]*(empty|cannot be read)[^\n]*$"):
        load(task(tmp_path), tokenizer, tmp_path / "cache")


def test_labels_of_a_large_data_set_are_checked_fast():
    """QQP and MNLI have 400 thousand rows; a second is the bound, a tenth is usual."""
    labels = np.random.default_rng(0).integers(0, 3, size=400_000)
    dataset = Dataset.from_dict({"label": labels})
    start = time.perf_counter()
    targets = target_values(task("x"), "train", dataset, Classes(("a", "b", "c")))
    assert time.perf_counter() - start < 2.0
    assert targets == labels.tolist()


# Tokens are kept


def test_tokens_are_found_again(folder, tokenizer, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    fresh = AutoTokenizer.from_pretrained(tokenizer.name_or_path)  # using one leaves traces in it
    first = load(task(folder), fresh, cache)
    made = sorted((cache / "tokens").iterdir())
    assert len(made) == 2
    shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.setattr(Dataset, "map", None)  # tokenising anew would fail
    second = load(task(tmp_path / "elsewhere"), tokenizer, cache)
    assert second.fingerprint == first.fingerprint
    assert second.splits["train"][:] == first.splits["train"][:]
    assert sorted((cache / "tokens").iterdir()) == made


def test_a_file_that_another_of_the_same_time_replaced_is_read(folder, tokenizer, tmp_path):
    """As `cp -p`, `rsync -t` and archives leave it."""
    file = folder / "train.jsonl"
    before = load(task(folder), tokenizer, tmp_path / "cache")
    times = file.stat()
    write(folder, "train", rows([1, 0, 0, 1, 0, 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(task(folder), tokenizer, tmp_path / "cache")
    assert labels_of(before) == [0, 1, 1, 0, 1, 0]
    assert labels_of(after) == [1, 0, 0, 1, 0, 1]
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("key", ["text", "validation"])
def test_a_name_that_comes_twice_is_refused(key):
    with pytest.raises(ValueError, match=rf"task\.{key}=\['a', 'a'\]: expected each name once"):
        task("", **{key: ["a", "a"]})


def test_segments_for_another_model(folder, tokenizer, tmp_path):
    none = copy.deepcopy(tokenizer)
    none.model_input_names = ["input_ids", "attention_mask"]
    for split in ("train", "validation"):
        write(folder, split, [row | {"other": "the fox"} for row in rows([0, 1, 1, 0, 1, 0])])
    pairs = task(folder, text=["text", "other"])
    theirs, ours = load(pairs, tokenizer, tmp_path), load(pairs, none, tmp_path, segments=True)
    assert ours.splits["train"][:] == theirs.splits["train"][:]
    assert max(ours.splits["train"][0]["token_type_ids"]) == 1
    assert "token_type_ids" not in load(pairs, none, tmp_path).splits["train"].column_names


def test_the_fingerprint_tells_which_split_is_for_what(folder, tokenizer, tmp_path):
    splits = ["validation"], ["train", "validation"], ["validation", "train"]
    prints = [load(task(folder, validation=v), tokenizer, tmp_path).fingerprint for v in splits]
    assert len(set(prints)) == 3


CHANGES = ["text", "labels", "names", "tokenizer", "inputs", "max_length", "padding", "nothing"]


@pytest.mark.parametrize("change", CHANGES)
def test_tokens_are_made_anew_when_something_changed(folder, tokenizer, tmp_path, change):
    cache = tmp_path / "cache"
    before = load(task(folder), tokenizer, cache)
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
    after = load(task(folder, max_length=max_length, labels=names), tokenizer, cache)
    assert (after.fingerprint == before.fingerprint) == (change == "nothing")
    if change == "text":
        assert after.splits["train"][5]["input_ids"] == tokenizer("plum")["input_ids"]
    if change == "labels":
        assert labels_of(after) == labels
    has_segments = "token_type_ids" in after.splits["train"].column_names
    assert has_segments == (change != "inputs")
    if change == "max_length":
        assert max(map(len, after.splits["train"]["input_ids"])) == 4


def test_the_loser_of_a_race_takes_the_winners_tokens(folder, tokenizer, tmp_path, monkeypatch):
    """Two processes tokenise the same split at once: one folder, no litter."""
    cache = tmp_path / "cache"
    expected = load(task(folder), tokenizer, tmp_path / "other")
    real, seen = data.Dataset.save_to_disk, []

    def save_after_the_winner(self, path, **options):
        real(self, path, **options)
        winner = Path(path).with_name(Path(path).name.split(".")[0])
        seen.append(winner)
        shutil.copytree(path, winner)

    monkeypatch.setattr(Dataset, "save_to_disk", save_after_the_winner)
    found = load(task(folder), tokenizer, cache)
    assert found.splits["train"][:] == expected.splits["train"][:]
    assert sorted((cache / "tokens").iterdir()) == sorted(seen)


# Batches

SKEWED = np.clip(np.random.default_rng(1).lognormal(3.0, 0.8, size=2010), 4, 128).astype(int)


def batches_of(epoch=0, seed=0, done=0, batch_size=16, lengths=SKEWED):
    sampler = LengthGroupedBatches(lengths, batch_size=batch_size, seed=seed)
    sampler.set_epoch(epoch)
    sampler.done = done
    return list(sampler)


def test_every_row_comes_once_per_epoch():
    for epoch in range(2):
        batches = batches_of(epoch)
        assert len(batches) == len(LengthGroupedBatches(SKEWED, batch_size=16)) == 126
        assert sorted(row for batch in batches for row in batch) == list(range(2010))
        assert sorted(map(len, batches))[:2] == [10, 16]


def test_the_order_depends_on_seed_and_epoch_alone():
    np.random.seed(5)
    torch.manual_seed(5)
    first = batches_of(3, seed=1)
    np.random.seed(6)
    torch.manual_seed(6)
    assert batches_of(3, seed=1) == first
    assert batches_of(4, seed=1) != first
    assert batches_of(3, seed=2) != first


def test_padding_is_little_and_order_still_random():
    batches = batches_of()
    slots = sum(len(batch) * SKEWED[batch].max() for batch in batches)
    assert slots / SKEWED.sum() < 1.15
    plain = np.arange(2000).reshape(-1, 16)
    assert sum(16 * SKEWED[batch].max() for batch in plain) / SKEWED.sum() > 1.8  # is it skewed?
    means = np.array([SKEWED[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # neighbours are not alike


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_batches(monkeypatch, world):
    whole = {tuple(batch) for batch in batches_of()}
    shares = []
    for rank in range(world):
        monkeypatch.setattr(data, "processes", lambda rank=rank: (rank, world))
        shares.append([tuple(batch) for batch in batches_of()])
        assert len(shares[-1]) == len(LengthGroupedBatches(SKEWED, batch_size=16))
    assert len({len(share) for share in shares}) == 1
    assert set().union(*shares) == whole
    twice = sum(map(len, shares)) - len(whole)
    assert 0 <= twice < world


def loader_of(done_epoch=None):
    rows = [{"ids": i} for i in range(40)]
    sampler = LengthGroupedBatches(np.arange(40), batch_size=8, seed=2)
    return ResumableLoader(rows, batch_sampler=sampler, collate_fn=lambda rows: rows)


def test_an_epoch_goes_on_where_its_state_was_taken():
    whole = loader_of()
    whole.batch_sampler.set_epoch(1)
    expected = list(whole)
    first = loader_of()
    first.batch_sampler.set_epoch(1)
    batches = iter(first)
    used = [next(batches), next(batches)]
    second = loader_of()
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(1)  # what a trainer does before it goes on
    assert used + list(second) == expected
    second.batch_sampler.set_epoch(2)
    assert len(list(second)) == 5


def test_a_finished_or_left_epoch_is_not_gone_on_with():
    first = loader_of()
    batches = iter(first)
    for _ in range(3):  # a trainer with limit_train_batches=3 asks for no more
        next(batches)
    second = loader_of()
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(1)
    assert len(list(second)) == 5
    assert len(list(second)) == 5


def test_validation_rows_come_in_no_order_that_matters(folder, tokenizer, tmp_path):
    """Grouped by length, whatever the order in the file; each row once with its own label."""
    found = load(task(folder), tokenizer, tmp_path / "cache")
    chosen = task(folder, validation=["train"], eval_batch_size=4)
    seen = set()
    shapes = []
    for batch in loaders(chosen, found, tokenizer, seed=0)[1]["train"]:
        shapes.append(batch["input_ids"].shape[1])
        for ids, mask, label in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            seen.add((tokenizer.decode(ids[mask.bool()], skip_special_tokens=True), int(label)))
    assert seen == {(row["text"], row["label"]) for row in rows([0, 1, 1, 0, 1, 0])}
    longest = sorted(map(len, found.splits["train"]["input_ids"]))
    assert sorted(shapes) == [longest[3], longest[5]]


@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 9))
def test_the_order_of_validation_batches_depends_on_their_number_alone(number, batch_size, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 128, size=number)
    batches = validation_batches(lengths, batch_size)
    places = validation_batches(np.arange(number), batch_size)
    by_length = np.argsort(lengths, kind="stable")
    assert batches == [by_length[rows].tolist() for rows in places]
    assert sorted(row for batch in batches for row in batch) == list(range(number))


@pytest.mark.parametrize("batch_size", [4, 16, 32])
def test_a_share_of_the_validation_batches_is_not_the_shortest_rows(batch_size):
    batches = validation_batches(SKEWED, batch_size)
    share = SKEWED[np.concatenate(batches[: len(batches) // 10])]
    assert abs(share.mean() / SKEWED.mean() - 1) < 0.35  # sorted: 0.19 of the mean
    assert share.min() < np.quantile(SKEWED, 0.25) < np.quantile(SKEWED, 0.75) < share.max()


def test_pad_to_gives_one_shape(folder, tokenizer, tmp_path):
    chosen = task(folder, pad_to=20, batch_size=4)
    found = load(chosen, tokenizer, tmp_path / "cache")
    train, validation = loaders(chosen, found, tokenizer, seed=0)
    for loader in (train, *validation.values()):
        assert {batch["input_ids"].shape[1] for batch in loader} == {20}
    longest = load(task(folder), tokenizer, tmp_path / "cache")
    shapes = {
        b["input_ids"].shape[1]
        for b in loaders(task(folder, batch_size=1), longest, tokenizer, seed=0)[0]
    }
    assert len(shapes) > 1


def test_loaders_leave_the_global_generator_alone(folder, tokenizer, tmp_path):
    """Or dropout would depend on how often an epoch began."""
    found = load(task(folder), tokenizer, tmp_path / "cache")
    train, validation = loaders(task(folder), found, tokenizer, seed=0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for loader in (train, validation["validation"]):
        assert len(list(loader)) == 1
    assert torch.equal(torch.get_rng_state(), before)
