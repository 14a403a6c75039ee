"""Pauses of a ramp: everything about milestones that a schedule and its update steps need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kd_prune.errors import ConfigError
from kd_prune.pruning.checks import check_fraction


@dataclass(frozen=True)
class Pauses:
    """Sparsities at which a ramp pauses, its milestones, and the length of each pause.

    The ramp is faster between its pauses by as much as they take, so that it ends where it would
    without them.

    Args:
        milestones: Increasing sparsities, those at both ends of the ramp left out.
        length: Length of each pause, as a fraction of the run.

    Raises:
        ConfigError: A sparsity or the length is out of range, or `milestones` is no list.
    """

    milestones: Sequence[float] = ()
    length: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.milestones, int | float):
            raise ConfigError(
                "milestones", self.milestones, f"expected a list, [{self.milestones}]"
            )
        for milestone in self.milestones:
            check_fraction("milestones", milestone, closed=False)
        check_fraction("milestone_length", self.length, closed=False)
        # Plain types: numpy's scalars do not belong into checkpoints.
        object.__setattr__(self, "milestones", tuple(map(float, self.milestones)))
        object.__setattr__(self, "length", float(self.length))

    def check_ramp(self, *, initial: float, final: float, begin: float, end: float) -> None:
        """Refuse milestones that do not lie on a ramp, or whose pauses leave no time for it."""
        levels = (initial, *self.milestones, final)
        if self.milestones and any(one >= other for one, other in pairwise(levels)):
            raise ConfigError(
                "milestones",
                list(self.milestones),
                f"expected sparsities that increase between initial={initial} and final={final}",
                "leave these two out of the list",
            )
        if self.milestones and end - begin - self.total <= 0.0:
            raise ConfigError(
                "milestone_length",
                self.length,
                f"{len(self.milestones)} milestones of this length take up the ramp from "
                f"begin={begin} to end={end}",
                "make them shorter or the ramp longer",
            )

    @property
    def total(self) -> float:
        """Length of all pauses together, as a fraction of the run."""
        return self.length * len(self.milestones)

    def remove(
        self, elapsed: float, reached_at: Callable[[float], float]
    ) -> tuple[float, float | None]:
        """Return how long the ramp has risen after `elapsed`, and the milestone it pauses at.

        Args:
            elapsed: Time since the ramp began, as a fraction of the run.
            reached_at: Milestone → time at which a ramp without pauses reaches it.

        >>> Pauses([0.4], 0.5).remove(0.75, reached_at=lambda sparsity: sparsity / 2)
        (0.25, None)
        """
        for milestone in self.milestones:
            if elapsed < reached_at(milestone):
                break
            if elapsed <= reached_at(milestone) + self.length:
                return reached_at(milestone), milestone
            elapsed -= self.length
        return elapsed, None

    def steps(self, total_steps: int) -> int:
        """Return the number of steps of one pause, in a run of `total_steps`."""
        return round(self.length * total_steps)

    def steps_before(self, sparsity: float, total_steps: int) -> int:
        """Return the steps of all pauses that end before the ramp reaches `sparsity`."""
        return self.steps(total_steps) * sum(m < sparsity for m in self.milestones)

    def rising_steps(self, ramp_steps: int, total_steps: int) -> int:
        """Return the steps of a ramp of `ramp_steps` that are no pause.

        Raises:
            ConfigError: A pause has fewer than two steps, or none is left for the ramp.
        """
        count, length = len(self.milestones), self.steps(total_steps)
        if count and not 2 * count <= length * count < ramp_steps:
            raise ConfigError(
                "milestone_length",
                self.length,
                f"{count} milestones of at least two steps do not fit into the {ramp_steps} steps "
                f"of the ramp (of {total_steps} in this run)",
                "change milestone_length or train for more steps",
            )
        return ramp_steps - length * count

    def check_updates(self, updates: Mapping[int, float], made_by: Callable[..., object]) -> None:
        """Refuse an update schedule without an update at every milestone."""
        if missing := set(self.milestones) - {*updates.values()}:
            raise ConfigError(
                "milestones",
                list(self.milestones),
                f"{made_by} plans no update at {min(missing):g}",
                "take update_schedule=ramp_updates",
            )

    def window(self, updates: Mapping[int, float], target: float) -> range | None:
        """Return the steps from the update that reaches milestone `target` up to the next update.

        None if `target` is no milestone.

        >>> Pauses([0.5], 0.4).window({2: 0.5, 10: 0.8}, target=0.5)
        range(2, 10)
        """
        if target not in self.milestones:
            return None
        steps = [step for step, sparsity in updates.items() if sparsity == target]
        return range(steps[0], min(step for step in updates if step > steps[-1]))
