"""CheckedCounts: numbers of weights to prune that the granularity reaches and no tensor dies of."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning.allocation import Allocation
from kd_prune.pruning.criteria import Criterion, StatefulCriterion, magnitude
from kd_prune.pruning.granularity import CrossTensorGranularity, reachable_counts
from kd_prune.pruning.granularity.base import check_reachable, warn_if_distant
from kd_prune.pruning.granularity.on_rows import on_rows
from kd_prune.pruning.last_weights import LastWeights, noting
from kd_prune.pruning.masked_parameters import MaskedParameters
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.selection import Counts, Masks, Score, Selection, count_pruned
from kd_prune.pruning.tensor_parts import check_norms


class CheckedCounts(MaskedParameters):
    """Parameters with masks whose counts are checked before they are used; the base of `Pruner`.

    The granularity sees every weight as (output, input, …), however it is stored.

    Args:
        parameters: Name → parameter.
        criterion: See `Pruner`, as for the other arguments.
        allocation: Distribution of the target over the tensors.
        granularity: Weights that are pruned together.
        regrow: Whether and how pruned weights return.
        allow_empty: Whether a tensor may lose all its weights.

    Raises:
        ConfigError: `regrow` does not suit `granularity`.
        ConfigTypeError: `parameters` is no mapping.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        criterion: Criterion | StatefulCriterion,
        allocation: Allocation,
        granularity: Selection | CrossTensorGranularity,
        regrow: bool | RigL,
        allow_empty: bool,
    ) -> None:
        super().__init__(
            parameters,
            criterion=criterion,
            allocation=allocation,
            granularity=on_rows(granularity, parameters),
            regrow=regrow,
        )
        self._last_weights = LastWeights(allow_empty=allow_empty)

    def check_final_sparsity(self, final: float) -> None:
        """Refuse a final sparsity that no scores reach; warn of one that is missed by much.

        Raises:
            ConfigError: The allocation or the granularity refuses it.
        """
        self._check_criterion()
        if self._normed:
            check_norms(self._asked_counts(final), self._normed)
        shapes = self._parts.shapes
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        limits = reachable_counts(self.granularity, shapes, sizes)
        if limits != sizes:
            # The worst case of scores: each tensor's scores are all below those of the next one.
            dense = self._all_candidates()
            rank = {name: float(i) for i, name in enumerate(dense)}
            worst = self._counts(final, dense, lambda name: dense[name] * rank[name])
            check_reachable(self.granularity, worst, limits, sizes)
        scored: list[str] = []
        counts = self._counts(final, score=noting(scored, self._score))
        if not scored:  # else the scores of that step decide, not those of now
            self._last_weights.warn(final)
        pruned = {name: count_pruned(mask) for name, mask in self._candidates().items()}
        asked = self._parts.sum(counts)
        wanted = sum(max(asked[name], pruned[name]) for name in pruned)
        found = sum(self._target_pruned(counts, pruned).values())
        warn_if_distant(self.granularity, found, wanted, sum(sizes.values()))

    def _check_criterion(self) -> None:
        """Call a criterion that is a function on one weight, before a fit does.

        Raises:
            ConfigError: It cannot be called so, or its scores have another shape.
        """
        if isinstance(self.criterion, StatefulCriterion) or self.criterion is magnitude:
            return
        try:
            self._score(next(iter(self.parameters)))
        except TypeError as error:
            raise ConfigError(
                "criterion",
                self.criterion,
                f"cannot score a weight ({error})",
                "a function gets the weight alone; a StatefulCriterion sees gradients too",
            ) from error

    def _counts(
        self, sparsity: float, candidates: Masks | None = None, score: Score | None = None
    ) -> Counts:
        counts = super()._counts(sparsity, candidates, score)
        return self._last_weights.limit(counts, self._parts.split(self.masks))
