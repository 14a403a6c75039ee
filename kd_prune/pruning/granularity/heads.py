"""Attention heads pruned from all matrices of an attention layer at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.checks import check_positive
from kd_prune.pruning.granularity.base import (
    Shapes,
    compute_masks,
    matrix_shape,
    pool_scores,
    reachable_counts,
    shapes_of,
    tensor_in_error,
)
from kd_prune.pruning.granularity.structured import Heads, num_pruned_tiles, select_tiles
from kd_prune.pruning.selection import Counts, Masks, Score, Selection, unstructured

BERT_ATTENTION: Mapping[str, int] = {
    "*.attention.self.query.weight": 0,
    "*.attention.self.key.weight": 0,
    "*.attention.self.value.weight": 0,
    "*.attention.output.dense.weight": 1,
}
"""Matrices of an attention layer and the axis of their heads: BERT, RoBERTa, ELECTRA."""

DISTILBERT_ATTENTION: Mapping[str, int] = {
    "*.attention.q_lin.weight": 0,
    "*.attention.k_lin.weight": 0,
    "*.attention.v_lin.weight": 0,
    "*.attention.out_lin.weight": 1,
}
"""Matrices of an attention layer and the axis of their heads: DistilBERT."""


@dataclass(frozen=True, kw_only=True)
class AttentionHeads:
    """The same heads from query, key, value and output projection of an attention layer.

    Score of a head = mean of all its scores: rows of query, key and value, columns of the output
    projection. In each layer ``round(c / s)`` heads of the smallest score are pruned, c = sum of
    the counts of the layer's matrices, s = weights of a head in all of them. On a tie the lower
    index is pruned.

    A pruned head adds nothing to the layer's output although its biases stay, because its columns
    of the output projection are zero.

    Args:
        size: Rows of a head: ``config.hidden_size // config.num_attention_heads``. A wrong size
            that divides the matrices cannot be detected.
        groups: Matrices of an attention layer, one mapping per kind of model: name pattern → axis
            of the heads (0 rows, 1 columns). A pattern has one ``*``, which stands for the layer.
        others: Selection for the tensors outside attention layers.

    Raises:
        ConfigError: An argument out of range; when used, no attention layer in scope, a matrix of
            a layer out of scope, or matrices of a layer with different numbers of heads.

    Source: Michel et al. 2019, arXiv 1905.10650, section 2.3 (there by gradient).

    >>> names = ["query", "key", "value"]
    >>> own = {f"*.{name}": 0 for name in names} | {"*.out": 1}
    >>> heads = AttentionHeads(size=1, groups=[own])
    >>> masks = {f"0.{name}": torch.ones(2, 2, dtype=torch.bool) for name in [*names, "out"]}
    >>> score = lambda name: torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> new = dict(heads.masks_for_model(masks, score, dict.fromkeys(masks, 2)))
    >>> new["0.query"].tolist(), new["0.out"].tolist()
    ([[False, False], [True, True]], [[False, True], [False, True]])
    """

    size: int = 64
    groups: Sequence[Mapping[str, int]] = (BERT_ATTENTION, DISTILBERT_ATTENTION)
    others: Selection = unstructured

    def __post_init__(self) -> None:
        check_positive("size", self.size)
        if isinstance(self.groups, Mapping):
            expected = "expected a list of mappings, one per kind of model"
            raise ConfigError("groups", self.groups, expected, "put it in brackets")
        for pattern, axis in (item for group in self.groups for item in group.items()):
            if pattern.count("*") != 1:
                expected = "expected a pattern with one '*', which stands for the layer"
                raise ConfigError("groups", repr(pattern), expected)
            if axis not in (0, 1):
                raise ConfigError(f"groups[{pattern}]", axis, "expected an axis, 0 or 1")

    def attention_layers(self, shapes: Shapes) -> list[dict[str, Heads]]:
        """Return the attention layers among these tensors, each as name → position of its heads.

        Raises:
            ConfigError: There is none, one lacks a matrix, or its matrices do not match.

        >>> own = {"*.qkv": 0, "*.out": 1}
        >>> heads = AttentionHeads(size=2, groups=[own])
        >>> heads.attention_layers({"0.qkv": (4, 6), "0.out": (6, 4), "head": (2, 6)})
        [{'0.qkv': Heads(size=2, axis=0), '0.out': Heads(size=2, axis=1)}]
        """
        result = []
        for group in self.groups:
            layers: dict[str, dict[str, str]] = {}
            for name in shapes:
                for pattern in group:
                    if (layer := match_layer(pattern, name)) is not None:
                        layers.setdefault(layer, {})[pattern] = name
            for layer, names in layers.items():
                if missing := [pattern.replace("*", layer) for pattern in group.keys() - names]:
                    raise ConfigError(
                        "scope",
                        expected=f"{', '.join(sorted(missing))} is not in scope while "
                        f"{', '.join(names.values())} is, and heads are pruned from all matrices "
                        "of a layer",
                        hint="include all or none, or name the matrices with `groups`",
                    )
                heads = {names[p]: Heads(size=self.size, axis=axis) for p, axis in group.items()}
                self._check_same_heads(heads, shapes)
                result.append(heads)
        if not result:
            raise ConfigError(
                "granularity.groups",
                expected="none of the patterns matches a tensor in scope, such as "
                f"{', '.join(list(shapes)[:3])}",
                hint="name the matrices of an attention layer with `groups`",
            )
        return result

    def pool_scores(self, masks: Masks, score: Score) -> Score:
        """Replace each score by its head's score, to be ranked by an allocation.

        The result caches the scores of heads and is valid for one update.
        """
        layers = self.attention_layers(shapes_of(masks))
        layer_of = {name: i for i, layer in enumerate(layers) for name in layer}
        other_scores = pool_scores(self.others, masks, score)

        @cache
        def means(index: int) -> Tensor:
            return self._head_means(layers[index], masks, score)[0].float()

        def pooled(name: str) -> Tensor:
            if name not in layer_of:
                return other_scores(name)
            heads = layers[layer_of[name]][name]
            return heads.spread(means(layer_of[name]), masks[name].shape)

        return pooled

    def reachable_counts(self, shapes: Shapes, counts: Counts) -> Counts:
        """Round counts to full heads, the same number in each matrix of a layer.

        >>> heads = AttentionHeads(size=2, groups=[{"*.qkv": 0, "*.out": 1}])
        >>> shapes = {"0.qkv": (4, 6), "0.out": (6, 4), "head": (2, 6)}
        >>> heads.reachable_counts(shapes, {"0.qkv": 16, "0.out": 4, "head": 5})
        {'0.qkv': 12, '0.out': 12, 'head': 5}
        """
        result = {}
        for layer in self.attention_layers(shapes):
            sizes = {name: math.prod(h.tile(shapes[name])) for name, h in layer.items()}
            name, size = next(iter(sizes.items()))
            pruned_heads = num_pruned_tiles(
                sum(counts[name] for name in sizes),
                sum(sizes.values()),
                math.prod(shapes[name]) // size,
            )
            result.update({name: pruned_heads * size for name, size in sizes.items()})
        others = {name: shape for name, shape in shapes.items() if name not in result}
        result.update(reachable_counts(self.others, others, counts))
        return {name: result[name] for name in shapes}

    def masks_for_model(
        self, masks: Masks, score: Score, counts: Counts
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield name and new mask of every tensor; all masks of a layer precede its first yield."""
        shapes = shapes_of(masks)
        tied: set[str] = set()
        for layer in self.attention_layers(shapes):
            means, num_kept, size = self._head_means(layer, masks, score)
            kept_heads = select_tiles(means, num_kept, size, sum(counts[name] for name in layer))
            yield from [
                (name, masks[name] & heads.spread(kept_heads, shapes[name]))
                for name, heads in layer.items()
            ]
            tied.update(layer)
        others = {name: mask for name, mask in masks.items() if name not in tied}
        yield from compute_masks(self.others, others, score, counts)

    def _head_means(
        self, layer: Mapping[str, Heads], masks: Masks, score: Score
    ) -> tuple[Tensor, Tensor, int]:
        """Return mean score and number of kept weights of each head, and the weights of a head."""
        sums, num_kept, total = [], [], 0
        for name, heads in layer.items():
            size = math.prod(heads.tile(masks[name].shape))
            sums.append(heads.means(score(name)).flatten() * size)
            num_kept.append(heads.num_kept(masks[name]).flatten())
            total += size
        return torch.stack(sums).sum(0) / total, torch.stack(num_kept).sum(0), total

    def _check_same_heads(self, layer: Mapping[str, Heads], shapes: Shapes) -> None:
        numbers = {}
        for name, heads in layer.items():
            with tensor_in_error(name):
                heads.tile(shapes[name])
            numbers[name] = matrix_shape(shapes[name])[heads.axis] // self.size
        if len(set(numbers.values())) > 1:
            raise ConfigError(
                "granularity.size",
                self.size,
                f"the matrices of an attention layer have different numbers of heads: {numbers}",
                "use `Heads` where heads share keys and values",
            )


def match_layer(pattern: str, name: str) -> str | None:
    """Return the part of the name that the ``*`` of the pattern matches; None without a match."""
    before, after = pattern.split("*")
    long_enough = len(name) >= len(before) + len(after)
    if not (long_enough and name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)]
