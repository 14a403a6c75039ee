"""What is removed together: n:m groups, blocks, rows, attention heads (single weights: `exact`).

A granularity is a `Select`: ``(scores, count, kept) → mask``, nested like all masks here. Which
counts it can reach says ``reachable(count, shape)``. `AttentionHeads` ties several tensors, so it
cannot be asked tensor by tensor; `pooled`, `reached` and `chosen` ask either kind for a model.

Weights are matrices (output, input); of convolutions, ``weight.flatten(1)``. Conv1D of transformers
(GPT-2) holds the input first: its rows are inputs. Biases are not touched.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kd_prune.pruning.mask import (
    Counts,
    Masks,
    Score,
    Select,
    count_true,
    exact,
    rankable,
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
            ValueError: The shape does not fit, or `count` is out of reach.
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
        ValueError: A shape does not fit, or a count is out of reach; names the tensor. So called
            with the counts at the ramp's end, before training, it refuses what cannot be done.

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
        with _naming(name):
            found[name] = select.reachable(counts[name], shape)
    return found


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the tensor's name before a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def chosen(
    select: Select | Joint, masks: Masks, score: Score, counts: Counts
) -> Iterator[tuple[str, Tensor]]:
    """Name and new mask of every tensor, one after the other: scores are asked for when needed.

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


@dataclass(frozen=True, kw_only=True)
class NM:
    """n:m: in the end `keep` of every `of` consecutive inputs of a row are left.

    At risk are the weights that are not among the `keep` largest kept scores of their group; of
    these the smallest go. So the groups fill up along a ramp, and at sparsity ``1 − keep / of``
    each has `keep` left. Weights that were pruned before count in their group; what a group lacks
    beyond the pattern comes on top of the count, so that the pattern holds at the end all the same.

    torch's kernels (`torch.sparse.to_sparse_semi_structured`) take 2:4 along the last dimension, in
    float16, bfloat16 and int8 (in float32 they want 1:2), of contiguous matrices whose sides are
    multiples of 32 and 64 or so. They do not check the pattern: what does not fit it is lost.
    `Global` needs its `ceiling` at ``1 − keep / of``.

    Args:
        keep: Weights left in a group, 1 … ``of − 1``.
        of: Size of a group; divides the inputs of a row.

    Raises:
        ValueError: `keep` or `of` out of range; when called, a width that `of` does not divide, or
            a count above ``(1 − keep / of) · n``.

    Source: Mishra et al. 2021, arXiv 2104.08378, section 4 (one shot; here on a ramp).

    >>> scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 8.0, 7.0, 6.0, 5.0]])
    >>> everything = torch.ones(1, 8, dtype=torch.bool)
    >>> NM()(scores, 3, everything).int()
    tensor([[1, 1, 0, 0, 1, 1, 1, 0]], dtype=torch.int32)
    >>> NM()(scores, 4, everything).int()
    tensor([[1, 1, 0, 0, 1, 1, 0, 0]], dtype=torch.int32)
    """

    keep: int = 2
    of: int = 4

    def __post_init__(self) -> None:
        """Check both numbers."""
        _check_positive("keep", self.keep)
        _check_positive("of", self.of)
        if self.keep >= self.of:
            raise ValueError(
                f"keep={self.keep}: expected less than of={self.of}, or nothing would be pruned"
            )

    def __call__(self, scores: Tensor, count: int, kept: Tensor) -> Tensor:
        """Prune until `count` entries are False, each group at most ``of − keep`` of them."""
        self.reachable(count, scores.shape)
        scores, kept = rankable(scores), kept.contiguous()
        groups = kept.view(-1, self.of)
        safe = self._best(scores.reshape(-1, self.of).T.contiguous(), groups.T.contiguous())
        safe = safe.T.reshape(kept.shape)
        lacking = (self.keep - groups.sum(1)).clamp_(min=0).sum()
        # To `exact` the safe ones are gone, like those pruned: neither is ranked.
        return exact(scores, count + int(lacking) + count_true(safe), kept & ~safe) | safe

    def reachable(self, count: int, shape: Shape) -> int:
        """`count` itself, if the pattern allows as many.

        >>> NM().reachable(100, (10, 20))
        100
        >>> NM().reachable(101, (10, 20))
        Traceback (most recent call last):
        ...
        ValueError: NM(keep=2, of=4) cannot prune 101 of 200 weights: it reaches sparsity 0.5 ...
        """
        _, width = _matrix(shape)
        if width % self.of:
            raise ValueError(
                f"of={self.of} does not divide the {width} inputs of shape {tuple(shape)}; choose "
                "an `of` that does, or exclude the tensor from the scope"
            )
        size, share = math.prod(shape), (self.of - self.keep) / self.of
        if count * self.of > size * (self.of - self.keep):
            raise ValueError(
                f"{self} cannot prune {count} of {size} weights: it reaches sparsity {share} in "
                f"every tensor and no more; final must be {share} (with Global, ceiling={share} "
                "too)"
            )
        return count

    def level(self, scores: Tensor) -> Tensor:
        """The scores as they are: weights go one by one."""
        return scores

    def _best(self, scores: Tensor, kept: Tensor) -> Tensor:
        """The `keep` best kept of each group, all (of, groups); of equals those of higher index.

        Counts by how many each is beaten: for small groups far faster than sorting them.
        """
        beaten = torch.zeros(scores.shape, dtype=torch.int16, device=scores.device)
        for low, high in combinations(range(self.of), 2):
            wins = scores[high] >= scores[low]
            beaten[low] += wins & kept[high]
            beaten[high] += ~wins & kept[low]
        return (beaten < self.keep) & kept


class _Tiles(ABC):
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
        stays = _whole(self.means(scores), self.left(kept), size, count)
        return kept & self.spread(stays, kept.shape)

    def reachable(self, count: int, shape: Shape) -> int:
        """Whole tiles only: ``round(count / size) · size`` for tiles of `size` weights.

        >>> Block(rows=1, columns=4).reachable(9, (2, 8))
        8
        """
        size = math.prod(self.tile(shape))
        return round(count / size) * size

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
        height, width = _matrix(shape)
        rows, columns = self.tile(shape)
        grid = values.reshape(height // rows, 1, width // columns, 1)
        return grid.expand(-1, rows, -1, columns).reshape(tuple(shape))

    def _cut(self, tensor: Tensor) -> Tensor:
        height, width = _matrix(tensor.shape)
        rows, columns = self.tile(tensor.shape)
        return tensor.reshape(height // rows, rows, width // columns, columns)

    def _fitting(self, shape: Shape, rows: int, columns: int) -> tuple[int, int]:
        height, width = _matrix(shape)
        if height % rows or width % columns:
            raise ValueError(
                f"{self} takes tiles of {rows} × {columns}, which do not divide the {height} × "
                f"{width} of shape {tuple(shape)}; choose a size that does, or exclude the tensor "
                "from the scope"
            )
        return rows, columns


def _whole(means: Tensor, left: Tensor, size: int, count: int) -> Tensor:
    """Which of the groups stay, of `size` weights each, `left` of them so far."""
    there = left > 0
    if bool(((left == size) | ~there).all()):
        return exact(means, round(count / size), there)
    # Kept groups hold zeros, each its own number: walk by rising mean, and let a group go while
    # more than half of what it has left is still asked for.
    more = count - (left.numel() * size - int(left.sum()))
    order = there.flatten().nonzero().flatten()
    order = order[means.flatten()[order].argsort(stable=True)]
    costs = left.flatten()[order]
    there.view(-1)[order[2 * costs.cumsum(0) - costs < 2 * more]] = False
    return there


@dataclass(frozen=True, kw_only=True)
class Block(_Tiles):
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
        _check_positive("rows", self.rows)
        _check_positive("columns", self.columns)

    def tile(self, shape: Shape) -> tuple[int, int]:
        """The block's rows and columns."""
        return self._fitting(shape, self.rows, self.columns)


@dataclass(frozen=True, kw_only=True)
class Rows(_Tiles):
    """Whole rows: output neurons, or output channels of a convolution, by their mean score.

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
        return 1, _matrix(shape)[1]


@dataclass(frozen=True, kw_only=True)
class Heads(_Tiles):
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
        _check_positive("size", self.size)
        if self.axis not in (0, 1):
            raise ValueError(
                f"axis={self.axis}: expected 0 (query, key, value) or 1 (output projection)"
            )

    def tile(self, shape: Shape) -> tuple[int, int]:
        """`size` rows and all columns, or all rows and `size` columns."""
        height, width = _matrix(shape)
        rows, columns = (height, self.size) if self.axis else (self.size, width)
        return self._fitting(shape, rows, columns)


BERT_ATTENTION: Mapping[str, int] = {
    "*.attention.self.query.weight": 0,
    "*.attention.self.key.weight": 0,
    "*.attention.self.value.weight": 0,
    "*.attention.output.dense.weight": 1,
}
"""The matrices of one attention and the axis of their heads: BERT, RoBERTa, ELECTRA."""

DISTILBERT_ATTENTION: Mapping[str, int] = {
    "*.attention.q_lin.weight": 0,
    "*.attention.k_lin.weight": 0,
    "*.attention.v_lin.weight": 0,
    "*.attention.out_lin.weight": 1,
}
"""The same of DistilBERT."""


@dataclass(frozen=True, kw_only=True)
class AttentionHeads:
    """Whole heads of whole attentions: the same from query, key, value and output projection.

    Score of a head = mean of all its scores: rows of query, key and value, columns of the output
    projection. In each layer ``round(c / s)`` heads of the smallest score go, c = the counts of its
    matrices together, s = a head's weights in all of them. Of equal heads the lower index goes.

    A removed head adds nothing to the layer's output, though its biases stay: its columns in the
    output projection are zero.

    Args:
        size: Rows of a head: ``config.hidden_size // config.num_attention_heads``. A wrong one
            that divides cannot be told from the weights.
        groups: What makes up one attention, one mapping per kind of model: name pattern → axis of
            its heads (0 rows, 1 columns). A pattern has one ``*``, which stands for the layer.
        others: How the tensors that are in no attention get their counts.

    Raises:
        ValueError: An argument out of range; when used, no attention among the tensors, a matrix
            of one that is not in scope, or matrices of one with unlike numbers of heads.

    Source: Michel et al. 2019, arXiv 1905.10650, section 2.3 (there by gradient).

    >>> names = ["query", "key", "value"]
    >>> own = {f"*.{name}": 0 for name in names} | {"*.out": 1}
    >>> heads = AttentionHeads(size=1, groups=[own])
    >>> masks = {f"0.{name}": torch.ones(2, 2, dtype=torch.bool) for name in [*names, "out"]}
    >>> score = lambda name: torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> new = dict(heads.together(masks, score, dict.fromkeys(masks, 2)))
    >>> new["0.query"].tolist(), new["0.out"].tolist()
    ([[False, False], [True, True]], [[False, True], [False, True]])
    """

    size: int = 64
    groups: Sequence[Mapping[str, int]] = (BERT_ATTENTION, DISTILBERT_ATTENTION)
    others: Select = exact

    def __post_init__(self) -> None:
        """Check the size, the patterns and their axes."""
        _check_positive("size", self.size)
        if isinstance(self.groups, Mapping):
            raise ValueError(
                f"groups={self.groups!r}: expected a list of mappings, one per kind of model; put "
                "it in brackets"
            )
        for pattern, axis in (item for group in self.groups for item in group.items()):
            if pattern.count("*") != 1:
                raise ValueError(
                    f"groups: pattern {pattern!r}: expected one '*', which stands for the layer"
                )
            if axis not in (0, 1):
                raise ValueError(f"groups: {pattern!r}: axis={axis}: expected 0 or 1")

    def attentions(self, shapes: Shapes) -> list[dict[str, Heads]]:
        """The attentions among these tensors, each name → where its heads are.

        Raises:
            ValueError: There is none, one lacks a matrix, or its matrices do not fit each other.

        >>> own = {"*.qkv": 0, "*.out": 1}
        >>> heads = AttentionHeads(size=2, groups=[own])
        >>> heads.attentions({"0.qkv": (4, 6), "0.out": (6, 4), "head": (2, 6)})
        [{'0.qkv': Heads(size=2, axis=0), '0.out': Heads(size=2, axis=1)}]
        """
        found = []
        for group in self.groups:
            layers: dict[str, dict[str, str]] = {}
            for name in shapes:
                for pattern in group:
                    if (layer := _star(pattern, name)) is not None:
                        layers.setdefault(layer, {})[pattern] = name
            for layer, names in layers.items():
                if missing := [pattern.replace("*", layer) for pattern in group.keys() - names]:
                    raise ValueError(
                        f"a head goes whole or not at all, but {', '.join(sorted(missing))} is not "
                        f"in scope while {', '.join(names.values())} is; include all or none, or "
                        "say what makes up an attention with `groups`"
                    )
                heads = {names[p]: Heads(size=self.size, axis=axis) for p, axis in group.items()}
                self._check_alike(heads, shapes)
                found.append(heads)
        if not found:
            raise ValueError(
                f"groups: none of their patterns matches a tensor in scope, such as "
                f"{', '.join(list(shapes)[:3])}; name the matrices of an attention with `groups`"
            )
        return found

    def pool(self, masks: Masks, score: Score) -> Score:
        """Each score replaced by its head's, for an allocation that compares tensors.

        Heads' scores are remembered: make it anew for every update.
        """
        attentions = self.attentions(_shapes(masks))
        place = {name: i for i, attention in enumerate(attentions) for name in attention}
        rest = pooled(self.others, masks, score)

        @cache
        def means(layer: int) -> Tensor:
            return self._heads(attentions[layer], masks, score)[0].float()

        def level(name: str) -> Tensor:
            if name not in place:
                return rest(name)
            heads = attentions[place[name]][name]
            return heads.spread(means(place[name]), masks[name].shape)

        return level

    def reached(self, shapes: Shapes, counts: Counts) -> Counts:
        """How many weights of each tensor go: whole heads, as many in each matrix of a layer.

        >>> heads = AttentionHeads(size=2, groups=[{"*.qkv": 0, "*.out": 1}])
        >>> shapes = {"0.qkv": (4, 6), "0.out": (6, 4), "head": (2, 6)}
        >>> heads.reached(shapes, {"0.qkv": 16, "0.out": 4, "head": 5})
        {'0.qkv': 12, '0.out': 12, 'head': 5}
        """
        found = {}
        for attention in self.attentions(shapes):
            sizes = {name: math.prod(h.tile(shapes[name])) for name, h in attention.items()}
            gone = round(sum(counts[name] for name in sizes) / sum(sizes.values()))
            found.update({name: gone * size for name, size in sizes.items()})
        rest = {name: shape for name, shape in shapes.items() if name not in found}
        found.update(reached(self.others, rest, counts))
        return {name: found[name] for name in shapes}

    def together(self, masks: Masks, score: Score, counts: Counts) -> Iterator[tuple[str, Tensor]]:
        """Name and new mask of every tensor. A layer's four are made before the first is given."""
        shapes = _shapes(masks)
        tied: set[str] = set()
        for attention in self.attentions(shapes):
            means, left, size = self._heads(attention, masks, score)
            stays = _whole(means, left, size, sum(counts[name] for name in attention))
            yield from [
                (name, masks[name] & heads.spread(stays, shapes[name]))
                for name, heads in attention.items()
            ]
            tied.update(attention)
        rest = {name: mask for name, mask in masks.items() if name not in tied}
        yield from chosen(self.others, rest, score, counts)

    def _heads(
        self, attention: Mapping[str, Heads], masks: Masks, score: Score
    ) -> tuple[Tensor, Tensor, int]:
        """Of each head of a layer the mean score and the weights left; and a head's weights."""
        sums, lefts, total = [], [], 0
        for name, heads in attention.items():
            size = math.prod(heads.tile(masks[name].shape))
            sums.append(heads.means(score(name)).flatten() * size)
            lefts.append(heads.left(masks[name]).flatten())
            total += size
        return torch.stack(sums).sum(0) / total, torch.stack(lefts).sum(0), total

    def _check_alike(self, attention: Mapping[str, Heads], shapes: Shapes) -> None:
        numbers = {}
        for name, heads in attention.items():
            with _naming(name):
                heads.tile(shapes[name])
            numbers[name] = _matrix(shapes[name])[heads.axis] // self.size
        if len(set(numbers.values())) > 1:
            raise ValueError(
                f"the matrices of one attention have unlike numbers of heads of size={self.size}: "
                f"{numbers}; leave heads that share keys and values to `Heads`"
            )


def _star(pattern: str, name: str) -> str | None:
    """What the ``*`` of the pattern stands for in the name; None: the name does not match."""
    before, after = pattern.split("*")
    fits = len(name) >= len(before) + len(after)
    if not (fits and name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)]


def _shapes(masks: Masks) -> dict[str, Shape]:
    return {name: mask.shape for name, mask in masks.items()}


def _matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns of ``weight.flatten(1)``."""
    if len(shape) < 2:
        raise ValueError(
            f"shape {tuple(shape)}: expected two dimensions or more (output, input, …); exclude "
            "the tensor from the scope"
        )
    return shape[0], math.prod(shape[1:])


def _check_positive(argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}={value!r}: expected a positive integer")
