"""TensorParts: the matrices that allocations and granularities see, one per expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.granularity import CrossTensorGranularity
from kd_prune.pruning.granularity.base import Shape
from kd_prune.pruning.granularity.structured import Tiles
from kd_prune.pruning.layers import LayerWeight
from kd_prune.pruning.selection import Counts, Masks, Score, count_pruned
from kd_prune.pruning.sharding import gather


class TensorParts:
    """Tensors in scope, cut into what is pruned as one matrix.

    Most tensors are one part, of the same name. A tensor (expert, output, input) has one part per
    expert, ``name[0]`` and so on, with outputs as rows and inputs as columns however it is stored:
    every expert then gets its own count, and n:m runs along the inputs.

    Args:
        layers: Name → weight of a layer, for the tensors whose layer is known.
        shapes: Name → shape of all tensors.
    """

    def __init__(self, layers: Mapping[str, LayerWeight], shapes: Mapping[str, Shape]) -> None:
        self._whole = dict(shapes)
        self._transposed = {n: w.transposed for n, w in layers.items() if w.experts and n in shapes}
        self.places = {p: (n, i) for n in shapes for i, p in enumerate(self.names(n))}
        """Part → tensor and index within it."""

    def names(self, name: str) -> list[str]:
        """Return the names of a tensor's parts."""
        if name not in self._transposed:
            return [name]
        return [f"{name}[{expert}]" for expert in range(self._whole[name][0])]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Part → shape."""
        shapes: dict[str, Shape] = {}
        for name, shape in self._whole.items():
            if name in self._transposed:
                shape = (shape[2], shape[1]) if self._transposed[name] else shape[1:]
            shapes |= dict.fromkeys(self.names(name), shape)
        return shapes

    def split(self, tensors: Masks) -> Masks:
        """Return part → view of the tensor that it belongs to, which is looked up when needed."""
        return _Parts(self, tensors.__getitem__) if self._transposed else tensors

    def split_score(self, score: Score) -> Score:
        """Return scores by part."""
        return _Parts(self, score).__getitem__ if self._transposed else score

    def join(self, masks: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor as soon as all its parts have come, in any order."""
        waiting: dict[str, dict[int, Tensor]] = {}
        for part, mask in masks:
            name, index = self.places[part]
            if name not in self._transposed:
                yield name, mask
                continue
            pieces = waiting.setdefault(name, {})
            pieces[index] = mask
            if len(pieces) == self._whole[name][0]:
                stacked = torch.stack([pieces[expert] for expert in sorted(pieces)])
                yield name, stacked.mT.contiguous() if self._transposed[name] else stacked
                del waiting[name]

    def sum(self, counts: Counts) -> Counts:
        """Return the counts of whole tensors."""
        if not self._transposed:
            return counts
        return {name: sum(counts[part] for part in self.names(name)) for name in self._whole}

    def split_pruned(self, pruned: Counts, masks: Masks) -> Counts:
        """Return how many weights of each part are pruned: as given, or for experts by the mask."""
        found = dict(pruned)
        for name in self._transposed:
            del found[name]
            pieces = zip(self.names(name), self.pieces(name, gather(masks[name])), strict=True)
            found |= {part: count_pruned(piece) for part, piece in pieces}
        return found

    def pieces(self, name: str, tensor: Tensor) -> list[Tensor]:
        """Return the parts of a tensor, as views."""
        if name not in self._transposed:
            return [tensor]
        return list((tensor.mT if self._transposed[name] else tensor).unbind())


class _Parts(Mapping[str, Tensor]):
    """The parts of tensors; of these, only the one that was asked for last is kept."""

    def __init__(self, parts: TensorParts, tensors: Callable[[str], Tensor]) -> None:
        self._parts = parts
        self._tensors = tensors
        self._last: tuple[str, list[Tensor]] = ("", [])

    def __getitem__(self, part: str) -> Tensor:
        name, index = self._parts.places[part]
        if self._last[0] != name:
            self._last = (name, self._parts.pieces(name, self._tensors(name)))
        return self._last[1][index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts.places)

    def __len__(self) -> int:
        return len(self._parts.places)


def keep_best(scores: Tensor, kept: Tensor, dim: int | None) -> Tensor:
    """Make the best kept score of every slice infinite, so that no slice is pruned altogether.

    Args:
        scores: Scores of a tensor.
        kept: Its mask.
        dim: Dimension of the slices; None: the whole tensor is one.

    >>> keep_best(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool), 0)
    tensor([[1., inf],
            [inf, 0.]])
    """
    scores = scores.clone()
    candidates = scores.masked_fill(~kept, -torch.inf)
    slices = candidates.flatten()[None] if dim is None else candidates.movedim(dim, 0).flatten(1)
    best = slices == slices.amax(1, keepdim=True)
    first = best & (best.cumsum(1) == 1)
    if dim is None:
        return scores.masked_fill_(first.view(scores.shape) & kept, torch.inf)
    moved = scores.movedim(dim, 0)
    moved.masked_fill_(first.view(moved.shape) & kept.movedim(dim, 0), torch.inf)
    return scores


def most_prunable(weight: LayerWeight) -> int:
    """Return how many weights can be pruned if every slice that has a norm keeps one."""
    parameter, dim = weight.parameter, weight.norm_dim
    return parameter.numel() - (1 if dim is None else parameter.shape[dim])


def check_norms(counts: Counts, normed: Mapping[str, LayerWeight]) -> None:
    """Raise ConfigError where counts leave a slice empty by whose norm a layer divides."""
    for name, weight in normed.items():
        size, most = weight.parameter.numel(), most_prunable(weight)
        if counts[name] > most:
            raise ConfigError(
                "scope",
                expected=f"{name}: at most {most} of its {size} weights can be pruned, not "
                f"{counts[name]}, because its layer divides by a norm of "
                f"{'it' if weight.norm_dim is None else 'each slice of it'}, which must not be 0",
                hint="exclude it, lower the sparsity, or take the norm away "
                "(torch.nn.utils.parametrize.remove_parametrizations)",
            )


def check_groups(
    granularity: Callable[..., object] | object, normed: Mapping[str, LayerWeight]
) -> None:
    """Raise ConfigError where groups may be whole slices by whose norm a layer divides."""
    own = getattr(granularity, "granularity", granularity)  # of one that turns transposed weights
    if isinstance(own, Tiles | CrossTensorGranularity):
        for name, weight in normed.items():
            if weight.norm_dim is not None:
                raise ConfigError(
                    "granularity",
                    granularity,
                    f"prunes groups, which may leave a row of {name} empty, and its layer divides "
                    "by the norm of each",
                    "take `unstructured` or `NM`, exclude it, or take the norm away "
                    "(torch.nn.utils.parametrize.remove_parametrizations)",
                )
