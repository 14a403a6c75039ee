"""JudgeCallback: a fit that is not worth finishing ends early."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as L

from kd_prune.lit.run_length import RunLength

Judge = Callable[[int, float, float], str | None]


class GivenUpError(RuntimeError):
    """A judge ended the fit; the message says why. `state`: what the run's record calls it."""

    state = "pruned"


class JudgeCallback(L.Callback):
    """Shows a judge how every validation came out; the fit ends with `GivenUpError` if it says so.

    Sparsity rises during a run and the metric falls with it, so a value means something only
    beside values of other runs from the same place: the judge gets the share of the run that is
    done, in percent, whatever the number of steps, and the sparsity that was reached there.

    Args:
        judge: Called as ``judge(percent, sparsity, value)`` in the first process; returns the
            reason to give up, or None.
        monitor: Name of the logged metric.
    """

    def __init__(self, judge: Judge, monitor: str) -> None:
        self.judge = judge
        self.monitor = monitor

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the judge; all processes hear the answer.

        Raises:
            GivenUpError: The judge says so.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        reason = None
        if trainer.is_global_zero:
            length = RunLength.of(trainer)
            percent = round(100 * length.position(trainer) / length.total)
            logged = trainer.callback_metrics
            sparsity = float(logged.get("sparsity/counted", 0.0))
            reason = self.judge(percent, sparsity, float(logged[self.monitor]))
        reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            raise GivenUpError(reason)
