"""Blocks of known encoders, taken apart: which layer does what."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_prune.inference.layout import ACTIVATIONS

CAPTURING = "transformers.utils.output_capturing"
"""Module of the hooks by which transformers collects hidden states and attentions."""


@dataclass(frozen=True)
class Block:
    """The parts of an encoder block of BERT's kind.

    h = attention_norm(x + output(attention(query(x), key(x), value(x)))), then
    final_norm(h + down(activation(up(h)))).
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    up: nn.Linear
    down: nn.Linear
    attention_norm: nn.LayerNorm
    final_norm: nn.LayerNorm
    heads: int
    activation: str

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """Return the linear layers."""
        return (self.query, self.key, self.value, self.output, self.up, self.down)

    @property
    def matrices(self) -> tuple[tuple[nn.Linear, ...], ...]:
        """Return the linear layers, those together that have the same input."""
        return ((self.query, self.key, self.value), (self.output,), (self.up,), (self.down,))


def of_bert(layer: Any) -> Block | None:
    """Take a block of BERT, RoBERTa or ELECTRA apart; None for a decoder's."""
    attention, own = layer.attention, layer.attention.self
    if layer.is_decoder or layer.add_cross_attention or own.is_causal:
        return None
    return block(
        (own.query, own.key, own.value),
        (attention.output.dense, layer.intermediate.dense, layer.output.dense),
        (attention.output.LayerNorm, layer.output.LayerNorm),
        own.num_attention_heads,
        layer.intermediate.intermediate_act_fn,
    )


def of_distilbert(layer: Any) -> Block | None:
    """Take a block of DistilBERT apart."""
    attention, feed_forward = layer.attention, layer.ffn
    return block(
        (attention.q_lin, attention.k_lin, attention.v_lin),
        (attention.out_lin, feed_forward.lin1, feed_forward.lin2),
        (layer.sa_layer_norm, layer.output_layer_norm),
        attention.n_heads,
        feed_forward.activation,
    )


READERS: dict[str, Callable[[Any], Block | None]] = {
    "transformers.models.bert.modeling_bert.BertLayer": of_bert,
    "transformers.models.roberta.modeling_roberta.RobertaLayer": of_bert,
    "transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaLayer": of_bert,
    "transformers.models.camembert.modeling_camembert.CamembertLayer": of_bert,
    "transformers.models.electra.modeling_electra.ElectraLayer": of_bert,
    "transformers.models.distilbert.modeling_distilbert.TransformerBlock": of_distilbert,
}
"""Exact classes: a class derived from one of them may compute something else."""


def read(layer: nn.Module) -> Block | None:
    """Take a block apart; None where it is of no known class, or not as its class makes it."""
    kind = type(layer)
    reader = READERS.get(f"{kind.__module__}.{kind.__qualname__}")
    if reader is None or any(is_hooked(part) for part in layer.modules()):
        return None
    return reader(layer)


def block(
    projections: tuple[nn.Linear, nn.Linear, nn.Linear],
    matrices: tuple[nn.Linear, nn.Linear, nn.Linear],
    norms: tuple[nn.LayerNorm, nn.LayerNorm],
    heads: int,
    activation: Callable[[Tensor], Tensor],
) -> Block | None:
    """Put a block together; None where a part is not the plain layer that the kernels compute."""
    linears = (*projections, *matrices)
    if any(type(layer) is not nn.Linear for layer in linears):
        return None
    if any(type(norm) is not nn.LayerNorm or norm.bias is None for norm in norms):
        return None
    name = name_of(activation)
    if name is None or projections[0].out_features % heads:
        return None
    return Block(*projections, *matrices, *norms, heads, name)


def name_of(activation: Callable[[Tensor], Tensor]) -> str | None:
    """Recognize an activation function by its values; None if the kernels have no such one."""
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": F.gelu,
        "gelu_tanh": lambda value: F.gelu(value, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
    }
    # The far values tell functions that are cut off somewhere from those that are not.
    probe = torch.cat([torch.linspace(-6, 6, 257), torch.tensor([-1e3, -20.0, 20.0, 1e3])])
    with torch.no_grad():
        values = activation(probe)
    for name in ACTIVATIONS:
        if torch.allclose(values, known[name](probe), rtol=1e-6, atol=1e-6):
            return name
    return None


def is_hooked(module: nn.Module) -> bool:
    """Return whether something watches or changes what a module computes."""
    registers = (module._forward_hooks, module._forward_pre_hooks)
    return any(map(is_watched, registers)) or "forward" in vars(module)


def is_watched(hooks: Mapping[int, Any]) -> bool:
    """Return whether one of some hooks does anything in the present call.

    Once hidden states or attentions were asked for, transformers leaves hooks in a model that do
    nothing until they are asked for again.
    """
    if all(hook.__module__ == CAPTURING for hook in hooks.values()):
        return bool(hooks) and bool(sys.modules[CAPTURING]._active_collector.get())
    return True
