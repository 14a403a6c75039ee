"""Queries, keys and values of every layer, next to the attention scores."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from kd_prune.hf import enable_attention_scores, forward

from .families import FAMILIES, HEADS, LAYERS, batch, config, model

EVERYTHING = frozenset({"logits", "attention_scores", "queries", "keys", "values"})


@pytest.mark.parametrize("family", [*FAMILIES, "modernbert"])
def test_heads_give_the_scores_and_leave_the_logits_unchanged(family):
    made = model(family)
    before = forward(made, batch(), frozenset({"logits"})).logits
    enable_attention_scores(made, heads=True)
    found = forward(made, batch(), EVERYTHING)
    torch.testing.assert_close(found.logits, before)
    kinds = (found.attention_scores, found.queries, found.keys, found.values)
    assert [len(kind) for kind in kinds] == [LAYERS] * 4
    for scores, query, key, value in zip(*kinds, strict=True):
        assert query.shape == key.shape == value.shape == (3, HEADS, 6, 4)
        torch.testing.assert_close(scores, query @ key.transpose(2, 3) / 2)  # √4


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_heads_are_the_projections_of_the_layer(name):
    made = AutoModel.from_config(config("bert")).eval()
    enable_attention_scores(made, heads=True)
    inputs = {k: v for k, v in batch().items() if k != "labels"}
    kept = {}
    projection = getattr(made.encoder.layer[1].attention.self, name)
    hook = projection.register_forward_hook(lambda *call: kept.update(output=call[2]))
    found = forward(made, inputs, EVERYTHING)
    hook.remove()
    plural = {"query": found.queries, "key": found.keys, "value": found.values}
    expected = kept["output"].unflatten(-1, (HEADS, -1)).transpose(1, 2)
    torch.testing.assert_close(plural[name][1], expected)


def test_without_heads_only_scores_are_kept():
    made = model("bert")
    enable_attention_scores(made)
    found = forward(made, batch(), frozenset({"attention_scores"}))
    assert len(found.attention_scores) == LAYERS
    assert found.queries == found.keys == found.values == ()
