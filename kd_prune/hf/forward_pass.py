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

    ``token_type_ids`` are left out for a model that does not read them (DistilBERT with a teacher
    that does). The logits of a model without a head are empty; the logits of several heads, as in
    question answering, are stacked in the last dimension.
    """
    unread = {"labels"} if accepts_token_type_ids(model) else {"labels", SEGMENTS}
    outputs = model(
        **{name: tensor for name, tensor in batch.items() if name not in unread},
        output_hidden_states="hidden_states" in requires,
        output_attentions="attention_scores" in requires,
    )
    logits: list[Tensor] = [value for name, value in outputs.items() if name.endswith("logits")]
    if not logits:
        logits = [batch["input_ids"].new_empty(0, dtype=torch.float32)]
    return Activations(
        logits=logits[0] if len(logits) == 1 else torch.stack(logits, dim=-1),
        # An encoder-decoder has no outputs of these names, but two of each under other names.
        hidden_states=tuple(getattr(outputs, "hidden_states", None) or ()),
        attention_scores=tuple(getattr(outputs, "attentions", None) or ()),
    )


def accepts_token_type_ids(model: nn.Module) -> bool:
    """Return whether the model reads ``token_type_ids``, which mark the second text of a pair."""
    inner: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile's wrapper hides it
    return SEGMENTS in _arguments(type(inner).forward)


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's arguments; computed once per model class."""
    return frozenset(signature(function).parameters)
