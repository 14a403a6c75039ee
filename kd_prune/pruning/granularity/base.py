"""The interfaces of granularities, and functions that apply one to all tensors in scope."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.selection import Counts, Masks, Score, Selection

Shape = Sequence[int]
Shapes = Mapping[str, Shape]


@runtime_checkable
class Granularity(Protocol):
    """A `Selection` with restricted counts. A plain function is taken to reach every count."""

    def __call__(self, scores: Tensor, count: int, kept: Tensor, /) -> Tensor:
        """Return the mask of the weights that stay."""

    def reachable(self, count: int, shape: Shape) -> int:
        """Return how many weights are pruned for `count`, of a tensor without zeros.

        Raises:
            ConfigError: The shape does not fit.
        """

    def broadcast_scores(self, scores: Tensor) -> Tensor:
        """Replace each score by its group's score, to be ranked by an allocation."""


@runtime_checkable
class CrossTensorGranularity(Protocol):
    """A granularity that ties weights of several tensors and selects for the model at once."""

    def pool_scores(self, masks: Masks, score: Score) -> Score:
        """Replace each score by its group's score, to be ranked by an allocation in one update."""

    def reachable_counts(self, shapes: Shapes, counts: Counts) -> Counts:
        """Return how many weights of each tensor are pruned for `counts`."""

    def masks_for_model(
        self, masks: Masks, score: Score, counts: Counts
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield name and new mask of every tensor; masks of tied tensors are computed together."""


def pool_scores(
    granularity: Selection | CrossTensorGranularity, masks: Masks, score: Score
) -> Score:
    """Return the scores that an allocation ranks: each score replaced by its group's score.

    `uniform` uses no scores. `Global` compares tensors, and with blocks it must compare the scores
    of blocks.

    >>> import torch
    >>> from kd_prune.pruning import Block
    >>> score = {"a": torch.tensor([[1.0, 3.0, 5.0, 7.0]])}.__getitem__
    >>> masks = {"a": torch.ones(1, 4, dtype=torch.bool)}
    >>> pool_scores(Block(rows=1, columns=2), masks, score)("a")
    tensor([[2., 2., 6., 6.]])
    """
    if isinstance(granularity, CrossTensorGranularity):
        return granularity.pool_scores(masks, score)
    if isinstance(granularity, Granularity):
        broadcast = granularity.broadcast_scores
        return lambda name: broadcast(score(name))
    return score


def reachable_counts(
    granularity: Selection | CrossTensorGranularity, shapes: Shapes, counts: Counts
) -> Counts:
    """Return how many weights of each tensor are pruned for `counts`; a function reaches any count.

    Raises:
        ConfigError: A shape does not fit; the message has the tensor's name.

    >>> from kd_prune.pruning import Rows, unstructured
    >>> reachable_counts(Rows(), {"a": (4, 10)}, {"a": 17})
    {'a': 20}
    >>> reachable_counts(unstructured, {"a": (4, 10)}, {"a": 17})
    {'a': 17}
    """
    if isinstance(granularity, CrossTensorGranularity):
        return granularity.reachable_counts(shapes, counts)
    if not isinstance(granularity, Granularity):
        return {name: counts[name] for name in shapes}
    result = {}
    for name, shape in shapes.items():
        with tensor_in_error(name):
            result[name] = granularity.reachable(counts[name], shape)
    return result


def compute_masks(
    granularity: Selection | CrossTensorGranularity, masks: Masks, score: Score, counts: Counts
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and new mask of every tensor; scores are computed one tensor at a time.

    >>> import torch
    >>> from kd_prune.pruning import unstructured
    >>> score = {"a": torch.tensor([3.0, 1.0])}.__getitem__
    >>> masks = {"a": torch.tensor([True, True])}
    >>> dict(compute_masks(unstructured, masks, score, {"a": 1}))
    {'a': tensor([ True, False])}
    """
    if isinstance(granularity, CrossTensorGranularity):
        yield from granularity.masks_for_model(masks, score, counts)
    else:
        for name, kept in masks.items():
            yield name, granularity(score(name), counts[name], kept)


def check_reachable(
    granularity: Selection | CrossTensorGranularity, counts: Counts, limits: Counts, sizes: Counts
) -> None:
    """Raise ConfigError where the count of a tensor exceeds what the granularity can prune.

    >>> from kd_prune.pruning import NM
    >>> check_reachable(NM(), counts={"a": 101}, limits={"a": 100}, sizes={"a": 200})
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: granularity=NM(n=2, m=4): cannot prune 101 of the 200 weights ...
    """
    for name, count in counts.items():
        if count > limits[name]:
            share = f"{limits[name] / sizes[name]:.4g}"
            raise ConfigError(
                "granularity",
                granularity,
                f"cannot prune {count} of the {sizes[name]} weights of {name}: it reaches sparsity "
                f"{share} in every tensor and no more",
                f"take final={share} or less, and an allocation that takes no more from one tensor "
                f"(Global: ceiling={share})",
            )


def warn_if_distant(granularity: object, found: int, wanted: int, total: int) -> None:
    """Warn where full groups miss the number of weights to prune by much.

    Args:
        granularity: The granularity.
        found: Weights that it prunes.
        wanted: Weights asked for.
        total: Weights in scope.
    """
    # A twelfth of all weights, or a quarter of those that stay: at 0.95 that is 0.0125.
    if abs(found - wanted) > min(total / 12, (total - wanted) / 4):
        warnings.warn(
            f"granularity={granularity}: prunes full groups and reaches sparsity "
            f"{found / total:.4g} where {wanted / total:.4g} is asked for; smaller groups come "
            "closer",
            stacklevel=4,
        )


@contextmanager
def tensor_in_error(name: str) -> Iterator[None]:
    """Name the tensor in the message of a ConfigError raised inside."""
    try:
        yield
    except ConfigError as error:
        expected = f"{name}: {error.expected}"
        raise type(error)(error.key, error.value, expected, error.hint) from error


def shapes_of(masks: Masks) -> dict[str, Shape]:
    """Return name → shape."""
    return {name: mask.shape for name, mask in masks.items()}


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Return rows and columns of ``weight.flatten(1)``.

    Raises:
        ConfigError: Fewer than two dimensions.
    """
    if len(shape) < 2:
        raise ConfigError(
            "scope",
            expected=f"shape {tuple(shape)}: expected two dimensions or more (output, input, …)",
            hint="exclude the tensor from the scope",
        )
    return shape[0], math.prod(shape[1:])
