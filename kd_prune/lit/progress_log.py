"""ProgressLog: a plain line of progress where no terminal shows Lightning's progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as L

from kd_prune.errors import ConfigError
from kd_prune.lit.progress import RunLength

UNITS = {"optimizer steps": "step", "batches": "batch", "seconds": "second"}


class ProgressLog(L.Callback):
    """Prints one line at least every epoch and every half minute, from the first process.

    For example ``student: step 120/460 (26 %), loss 0.412, sparsity 0.71, val/accuracy 0.783, 3 min
    left``: the run's step, its last logged training loss, sparsity and validation metrics, and the
    time left at the mean speed of the run so far.

    Args:
        stage: Name of the fit.
        every_seconds: Longest time between two lines; checked after every batch.
        enabled: Whether to print; None: only if stdout is no terminal.
        write: Called with every line; None: it is printed.
    """

    def __init__(
        self,
        stage: str,
        every_seconds: float = 30.0,
        *,
        enabled: bool | None = None,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self.stage = stage
        self.every_seconds = every_seconds
        self.enabled = enabled
        self.write = write or partial(print, flush=True)
        self._active = False
        self._length: RunLength | None = None
        self._started_at = 0.0
        self._started_step = 0
        self._printed_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        enabled = not sys.stdout.isatty() if self.enabled is None else self.enabled
        self._active = enabled and trainer.is_global_zero
        try:
            self._length = RunLength.from_fit(trainer)
        except ConfigError:  # no end is known, so none is printed
            self._length = None
        self._started_at = self._printed_at = time.monotonic()
        self._started_step = self._step(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Print a line if the last one is `every_seconds` old."""
        if self._active and time.monotonic() - self._printed_at >= self.every_seconds:
            self._print(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line after every epoch, its validation included."""
        if self._active:
            self._print(trainer)

    def _step(self, trainer: L.Trainer) -> int:
        return self._length.step(trainer) if self._length else trainer.global_step

    def _print(self, trainer: L.Trainer) -> None:
        self._printed_at = time.monotonic()
        step = self._step(trainer)
        place = f"step {step}"
        if self._length:
            total = self._length.total
            place = f"{UNITS[self._length.unit]} {step}/{total} ({100 * step / total:.0f} %)"
        parts = [place, *_values(trainer)]
        if left := self._seconds_left(step):
            parts.append(f"{format_duration(left)} left")
        self.write(f"{self.stage}: {', '.join(parts)}")

    def _seconds_left(self, step: int) -> float:
        done = step - self._started_step
        if self._length is None or done <= 0:
            return 0.0
        elapsed = self._printed_at - self._started_at
        return elapsed / done * (self._length.total - step)


def _values(trainer: L.Trainer) -> list[str]:
    """Format the logged training loss, sparsity and validation metrics."""
    shown = []
    for name, value in trainer.callback_metrics.items():
        if name in ("train/loss", "train_loss", "loss"):
            shown.append((0, f"loss {float(value):.3g}"))
        elif name.startswith("sparsity/") and name.endswith("/counted"):
            shown.append((1, f"{name.removesuffix('/counted')} {float(value):.3g}"))
        elif name.startswith("val/") and not name.startswith("val/loss/"):
            shown.append((2, f"{name} {float(value):.3g}"))
    return [text for _, text in sorted(shown, key=lambda entry: entry[0])]


def format_duration(seconds: float) -> str:
    """Format a duration, rounded to its unit.

    >>> format_duration(40.2), format_duration(200), format_duration(4000)
    ('40 s', '3 min', '1 h 7 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
