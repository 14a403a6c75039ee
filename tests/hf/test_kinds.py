"""Kinds of task: what each says of head, labels, predictions, loss; a kind of one's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertModel,
    DataCollatorForTokenClassification,
)

from kd_prune.distillation.activations import Activations
from kd_prune.distillation.losses import hard_label_loss
from kd_prune.errors import ConfigError
from kd_prune.hf import (
    Classification,
    PretrainedEncoder,
    Regression,
    Task,
    Text,
    check_pair,
    forward,
    load_data,
    loaders,
    save,
)
from kd_prune.hf.columns import column_values
from kd_prune.hf.kinds import Labels
from kd_prune.hf.tiny import make_model

from .families import model

SENTENCES = ["the old fox", "hammer", "the small green canoe and the lute", "zinc", "oak", "pear"]
NOTHING = frozenset({"logits"})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = make_model(str(tmp_path_factory.mktemp("tiny")), layers=2, hidden_size=16, heads=2)
    return PretrainedEncoder(path=folder)


@pytest.fixture(scope="module")
def tokenizer(encoder):
    return encoder.tokenizer()


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "sample.txt").write_text("\n\n".join([*SENTENCES, "  ", ""]))
    return folder


def text_task(path, *, pack=False, **settings):
    return Task(
        **{"name": "corpus", "path": str(path), "text": ["text"], "kind": Text(pack=pack)}
        | {"metrics": [], "monitor": "loss", "holdout": 2, "max_length": 16, "batch_size": 2}
        | settings
    )


# Predictions, losses and the saved config


def test_classification_predicts_the_largest_logit():
    outputs = Activations(logits=torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]))
    batch = {"labels": torch.tensor([1, 2])}
    predictions, targets = Classification().predict(outputs, batch)
    assert predictions.tolist() == [1, 0]
    assert targets is batch["labels"]
    loss = Classification().hard_label_loss(outputs, batch)
    assert torch.equal(loss, hard_label_loss(outputs.logits, batch["labels"]))


def test_classification_of_one_class_predicts_an_index():
    """One logit is no regression unless the task is one."""
    outputs = Activations(logits=torch.tensor([[0.3], [0.9]]))
    assert Classification().predict(outputs, {"labels": torch.zeros(2)})[0].tolist() == [0, 0]


def test_regression_predicts_its_output():
    outputs = Activations(logits=torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16))
    batch = {"labels": torch.tensor([0.5, 1.0])}
    predictions, targets = Regression().predict(outputs, batch)
    assert predictions.tolist() == [0.5, 2.0]
    assert predictions.dtype == torch.float32
    assert targets is batch["labels"]
    assert Regression().hard_label_loss(outputs, batch) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kind", "names", "outputs", "config"),
    [
        (
            Classification(),
            ("bad", "good"),
            2,
            {
                "problem_type": "single_label_classification",
                "id2label": {0: "bad", 1: "good"},
                "label2id": {"bad": 0, "good": 1},
            },
        ),
        (Regression(), (), 1, {"problem_type": "regression"}),
        (Text(), (), 0, {}),
    ],
)
def test_kind_gives_outputs_and_saved_config(kind, names, outputs, config):
    assert kind.num_outputs(names) == outputs
    assert kind.model_config(names) == config


def test_metrics_of_a_kind():
    metrics = Classification().metric_collection(["accuracy", "macro_f1"], 3)
    assert set(metrics) == {"accuracy", "macro_f1"}
    assert set(Regression().metric_collection(["pearson"], 1)) == {"pearson"}
    empty = Text().metric_collection([], 0).clone(prefix="val/")
    assert dict(empty.compute()) == {}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metrics": ["pearson"]}, "metrics=pearson: does not suit a task of kind classification"),
        ({"metrics": ["mcc"]}, "metrics=mcc: does not suit .*task.metrics=.accuracy,f1,macro_f1,"),
        ({"kind": Regression()}, "metrics=accuracy: .*kind regression; .*=.pearson,spearman. and"),
        ({"kind": Text()}, r"metrics=accuracy: .*kind text; set task.metrics=\[\] and .*=loss"),
        ({"kind": Text(), "metrics": []}, "monitor=accuracy: there are no metrics; set it to loss"),
        ({"monitor": "f1"}, r"monitor=f1: not among metrics=\['accuracy'\]; set it to accuracy"),
        ({"holdout": 0}, "holdout=0: expected at least 1"),
        ({"max_length": 9, "pad_to": 8}, "pad_to=8: below max_length=9"),
        ({"validation": []}, r"validation=\[\]: expected at least one split"),
        ({"text": []}, r"text=\[\]: expected one column or two"),
        (
            {"kind": Text(pack=True), "metrics": [], "monitor": "loss", "text": ["a", "b"]},
            r"text=\[a, b\]: pairs of texts cannot be packed; set kind.pack to false",
        ),
    ],
)
def test_task_that_does_not_suit_its_kind_raises(settings, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        Task(**{"name": "t", "path": "x", "text": ["text"]} | settings)


@pytest.mark.parametrize("kind", [Classification(), Text()])
def test_pair_is_compared_by_labels_where_the_kind_has_a_head(kind):
    pair = model(num_labels=2), model(num_labels=3)
    if kind.uses_num_labels:
        with pytest.raises(ConfigError, match="number of labels is 3, the student's 2"):
            check_pair(*pair, kind)
    else:
        check_pair(*pair, kind)


def test_model_without_the_kinds_head_is_not_fine_tuned(encoder, tmp_path):
    assert encoder.fine_tuned_config(Classification()).architectures
    save(
        encoder.load(kind=Text(), num_outputs=0),
        encoder.tokenizer(),
        tmp_path / "bare",
        kind=Text(),
    )
    bare = PretrainedEncoder(path=str(tmp_path / "bare"))
    assert bare.fine_tuned_config(Text())
    config = tmp_path / "bare" / "config.json"
    unnamed = {k: v for k, v in json.loads(config.read_text()).items() if k != "architectures"}
    config.write_text(json.dumps(unnamed))  # as older checkpoints
    assert bare.fine_tuned_config(Text())
    config.write_text(json.dumps(unnamed | {"architectures": ["BertModel"]}))
    with pytest.raises(ConfigError, match=r"^eval=.*: BertModel has no head .* kind classific"):
        bare.fine_tuned_config(Classification(), "eval")


# Text without labels


def test_text_is_read_batched_and_saved_without_labels(corpus, encoder, tokenizer, tmp_path):
    task = text_task(corpus)
    data = load_data(task, tokenizer, tmp_path / "cache")
    assert (data.labels, data.num_outputs) == ((), 0)
    assert [len(data.splits[split]) for split in ("train", "validation")] == [4, 2]
    assert data.splits["train"]["input_ids"][0] == tokenizer("the old fox")["input_ids"]
    assert data.splits["validation"]["input_ids"][-1] == tokenizer("pear")["input_ids"]
    train, validation = loaders(task, data, tokenizer, seed=0)
    rows = [*train, *validation["validation"]]
    assert all("labels" not in batch for batch in rows)
    student = encoder.load(kind=task.kind, num_outputs=data.num_outputs)
    assert isinstance(student, BertModel)
    found = forward(student, rows[0], frozenset({"hidden_states"}))
    assert found.logits.numel() == 0
    assert len(found.hidden_states) == 3
    with pytest.raises(ConfigError, match="rows of kind text have no labels to learn") as refused:
        task.kind.hard_label_loss(found, rows[0])
    assert str(refused.value.under("terms.hard_labels")).startswith("terms.hard_labels: rows of")
    with pytest.raises(ConfigError, match=r"^metrics: rows of kind text have no labels"):
        task.kind.predict(found, rows[0])
    save(student, tokenizer, tmp_path / "student", kind=task.kind)
    again = PretrainedEncoder(path=str(tmp_path / "student"))
    headed = again.load(kind=Classification(), num_outputs=2)
    for name, tensor in student.state_dict().items():
        assert torch.equal(headed.bert.state_dict()[name], tensor), name


def test_text_longer_than_a_row_is_cut_off_unless_packed(corpus, tokenizer, tmp_path):
    plain, packed = (
        load_data(text_task(corpus, pack=pack, max_length=5), tokenizer, tmp_path / "cache")
        for pack in (False, True)
    )
    assert plain.rows == packed.rows
    assert plain.fingerprint != packed.fingerprint
    assert len(plain.splits["train"]) == 4
    rows = packed.splits["train"]["input_ids"]
    start, end, separator = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.sep_token_id
    assert all(row[0] == start and row[-1] == end for row in rows)
    assert [len(row) for row in rows[:-1]] == [5] * (len(rows) - 1)
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SENTENCES[:4]]
    joined = [token for row in rows for token in row[1:-1]]
    # A separator stands only between two texts of one row.
    assert [token for token in joined if token != separator] == [
        token for ids in bare for token in ids
    ]
    assert rows[0][1:-1] == bare[0]
    assert joined.count(separator) == 1
    assert packed.splits["train"]["attention_mask"][0] == [1] * 5
    assert packed.splits["train"]["token_type_ids"][0] == [0] * 5


def test_packing_needs_room_beside_the_special_tokens(corpus, tokenizer, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^max_length=2: leaves no room for text between the special"
    ):
        load_data(text_task(corpus, pack=True, max_length=2), tokenizer, tmp_path / "cache")


# A kind of one's own


@dataclass(frozen=True)
class Tags:
    """One tag per word, in a column of tags separated by blanks."""

    auto_model: ClassVar[Any] = AutoModelForTokenClassification
    uses_num_labels: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    missing_label: ClassVar[Any] = None

    def check(self, task):
        pass

    def read_labels(self, task, splits):
        tags = {
            split: [tags.split() for tags in column_values(rows, task.label)]
            for split, rows in splits.items()
        }
        names = tuple(sorted({tag for row in tags[task.train] for tag in row}))
        targets = {s: [[names.index(t) for t in row] for row in rows] for s, rows in tags.items()}
        return Labels(names, targets)

    def num_outputs(self, names):
        return len(names)

    def encode(self, task, tokenizer, rows, segments):
        texts = [text.split() for text in rows[task.text[0]]]
        encoded = tokenizer(
            texts, is_split_into_words=True, truncation=True, max_length=task.max_length
        )
        labels = [
            [-100 if word is None else tags[word] for word in encoded.word_ids(i)]
            for i, tags in enumerate(rows["labels"])
        ]
        return dict(encoded) | {"labels": labels}

    def collator(self, tokenizer, pad_to):
        pad = DataCollatorForTokenClassification(tokenizer)
        return lambda rows: dict(pad(rows))

    def predict(self, outputs, batch):
        return outputs.logits.argmax(-1), batch["labels"]

    def hard_label_loss(self, outputs, batch):
        return F.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten())

    def metric_collection(self, names, num_outputs):
        return MetricCollection({"accuracy": MulticlassAccuracy(num_outputs, ignore_index=-100)})

    def model_config(self, names):
        return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def test_kind_of_ones_own_loads_batches_predicts_and_saves(encoder, tokenizer, tmp_path):
    """With no change elsewhere."""
    rows = [{"text": "the old fox", "tags": "det adj noun"}, {"text": "oak", "tags": "noun"}]
    for split in ("train", "validation"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    task = Task(name="tags", path=str(tmp_path), text=["text"], label="tags", kind=Tags())
    data = load_data(task, tokenizer, tmp_path / "cache")
    assert (data.labels, data.num_outputs) == (("adj", "det", "noun"), 3)
    assert list(data.splits["train"]["labels"]) == [[-100, 1, 0, 2, -100], [-100, 2, -100]]
    _, validation = loaders(task, data, tokenizer, seed=0)
    (batch,) = validation["validation"]
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 5)
    student = encoder.load(kind=task.kind, num_outputs=data.num_outputs)
    outputs = forward(student, batch, NOTHING)
    assert outputs.logits.shape == (2, 5, 3)
    metrics = task.kind.metric_collection(task.metrics, data.num_outputs)
    metrics.update(*task.kind.predict(outputs, batch))
    assert 0 <= metrics.compute()["accuracy"] <= 1
    assert task.kind.hard_label_loss(outputs, batch).isfinite()
    save(student, tokenizer, tmp_path / "student", kind=task.kind, labels=data.labels)
    read = AutoModelForTokenClassification.from_pretrained(tmp_path / "student").eval()
    assert read.config.id2label == {0: "adj", 1: "det", 2: "noun"}
    assert torch.equal(forward(read, batch, NOTHING).logits, outputs.logits)
    assert PretrainedEncoder(path=str(tmp_path / "student")).fine_tuned_config(Tags())
    assert AutoTokenizer.from_pretrained(tmp_path / "student")("oak") == tokenizer("oak")
    assert {file.name for file in Path(tmp_path / "cache" / "tokens").glob("*/*/")} == {
        "train",
        "validation",
    }


def test_several_heads_give_one_tensor_of_logits(encoder, tokenizer):
    """Question answering: a start and an end per token."""
    from transformers import AutoModelForQuestionAnswering

    made = AutoModelForQuestionAnswering.from_pretrained(encoder.path).eval()
    batch = tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    found = forward(made, batch, NOTHING).logits
    theirs = made(**batch)
    stacked = torch.stack([theirs.start_logits, theirs.end_logits], 1)
    padding = batch["attention_mask"][:, None].expand_as(stacked) == 0
    assert torch.equal(found[~padding], stacked[~padding])
    assert (found.softmax(-1)[padding] == 0).all()
