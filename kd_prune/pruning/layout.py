"""Layout: which weights are not stored as (output, input, …), and how to turn them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from kd_prune.pruning.layers import is_conv1d


@dataclass(frozen=True, kw_only=True)
class Transposed:
    """A weight stored as (input, output / groups, …).

    Args:
        groups: Groups of a transposed convolution; their inputs lie one after the other.

    >>> import torch
    >>> stored = torch.tensor([[1, 2, 3], [4, 5, 6]])  # two inputs, three outputs
    >>> Transposed().to_rows(stored).tolist()
    [[1, 4], [2, 5], [3, 6]]
    """

    groups: int = 1

    def rows_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Return the shape as (output, input / groups, …)."""
        return (shape[1] * self.groups, shape[0] // self.groups, *shape[2:])

    def to_rows(self, tensor: Tensor) -> Tensor:
        """Return the tensor as (output, input / groups, …), copied."""
        return self._swap(tensor)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return a tensor of rows as it is stored, copied."""
        return self._swap(rows)

    def _swap(self, tensor: Tensor) -> Tensor:
        # (groups · a, b, …) → (groups · b, a, …): its own inverse.
        split = tensor.reshape(self.groups, -1, *tensor.shape[1:]).transpose(1, 2)
        return split.flatten(0, 1).contiguous()


class LaidOutParameters(dict[str, nn.Parameter]):
    """Name → parameter, with the layout of those that are not stored as (output, input, …).

    Attributes:
        layouts: Name → layout.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(parameters)
        by_weight = {
            id(weight): layout
            for module in model.modules()
            if (layout := _layout(module))
            for weight in module.parameters(recurse=False)
            if weight.ndim >= 2
        }
        self.layouts = {
            name: by_weight[id(weight)] for name, weight in self.items() if id(weight) in by_weight
        }


def _layout(module: nn.Module) -> Transposed | None:
    """Return the layout of a layer's weight; None if it is stored as (output, input, …)."""
    if isinstance(module, _ConvTransposeNd):
        return Transposed(groups=module.groups)
    return Transposed() if is_conv1d(module) else None
