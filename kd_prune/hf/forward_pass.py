"""Forward pass of an encoder, with outputs as `Activations`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from kd_prune.distillation.activations import HEADS, Activations, Batch
from kd_prune.hf.attention import Heads

SEGMENTS = "token_type_ids"
LOGIT_POSITIONS = "logit_positions"
"""Key of a batch: true for the tokens, (batch, length), of which alone logits are computed."""


def forward(model: nn.Module, batch: Batch, requires: frozenset[str]) -> Activations:
    """Run `model` on `batch`; outputs that are not required are neither computed nor kept.

    The model gets what it reads of the batch: no labels, and no ``token_type_ids`` where it takes
    none (DistilBERT with a teacher that does). The logits of a model without a head are empty. The
    logits of several heads with one value per token each, as in question answering, are stacked to
    (batch, heads, length), so that the last dimension holds what a softmax is taken over; padding
    has the lowest value of the type, that is probability 0. A batch with `LOGIT_POSITIONS` gives
    logits of these tokens only, (tokens, outputs).
    """
    read = _arguments(type(_inner(model)).forward) - {"labels"}
    positions = batch.get(LOGIT_POSITIONS)
    with selected_tokens(model, positions):
        outputs = model(
            **{name: tensor for name, tensor in batch.items() if name in read},
            output_hidden_states="hidden_states" in requires,
            output_attentions=bool(requires & (HEADS | {"attention_scores"})),
        )
    logits: list[Tensor] = [value for name, value in outputs.items() if name.endswith("logits")]
    if not logits:
        logits = [batch["input_ids"].new_empty(0, dtype=torch.float32)]
    elif positions is not None:
        # A family whose head does not read the encoder's output alone has computed them all.
        whole = batch["input_ids"].shape
        logits = [one[positions] if one.shape[:2] == whole else one[0] for one in logits]
    # An encoder-decoder has no outputs of these names, but two of each under other names.
    found: list[Any] = list(getattr(outputs, "attentions", None) or ())
    heads = {}
    if found and isinstance(found[0], Heads):
        heads = {name: tuple(getattr(one, name) for one in found) for name in HEADS}
        found = [one.scores for one in found]
    return Activations(
        logits=logits[0] if len(logits) == 1 else _stacked(logits, batch),
        hidden_states=tuple(getattr(outputs, "hidden_states", None) or ()),
        attention_scores=tuple(found),
        **heads,
    )


@contextmanager
def selected_tokens(model: nn.Module, positions: Tensor | None) -> Iterator[None]:
    """Let the head of `model` read the encoder's output at some tokens only, (1, tokens, width).

    A head over the whole vocabulary costs as much as the encoder, and masked words are a sixth of
    the tokens.
    """
    encoder = getattr(model, "base_model", model)
    if positions is None or encoder is model:
        yield
        return

    def select(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        outputs.last_hidden_state = outputs.last_hidden_state[positions][None]
        return outputs

    hook = encoder.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


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
