"""What is removed together: n:m groups, blocks, rows, attention heads (single weights: `exact`).

A granularity is a `Select`: ``(scores, count, kept) → mask``, nested like all masks here. Which
counts it can reach says ``reachable(count, shape)``. `AttentionHeads` ties several tensors, so it
cannot be asked tensor by tensor; `pooled`, `reached` and `chosen` ask either kind for a model.

Weights are matrices (output, input); of convolutions, ``weight.flatten(1)``. Conv1D of transformers
(GPT-2) holds the input first: its rows are inputs. Biases are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor

from kd_prune.pruning.mask import (
    Counts,
    Masks,
    Score,
    Select,
)

Shape = Sequence[int]
Shapes = Mapping[str, Shape]


@runtime_checkable
class Granularity(Protocol):
    """A `Select` that says what it can reach. A plain function is one that reaches any count."""

    def __call__(self, scores: Tensor, count: int, kept: Tensor, /) -> Tensor:
        """Mask of the weights that stay."""

    def reachable(self, count: int, shape: Shape) -> int:
        """How many weights go when `count` are asked for, of a tensor without zeros.

        Raises:
            ValueError: The shape does not fit.
        """

    def level(self, scores: Tensor) -> Tensor:
        """What an allocation should rank: each score replaced by that of what it goes with."""


@runtime_checkable
class Joint(Protocol):
    """A selection that looks at several tensors together, so that it is made for the model."""

    def pool(self, masks: Masks, score: Score) -> Score:
        """What an allocation should rank, for one update."""

    def reached(self, shapes: Shapes, counts: Counts) -> Counts:
        """How many weights of each tensor go when `counts` are asked for."""

    def together(self, masks: Masks, score: Score, counts: Counts) -> Iterator[tuple[str, Tensor]]:
        """Name and new mask of every tensor; those tied are decided before any is handed out."""


def pooled(select: Select | Joint, masks: Masks, score: Score) -> Score:
    """The scores that an allocation should rank, given what is removed together.

    `layerwise` looks at none. `Global` compares tensors, and one that loses blocks must be judged
    by its blocks.

    >>> import torch
    >>> from kd_prune.pruning import Block
    >>> score = {"a": torch.tensor([[1.0, 3.0, 5.0, 7.0]])}.__getitem__
    >>> masks = {"a": torch.ones(1, 4, dtype=torch.bool)}
    >>> pooled(Block(rows=1, columns=2), masks, score)("a")
    tensor([[2., 2., 6., 6.]])
    """
    if isinstance(select, Joint):
        return select.pool(masks, score)
    if isinstance(select, Granularity):
        level = select.level
        return lambda name: level(score(name))
    return score


def reached(select: Select | Joint, shapes: Shapes, counts: Counts) -> Counts:
    """How many weights of each tensor go when `counts` are asked for; for a plain function, these.

    Raises:
        ValueError: A shape does not fit; names the tensor.

    >>> from kd_prune.pruning import Rows, exact
    >>> reached(Rows(), {"a": (4, 10)}, {"a": 17})
    {'a': 20}
    >>> reached(exact, {"a": (4, 10)}, {"a": 17})
    {'a': 17}
    """
    if isinstance(select, Joint):
        return select.reached(shapes, counts)
    if not isinstance(select, Granularity):
        return {name: counts[name] for name in shapes}
    found = {}
    for name, shape in shapes.items():
        with naming(name):
            found[name] = select.reachable(counts[name], shape)
    return found


def refuse_out_of_reach(
    select: Select | Joint, counts: Counts, most: Counts, sizes: Counts
) -> None:
    """Raise ValueError where more is asked of a tensor than the `most` that can go of it.

    >>> from kd_prune.pruning import NM
    >>> refuse_out_of_reach(NM(), counts={"a": 101}, most={"a": 100}, sizes={"a": 200})
    Traceback (most recent call last):
    ValueError: a: NM(keep=2, of=4) cannot prune 101 of 200 weights: it reaches sparsity 0.5 in ...
    """
    for name, count in counts.items():
        if count > most[name]:
            share = f"{most[name] / sizes[name]:.4g}"
            raise ValueError(
                f"{name}: {select} cannot prune {count} of {sizes[name]} weights: it reaches "
                f"sparsity {share} in every tensor and no more; take final={share} or less, and an "
                f"allocation that takes no more from one tensor (Global: ceiling={share})"
            )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the tensor's name before a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def chosen(
    select: Select | Joint, masks: Masks, score: Score, counts: Counts
) -> Iterator[tuple[str, Tensor]]:
    """Name and new mask of every tensor, one after the other: scores are asked for when needed.

    >>> import torch
    >>> from kd_prune.pruning import exact
    >>> score = {"a": torch.tensor([3.0, 1.0])}.__getitem__
    >>> masks = {"a": torch.tensor([True, True])}
    >>> dict(chosen(exact, masks, score, {"a": 1}))
    {'a': tensor([ True, False])}
    """
    if isinstance(select, Joint):
        yield from select.together(masks, score, counts)
    else:
        for name, kept in masks.items():
            yield name, select(score(name), counts[name], kept)


def shapes_of(masks: Masks) -> dict[str, Shape]:
    """Name → shape."""
    return {name: mask.shape for name, mask in masks.items()}


def matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns of ``weight.flatten(1)``."""
    if len(shape) < 2:
        raise ValueError(
            f"shape {tuple(shape)}: expected two dimensions or more (output, input, …); exclude "
            "the tensor from the scope"
        )
    return shape[0], math.prod(shape[1:])


def check_positive(argument: str, value: int) -> None:
    """Raise ValueError unless the value is an integer above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}={value!r}: expected a positive integer")
