"""Tiles of one matrix that go as a whole: blocks, rows, the slice of an attention head."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_prune.pruning.granularity import (
    Shape,
    check_positive,
    matrix,
)
from kd_prune.pruning.mask import (
    exact,
)


class Tiles(ABC):
    """A matrix cut into equal tiles of which whole ones go: those of the smallest mean score."""

    @abstractmethod
    def tile(self, shape: Shape) -> tuple[int, int]:
        """Rows and columns of a tile."""

    def __call__(self, scores: Tensor, count: int, kept: Tensor) -> Tensor:
        """Prune the tiles of smallest mean until ``reachable(count, shape)`` entries are False.

        Of equal tiles the one of lower index (row by row) goes first. Zeros that kept tiles hold
        already are counted: then tiles go until `count` is met as nearly as whole tiles allow.
        """
        size = math.prod(self.tile(scores.shape))
        stays = whole_tiles(self.means(scores), self.left(kept), size, count)
        return kept & self.spread(stays, kept.shape)

    def reachable(self, count: int, shape: Shape) -> int:
        """Whole tiles only: ``round(count / size) · size`` for tiles of `size` weights.

        One stays at least where fewer weights were asked for than there are: rounding alone never
        empties a tensor.

        >>> Block(rows=1, columns=4).reachable(9, (2, 8))
        8
        """
        size = math.prod(self.tile(shape))
        return tiles_to_go(count, size, math.prod(shape) // size) * size

    def level(self, scores: Tensor) -> Tensor:
        """Each score replaced by its tile's mean.

        >>> Rows().level(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
        tensor([[2., 2.],
                [6., 6.]])
        """
        return self.spread(self.means(scores).to(scores.dtype), scores.shape)

    def means(self, scores: Tensor) -> Tensor:
        """Mean score of each tile, pruned weights included, (rows of tiles, columns of tiles).

        In float64, where sums of float32 are exact but for extremes: tiles of the same values tie,
        in whatever order they hold them.
        """
        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no other
        return self._cut(scores.detach()).mean((1, 3), dtype=wide)

    def left(self, kept: Tensor) -> Tensor:
        """How many weights each tile has left."""
        return self._cut(kept).sum((1, 3))

    def spread(self, values: Tensor, shape: Shape) -> Tensor:
        """One value per tile, given to all its weights."""
        height, width = matrix(shape)
        rows, columns = self.tile(shape)
        grid = values.reshape(height // rows, 1, width // columns, 1)
        return grid.expand(-1, rows, -1, columns).reshape(tuple(shape))

    def _cut(self, tensor: Tensor) -> Tensor:
        height, width = matrix(tensor.shape)
        rows, columns = self.tile(tensor.shape)
        return tensor.reshape(height // rows, rows, width // columns, columns)

    def _fitting(self, shape: Shape, rows: int, columns: int) -> tuple[int, int]:
        height, width = matrix(shape)
        if height % rows or width % columns:
            raise ValueError(
                f"{self} takes tiles of {rows} × {columns}, which do not divide the {height} × "
                f"{width} of shape {tuple(shape)}; choose a size that does, or exclude the tensor "
                "from the scope"
            )
        return rows, columns


def tiles_to_go(count: int, size: int, tiles: int) -> int:
    """How many of so many tiles of `size` weights go when `count` weights are asked for.

    >>> tiles_to_go(95, 10, 10), tiles_to_go(97, 10, 10), tiles_to_go(100, 10, 10)
    (9, 9, 10)
    """
    return min(round(count / size), tiles if count >= tiles * size else tiles - 1)


def whole_tiles(means: Tensor, left: Tensor, size: int, count: int) -> Tensor:
    """Which of the groups stay, of `size` weights each, `left` of them so far."""
    there = left > 0
    if bool(((left == size) | ~there).all()):
        return exact(means, tiles_to_go(count, size, left.numel()), there)
    # Kept groups hold zeros, each its own number: walk by rising mean, and let a group go while
    # more than half of what it has left is still asked for.
    more = count - (left.numel() * size - int(left.sum()))
    order = there.flatten().nonzero().flatten()
    order = order[means.flatten()[order].argsort(stable=True)]
    if count < left.numel() * size:
        order = order[:-1]  # the best stays
    costs = left.flatten()[order]
    there.view(-1)[order[2 * costs.cumsum(0) - costs < 2 * more]] = False
    return there


@dataclass(frozen=True, kw_only=True)
class Block(Tiles):
    """Blocks of `rows` × `columns`, for example 1 × 4 or 32 × 32, by the mean of their scores.

    A tensor of n weights has ``n / (rows · columns)`` blocks; of `count` weights asked for
    ``round(count / (rows · columns))`` blocks go.

    Args:
        rows: Rows of a block (outputs).
        columns: Columns of a block (inputs).

    Raises:
        ValueError: `rows` or `columns` is no positive integer; when called, a shape that the blocks
            do not divide: ragged blocks at the border are refused.

    Source: Lagunas et al. 2021, arXiv 2109.04838 (there with learned scores).

    >>> scores = torch.tensor([[1.0, 2.0, 3.0, 9.0], [1.0, 2.0, 3.0, 9.0]])
    >>> everything = torch.ones(2, 4, dtype=torch.bool)
    >>> Block(rows=2, columns=2)(scores, 4, everything).int()
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1]], dtype=torch.int32)
    """

    rows: int = 32
    columns: int = 32

    def __post_init__(self) -> None:
        """Check both numbers."""
        check_positive("rows", self.rows)
        check_positive("columns", self.columns)

    def tile(self, shape: Shape) -> tuple[int, int]:
        """The block's rows and columns."""
        return self._fitting(shape, self.rows, self.columns)


@dataclass(frozen=True, kw_only=True)
class Rows(Tiles):
    """Whole rows: output neurons, or output channels of a convolution, by their mean score.

    Rows are slices along the first dimension: a transposed convolution's are its input channels.
    The bias stays: a neuron without weights still gives its bias, a constant.

    Source: Li et al. 2017, arXiv 1608.08710, section 3.1 (the sum there, the same order).

    >>> scores = torch.tensor([[5.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    >>> Rows()(scores, 2, torch.ones(3, 2, dtype=torch.bool)).int()
    tensor([[1, 1],
            [0, 0],
            [1, 1]], dtype=torch.int32)
    """

    def tile(self, shape: Shape) -> tuple[int, int]:
        """One row, all columns."""
        return 1, matrix(shape)[1]


@dataclass(frozen=True, kw_only=True)
class Heads(Tiles):
    """Whole attention heads of one matrix: `size` consecutive rows or columns, by mean score.

    Each matrix chooses for itself; `AttentionHeads` removes the same heads from all matrices of a
    layer. Biases stay.

    Args:
        size: Rows (or columns) of a head: ``hidden_size // num_attention_heads``.
        axis: 0: heads are rows (query, key, value). 1: heads are columns (output projection).

    Raises:
        ValueError: `size` is no positive integer, `axis` neither 0 nor 1; when called, a shape that
            `size` does not divide along `axis`.

    >>> scores = torch.tensor([[3.0, 3.0, 1.0, 1.0]])
    >>> Heads(size=2, axis=1)(scores, 2, torch.ones(1, 4, dtype=torch.bool)).int()
    tensor([[1, 1, 0, 0]], dtype=torch.int32)
    """

    size: int = 64
    axis: int = 0

    def __post_init__(self) -> None:
        """Check both numbers."""
        check_positive("size", self.size)
        if self.axis not in (0, 1):
            raise ValueError(
                f"axis={self.axis}: expected 0 (query, key, value) or 1 (output projection)"
            )

    def tile(self, shape: Shape) -> tuple[int, int]:
        """`size` rows and all columns, or all rows and `size` columns."""
        height, width = matrix(shape)
        rows, columns = (height, self.size) if self.axis else (self.size, width)
        return self._fitting(shape, rows, columns)
