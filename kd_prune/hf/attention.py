"""Attention scores before the softmax, as a transformers attention implementation.

transformers returns probabilities after dropout, and nothing with SDPA; distillation needs the
scores ``QKᵀ/√d``. A model switched to the implementation `SCORES` returns them as its attentions,
and its logits are unchanged; `HEADS` returns queries, keys and values with them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from kd_prune.errors import ConfigError

SCORES, HEADS = "kd_scores", "kd_heads"
CHANGES_SCORES = ("softcap", "s_aux", "position_bias")
"""Arguments of some families' attention that change the result and are not computed here."""
OTHER_TERMS = "set the weights of terms on attention to 0"


class Heads(NamedTuple):
    """One layer's scores, and its queries, keys and values, (batch, heads, length, d)."""

    scores: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor


def attention_returning_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **settings: object,
) -> tuple[Tensor, Tensor]:
    """Compute attention; return the output and the scores before mask, softmax and dropout.

    Args:
        module: The attention layer.
        query: (batch, heads, length, d).
        key: (batch, key heads, length, d); the number of heads is a multiple of `key heads`.
        value: Like `key`.
        attention_mask: Bool, True = attend, broadcastable to (batch, heads, length, length).
        scaling: Factor of the scores; None is 1/√d.
        dropout: Probability applied to the attention weights in training.
        **settings: What families pass besides.

    Returns:
        Output (batch, length, heads, d) and scores (batch, heads, length, length).

    Raises:
        ConfigError: The family's attention is another function of its inputs.
    """
    for setting in CHANGES_SCORES:
        if settings.get(setting) is not None:
            raise ConfigError(
                "model_type",
                expected=f"gives no attention scores: its attention has {setting}",
                hint=OTHER_TERMS,
            )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # several query heads share one key head
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    masked = scores
    if attention_mask is not None:
        masked = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(masked.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), scores


def attention_returning_heads(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any
) -> tuple[Tensor, Heads]:
    """Compute attention as `attention_returning_scores` does; return the output and `Heads`.

    Key heads that several query heads share are repeated.
    """
    output, scores = attention_returning_scores(module, query, key, value, *args, **settings)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    return output, Heads(scores, query, key, value)


AttentionInterface.register(SCORES, attention_returning_scores)
AttentionInterface.register(HEADS, attention_returning_heads)


def explicit_mask(*args: Any, **settings: Any) -> Tensor | None:
    """Return SDPA's mask as a tensor, also where SDPA itself would get ``is_causal`` instead."""
    return sdpa_mask(*args, **(settings | {"allow_is_causal_skip": False}))


AttentionMaskInterface.register(SCORES, explicit_mask)
AttentionMaskInterface.register(HEADS, explicit_mask)


def enable_attention_scores(model: PreTrainedModel, *, heads: bool = False) -> None:
    """Make `model` return attention scores where it is asked for attentions.

    Args:
        model: The model.
        heads: Whether to return queries, keys and values too, as `Heads`.

    Raises:
        ConfigError: The attention of the model's family cannot be replaced.
    """
    wanted = HEADS if heads else SCORES
    model.set_attn_implementation(wanted)
    if model.config._attn_implementation != wanted:  # transformers only logs this
        raise ConfigError(
            "model_type",
            model.config.model_type,
            "gives no attention scores: its attention cannot be replaced",
            OTHER_TERMS,
        )
