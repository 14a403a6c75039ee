"""Schedule: sparsity as a pure function of training progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kd_prune.errors import ConfigError
from kd_prune.pruning.checks import check_fraction, check_function
from kd_prune.pruning.pauses import Pauses
from kd_prune.pruning.ramps import Ramp, cubic


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Sparsity over training progress.

    With ``u = clip((p - begin) / (end - begin), 0, 1)`` the sparsity at progress ``p`` is ``0``
    before ``begin`` and ``initial + (final - initial) · ramp(u)`` from there on. It is exactly
    ``final`` from ``end`` on, and never higher.

    Args:
        final: Sparsity at the end of the ramp, in [0, 1).
        initial: Sparsity at the start of the ramp, in [0, final]; GMP* uses 0.7.
        begin: Start of the ramp as a fraction of training.
        end: End of the ramp as a fraction of training; then the model recovers at `final`.
        ramp: Ramp progress → fraction of the rise from `initial` to `final`, non-decreasing:
            `cubic`, `linear`, `cosine`, `one_shot`, a `Stepwise`, or your own function.
        milestones: Increasing sparsities between `initial` and `final` at which the ramp pauses for
            `milestone_length`. Between pauses the ramp is faster by as much, so that it still ends
            at `end`.
        milestone_length: Length of the pause at each milestone, as a fraction of training.

    Raises:
        ConfigError: A fraction is out of range, ``begin >= end``, ``initial > final``, milestones
            do not increase between these two, or their pauses leave no time for the ramp.
        ConfigTypeError: `ramp` is no function, or a fraction is a string.

    >>> from kd_prune.pruning import linear
    >>> schedule = Schedule(final=0.95, begin=0.0, end=0.5)
    >>> [round(schedule(p), 4) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.8312, 0.95, 0.95]
    >>> halfway = Schedule(final=0.8, ramp=linear, milestones=[0.4], milestone_length=0.5)
    >>> [round(halfway(p), 4) for p in (0.125, 0.25, 0.5, 0.75, 0.875, 1.0)]
    [0.2, 0.4, 0.4, 0.4, 0.6, 0.8]
    """

    final: float = field(kw_only=False)
    initial: float = 0.0
    begin: float = 0.0
    end: float = 1.0
    ramp: Ramp = cubic
    milestones: Sequence[float] = ()
    milestone_length: float = 0.1

    def __post_init__(self) -> None:
        check_function("ramp", self.ramp, "cubic or one_shot")
        check_fraction("final", self.final, closed=False)
        check_fraction("initial", self.initial, closed=False)
        check_fraction("begin", self.begin, closed=True)
        check_fraction("end", self.end, closed=True)
        if self.begin >= self.end:
            raise ConfigError(
                "begin",
                self.begin,
                f"is not before end={self.end}",
                "to prune all at once take ramp=one_shot (on the command line: "
                "sparsity/ramp=one_shot)",
            )
        if self.initial > self.final:
            raise ConfigError(
                "initial",
                self.initial,
                f"is above final={self.final}",
                "masks only lose weights, so initial must not exceed final",
            )
        self.pauses.check_ramp(
            initial=self.initial, final=self.final, begin=self.begin, end=self.end
        )
        # Plain types: numpy's scalars do not belong into checkpoints.
        object.__setattr__(self, "milestones", self.pauses.milestones)
        for name in ("final", "initial", "begin", "end", "milestone_length"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @cached_property
    def pauses(self) -> Pauses:
        """The ramp's pauses at `milestones`."""
        return Pauses(self.milestones, self.milestone_length)

    @property
    def ramp_fraction(self) -> float:
        """Fraction of training in which the sparsity rises: the ramp without its pauses."""
        return self.end - self.begin - self.pauses.total

    def __call__(self, progress: float) -> float:
        """Return the sparsity at `progress`, a fraction of training."""
        if progress < self.begin:
            return 0.0
        elapsed, milestone = self.pauses.remove(
            progress - self.begin, lambda m: self.inverse(m) * self.ramp_fraction
        )
        if milestone is not None:
            return milestone
        return self.sparsity_at(min(elapsed / self.ramp_fraction, 1.0))

    def sparsity_at(self, u: float) -> float:
        """Return the sparsity at ramp progress `u`, from 0 at `begin` to 1 at `end`.

        >>> from kd_prune.pruning import linear
        >>> Schedule(final=0.9, initial=0.7, begin=0.2, end=0.6, ramp=linear).sparsity_at(0.5)
        0.8
        """
        if u == 1.0:
            return self.final
        share = float(self.ramp(u))  # one of your own may compute with numpy or torch
        return min(self.initial + (self.final - self.initial) * share, self.final)

    def inverse(self, sparsity: float) -> float:
        """Return the lowest ramp progress with at least `sparsity`, which is at most `final`.

        >>> from kd_prune.pruning import linear
        >>> Schedule(final=0.8, ramp=linear).inverse(0.2)
        0.25
        """
        if self.sparsity_at(0.0) >= sparsity:
            return 0.0
        low, high = 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            if self.sparsity_at(middle) < sparsity:
                low = middle
            else:
                high = middle
        return high
