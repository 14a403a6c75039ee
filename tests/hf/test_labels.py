"""Labels: every type, every refusal."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from kd_prune.hf import load_data, loaders
from kd_prune.hf.labels import Classes, class_targets

from .helpers import REGRESSION, labels_of, rows, task, write


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
        ([0.5, 4.0, 3.25], REGRESSION, (), [0.5, 4.0, 3.25]),
        ([1, 0, 5], REGRESSION, (), [1.0, 0.0, 5.0]),
        (["1.5", "2", "3"], REGRESSION, (), [1.5, 2.0, 3.0]),
    ],
)
def test_labels_of_every_type_become_targets(tmp_path, tokenizer, labels, settings, names, targets):
    for split in ("train", "validation"):
        write(tmp_path, split, rows(labels))
    chosen = task(tmp_path, **settings)
    found = load_data(chosen, tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (names, targets)
    assert found.num_outputs == (len(names) or 1)
    batch = next(iter(loaders(chosen, found, tokenizer, seed=0)[0]))
    assert batch["labels"].dtype == (torch.int64 if names else torch.float32)


def test_class_names_come_from_the_data(tmp_path, tokenizer):
    """As the hub has them; the order is the data's, not the alphabet's."""
    kinds = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    for split in ("train", "validation"):
        Dataset.from_list(rows([1, 0, 0]), features=kinds).to_parquet(tmp_path / f"{split}.parquet")
    found = load_data(task(tmp_path), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("yes", "no"), [1, 0, 0])
    # Named otherwise, they are what they are declared to be, in another order;
    found = load_data(task(tmp_path, labels=["no", "yes"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("no", "yes"), [0, 1, 1])
    # names of one's own take their place,
    found = load_data(task(tmp_path, labels=["good", "bad"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("good", "bad"), [1, 0, 0])
    # in whatever case;
    found = load_data(task(tmp_path, labels=["NO", "Yes"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("NO", "Yes"), [0, 1, 1])
    # and a file that declares nothing means what the training split declares.
    write(tmp_path, "plain", rows([1, 0]), "csv")
    chosen = task(tmp_path, labels=["no", "yes"], validation=["plain"])
    found = load_data(chosen, tokenizer, tmp_path / "cache")
    assert labels_of(found, "plain") == [0, 1]


@pytest.mark.parametrize(
    ("train", "numbers", "targets"),
    [(["no", "yes"], [1, 0], [1, 0]), (["1", "2"], [2, 1], [1, 0])],
)
def test_whole_numbers_where_training_labels_are_text(tmp_path, tokenizer, train, numbers, targets):
    """Indices, unless the names are numbers themselves."""
    write(tmp_path, "train", rows(train))
    write(tmp_path, "validation", rows(numbers))
    found = load_data(task(tmp_path), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found, "validation")) == (tuple(train), targets)


@pytest.mark.parametrize(
    ("labels", "settings", "names", "targets"),
    [
        (["0", "1", "0"], {"labels": ["bad", "good"]}, ("bad", "good"), [0, 1, 0]),
        (["10", "9", "9"], {}, ("9", "10"), [1, 0, 0]),
        (["True", "False", "True"], {"labels": ["True", "False"]}, ("True", "False"), [0, 1, 0]),
        (["1.0", "2.", "1.0"], {}, ("1", "2"), [0, 1, 0]),
        (["0", " 1", "1"], {}, ("0", "1"), [0, 1, 1]),
        ([str(2**53), str(2**53 + 1), str(2**53)], {}, (str(2**53), str(2**53 + 1)), [0, 1, 0]),
        (["0.5", "1e-1", "-3"], REGRESSION, (), [0.5, 0.1, -3.0]),
    ],
)
def test_labels_of_a_csv_become_targets(tmp_path, tokenizer, labels, settings, names, targets):
    for split in ("train", "validation"):
        write(tmp_path, split, rows(labels), "csv")
    found = load_data(task(tmp_path, **settings), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (names, targets)


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "a"]])
def test_class_names_fewer_than_two_raise(labels):
    with pytest.raises(ValueError, match=r"^labels=.*: expected two names or more, each once"):
        task("", labels=labels)


def test_label_of_the_validation_split_alone_raises(folder, tokenizer, tmp_path):
    write(folder, "validation", rows([0, 2]))
    with pytest.raises(ValueError, match="row 1 of the validation split is 2: not one of the 2"):
        load_data(task(folder), tokenizer, tmp_path / "cache")


def test_missing_label_of_a_csv_raises(tmp_path, tokenizer):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text,label\nfox,1\noak,\npear,0\n")
    with pytest.raises(ValueError, match="row 1 of the train split has no label"):
        load_data(task(tmp_path), tokenizer, tmp_path / "cache")


def test_labels_of_a_large_data_set_are_converted_fast():
    """QQP and MNLI have 400 thousand rows; a second is the bound, a tenth is usual."""
    labels = np.random.default_rng(0).integers(0, 3, size=400_000)
    dataset = Dataset.from_dict({"label": labels})
    start = time.perf_counter()
    targets = class_targets(dataset, "train", "label", Classes(("a", "b", "c")))
    assert time.perf_counter() - start < 2.0
    assert targets == labels.tolist()


@pytest.mark.parametrize("key", ["text", "validation"])
def test_task_name_given_twice_raises(key):
    with pytest.raises(ValueError, match=rf"^{key}=\[a, a\]: expected each name once"):
        task("", **{key: ["a", "a"]})
