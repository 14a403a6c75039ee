"""The pruning arithmetic of SparseBERT's reference code (class ``Prune``), for parity.

Source: github.com/DerronXu/SparseBERT, ``main_functions/task_distill_prune_simultaneously.py``.

Reproduced: update steps and their sparsities (the last update lies before the run's last step, and
there may be more or fewer than `updates`); ``keep = int(n · (1 - s))``; the ``>=`` threshold, which
keeps every tie; weights zeroed after every optimizer step, masks that never regrow.

Not reproduced: the division by zero where the run has at most ``updates / 2`` steps (the frequency
is 1 there); the mask of all ones where fewer weights are left than it would keep (they stay).
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from kd_prune.pruning.mask import Counts, Masks, Score, hits, nth_smallest, pruned_in, rankable
from kd_prune.pruning.schedule import Plan, Schedule, cubic, ramp_steps


def plan(schedule: Schedule, *, total_steps: int, updates: int = 100) -> Plan:
    """The reference's update steps and sparsities.

    With ``p`` the ramp's first step, ``S`` its length in steps and ``f = round(S / updates)``, step
    ``t`` is an update when ``p < t < p + S`` and ``(t - p) % f == 0``; the sparsity there is
    ``final + (initial - final) · (1 - ⌊(t - p)/f⌋ / ⌊S/f⌋)³``.

    Raises:
        ValueError: `schedule` is not cubic (the formula is) or rests at milestones, or as in
            `update_plan`.

    >>> steps = plan(Schedule(final=0.95), total_steps=1000)
    >>> min(steps), max(steps), round(steps[500], 5)
    (10, 990, 0.83125)
    """
    if schedule.shape is not cubic or schedule.milestones:
        raise ValueError(
            "plan=sparsebert_official: the reference's update steps are defined for shape=cubic "
            "without milestones"
        )
    first, last = ramp_steps(schedule, total_steps=total_steps, updates=updates)
    ramp = last - first
    frequency = max(1, round(ramp / updates))
    whole = ramp // frequency
    return {
        first + k * frequency: schedule.final
        + (schedule.initial - schedule.final) * (1.0 - k / whole) ** 3
        for k in range(1, whole + 1)
        if k * frequency < ramp
    }


def layerwise(masks: Masks, score: Score, sparsity: float) -> Counts:
    """Pruned per tensor of n weights: ``n - int(n · (1 - sparsity))``.

    >>> layerwise({"a": torch.ones(7, dtype=torch.bool)}, lambda name: torch.empty(0), 0.5)
    {'a': 4}
    """
    return {
        name: mask.numel() - int(mask.numel() * (1.0 - sparsity)) for name, mask in masks.items()
    }


def at_least(scores: Tensor, count: int, kept: Tensor) -> Tensor:
    """Mask ``score ≥ k-th largest`` with ``k = n - count``: all that tie with it are kept.

    >>> at_least(torch.tensor([3.0, 1.0, 1.0, 2.0]), 1, kept=torch.ones(4, dtype=torch.bool))
    tensor([True, True, True, True])
    """
    more = count - pruned_in(kept)
    if more < 0:
        return kept
    if count == scores.numel():
        return torch.zeros_like(kept)
    scores = rankable(scores)
    return hits(scores, operator.ge, nth_smallest(lambda: [(scores, kept)], more + 1), kept)
