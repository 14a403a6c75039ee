"""RampPosition: how far a fit is on its ramp, and where the ramp has to end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L

from kd_prune.lit.progress import RunLength
from kd_prune.lit.ramp_warnings import (
    warn_if_length_is_unknown,
    warn_if_ramp_has_begun,
    warn_if_ramp_was_cut,
)
from kd_prune.pruning.pruner import Pruner


class RampPosition:
    """The step that a fit has reached, in the unit of its length.

    Args:
        trainer: The trainer whose fit has begun; None: no fit has.
        resumed: Saved `length` of the fit that is resumed.
        label: The callback as messages call it.

    Attributes:
        length: Length of the run.
    """

    def __init__(
        self,
        trainer: L.Trainer | None = None,
        *,
        resumed: Mapping[str, Any] | None = None,
        label: str = "",
    ) -> None:
        self._resumed, self._label = resumed is not None, label
        self._ended = False
        self.length = RunLength(**resumed) if resumed is not None else RunLength()
        if trainer is not None and resumed is not None:
            self.length.check_measurable(trainer)
        if trainer is not None and resumed is None:
            self.length = RunLength.from_fit(trainer)
            warn_if_length_is_unknown(trainer, self.length)

    def warn_if_begun(self, trainer: L.Trainer, pruner: Pruner) -> None:
        """Warn where a run that is not resumed with masks starts behind the first updates."""
        if not self._resumed:
            step = self.length.step(trainer)
            warn_if_ramp_has_begun(pruner.update_schedule, step, self.length, label=self._label)

    def step(self, trainer: L.Trainer) -> int:
        """Return the step that the run has reached, the same in all processes."""
        return self.length.synchronized_step(trainer)

    def ends_with_batch(self, trainer: L.Trainer) -> bool:
        """Return whether the current batch is the last of the run, as far as the loader knows."""
        return trainer.is_last_batch and self.ends_with_epoch(trainer)

    def ends_with_epoch(self, trainer: L.Trainer) -> bool:
        """Return whether the current epoch is the last of a run that nobody has stopped."""
        is_last = 0 < (trainer.max_epochs or 0) <= trainer.current_epoch + 1
        return is_last and not trainer.should_stop

    def claim_last_update(
        self, trainer: L.Trainer, pruner: Pruner, *, stepped: bool | None
    ) -> bool:
        """Return, at the end of a run, whether its last update is to be made; warn of a cut ramp.

        A run has fewer steps than planned if a scaler skipped some or a training step gave None.
        Its update is made all the same, unless the run was stopped. The answer is given once: a
        second call returns False.

        Args:
            trainer: The trainer.
            pruner: Holds the masks.
            stepped: Whether any optimizer made a step; None: there was no batch.
        """
        if self._ended:
            return False
        self._ended = True
        step, stopped = self.step(trainer), trainer.should_stop
        warn_if_ramp_was_cut(
            pruner, step, self.length, stepped=stepped, stopped=stopped, label=self._label
        )
        return not stopped or step >= self.length.total

    def replan(self, trainer: L.Trainer) -> None:
        """Fit the rest of the ramp to the run, after an epoch, where it turns out shorter."""
        if trainer.should_stop:  # in the middle of the epoch, so its batches say nothing
            return
        planned, self.length = self.length, self.length.replan(trainer)
        if planned.replanned or not self.length.replanned:
            return
        limit, end = self.length.replanned["limit"], self.length.replanned["end"]
        if end <= 0.99 * planned.limits[limit]:
            warnings.warn(
                f"by the epochs so far the run makes {end} of the {planned.total} {planned.unit} "
                f"planned; the rest of the ramp of {self._label} is fitted to them",
                stacklevel=3,
            )
