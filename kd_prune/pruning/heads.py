"""Attention heads that go in all matrices of their attention at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kd_prune.pruning.granularity import (
    Shapes,
    check_positive,
    chosen,
    matrix,
    naming,
    pooled,
    reached,
    shapes_of,
)
from kd_prune.pruning.mask import (
    Counts,
    Masks,
    Score,
    Select,
    exact,
)
from kd_prune.pruning.tiles import Heads, tiles_to_go, whole_tiles

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
        check_positive("size", self.size)
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
                    if (layer := matched(pattern, name)) is not None:
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
        attentions = self.attentions(shapes_of(masks))
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
            name, size = next(iter(sizes.items()))
            gone = tiles_to_go(
                sum(counts[name] for name in sizes),
                sum(sizes.values()),
                math.prod(shapes[name]) // size,
            )
            found.update({name: gone * size for name, size in sizes.items()})
        rest = {name: shape for name, shape in shapes.items() if name not in found}
        found.update(reached(self.others, rest, counts))
        return {name: found[name] for name in shapes}

    def together(self, masks: Masks, score: Score, counts: Counts) -> Iterator[tuple[str, Tensor]]:
        """Name and new mask of every tensor. A layer's four are made before the first is given."""
        shapes = shapes_of(masks)
        tied: set[str] = set()
        for attention in self.attentions(shapes):
            means, left, size = self._heads(attention, masks, score)
            stays = whole_tiles(means, left, size, sum(counts[name] for name in attention))
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
            with naming(name):
                heads.tile(shapes[name])
            numbers[name] = matrix(shapes[name])[heads.axis] // self.size
        if len(set(numbers.values())) > 1:
            raise ValueError(
                f"the matrices of one attention have unlike numbers of heads of size={self.size}: "
                f"{numbers}; leave heads that share keys and values to `Heads`"
            )


def matched(pattern: str, name: str) -> str | None:
    """What the ``*`` of the pattern stands for in the name; None: the name does not match."""
    before, after = pattern.split("*")
    fits = len(name) >= len(before) + len(after)
    if not (fits and name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)]
