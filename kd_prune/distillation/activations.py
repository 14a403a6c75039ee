"""What terms see of a model's forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Activations:
    """A model's outputs on one batch; what no term asked for is empty.

    Attributes:
        logits: (batch, outputs).
        hidden_states: Embedding output, then one per layer, each (batch, length, d).
        attention_scores: One per layer, before mask, softmax and dropout, each
            (batch, heads, length, length).
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] = ()
    attention_scores: tuple[Tensor, ...] = ()


KINDS = frozenset({"logits", "hidden_states", "attention_scores"})

# Runs a model on a batch and returns the activations of the kinds named, others left empty.
Forward = Callable[[nn.Module, Batch, frozenset[str]], Activations]
