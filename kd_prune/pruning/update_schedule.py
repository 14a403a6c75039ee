"""Update schedules: the optimizer steps at which masks are updated, and their sparsities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

from kd_prune.errors import ConfigError
from kd_prune.pruning.schedule import Schedule

UpdateSchedule = dict[int, float]
"""Number of completed optimizer steps → sparsity of the mask update after that step."""


def ramp_updates(schedule: Schedule, *, total_steps: int, updates: int = 100) -> UpdateSchedule:
    """Return the updates of a ramp, without those that do not raise the sparsity.

    The ramp extends from step ``first = round(begin · total_steps)`` to ``last = round(end ·
    total_steps)``. Update k of ``0 … updates`` has the ramp progress ``u = k / updates``, the step
    ``first + round((last - first) · u)``, at least 1, and the sparsity ``schedule.sparsity_at(u)``.
    A ramp with `breakpoints` (`Stepwise`) is updated at these instead, and at 0 and 1. Of several
    updates on one step the last counts. The last update gives exactly ``final`` and is made
    at `last`, or earlier if the ramp reaches 1 earlier.

    A milestone has an update of its own, at ``schedule.inverse(milestone)``; the next update comes
    ``round(milestone_length · total_steps)`` steps later than it would otherwise, and the ramp in
    between is shorter by as much.

    Args:
        schedule: The schedule.
        total_steps: Optimizer steps of the run.
        updates: Number of intervals between updates, at least 1; ignored for breakpoints.

    Returns:
        ``{step: sparsity}``, both increasing. Steps count completed optimizer steps, from 1.

    Raises:
        ConfigError: `updates` or `total_steps` below 1, or the ramp is shorter than one step.

    >>> from kd_prune.pruning import linear
    >>> ramp_updates(Schedule(final=0.8, ramp=linear), total_steps=10, updates=4)
    {2: 0.2, 5: 0.4, 8: 0.6000000000000001, 10: 0.8}
    """
    result: UpdateSchedule = {}
    highest = 0.0
    for step, sparsity in _candidate_updates(schedule, total_steps, updates):
        if sparsity > highest:
            result[max(1, step)] = sparsity
            highest = sparsity
    return result


def periodic_updates(schedule: Schedule, *, total_steps: int, updates: int = 100) -> UpdateSchedule:
    """Return updates at regular steps of the ramp, also where the sparsity does not rise.

    For methods that change masks at constant sparsity: regrowth and `RigL`. Otherwise like
    `ramp_updates`.

    Args:
        schedule: The schedule.
        total_steps: Optimizer steps of the run.
        updates: Number of intervals between updates, at least 1.

    Returns:
        ``{step: sparsity}``, steps increasing, sparsities not decreasing.

    Raises:
        ConfigError: As `ramp_updates`.

    >>> periodic_updates(Schedule(final=0.8, initial=0.8), total_steps=10, updates=2)
    {1: 0.8, 5: 0.8, 10: 0.8}
    """
    candidates = _candidate_updates(schedule, total_steps, updates)
    return {max(1, step): sparsity for step, sparsity in candidates}


def lasting_updates(schedule: Schedule, *, total_steps: int, updates: int = 100) -> UpdateSchedule:
    """Return updates at regular steps of the ramp, and at the same distance until the run's end.

    For scores that are trained: masks follow them at the final sparsity too. Otherwise like
    `periodic_updates`.

    Args:
        schedule: The schedule.
        total_steps: Optimizer steps of the run.
        updates: Number of intervals between updates on the ramp, at least 1.

    Returns:
        ``{step: sparsity}``, steps increasing, sparsities not decreasing.

    Raises:
        ConfigError: As `ramp_updates`.

    >>> lasting_updates(Schedule(final=0.8, initial=0.8, end=0.4), total_steps=10, updates=2)
    {1: 0.8, 2: 0.8, 4: 0.8, 6: 0.8, 8: 0.8, 10: 0.8}
    """
    plan = periodic_updates(schedule, total_steps=total_steps, updates=updates)
    first, last = ramp_steps(schedule, total_steps=total_steps, updates=updates)
    step, k = last, updates
    while step <= total_steps:
        plan[step] = schedule.final
        k += 1
        step = first + round(Fraction((last - first) * k, updates))
    return plan


def last_update(schedule: Schedule, *, total_steps: int, updates: int = 100) -> UpdateSchedule:
    """Return a single update, to the final sparsity at the end of the ramp.

    For methods that make weights small along the ramp (`ReweightedL1`), and for rounds of training
    that end with a mask update. `updates` is not used.

    Args:
        schedule: The schedule; of its ramp only the end matters.
        total_steps: Optimizer steps of the run.
        updates: Not used.

    Returns:
        ``{round(end · total_steps): final}``.

    Raises:
        ConfigError: As `ramp_updates`.

    >>> last_update(Schedule(final=0.8, end=0.5), total_steps=10)
    {5: 0.8}
    """
    _, last = ramp_steps(schedule, total_steps=total_steps, updates=updates)
    return {last: schedule.final}


def checked_updates(
    plan: Mapping[int, float], *, made_by: Callable[..., object], final: float, total_steps: int
) -> UpdateSchedule:
    """Return the plan that an update schedule made, in order and as plain numbers.

    Raises:
        ConfigError: A step lies outside the run, or the last update is a hundredth or more away
            from `final`.

    >>> checked_updates({7: 0.8, 2: 0.4}, made_by=ramp_updates, final=0.8, total_steps=10)
    {2: 0.4, 7: 0.8}
    """
    updates = {int(step): float(sparsity) for step, sparsity in sorted(plan.items())}
    if outside := [step for step in updates if not 1 <= step <= total_steps]:
        raise ConfigError(
            "update_schedule",
            made_by,
            f"plans an update at step {outside[0]}; a run of {total_steps} steps has 1 to "
            f"{total_steps}",
        )
    last = next(reversed(updates.values()), 0.0)
    if not math.isclose(last, final, abs_tol=0.01):  # the reference code's ends a little lower
        raise ConfigError(
            "update_schedule",
            made_by,
            f"its last update is to the sparsity {last:g}, not to final={final:g}",
            "take more updates and a longer run, or plan one more",
        )
    return updates


def _candidate_updates(
    schedule: Schedule, total_steps: int, updates: int
) -> Iterator[tuple[int, float]]:
    """Yield step (from 0) and sparsity of every possible update, in order.

    Ramp progress is an exact fraction, so that no step depends on rounding errors.
    """
    first, last = ramp_steps(schedule, total_steps=total_steps, updates=updates)
    breakpoints = getattr(schedule.ramp, "breakpoints", None)
    progress = [Fraction(k, updates) for k in range(updates + 1)]
    if breakpoints is not None:
        progress = [Fraction(0), *map(Fraction, breakpoints), Fraction(1)]
    points = [(u, schedule.sparsity_at(float(u))) for u in progress]
    points += [(Fraction(schedule.inverse(m)), m) for m in schedule.milestones]
    rising_steps = schedule.pauses.rising_steps(last - first, total_steps)
    for u, sparsity in sorted(points):
        paused_steps = schedule.pauses.steps_before(sparsity, total_steps)
        yield first + round(rising_steps * u) + paused_steps, sparsity


def ramp_steps(schedule: Schedule, *, total_steps: int, updates: int) -> tuple[int, int]:
    """Return the first and last step of the ramp, both rounded.

    Raises:
        ConfigError: `updates` or `total_steps` below 1, or the ramp is shorter than one step.

    >>> ramp_steps(Schedule(final=0.9, begin=0.1, end=0.5), total_steps=1000, updates=10)
    (100, 500)
    """
    if updates < 1:
        raise ConfigError("updates", updates, "expected at least one mask update")
    if total_steps < 1:
        raise ConfigError("total_steps", total_steps, "expected at least one optimizer step")
    first, last = round(schedule.begin * total_steps), round(schedule.end * total_steps)
    if first >= last:
        raise ConfigError(
            "begin",
            schedule.begin,
            f"between begin and end={schedule.end} lies no step of this run of {total_steps}",
            "move them apart or train for more steps",
        )
    return first, last
