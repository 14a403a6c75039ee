"""Groups of weights within one matrix: blocks, rows, attention heads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.checks import check, check_positive
from kd_prune.pruning.granularity.base import Shape, matrix_shape
from kd_prune.pruning.selection import unstructured


class Tiles(ABC):
    """A matrix cut into equal tiles; tiles with the smallest mean score are pruned."""

    @abstractmethod
    def tile(self, shape: Shape) -> tuple[int, int]:
        """Return rows and columns of a tile."""

    def __call__(self, scores: Tensor, count: int, kept: Tensor) -> Tensor:
        """Prune the tiles of smallest mean until ``reachable(count, shape)`` entries are False.

        On a tie the tile of lower index (row by row) is pruned first. Zeros inside kept tiles
        count as pruned; then tiles are pruned until the count is as close to `count` as full tiles
        allow.
        """
        size = math.prod(self.tile(scores.shape))
        kept_tiles = select_tiles(self.means(scores), self.num_kept(kept), size, count)
        return kept & self.spread(kept_tiles, kept.shape)

    def reachable(self, count: int, shape: Shape) -> int:
        """Return the count rounded to full tiles: ``round(count / size) · size``.

        At least one tile stays unless all weights were asked for: rounding alone never prunes a
        full tensor.

        >>> Block(rows=1, columns=4).reachable(9, (2, 8))
        8
        """
        size = math.prod(self.tile(shape))
        return num_pruned_tiles(count, size, math.prod(shape) // size) * size

    def broadcast_scores(self, scores: Tensor) -> Tensor:
        """Replace each score by its tile's mean.

        >>> Rows().broadcast_scores(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
        tensor([[2., 2.],
                [6., 6.]])
        """
        return self.spread(self.means(scores).to(scores.dtype), scores.shape)

    def means(self, scores: Tensor) -> Tensor:
        """Return the mean score of each tile, pruned weights included, (tile rows, tile columns).

        Computed in float64, where sums of float32 are exact except for extreme values: tiles with
        the same values in any order are tied.
        """
        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS lacks float64
        return self._cut(scores.detach()).mean((1, 3), dtype=wide)

    def num_kept(self, kept: Tensor) -> Tensor:
        """Count the kept weights of each tile."""
        return self._cut(kept).sum((1, 3))

    def spread(self, values: Tensor, shape: Shape) -> Tensor:
        """Copy one value per tile to all weights of the tile."""
        height, width = matrix_shape(shape)
        rows, columns = self.tile(shape)
        grid = values.reshape(height // rows, 1, width // columns, 1)
        return grid.expand(-1, rows, -1, columns).reshape(tuple(shape))

    def _cut(self, tensor: Tensor) -> Tensor:
        height, width = matrix_shape(tensor.shape)
        rows, columns = self.tile(tensor.shape)
        return tensor.reshape(height // rows, rows, width // columns, columns)

    def _check_divides(self, shape: Shape, rows: int, columns: int) -> tuple[int, int]:
        height, width = matrix_shape(shape)
        if height % rows or width % columns:
            raise ConfigError(
                "granularity",
                self,
                f"tiles of {rows} × {columns} do not divide the {height} × {width} of shape "
                f"{tuple(shape)}",
                "choose a size that does, or exclude the tensor from the scope",
            )
        return rows, columns


def num_pruned_tiles(count: int, size: int, tiles: int) -> int:
    """Return how many of `tiles` tiles of `size` weights are pruned for `count` weights.

    >>> num_pruned_tiles(95, 10, 10), num_pruned_tiles(97, 10, 10), num_pruned_tiles(100, 10, 10)
    (9, 9, 10)
    """
    return min(round(count / size), tiles if count >= tiles * size else tiles - 1)


def select_tiles(means: Tensor, num_kept: Tensor, size: int, count: int) -> Tensor:
    """Return the mask of the tiles that stay, of `size` weights each, `num_kept` of them kept."""
    nonempty = num_kept > 0
    if bool(((num_kept == size) | ~nonempty).all()):
        return unstructured(means, num_pruned_tiles(count, size, num_kept.numel()), nonempty)
    # Kept tiles contain different numbers of zeros: go through them by increasing mean, and prune
    # a tile if more than half of its kept weights are still to be pruned.
    to_prune = count - (num_kept.numel() * size - int(num_kept.sum()))
    order = nonempty.flatten().nonzero().flatten()
    order = order[means.flatten()[order].argsort(stable=True)]
    if count < num_kept.numel() * size:
        order = order[:-1]  # the best tile stays
    costs = num_kept.flatten()[order]
    nonempty.view(-1)[order[2 * costs.cumsum(0) - costs < 2 * to_prune]] = False
    return nonempty


@dataclass(frozen=True, kw_only=True)
class Block(Tiles):
    """Blocks of `rows` × `columns`, for example 1 × 4 or 32 × 32, by the mean of their scores.

    For a `count` of weights, ``round(count / (rows · columns))`` blocks are pruned.

    Args:
        rows: Rows of a block (outputs).
        columns: Columns of a block (inputs).

    Raises:
        ConfigError: `rows` or `columns` is no positive integer; when called, a shape that the
            blocks do not divide.

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
        check_positive("rows", self.rows)
        check_positive("columns", self.columns)

    def tile(self, shape: Shape) -> tuple[int, int]:
        """Return the block's rows and columns."""
        return self._check_divides(shape, self.rows, self.columns)


@dataclass(frozen=True, kw_only=True)
class Rows(Tiles):
    """Rows: output neurons, or output channels of a convolution, by their mean score.

    The bias stays: a neuron without weights outputs its bias.

    Source: Li et al. 2017, arXiv 1608.08710, section 3.1 (there by the sum: the same order).

    >>> scores = torch.tensor([[5.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    >>> Rows()(scores, 2, torch.ones(3, 2, dtype=torch.bool)).int()
    tensor([[1, 1],
            [0, 0],
            [1, 1]], dtype=torch.int32)
    """

    def tile(self, shape: Shape) -> tuple[int, int]:
        """Return one row, all columns."""
        return 1, matrix_shape(shape)[1]


@dataclass(frozen=True, kw_only=True)
class Heads(Tiles):
    """Attention heads of one matrix: `size` consecutive rows or columns, by their mean score.

    Every matrix is pruned on its own; `AttentionHeads` removes the same heads from all matrices of
    a layer. Biases stay.

    Args:
        size: Rows (or columns) of a head: ``hidden_size // num_attention_heads``.
        axis: 0: heads are rows (query, key, value). 1: heads are columns (output projection).

    Raises:
        ConfigError: `size` is no positive integer, `axis` neither 0 nor 1; when called, a shape
            that `size` does not divide along `axis`.

    >>> scores = torch.tensor([[3.0, 3.0, 1.0, 1.0]])
    >>> Heads(size=2, axis=1)(scores, 2, torch.ones(1, 4, dtype=torch.bool)).int()
    tensor([[1, 1, 0, 0]], dtype=torch.int32)
    """

    size: int = 64
    axis: int = 0

    def __post_init__(self) -> None:
        check_positive("size", self.size)
        valid = self.axis in (0, 1)
        check("axis", self.axis, valid, "0 (query, key, value) or 1 (output projection)")

    def tile(self, shape: Shape) -> tuple[int, int]:
        """Return `size` rows and all columns, or all rows and `size` columns."""
        height, width = matrix_shape(shape)
        rows, columns = (height, self.size) if self.axis else (self.size, width)
        return self._check_divides(shape, rows, columns)
