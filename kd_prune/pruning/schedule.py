"""When to prune, and how much: sparsity as a function of training progress.

A `Schedule` is pure: progress in [0, 1] → sparsity in [0, 1). `update_plan` turns it into the
optimizer steps at which masks are updated. Nothing here knows torch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

Shape = Callable[[float], float]
"""Share of the way, [0, 1] → [0, 1], never falling. One that rises at certain points only may name
them in an attribute `breakpoints`; see `update_plan`."""
Plan = dict[int, float]


def cubic(u: float) -> float:
    """Share of the way, ``1 - (1 - u)³``: fast at first, gentle at the end.

    Source: Zhu & Gupta 2017 (arXiv 1710.01878), eq. 1.

    >>> [round(cubic(u), 3) for u in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.578, 0.875, 1.0]
    """
    return 1.0 - (1.0 - u) ** 3


def linear(u: float) -> float:
    """Share of the way, ``u``: the same number of weights with every update.

    Source: as `cubic`, with exponent 1.

    >>> linear(0.25)
    0.25
    """
    return u


def cosine(u: float) -> float:
    """Share of the way, ``½ · (1 - cos(π · u))``: gentle at both ends.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5, there for the learning rate.

    >>> [round(cosine(u), 3) for u in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.146, 0.5, 1.0]
    """
    return 0.5 * (1.0 - math.cos(math.pi * u))


def one_shot(u: float) -> float:
    """Share of the way, 1 from the start: everything is pruned at `begin`, at once.

    This is the constant schedule: `final` from `begin` on.

    Source: Han et al. 2015 (arXiv 1506.02626), section 3: prune, then retrain.

    >>> one_shot(0.0)
    1.0
    """
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Stepwise:
    """Share of the way from a table: ``levels[b]`` for the last ``b ≤ u``, and 0 before the first.

    `update_plan` makes one mask update per level, at the level's own step; `updates` does not
    matter.

    Args:
        levels: Point of the ramp → share of the way that is reached there and held until the next;
            points rising in [0, 1], shares never falling in [0, 1], the last share 1. With
            ``Schedule(initial=0.0)`` a share is a fraction of `final`.

    Raises:
        ValueError: The table is empty, or breaks one of these rules.

    Source: Han et al. 2015 (arXiv 1506.02626), section 3.4, iterative pruning.

    >>> shape = Stepwise(levels={0.2: 0.5, 0.6: 1.0})
    >>> [shape(u) for u in (0.0, 0.2, 0.5, 0.6, 1.0)]
    [0.0, 0.5, 0.5, 1.0, 1.0]
    >>> update_plan(Schedule(final=0.8, shape=shape), total_steps=10)
    {2: 0.4, 6: 0.8}
    """

    levels: Mapping[float, float]

    def __post_init__(self) -> None:
        """Check the table, and take a copy: a frozen shape must not change with its argument."""
        points, shares = list(self.levels), list(self.levels.values())
        for point, share in self.levels.items():
            check_fraction("levels: point", point, closed=True)
            check_fraction(f"levels[{point}]", share, closed=True)
        if any(one >= other for one, other in pairwise(points)):
            raise ValueError(f"levels: points {points} do not rise; sort them")
        if any(one > other for one, other in pairwise(shares)):
            raise ValueError(
                f"levels: shares {shares} fall; masks only ever lose weights, so shares must not"
            )
        if not shares or shares[-1] != 1.0:
            raise ValueError(
                f"levels={dict(self.levels)}: expected a table whose last share is 1.0, that is "
                "Schedule's final; shares are of the way from initial to final"
            )
        object.__setattr__(self, "levels", dict(self.levels))

    def __call__(self, u: float) -> float:
        """Share of the way at point `u` of the ramp."""
        reached = bisect_right(self.breakpoints, u)
        return self.levels[self.breakpoints[reached - 1]] if reached else 0.0

    @property
    def breakpoints(self) -> Sequence[float]:
        """The points of the ramp at which the share rises."""
        return tuple(self.levels)


def check_function(name: str, value: object, example: str, or_a: type | None = None) -> None:
    """Raise TypeError unless the value can be called, or is an `or_a`; its class is neither.

    >>> check_function("shape", "cubic", "cubic or Stepwise()")
    Traceback (most recent call last):
    TypeError: shape='cubic': expected a function or an object, for example cubic or Stepwise()
    >>> check_function("shape", Stepwise, "cubic")
    Traceback (most recent call last):
    TypeError: shape=Stepwise: expected an object, not its class; write Stepwise()
    """
    if isinstance(value, type):
        kind = value.__name__
        raise TypeError(f"{name}={kind}: expected an object, not its class; write {kind}()")
    if not callable(value) and (or_a is None or not isinstance(value, or_a)):
        raise TypeError(
            f"{name}={value!r}: expected a function or an object, for example {example}"
        )


def check_fraction(name: str, value: float, *, closed: bool) -> None:
    """Raise ValueError unless 0 ≤ value < 1 (`closed`: ≤ 1); TypeError for text."""
    if isinstance(value, str):
        raise TypeError(f"{name}={value!r}: expected a number")
    inside = 0.0 <= value <= 1.0 if closed else 0.0 <= value < 1.0
    if not inside:  # NaN lands here too
        percent = 2.0 <= value < 100.0  # 1.5 of a run is no 1.5 % of it
        hint = f"; did you mean {value / 100:g}?" if percent else ""
        bounds = "[0, 1]" if closed else "[0, 1)"
        raise ValueError(f"{name}={value}: expected a fraction in {bounds}{hint}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Sparsity over training progress.

    With ``u = clip((p - begin) / (end - begin), 0, 1)`` the sparsity at progress ``p`` is
    ``0`` before ``begin`` and ``initial + (final - initial) · shape(u)`` from there on, so it is
    exactly ``final`` from ``end`` on, and never above it.

    Args:
        final: Sparsity at the end of the ramp, in [0, 1).
        initial: Sparsity at its start, in [0, final]; 0.7 is GMP*'s jump.
        begin: Start of the ramp as a fraction of training.
        end: End of the ramp as a fraction of training; what follows is recovery at `final`.
        shape: Share of the way from `initial` to `final`, a function [0, 1] → [0, 1],
            never falling: `cubic`, `linear`, `cosine`, `one_shot`, a `Stepwise`, or your own.
        milestones: Sparsities between `initial` and `final`, rising, at which the ramp rests for
            `hold`; it is as much faster in between, so that it still ends at `end`.
        hold: Length of each rest as a fraction of training.

    Raises:
        ValueError: A fraction is out of range, ``begin >= end``, ``initial > final``, milestones
            do not rise between these, or the rests leave nothing of the ramp.
        TypeError: `shape` is no function, or a fraction is text.

    >>> schedule = Schedule(final=0.95, begin=0.0, end=0.5)
    >>> [round(schedule(p), 4) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.8312, 0.95, 0.95]
    >>> halfway = Schedule(final=0.8, shape=linear, milestones=[0.4], hold=0.5)
    >>> [round(halfway(p), 4) for p in (0.125, 0.25, 0.5, 0.75, 0.875, 1.0)]
    [0.2, 0.4, 0.4, 0.4, 0.6, 0.8]
    """

    final: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 1.0
    shape: Shape = cubic
    milestones: Sequence[float] = ()
    hold: float = 0.1

    def __post_init__(self) -> None:
        """Check the fractions against each other."""
        check_function("shape", self.shape, "cubic or one_shot")
        check_fraction("final", self.final, closed=False)
        check_fraction("initial", self.initial, closed=False)
        check_fraction("begin", self.begin, closed=True)
        check_fraction("end", self.end, closed=True)
        if self.begin >= self.end:
            raise ValueError(
                f"begin={self.begin} is not before end={self.end}: the ramp needs begin < end; "
                "to prune all at once take shape=one_shot (of a command: sparsity/shape=one_shot)"
            )
        if self.initial > self.final:
            raise ValueError(
                f"initial={self.initial} is above final={self.final}: "
                "masks only ever lose weights, so initial must not exceed final"
            )
        if isinstance(self.milestones, int | float):
            raise ValueError(f"milestones={self.milestones}: expected a list, [{self.milestones}]")
        self._check_milestones()
        # numpy's scalars are no plain numbers, and checkpoints hold nothing else.
        object.__setattr__(self, "milestones", tuple(map(float, self.milestones)))
        for name in ("final", "initial", "begin", "end", "hold"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def _check_milestones(self) -> None:
        for milestone in self.milestones:
            check_fraction("milestones: sparsity", milestone, closed=False)
        levels = (self.initial, *self.milestones, self.final)
        if self.milestones and any(one >= other for one, other in pairwise(levels)):
            raise ValueError(
                f"milestones={list(self.milestones)}: expected sparsities that rise between "
                f"initial={self.initial} and final={self.final}, which need not be named"
            )
        check_fraction("hold", self.hold, closed=False)
        if self.milestones and self.moving <= 0.0:
            raise ValueError(
                f"hold={self.hold}: {len(self.milestones)} milestones held for so long leave "
                f"nothing of the ramp from begin={self.begin} to end={self.end}"
            )

    @property
    def moving(self) -> float:
        """Share of training in which the sparsity rises: the ramp without its rests."""
        return self.end - self.begin - self.hold * len(self.milestones)

    def __call__(self, progress: float) -> float:
        """Sparsity at `progress`, a fraction of training."""
        if progress < self.begin:
            return 0.0
        way = progress - self.begin
        for milestone in self.milestones:
            reached = self.reaches(milestone) * self.moving
            if way < reached:
                break
            if way <= reached + self.hold:
                return milestone
            way -= self.hold
        return self.along(min(way / self.moving, 1.0))

    def reaches(self, sparsity: float) -> float:
        """The first point of the ramp at which it has reached `sparsity`, at most `final`.

        >>> Schedule(final=0.8, shape=linear).reaches(0.2)
        0.25
        """
        if self.along(0.0) >= sparsity:
            return 0.0
        low, high = 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            if self.along(middle) < sparsity:
                low = middle
            else:
                high = middle
        return high

    def along(self, u: float) -> float:
        """Sparsity at point `u` of the ramp, 0 at `begin` and 1 at `end`.

        >>> Schedule(final=0.9, initial=0.7, begin=0.2, end=0.6, shape=linear).along(0.5)
        0.8
        """
        if u == 1.0:
            return self.final
        return min(self.initial + (self.final - self.initial) * self.shape(u), self.final)


def update_plan(schedule: Schedule, *, total_steps: int, updates: int = 100) -> Plan:
    """The optimizer steps after which masks are updated, and the sparsity each update gives.

    The ramp goes from step ``first = round(begin · total_steps)`` to ``last = round(end ·
    total_steps)``. Update k of ``0 … updates`` is made at ``u = k / updates``: it falls on step
    ``first + round((last - first) · u)``, at least 1, and gives ``schedule.along(u)``. A shape with
    `breakpoints` (`Stepwise`) is updated at these instead, and at 0 and 1. Where several updates
    fall on one step the last counts; where the sparsity does not rise there is none.
    The last update gives exactly ``final`` and falls on `last`, or earlier if the shape reaches 1
    earlier. A milestone has an update of its own, at ``schedule.reaches(milestone)``; the next
    update comes ``round(hold · total_steps)`` steps later than it would, and the ramp in between
    is as much shorter.

    Args:
        schedule: Any `Schedule`.
        total_steps: Optimizer steps of the run.
        updates: How many updates the ramp is cut into, at least 1; breakpoints go before it.

    Returns:
        ``{step: sparsity}``, both rising. Steps count completed optimizer steps, from 1.

    Raises:
        ValueError: `updates` or `total_steps` below 1, or the ramp is shorter than one step.

    >>> update_plan(Schedule(final=0.8, shape=linear), total_steps=10, updates=4)
    {2: 0.2, 5: 0.4, 8: 0.6000000000000001, 10: 0.8}
    """
    plan: Plan = {}
    reached = 0.0
    for step, sparsity in _updates(schedule, total_steps, updates):
        if sparsity > reached:
            plan[max(1, step)] = sparsity
            reached = sparsity
    return plan


def steady_plan(schedule: Schedule, *, total_steps: int, updates: int = 100) -> Plan:
    """Updates at regular steps of the ramp, also where the sparsity does not rise.

    For masks that change at a given sparsity, as with regrowth or `RigL`; else as `update_plan`.

    Args:
        schedule: Any `Schedule`.
        total_steps: Optimizer steps of the run.
        updates: How many updates the ramp is cut into, at least 1.

    Returns:
        ``{step: sparsity}``, steps rising, sparsities never falling.

    Raises:
        ValueError: As `update_plan`.

    >>> steady_plan(Schedule(final=0.8, initial=0.8), total_steps=10, updates=2)
    {1: 0.8, 5: 0.8, 10: 0.8}
    """
    return {max(1, step): s for step, s in _updates(schedule, total_steps, updates)}


def _updates(schedule: Schedule, total_steps: int, updates: int) -> Iterator[tuple[int, float]]:
    """Step (from 0) and sparsity of every update that the ramp may have, in order.

    Points of the ramp are exact: no step is to hang on a rounding.
    """
    first, last = ramp_steps(schedule, total_steps=total_steps, updates=updates)
    breakpoints = getattr(schedule.shape, "breakpoints", None)
    points = [Fraction(k, updates) for k in range(updates + 1)]
    if breakpoints is not None:
        points = [Fraction(0), *map(Fraction, breakpoints), Fraction(1)]
    places = [(u, schedule.along(float(u))) for u in points]
    places += [(Fraction(schedule.reaches(m)), m) for m in schedule.milestones]
    hold = round(schedule.hold * total_steps)
    moving = last - first - hold * len(schedule.milestones)
    for u, sparsity in sorted(places):
        rests = sum(milestone < sparsity for milestone in schedule.milestones)
        yield first + round(moving * u) + hold * rests, sparsity


def ramp_steps(schedule: Schedule, *, total_steps: int, updates: int) -> tuple[int, int]:
    """The ramp's ends in optimizer steps, both rounded.

    Raises:
        ValueError: `updates` or `total_steps` below 1, or the ramp is shorter than one step.

    >>> ramp_steps(Schedule(final=0.9, begin=0.1, end=0.5), total_steps=1000, updates=10)
    (100, 500)
    """
    if updates < 1:
        raise ValueError(f"updates={updates}: a ramp needs at least one mask update")
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: there is no optimizer step to prune in")
    first, last = round(schedule.begin * total_steps), round(schedule.end * total_steps)
    if first >= last:
        raise ValueError(
            f"begin={schedule.begin}, end={schedule.end}: no step of this run of {total_steps} "
            "lies on the ramp; move them apart or train for more steps"
        )
    rests = len(schedule.milestones)
    if rests and not 2 * rests <= round(schedule.hold * total_steps) * rests < last - first:
        raise ValueError(
            f"hold={schedule.hold}: of this run's {total_steps} steps the ramp has "
            f"{last - first}, and {rests} rests must fit into it, of two steps at least"
        )
    return first, last
