"""Parts of encoders of many families: layers, matrices in scope, dropout, positions."""

import pytest
import torch
from transformers import XLMConfig, XLMForSequenceClassification

from kd_prune.hf import (
    encoder_layers,
    encoder_scope,
    forward,
    max_positions,
    set_dropout,
)

from .families import FAMILIES, LAYERS, OTHERS, VOCABULARY, model

LINEARS = {
    "bert": [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
    "distilbert": [
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_scope_is_six_matrices_per_layer(family):
    made = model(family)
    stack = {"distilbert": "distilbert.transformer.layer"}.get(family, f"{family}.encoder.layer")
    linears = LINEARS.get(family, LINEARS["bert"])
    expected = {f"{stack}.{i}.{name}.weight" for i in range(LAYERS) for name in linears}
    assert len(expected) == 6 * LAYERS
    assert set(encoder_scope(made).select(made)) == expected
    assert list(encoder_layers(made)) == [stack]


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_scope_fits_a_model_inside_another(family):
    """A Lightning module holds the student as an attribute."""
    made = model(family)
    outer = torch.nn.ModuleDict({"student": made})
    selected = encoder_scope(made).select(outer)
    assert set(selected) == {f"student.{name}" for name in encoder_scope(made).select(made)}


def test_encoder_layers_in_several_lists_are_all_found():
    """XLM keeps attention and the rest of a layer in lists of their own."""
    sizes = {"emb_dim": 8, "n_layers": LAYERS, "n_heads": 2, "n_words": 20}
    made = XLMForSequenceClassification(XLMConfig(**sizes))
    scope = encoder_scope(made).select(made)
    assert len(scope) == 6 * LAYERS
    assert {name.split(".")[1] for name in scope} == {"attentions", "ffns"}


def test_forward_of_an_encoder_with_a_decoder_gives_logits():
    made = model("bart")
    batch = {"input_ids": torch.tensor([[5, 6, 2]]), "attention_mask": torch.ones(1, 3).long()}
    found = forward(made, batch, frozenset({"hidden_states"}))
    assert found.logits.shape == (1, made.config.num_labels)
    assert found.hidden_states == ()


def test_encoder_scope_without_layers_raises():
    made = model()
    made.bert.encoder.layer = torch.nn.ModuleList(made.bert.encoder.layer[:2])
    with pytest.raises(ValueError, match=r"model_type=bert: .*model\.scope"):
        encoder_scope(made)


PROBABILITIES = {
    "modernbert": ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    "bart": ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"),
}


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_set_dropout_reaches_every_dropout(family):
    """Two passes of a model that trains are one and the same."""
    made = model(family, **dict.fromkeys(PROBABILITIES.get(family, ()), 0.5)).train()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 2]]).expand(4, -1)

    def logits():
        with torch.no_grad():
            return made(input_ids=ids).logits

    assert not torch.equal(logits(), logits())
    set_dropout(made, 0.0)
    assert torch.equal(logits(), logits())
    set_dropout(made, 0.5)
    assert not torch.equal(logits(), logits())


@pytest.mark.parametrize("family", [*FAMILIES, "bart"])
def test_max_positions_is_the_longest_input(family):
    made = model(family).eval()
    longest = max_positions(made)

    def read(length):
        with torch.no_grad():
            ids = torch.full((1, length), VOCABULARY.index("a"))
            ids[0, -1] = 2  # what BART's head looks for
            return made(input_ids=ids)

    read(longest)
    with pytest.raises((RuntimeError, IndexError)):
        read(longest + 1)
