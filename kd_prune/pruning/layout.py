"""Layout: weights that are not stored as (output, input, …), turned for granularities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from kd_prune.pruning.granularity.base import (
    CrossTensorGranularity,
    Granularity,
    Shape,
    Shapes,
    compute_masks,
    pool_scores,
    reachable_counts,
)
from kd_prune.pruning.selection import Counts, Masks, Score, Selection, unstructured


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

    def rows_shape(self, shape: Shape) -> Shape:
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


@dataclass(frozen=True, repr=False)
class OnRows:
    """A granularity that sees every weight as (output, input, …), however it is stored.

    Args:
        granularity: The granularity.
        layouts: Name → layout, of the tensors to turn.
    """

    granularity: Selection | CrossTensorGranularity
    layouts: Mapping[str, Transposed] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the granularity's own text: messages are about it."""
        return repr(self.granularity)

    def pool_scores(self, masks: Masks, score: Score) -> Score:
        """Replace each score by its group's score."""
        pooled = pool_scores(self.granularity, self._rows_of(masks), self._score_of_rows(score))
        return lambda name: self._stored(name, pooled(name))

    def reachable_counts(self, shapes: Shapes, counts: Counts) -> Counts:
        """Return how many weights of each tensor are pruned for `counts`."""
        turned = {
            name: self.layouts[name].rows_shape(shape) if name in self.layouts else shape
            for name, shape in shapes.items()
        }
        return reachable_counts(self.granularity, turned, counts)

    def masks_for_model(
        self, masks: Masks, score: Score, counts: Counts
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield name and new mask of every tensor, as it is stored."""
        rows = self._rows_of(masks)
        for name, mask in compute_masks(self.granularity, rows, self._score_of_rows(score), counts):
            wrong = mask.shape != rows[name].shape  # refused by the caller, with its message
            yield name, mask if wrong else self._stored(name, mask)

    def _rows_of(self, masks: Masks) -> Masks:
        return {name: self._rows(name, mask) for name, mask in masks.items()}

    def _score_of_rows(self, score: Score) -> Score:
        return lambda name: self._rows(name, score(name))

    def _rows(self, name: str, tensor: Tensor) -> Tensor:
        return self.layouts[name].to_rows(tensor) if name in self.layouts else tensor

    def _stored(self, name: str, tensor: Tensor) -> Tensor:
        return self.layouts[name].from_rows(tensor) if name in self.layouts else tensor


def on_rows(
    granularity: Selection | CrossTensorGranularity, parameters: Mapping[str, nn.Parameter]
) -> Selection | CrossTensorGranularity:
    """Return a granularity for these parameters: itself, unless it has to turn some of them."""
    layouts = getattr(parameters, "layouts", {})
    if granularity is unstructured or not layouts:  # single weights have no direction
        return granularity
    return OnRows(granularity, layouts)


def prunes_groups(granularity: Selection | CrossTensorGranularity) -> bool:
    """Return whether a granularity has restricted counts; a plain function is taken not to."""
    own = granularity.granularity if isinstance(granularity, OnRows) else granularity
    return isinstance(own, Granularity | CrossTensorGranularity)


def _layout(module: nn.Module) -> Transposed | None:
    """Return the layout of a layer's weight; None if it is stored as (output, input, …)."""
    if isinstance(module, _ConvTransposeNd):
        return Transposed(groups=module.groups)
    # The linear layer of GPT-2 in transformers, which is not imported here.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return Transposed()
    return None
