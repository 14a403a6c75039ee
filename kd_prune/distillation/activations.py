"""Activations: the outputs of one forward pass that loss terms read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kd_prune.errors import ConfigError

Batch = Mapping[str, Tensor]


def _empty() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """A model's outputs on one batch; kinds that no term requires may be empty.

    Attributes:
        logits: (batch, outputs); a task may give them another shape.
        hidden_states: Embedding output, then one per layer, each (batch, length, width).
        attention_scores: One per layer, before mask, softmax and dropout, each
            (batch, heads, length, length).
        queries: One per layer, each (batch, heads, length, width of a head).
        keys: Likewise.
        values: Likewise.
    """

    logits: Tensor = field(default_factory=_empty)
    hidden_states: tuple[Tensor, ...] = ()
    attention_scores: tuple[Tensor, ...] = ()
    queries: tuple[Tensor, ...] = ()
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


HEADS = frozenset({"queries", "keys", "values"})
KINDS = HEADS | {"logits", "hidden_states", "attention_scores"}

Forward = Callable[[nn.Module, Batch, frozenset[str]], Activations]
"""Runs a model on a batch; returns at least the required kinds of activations."""


def labels_of(batch: Batch) -> Tensor:
    """Return the batch's targets.

    Raises:
        ConfigError: It has none.
    """
    if "labels" not in batch:
        found = ", ".join(batch)
        raise ConfigError(
            "labels", expected=f"the batch has no such key; it has {found}", hint="add the targets"
        )
    return batch["labels"]
