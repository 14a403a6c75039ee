"""SparseLinear: a linear layer that computes with its nonzero weights only."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kd_prune.inference.layout import GROUP_ROWS, LinearCall, Team
from kd_prune.inference.packing import PackedMatrix, pack
from kd_prune.inference.quantized import quantize, quantized_groups
from kd_prune.inference.workspace import call, plan, workspace

NO_TRAINING = (
    "an accelerated model is for inference only: train the model that it was made from, and call it"
    " under torch.inference_mode() or torch.no_grad()"
)


class SparseLinear(nn.Module):
    """Computes ``input · weightᵀ + bias`` as `torch.nn.Linear` does, without the zeros.

    Weights that are zero take no part: an infinite input reaches only the outputs that have a
    weight on it, where a dense product makes NaN of all. The weights are no parameters; `weight` is
    a dense copy of them, made and kept where someone asks for it, as some models of transformers do
    to learn its type.

    In int8, weights are rounded to 127 steps of their row's largest, and inputs, one token and 768
    features at a time, to 254 steps between their least and their largest (126 on processors
    without VNNI). A token with an infinite input or NaN then becomes NaN in all outputs.

    Args:
        layer: The layer to replace, float32 on the CPU, at most 65536 inputs.
        int8: Round weights and inputs to int8.

    Raises:
        ConfigError: The layer has more inputs, or the processor has no instruction for int8.
    """

    def __init__(self, layer: nn.Linear, *, int8: bool = False) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.packed: PackedMatrix = (quantize if int8 else pack)([layer])
        self.training = False

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs ``[…, out_features]`` of inputs ``[…, in_features]``, float32.

        Raises:
            RuntimeError: The input needs gradients.
            TypeError: The input is not float32, or not on the CPU.
            ValueError: The last dimension is not `in_features`.
        """
        check_input(input)
        if input.shape[-1] != self.in_features:
            raise ValueError(f"expected {self.in_features} features, got {list(input.shape)}")
        rows = input.reshape(-1, self.in_features).contiguous()
        output = rows.new_empty(rows.shape[0], self.out_features)
        if output.numel():
            self._multiply(rows, output)
        return output.view(*input.shape[:-1], self.out_features)

    def _multiply(self, rows: Tensor, output: Tensor) -> None:
        tokens = rows.shape[0]
        chosen = plan(tokens, self.packed.steps)
        padded = chosen.tiles * chosen.width
        size = quantized_groups(self.packed) * GROUP_ROWS * chosen.width
        sizes = [padded * self.in_features, padded * self.out_features, chosen.owners * size]
        with workspace(sizes) as (in_tiles, out_tiles, quantized):
            arguments = {
                LinearCall.INPUT: rows.data_ptr(),
                LinearCall.OUTPUT: output.data_ptr(),
                LinearCall.IN_FEATURES: self.in_features,
                LinearCall.OUT_FEATURES: self.out_features,
                LinearCall.IN_TILES: in_tiles,
                LinearCall.OUT_TILES: out_tiles,
                LinearCall.QUANTIZED: quantized,
                LinearCall.QUANTIZED_SIZE: size,
            }
            slots = [arguments[LinearCall(slot)] for slot in range(len(Team), LinearCall.MATRIX)]
            call("linear", chosen, tokens, [*slots, *self.packed.record.tolist()])

    @cached_property
    def weight(self) -> Tensor:
        """Return the dense matrix ``[out_features, in_features]``, built at the first use."""
        return self.packed.dense()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the dense matrix, for copies and pickles."""
        return {name: value for name, value in self.__dict__.items() if name != "weight"}

    @property
    def bias(self) -> Tensor:
        """Return the bias, zeros where the layer had none."""
        return self.packed.bias

    def train(self, mode: bool = True) -> SparseLinear:
        """Refuse training.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise RuntimeError(NO_TRAINING)
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" sparsity={self.packed.sparsity:.3f}"
        )


def check_input(input: Tensor) -> None:
    """Refuse what the kernels cannot read.

    Raises:
        RuntimeError: The input needs gradients, or the model is traced.
        TypeError: It is not float32, or not on the CPU.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise RuntimeError("an accelerated model cannot be traced: trace or export the dense one")
    if input.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(NO_TRAINING)
    if input.dtype != torch.float32 or input.device.type != "cpu":
        raise TypeError(
            "an accelerated model computes in float32 on the CPU, but its input is"
            f" {input.dtype} on {input.device}"
        )
