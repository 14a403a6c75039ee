"""OnRows: a granularity that sees weights as (output, input, …), however they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from kd_prune.pruning.granularity.base import (
    CrossTensorGranularity,
    Granularity,
    Shapes,
    compute_masks,
    pool_scores,
    reachable_counts,
)
from kd_prune.pruning.layout import Transposed
from kd_prune.pruning.selection import Counts, Masks, Score, Selection, unstructured


@dataclass(frozen=True, repr=False)
class OnRows:
    """A granularity that sees every weight as (output, input, …), however it is stored.

    Args:
        granularity: The granularity.
        layouts: Name → layout, of the tensors to turn.
    """

    granularity: Selection | CrossTensorGranularity
    layouts: Mapping[str, Transposed]

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
