"""ResumePoint: one checkpoint file that is always whole and from which a run goes on exactly."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint


class ResumePoint(Checkpoint):
    """Saves the run to one file after every epoch, every few minutes, and on Ctrl-C or SIGTERM.

    A signal lets the step under way finish, so that the checkpoint lies between two steps; a second
    Ctrl-C ends at once. The file is written beside and renamed: a kill while it is being
    written leaves the one before. The state of torch's random generators is in it, so that dropout
    goes on as if nothing had happened.

    Args:
        path: The checkpoint file.
        minutes: Longest time of training between two checkpoints.
    """

    def __init__(self, path: Path, minutes: float = 5.0) -> None:
        self.path = path
        self.minutes = minutes
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._saved_at = 0.0
        self._generators: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals."""
        self._saved_at = time.monotonic()
        self._signal = None
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note)
                for number in (signal.SIGINT, signal.SIGTERM)
            }

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """On resume, set the random generators where they were."""
        if self._generators is not None:
            torch.set_rng_state(self._generators["cpu"])
            if torch.cuda.is_available() and self._generators["cuda"]:
                torch.cuda.set_rng_state_all(self._generators["cuda"])
            self._generators = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Save if it is time, or if a signal came."""
        if self._signal is not None:
            self.save(trainer)
            raise KeyboardInterrupt(f"saved {self.path}")
        if time.monotonic() - self._saved_at > 60 * self.minutes:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after every epoch."""
        self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop listening for signals."""
        self._listen_no_more()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening for signals."""
        self._listen_no_more()

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint; the file is whole or the one before."""
        scratch = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        trainer.save_checkpoint(scratch)
        if trainer.is_global_zero:
            scratch.replace(self.path)
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """States of torch's random generators."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until the first batch."""
        self._generators = state_dict
