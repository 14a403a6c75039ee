"""Forward pass of an encoder, with outputs as `Activations`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from kd_prune.distillation.activations import Activations, Batch

SEGMENTS = "token_type_ids"


def forward(model: nn.Module, batch: Batch, requires: frozenset[str]) -> Activations:
    """Run `model` on `batch`; outputs that are not required are neither computed nor kept.

    The model gets what it reads of the batch: no labels, and no ``token_type_ids`` where it takes
    none (DistilBERT with a teacher that does). The logits of a model without a head are empty. The
    logits of several heads with one value per token each, as in question answering, are stacked to
    (batch, heads, length), so that the last dimension holds what a softmax is taken over; padding
    has the lowest value of the type, that is probability 0.
    """
    read = _arguments(type(_inner(model)).forward) - {"labels"}
    outputs = model(
        **{name: tensor for name, tensor in batch.items() if name in read},
        output_hidden_states="hidden_states" in requires,
        output_attentions="attention_scores" in requires,
    )
    logits: list[Tensor] = [value for name, value in outputs.items() if name.endswith("logits")]
    if not logits:
        logits = [batch["input_ids"].new_empty(0, dtype=torch.float32)]
    return Activations(
        logits=logits[0] if len(logits) == 1 else _stacked(logits, batch),
        # An encoder-decoder has no outputs of these names, but two of each under other names.
        hidden_states=tuple(getattr(outputs, "hidden_states", None) or ()),
        attention_scores=tuple(getattr(outputs, "attentions", None) or ()),
    )


def accepts_token_type_ids(model: nn.Module) -> bool:
    """Return whether the model reads ``token_type_ids``, which mark the second text of a pair."""
    return SEGMENTS in _arguments(type(_inner(model)).forward)


def _inner(model: nn.Module) -> nn.Module:
    """Return the model inside of torch.compile's wrapper."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def _stacked(logits: list[Tensor], batch: Batch) -> Tensor:
    """Stack the logits of several heads, (batch, length) each."""
    stacked = torch.stack(logits, dim=1)
    if "attention_mask" not in batch:
        return stacked
    padding = batch["attention_mask"][:, None] == 0
    return stacked.masked_fill(padding, torch.finfo(stacked.dtype).min)


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's arguments; computed once per model class."""
    return frozenset(signature(function).parameters)
