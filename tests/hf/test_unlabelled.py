"""Rows without labels: files and copies behind the training rows, and the losses that skip them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from kd_prune.distillation.activations import Activations
from kd_prune.distillation.losses import hard_label_loss
from kd_prune.distillation.sparsebert_official import soft_cross_entropy
from kd_prune.errors import ConfigError
from kd_prune.hf import (
    Augmentation,
    Classification,
    QuestionAnswering,
    Regression,
    Text,
    load_data,
    loaders,
)

from .helpers import REGRESSION
from .helpers import task as make_task

MORE = ["zinc", "the old canoe", "oak"]


@pytest.fixture
def more(tmp_path):
    (tmp_path / "more.txt").write_text("\n\n".join(MORE))
    lines = "".join(json.dumps({"text": text, "other": 1}) + "\n" for text in MORE)
    (tmp_path / "more.jsonl").write_text(lines)
    return [str(tmp_path / "more.txt"), str(tmp_path / "more.jsonl")]


def test_training_rows_to_which_others_are_added_are_not_evaluated(folder, more):
    task = make_task(folder, validation=["validation", "train"])
    with pytest.raises(ConfigError, match=r"^validation=.*rows without labels are added to train"):
        replace(task, unlabelled=more)


@pytest.mark.parametrize("settings", [{}, REGRESSION], ids=["classification", "regression"])
def test_files_follow_the_training_rows_without_labels(settings, folder, more, tokenizer, tmp_path):
    task = make_task(folder, **settings)
    plain = load_data(task, tokenizer, tmp_path / "cache")
    added = load_data(replace(task, unlabelled=more), tokenizer, tmp_path / "cache")
    assert (len(plain.splits["train"]), len(added.splits["train"])) == (6, 12)
    assert added.rows == plain.rows
    assert added.fingerprint != plain.fingerprint
    train = added.splits["train"]
    assert train[:6] == plain.splits["train"][:]
    assert list(train["input_ids"])[6:] == 2 * tokenizer(MORE)["input_ids"]
    missing = list(train["labels"])[6:]
    assert all(math.isnan(m) if settings else m == -100 for m in missing)
    assert added.splits["validation"][:] == plain.splits["validation"][:]
    batch = next(iter(loaders(replace(task, batch_size=12), added, tokenizer, seed=0)[0]))
    outputs = Activations(logits=torch.randn(12, 1 if settings else 2))
    assert task.kind.hard_label_loss(outputs, batch).isfinite()


def test_file_of_the_tasks_folder_is_found(folder, tokenizer, tmp_path):
    (folder / "more.txt").write_text("zinc\n")
    task = make_task(folder, unlabelled=["more.txt"])
    data = load_data(task, tokenizer, tmp_path / "cache")
    assert len(data.splits["train"]) == 7


def test_augmented_copies_follow_the_training_rows(folder, tokenizer, tmp_path):
    task = make_task(folder, augment=Augmentation(copies=3), unlabelled=[])
    data = load_data(task, tokenizer, tmp_path / "cache")
    train = data.splits["train"]
    assert len(train) > 12
    assert list(train["labels"])[:6] == [0, 1, 1, 0, 1, 0]
    assert set(list(train["labels"])[6:]) == {-100}


def test_text_task_takes_files_as_further_rows(folder, more, tokenizer, tmp_path):
    task = make_task(folder, kind=Text(), metrics=[], monitor="loss", unlabelled=more)
    data = load_data(task, tokenizer, tmp_path / "cache")
    assert len(data.splits["train"]) == 12
    assert "labels" not in data.splits["train"].column_names


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.txt", None, "unlabelled.0=.*none.txt: no file, nor one in"),
        ("more.pdf", "x", "unlabelled.0=.*more.pdf: expected a file of .parquet, .csv"),
        ("more.jsonl", '{"body": "x"}\n', "unlabelled.0=.*: the .* has no such column; it has bod"),
        ("more.jsonl", "{", "unlabelled.0=.*more.jsonl: the file cannot be read"),
    ],
)
def test_file_that_cannot_be_used_raises(name, content, says, folder, tokenizer, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    task = make_task(folder, unlabelled=[str(tmp_path / name)])
    with pytest.raises(ConfigError, match=f"^{says}"):
        load_data(task, tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("settings", [{"augment": Augmentation()}, {"unlabelled": ["x"]}])
def test_kind_that_needs_labels_refuses(settings, folder):
    kind = {"kind": QuestionAnswering(), "text": ["a", "b"], "max_length": 384}
    says = "a task of kind question_answering takes no rows without labels"
    with pytest.raises(ConfigError, match=f"^{next(iter(settings))}: {says}"):
        make_task(folder, metrics=["f1"], monitor="f1", **kind, **settings)


@pytest.mark.parametrize("kind", [Classification(), Regression()])
def test_loss_is_a_mean_over_the_rows_with_a_label(kind):
    torch.manual_seed(0)
    outputs = 3 if isinstance(kind, Classification) else 1
    logits = torch.randn(4, outputs, requires_grad=True)
    labels = torch.tensor([1, 0, 2, 1]) if outputs == 3 else torch.randn(4)
    loss = kind.hard_label_loss(Activations(logits=logits), {"labels": labels})
    assert torch.equal(loss, hard_label_loss(logits, labels))
    labels[1], labels[3] = kind.missing_label, kind.missing_label
    loss = kind.hard_label_loss(Activations(logits=logits), {"labels": labels})
    assert torch.equal(loss, hard_label_loss(logits[[0, 2]], labels[[0, 2]]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[[1, 3]] == 0).all()
    labels[:] = kind.missing_label
    loss = kind.hard_label_loss(Activations(logits=logits), {"labels": labels})
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert (gradient == 0).all()


def test_official_regression_loss_learns_nothing_of_rows_without_label():
    logits = torch.tensor([[1.0], [2.0]], requires_grad=True)
    student = Activations(logits=logits)
    loss = soft_cross_entropy(student, student, {"labels": torch.tensor([0.0, math.nan])})
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.5
    assert gradient.tolist() == [[1.0], [0.0]]


def test_missing_column_is_named(folder, more, tokenizer, tmp_path):
    task = make_task(folder, unlabelled=more[:1], text=["text", "other"])
    lines = [json.dumps({"text": "a", "other": "b", "label": i}) for i in (0, 1)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"unlabelled\.0=.*more\.txt: text=other: .*no such"):
        load_data(task, tokenizer, tmp_path / "cache")
