"""Encoders with fewer layers or another width: their weights, their config, a saved copy."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, DebertaV2Config

from kd_prune.errors import ConfigError
from kd_prune.hf import (
    Classification,
    EncoderChange,
    PretrainedEncoder,
    Text,
    enable_attention_scores,
    encoder_layers,
    encoder_scope,
    forward,
    save,
)

from .families import FAMILIES, LAYERS, batch, config, model, tokenizer

EVERYTHING = frozenset({"logits", "hidden_states", "attention_scores"})
SHAPES = [*FAMILIES, "modernbert", "xlm"]


@pytest.fixture(params=SHAPES)
def family(request):
    return request.param


@pytest.fixture
def folder(tmp_path, family):
    path = tmp_path / family
    model(family, num_labels=3).save_pretrained(path)
    return path


def load(path, *, kind=None, num_outputs=3, **change):
    encoder = PretrainedEncoder(path=str(path))
    return encoder.load(
        kind=kind or Classification(), num_outputs=num_outputs, change=EncoderChange(**change)
    )


def layer_weights(made):
    """Layer index → name within the layer → weight."""
    stacks = encoder_layers(made)
    found = {}
    for name, tensor in made.state_dict().items():
        for stack in stacks:
            if match := re.match(rf"{re.escape(stack)}\.(\d+)\.(.*)", name):
                found.setdefault(int(match[1]), {})[stack, match[2]] = tensor
    return found


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), (2, [0, 1]), ([0, 2], [0, 2])])
def test_kept_layers_have_their_weights(folder, layers, kept):
    whole, shorter = load(folder), load(folder, layers=layers)
    assert shorter.config.num_hidden_layers == len(kept)
    ours, theirs = layer_weights(shorter), layer_weights(whole)
    assert ours.keys() == set(range(len(kept)))
    for new, old in enumerate(kept):
        assert ours[new].keys() == theirs[old].keys()
        assert all(torch.equal(tensor, theirs[old][name]) for name, tensor in ours[new].items())
    outside = {n for n in shorter.state_dict() if not re.search(r"\.\d+\.", n)}
    assert all(torch.equal(shorter.state_dict()[n], whole.state_dict()[n]) for n in outside)
    assert len(encoder_scope(shorter).select(shorter)) * LAYERS == len(kept) * len(
        encoder_scope(whole).select(whole)
    )


def test_first_layers_compute_the_same_hidden_states(folder):
    requires = frozenset({"hidden_states"})
    whole, shorter = (forward(m, batch(), requires) for m in (load(folder), load(folder, layers=2)))
    assert len(shorter.hidden_states) == 3
    for ours, theirs in zip(shorter.hidden_states[:2], whole.hidden_states, strict=False):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 2},
        {"layers": [0, 2]},
        {"hidden_size": 16},
        {"intermediate_size": 20},
        {"layers": 1, "hidden_size": 4, "intermediate_size": 6},
    ],
    ids=str,
)
def test_saved_student_keeps_its_shape_and_logits(folder, family, tmp_path, change):
    """Read by plain transformers."""
    if family == "xlm":  # its feed-forward width is four times the hidden size
        change = {key: value for key, value in change.items() if key != "intermediate_size"}
    torch.manual_seed(0)
    made = load(folder, **change)
    save(made, tokenizer(), tmp_path / "student", kind=Classification(), labels=("a", "b", "c"))
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    assert read.config.num_hidden_layers == made.config.num_hidden_layers
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (made, read)]
    assert shapes[0] == shapes[1]
    ours, theirs = (forward(m, batch(), frozenset({"logits"})).logits for m in (made, read))
    assert torch.equal(ours, theirs)
    again = load(tmp_path / "student", layers=1)
    assert again.config.num_hidden_layers == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_changed_student_gives_every_activation(folder, family):
    made = load(folder, layers=[0, 2], hidden_size=4)
    enable_attention_scores(made)
    found = forward(made, batch(), EVERYTHING)
    assert (len(found.hidden_states), len(found.attention_scores)) == (3, 2)
    assert found.hidden_states[-1].shape[-1] == 4


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_width_has_new_weights_of_the_callers_seed(folder, family):
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(load(folder, hidden_size=4, intermediate_size=6))
    first, again, other = (m.state_dict() for m in made)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())
    assert made[0].config.hidden_size == 4
    assert not made[0].training
    assert {p.dtype for p in made[0].parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_change_of_a_model_without_head(folder, family):
    shorter = load(folder, kind=Text(), num_outputs=0, layers=1)
    assert type(shorter) is type(AutoModel.from_config(shorter.config))
    assert len(layer_weights(shorter)) == 1


@pytest.mark.parametrize("family", ["bert"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 4}, "layers=4: the encoder has 3 layers"),
        ({"layers": [0, 3]}, r"layers=\[0, 3\]: the encoder has layers 0 to 2; name indices"),
        ({"layers": [-1]}, r"layers=\[-1\]: the encoder has layers 0 to 2"),
        ({"hidden_size": 9}, "hidden_size=9: not divisible by .* 2 attention heads; take 8 or 10"),
        ({"hidden_size": 1}, "hidden_size=1: not divisible by .* 2 attention heads; take 2$"),
    ],
)
def test_change_that_does_not_suit_raises(folder, family, change, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        load(folder, **change)
    with pytest.raises(ConfigError, match=f"^student.{says}"):
        PretrainedEncoder(path=str(folder)).load(
            kind=Classification(),
            num_outputs=3,
            change=EncoderChange(**change),
            change_key="student",
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 0}, "layers=0: expected at least 1"),
        ({"layers": []}, r"layers=\[\]: expected ascending indices"),
        ({"layers": [2, 0]}, r"layers=\[2, 0\]: expected ascending indices, each once"),
        ({"layers": [1, 1]}, r"layers=\[1, 1\]: expected ascending indices"),
        ({"hidden_size": 0}, "hidden_size=0: expected at least 1"),
        ({"intermediate_size": -3}, "intermediate_size=-3: expected at least 1"),
    ],
)
def test_change_out_of_range_raises(change, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        EncoderChange(**change)


def test_layer_that_cannot_take_another_ones_place_raises(tmp_path):
    """ModernBERT's first layer has no norm before its attention."""
    model("modernbert").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^layers=\[1, 2\]: .*modernbert differ.*keep layer 0"):
        load(tmp_path, num_outputs=2, layers=[1, 2])


def test_layer_types_follow_their_layers(tmp_path):
    types = ["full_attention", "sliding_attention", "full_attention"]
    model("modernbert", layer_types=types).save_pretrained(tmp_path)
    made = load(tmp_path, num_outputs=2, layers=[0, 2])
    assert made.config.layer_types == ["full_attention"] * 2


def test_width_that_the_family_does_not_have_raises(tmp_path):
    model("bart").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^intermediate_size=6: model_type=bart has no such"):
        load(tmp_path, num_outputs=3, intermediate_size=6)


def test_encoder_of_an_encoder_with_a_decoder_loses_its_layers_alone(tmp_path):
    model("bart").save_pretrained(tmp_path)
    made = load(tmp_path, layers=1)
    assert (len(made.model.encoder.layers), len(made.model.decoder.layers)) == (1, LAYERS)


@pytest.mark.parametrize(
    ("change", "number", "kept"),
    [
        ({"layers": 0.5}, 12, [0, 1, 2, 3, 4, 5]),
        ({"layers": 0.5, "layer_choice": "spaced"}, 12, [0, 2, 4, 7, 9, 11]),
        ({"layers": 0.5, "layer_choice": "spaced"}, 6, [0, 3, 5]),
        ({"layers": 0.5, "layer_choice": "spaced"}, 2, [0]),
        ({"layers": 0.3333}, 12, [0, 1, 2, 3]),
        ({"layers": 0.3333}, 2, [0]),
        ({"layers": 0.5}, 3, [0, 1]),
        ({"layers": 0.01}, 6, [0]),
        ({"layers": 1.0}, 4, [0, 1, 2, 3]),
        ({"layers": 1}, 4, [0]),
        ({"layers": 3, "layer_choice": "spaced"}, 24, [0, 12, 23]),
    ],
)
def test_share_of_the_layers_suits_every_encoder(change, number, kept):
    """DistilBERT keeps 0, 2, 4, 7, 9, 11 of 12 (its script `extract_distilbert.py`)."""
    assert EncoderChange(**change).kept_layers(number) == kept


@pytest.mark.parametrize(
    ("width", "heads", "expected"),
    [(768, 12, (312, 1200)), (384, 12, (156, 600)), (64, 4, (28, 100))],
)
def test_share_of_the_width_is_a_multiple_of_the_heads(width, heads, expected):
    """TinyBERT4: 312 of 768, 1200 of 3072."""
    change = EncoderChange(hidden_size=0.40625, intermediate_size=0.390625)
    of_bert = config(
        "bert", hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
    )
    made = change.config(of_bert)
    assert (made.hidden_size, made.intermediate_size) == expected
    assert change.new_weights


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 1.5}, r"layers=1.5: expected a whole number, or a fraction in \(0, 1\]"),
        ({"hidden_size": 0.0}, "hidden_size=0.0: expected a whole number"),
        ({"layers": 1, "layer_choice": "last"}, "layer_choice=last: expected first or spaced"),
    ],
)
def test_shares_out_of_range_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        EncoderChange(**change)


def test_width_of_debertas_pooler_follows(tmp_path):
    """Its saved config has one of its own."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    deberta = DebertaV2Config(vocab_size=20, intermediate_size=8, **sizes)
    AutoModelForSequenceClassification.from_config(deberta).save_pretrained(tmp_path)
    made = load(tmp_path, hidden_size=8)
    ids = torch.ones(2, 4, dtype=torch.long)
    assert made(input_ids=ids, attention_mask=ids).logits.shape == (2, 3)
