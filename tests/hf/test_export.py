"""A saved student: a plain Hugging Face folder, whole or absent."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from kd_prune.hf import Classification, PretrainedEncoder, Regression, save
from kd_prune.hf.attention import enable_attention_scores
from kd_prune.hf.tiny import make_model


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = make_model(str(tmp_path_factory.mktemp("tiny")), layers=1, hidden_size=16, heads=2)
    return PretrainedEncoder(path=folder)


KIND = Classification()


def load(pretrained, num_outputs=2):
    return pretrained.load(kind=KIND, num_outputs=num_outputs)


def test_saved_model_is_read_back_to_the_bit(pretrained, tmp_path):
    """Zeros included, though the model's attention was tapped while it learnt."""
    model, tokenizer = load(pretrained, 3), pretrained.tokenizer()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[::2] = 0.0
    enable_attention_scores(model)
    save(model, tokenizer, tmp_path / "student", kind=KIND, labels=("a", "b", "c"))
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    text = "the fox and pear"
    again = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert read.config._attn_implementation == "sdpa"
    assert "kd_scores" not in (tmp_path / "student" / "config.json").read_text()


def test_saved_model_has_its_class_names(pretrained, tmp_path):
    save(
        load(pretrained), pretrained.tokenizer(), tmp_path / "s", kind=KIND, labels=("bad", "good")
    )
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    classify = pipeline("text-classification", model=str(tmp_path / "s"), device="cpu")
    assert classify("the fox")[0]["label"] in ("bad", "good")


def test_save_replaces_an_earlier_folder(pretrained, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "stale.txt").write_text("from before")
    save(load(pretrained), pretrained.tokenizer(), folder, kind=KIND)
    assert not (folder / "stale.txt").exists()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    # Who shares a folder can read all of it: safetensors writes for the owner alone.
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("kind", "outputs", "problem_type"),
    [
        (Regression(), 1, "regression"),
        (Classification(), 2, "single_label_classification"),
    ],
)
def test_saved_model_states_its_problem_type(pretrained, tmp_path, kind, outputs, problem_type):
    """Or a pipeline would go by the use of the pre-trained model."""
    model = pretrained.load(kind=kind, num_outputs=outputs)
    model.config.problem_type = "multi_label_classification"
    save(model, pretrained.tokenizer(), tmp_path / "student", kind=kind)
    saved = json.loads((tmp_path / "student/config.json").read_text())
    assert saved["problem_type"] == problem_type


def test_saved_tokenizer_is_not_changed_by_use(pretrained, tmp_path):
    tokenizer, texts = pretrained.tokenizer(), []
    for use in (False, True):
        if use:
            tokenizer("a b c", truncation=True, max_length=4, padding="max_length")
        save(load(pretrained), tokenizer, tmp_path / "student", kind=KIND)
        texts.append((tmp_path / "student/tokenizer.json").read_bytes())
    assert texts[0] == texts[1]


def test_save_that_fails_leaves_the_earlier_folder(pretrained, tmp_path):
    model, tokenizer = load(pretrained), pretrained.tokenizer()
    save(model, tokenizer, tmp_path / "student", kind=KIND)
    before = (tmp_path / "student" / "model.safetensors").read_bytes()

    class Full:
        def save_pretrained(self, folder):
            raise OSError("no space left on device")

    with torch.no_grad():
        model.classifier.bias += 1
    with pytest.raises(OSError, match="no space"):
        save(model, Full(), tmp_path / "student", kind=KIND)
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == before
