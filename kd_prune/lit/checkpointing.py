"""ResumePoint: keeps one checkpoint file from which an interrupted run resumes bitwise."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from kd_prune.lit.resumable import Resumable
from kd_prune.lit.signals import SignalListener

AGREE_EVERY = 8
"""Optimizer steps between two all-reduces that ask whether to save; each waits for the device."""


class ResumePoint(Resumable, Checkpoint):
    """Saves the run to one file after every epoch, every few minutes, and on Ctrl-C or SIGTERM.

    After a signal the current optimizer step finishes, with all the batches that it accumulates,
    so that the checkpoint lies between two steps; then the fit ends with `Interrupted`. Several
    processes agree on it within `AGREE_EVERY` steps, whichever of them got the signal. A second
    signal ends the fit at once. The file is written under another name and renamed: a kill during
    a write leaves the previous checkpoint. The state of torch's random generators is saved, so
    that dropout continues exactly, and so are the `seconds` of training so far.

    Args:
        path: The checkpoint file.
        minutes: Longest time of training between two checkpoints.
        fingerprint: Settings of the run that are stored with the checkpoint, as plain data, to be
            compared before it is resumed.
    """

    best_model_path = ""
    """There is no best model in the file; `Trainer.test` asks every callback that saves."""

    def __init__(
        self, path: Path, minutes: float = 5.0, fingerprint: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._before = path.with_name(f"{path.name}.before")
        if self._before.exists() and not path.exists():
            self._before.rename(path)
        self.minutes = minutes
        self.fingerprint = dict(fingerprint or {})
        self._signals = SignalListener()
        self._saved_at = 0.0
        self._started_at: float | None = None
        self._seconds_before = 0.0
        self._step = 0
        self._device = torch.device("cpu")
        self._generators: dict[str, Any] | None = None
        self._loaders: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the process's own signal handlers; Lightning replaces them later."""
        self._seconds_before, self._started_at = 0.0, None
        self._between_steps = False  # after a batch whose gradients are all used
        self._signals.find_user_handlers()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals; on resume, restore the loaders' states.

        Lightning (2.6) drops the loaders' states if anything asked for the number of steps before
        training began, as every learning-rate schedule does.
        """
        loaders = CombinedLoader(trainer.train_dataloader).flattened
        stateful = [loader for loader in loaders if hasattr(loader, "load_state_dict")]
        for loader, state in zip(stateful, self._loaders, strict=False):
            loader.load_state_dict(state)
        self._loaders = []
        self._generators = self.take_resumed()
        self._saved_at = self._started_at = time.monotonic()
        self._step = trainer.global_step
        self._device = trainer.strategy.root_device
        self._signals.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """On resume, restore the random generators."""
        if self._generators is not None:
            torch.set_rng_state(self._generators["cpu"])
            if self._device.type == "cuda" and self._generators["cuda"] is not None:
                torch.cuda.set_rng_state(self._generators["cuda"], self._device)
            self._generators = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Save after an optimizer step if `minutes` have passed, or if a signal arrived."""
        self._between_steps = trainer.global_step != self._step
        if not self._between_steps:
            return  # accumulated gradients are not part of a checkpoint
        self._step = trainer.global_step
        # A run resumed from a checkpoint before a validation would skip that validation.
        if not trainer.is_last_batch and not self._validation_follows(trainer):
            self._save_if_needed(trainer)

    def _validation_follows(self, trainer: L.Trainer) -> bool:
        """Whether Lightning validates after this batch."""
        epoch, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        return fetcher is not None and epoch._should_check_val_fx(fetcher)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after a validation within an epoch, as `on_train_batch_end` does after a step."""
        if self._between_steps and trainer.state.fn == "fit" and not trainer.is_last_batch:
            self._save_if_needed(trainer)

    def _save_if_needed(self, trainer: L.Trainer) -> None:
        due = time.monotonic() - self._saved_at > 60 * self.minutes
        if trainer.world_size > 1:
            if self._step % AGREE_EVERY:
                return
            due = self._all_reduce(trainer, due)
        if self._signals.received is not None or due:
            self.save(trainer)
        self._signals.act(self.path)

    def _all_reduce(self, trainer: L.Trainer, due: bool) -> bool:
        """Return whether any process is due to save; a signal to one is a signal to all."""
        wishes = torch.tensor(
            [self._signals.received or 0, due], device=trainer.strategy.root_device
        )
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        number, due = wishes.tolist()
        self._signals.received = number or None
        return bool(due)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after every epoch; end the fit if a signal arrived during its validation."""
        if trainer.world_size > 1:
            self._all_reduce(trainer, due=True)
        self.save(trainer)
        self._signals.act(self.path)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop listening for signals."""
        self._signals.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening for signals."""
        super().on_exception(trainer, pl_module, exception)
        self._signals.stop()

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint; a write that fails leaves the previous one.

        A folder has the name ``<name>.before`` while the new one takes its place. After a kill in
        that moment, the next `ResumePoint` of the path gives it its name back.
        """
        scratch = self.path.with_name(f"{self.path.name}.part")
        try:
            trainer.save_checkpoint(scratch)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink()
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        if trainer.is_global_zero:
            if self.path.is_dir():  # of a strategy that saves a folder, with a file per process
                shutil.rmtree(self._before, ignore_errors=True)
                self.path.rename(self._before)
            scratch.replace(self.path)
            shutil.rmtree(self._before, ignore_errors=True)
        self._saved_at = time.monotonic()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts, which it does not if no step is left."""
        super().load_state_dict(state_dict)
        self._seconds_before = state_dict["seconds"]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the loaders' states until training starts."""
        if trainer.state.fn == "fit":
            fit_loop = checkpoint["loops"]["fit_loop"]["state_dict"]
            self._loaders = fit_loop.get("combined_loader", [])

    @property
    def seconds(self) -> float:
        """Seconds of training, over all resumed parts; time lost by a kill is not counted."""
        now = 0.0 if self._started_at is None else time.monotonic() - self._started_at
        return self._seconds_before + now

    def state_dict(self) -> dict[str, Any]:
        """Return the random generators' states, the training time and the run's fingerprint."""
        on_gpu = self._device.type == "cuda"
        return {
            "cpu": torch.get_rng_state(),
            # Of this process's device. The first process's state is saved: processes are seeded
            # alike, and draw alike.
            "cuda": torch.cuda.get_rng_state(self._device) if on_gpu else None,
            "seconds": self.seconds,
            "fingerprint": self.fingerprint,
        }
