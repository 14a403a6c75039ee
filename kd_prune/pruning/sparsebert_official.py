"""The pruning arithmetic of SparseBERT's reference code (class ``Prune``), for parity.

Source: github.com/DerronXu/SparseBERT, ``main_functions/task_distill_prune_simultaneously.py``.

Reproduced: update steps and their sparsities (the last update precedes the run's last step, and
there may be more or fewer updates than `updates`); ``keep = int(n · (1 - s))``; the ``>=``
threshold, which keeps all ties; weights zeroed after every optimizer step; masks without regrowth.

Not reproduced: the division by zero in runs of at most ``updates / 2`` steps (here the frequency is
1); the mask of all ones where fewer weights are left than would be kept (here they stay kept).
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.ramps import cubic
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.selection import (
    Counts,
    Masks,
    Score,
    compare,
    count_pruned,
    kth_smallest,
    rankable,
)
from kd_prune.pruning.update_schedule import UpdateSchedule, ramp_steps


def update_schedule(schedule: Schedule, *, total_steps: int, updates: int = 100) -> UpdateSchedule:
    """Return the reference code's update steps and sparsities.

    With ``p`` the ramp's first step, ``S`` its length in steps and ``f = round(S / updates)``, step
    ``t`` is an update when ``p < t < p + S`` and ``(t - p) % f == 0``; the sparsity there is
    ``final + (initial - final) · (1 - ⌊(t - p)/f⌋ / ⌊S/f⌋)³``. A ramp that has no update
    there, of one step or with ``updates=1``, prunes to `final` in its last step.

    Raises:
        ConfigError: `schedule` is not cubic or has milestones, or as in `ramp_updates`.

    >>> steps = update_schedule(Schedule(final=0.95), total_steps=1000)
    >>> min(steps), max(steps), round(steps[500], 5)
    (10, 990, 0.83125)
    """
    if schedule.ramp is not cubic or schedule.milestones:
        raise ConfigError(
            "update_schedule",
            "sparsebert_official",
            "the reference code's update steps are defined for ramp=cubic without milestones",
        )
    first, last = ramp_steps(schedule, total_steps=total_steps, updates=updates)
    ramp = last - first
    frequency = max(1, round(ramp / updates))
    intervals = ramp // frequency
    found = {
        first + k * frequency: schedule.final
        + (schedule.initial - schedule.final) * (1.0 - k / intervals) ** 3
        for k in range(1, intervals + 1)
        if k * frequency < ramp
    }
    return found or {last: schedule.final}


def uniform(masks: Masks, score: Score, sparsity: float) -> Counts:
    """Prune ``n - int(n · (1 - sparsity))`` of the n weights of each tensor.

    >>> uniform({"a": torch.ones(7, dtype=torch.bool)}, lambda name: torch.empty(0), 0.5)
    {'a': 4}
    """
    return {
        name: mask.numel() - int(mask.numel() * (1.0 - sparsity)) for name, mask in masks.items()
    }


def at_least(scores: Tensor, count: int, kept: Tensor) -> Tensor:
    """Keep every ``score ≥ k-th largest`` with ``k = n - count``, ties included.

    >>> at_least(torch.tensor([3.0, 1.0, 1.0, 2.0]), 1, kept=torch.ones(4, dtype=torch.bool))
    tensor([True, True, True, True])
    """
    more = count - count_pruned(kept)
    if more < 0:
        return kept
    if count == scores.numel():
        return torch.zeros_like(kept)
    scores = rankable(scores)
    threshold = kth_smallest(lambda: [(scores, kept)], more + 1)
    return compare(scores, operator.ge, threshold, kept)
