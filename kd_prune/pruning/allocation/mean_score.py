"""Allocation by mean score: layers whose weights have higher scores stay denser."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from kd_prune.errors import ConfigError
from kd_prune.pruning.allocation.apportion import apportion
from kd_prune.pruning.allocation.density import kept_counts
from kd_prune.pruning.selection import Counts, Masks, Score, count_true

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """Densities of the matrices of one kind in proportion to their mean scores.

    Matrices are of one kind if their names differ in numbers only, as the query matrices of all
    layers do. Every kind has the same density ``v``, and in a kind of L matrices matrix ``l`` has::

        v_l = min(1, ε · R_l),   R_l: mean of the scores of all its weights

    with the ε that gives the kind its number of weights; as long as none is above 1 and the
    matrices have one size, ``v_l = v · L · R_l / (R_1 + … + R_L)``. Scores must not be negative.

    Source: Jiang et al. 2023 (arXiv 2210.06210), SMP-S, with `SoftMovement`, where ``R_l`` is the
    mean of ``σ(S)``, the regularization term.

    Raises:
        ConfigError: (when called) A mean is negative or not finite.

    >>> import torch
    >>> scores = {"0.query": torch.full((10, 10), 0.6), "1.query": torch.full((10, 10), 0.2),
    ...           "0.ffn": torch.full((10, 20), 0.9)}
    >>> masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    >>> MeanScore()(masks, scores.get, 0.9)
    {'0.query': 85, '1.query': 95, '0.ffn': 180}
    """

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Return counts that add up to the exact total."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in masks:
            kinds[_NUMBER.sub("#", name)].append(name)
        sizes = {name: mask.numel() for name, mask in masks.items()}
        kept = {name: count_true(mask) for name, mask in masks.items()}
        totals = kept_counts(
            [1.0] * len(kinds),
            [sum(sizes[name] for name in names) for names in kinds.values()],
            [sum(kept[name] for name in names) for names in kinds.values()],
            sparsity,
        )
        counts: Counts = {}
        for names, total in zip(kinds.values(), totals, strict=True):
            shares = _shares([_mean(score, name) for name in names])
            weights = [share * sizes[name] for share, name in zip(shares, names, strict=True)]
            new_kept = apportion(total, weights, [kept[name] for name in names])
            counts |= {n: sizes[n] - k for n, k in zip(names, new_kept, strict=True)}
        return {name: counts[name] for name in masks}


def _mean(score: Score, name: str) -> float:
    scores = score(name).detach().double()
    if (kept := scores.isposinf()).any():  # the best weights of slices that a norm divides
        scores = scores[~kept] if not kept.all() else scores.new_ones(1)  # or not observed
    mean = float(scores.mean())
    if not 0.0 <= mean < float("inf"):
        raise ConfigError(
            "allocation",
            "MeanScore",
            f"the mean score of {name} is {mean:.4g}, so it is no share of a density",
            "take a criterion whose scores are not negative, as SoftMovement",
        )
    return mean


def _shares(means: Sequence[float]) -> list[Fraction]:
    """Return the means as fractions; none is 0, so that every matrix can take weights."""
    least = max(means) * 1e-6 or 1.0
    return [Fraction(max(mean, least)) for mean in means]
