"""TrialStoppingCallback: ends the fit of a search's trial that is not worth finishing."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as L

from kd_prune.lit.progress import RunLength

StopTrial = Callable[[int, float, float], str | None]
"""``(percent of the run, sparsity, metric) → reason to stop``, or None to continue."""


class TrialStoppedError(RuntimeError):
    """The search stopped the trial; the message says why. `state` is the run's recorded state."""

    state = "stopped"


class TrialStoppingCallback(L.Callback):
    """Asks after every validation whether to stop the trial; raises `TrialStoppedError` if so.

    Sparsity rises during a run and the metric falls with it, so values compare only between runs
    at the same point. The point is given as a percentage of the run, which does not depend on the
    number of steps, together with the sparsity counted there.

    Args:
        stop: `StopTrial`, called in the first process only.
        monitor: Name of the logged metric.
    """

    def __init__(self, stop: StopTrial, monitor: str) -> None:
        self.stop = stop
        self.monitor = monitor

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask whether to stop; the first process's answer holds for all.

        Raises:
            TrialStoppedError: There is a reason to stop.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        reason = None
        if trainer.is_global_zero:
            length = RunLength.from_fit(trainer)
            percent = round(100 * length.step(trainer) / length.total)
            logged = trainer.callback_metrics
            sparsity = float(logged.get("sparsity/counted", 0.0))
            reason = self.stop(percent, sparsity, float(logged[self.monitor]))
        reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            raise TrialStoppedError(reason)
