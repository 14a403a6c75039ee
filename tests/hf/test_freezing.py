"""Freezing: embeddings, layers and head of every family, patterns, refusals."""

from __future__ import annotations

import re

import pytest
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    MPNetConfig,
)

from kd_prune.errors import ConfigError
from kd_prune.hf import encoder_layers, freeze

from .families import FAMILIES, LAYERS, model

SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def trained(made):
    return {name for name, parameter in made.named_parameters() if parameter.requires_grad}


def layer_of(made, name):
    """Index of the layer that a parameter belongs to, or None."""
    stacks = "|".join(map(re.escape, encoder_layers(made)))
    found = re.match(rf"(?:{stacks})\.(\d+)\.", name)
    return int(found[1]) if found else None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_belongs_to_one_part(family):
    made = model(family)
    everything = trained(made)
    left = {}
    for part in ("embeddings", "layers", "head"):
        freeze(made, [part])
        left[part] = everything - trained(made)
    assert set().union(*left.values()) == everything
    assert sum(map(len, left.values())) == len(everything)
    assert all("embeddings" in name for name in left["embeddings"])
    assert all(layer_of(made, name) is not None for name in left["layers"])
    assert any("classifier" in name for name in left["head"])
    assert all(layer_of(made, name) is None for name in left["head"])


@pytest.mark.parametrize(
    ("part", "frozen"),
    [
        ("layers[:-1]", range(LAYERS - 1)),
        ("layers[1:]", range(1, LAYERS)),
        ("layers[-1:]", [LAYERS - 1]),
        ("layers[:]", range(LAYERS)),
    ],
)
def test_some_layers_are_frozen(part, frozen):
    made = model("bert")
    everything = trained(made)
    freeze(made, [part])
    assert {layer_of(made, name) for name in everything - trained(made)} == set(frozen)
    assert all(layer_of(made, name) not in frozen for name in trained(made))


def test_head_tied_to_frozen_embeddings_trains_without_them():
    """The decoder's matrix is the embedding table; its transform and bias train."""
    made = AutoModelForMaskedLM.from_config(model("bert").config)
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    freeze(made, ["embeddings", "layers"])
    assert trained(made) == {
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    }
    assert not made.get_output_embeddings().weight.requires_grad


def test_patterns_name_parameters():
    made = model("bert")
    everything = trained(made)
    freeze(made, ["*LayerNorm*", "classifier.bias"])
    assert everything - trained(made) == {
        name for name in everything if "LayerNorm" in name or name == "classifier.bias"
    }


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["encoder"], "freeze=encoder: expected embeddings, layers, .*or a pattern"),
        (["layers[9:]"], r"freeze=layers\[9:\]: expected"),
        (["embeddings", "layers", "head"], "freeze=.*: nothing is left to train"),
    ],
)
def test_parts_that_cannot_be_frozen_are_refused(parts, says):
    with pytest.raises(ConfigError, match=says):
        freeze(model("bert"), parts)


@pytest.mark.parametrize(
    ("made", "shared"),
    [
        (
            DebertaV2Config(relative_attention=True, pos_att_type=["p2c"], **SMALL),
            "deberta.encoder.rel_embeddings.weight",
        ),
        (MPNetConfig(**SMALL), "mpnet.encoder.relative_attention_bias.weight"),
    ],
    ids=["deberta", "mpnet"],
)
def test_relative_positions_that_layers_share_belong_to_the_embeddings(made, shared):
    """They are registered after the layers."""
    made = AutoModelForSequenceClassification.from_config(made)
    everything = trained(made)
    freeze(made, ["head"])
    assert shared in trained(made)
    assert not any("classifier" in name for name in trained(made))
    freeze(made, ["embeddings"])
    assert shared not in trained(made)
    assert {name for name in everything - trained(made) if "classifier" in name} == set()
