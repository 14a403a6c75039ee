"""ResumePoint: one checkpoint file that is always whole and from which a run goes on exactly."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from kd_prune.lit.resumable import Resumable

AGREE_EVERY = 8
"""Optimizer steps between two agreements of several processes; each waits for the device."""
ADVANCE = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a cluster says that it is going to end the job."""


class Interrupted(BaseException):
    """A signal ended the fit after its state was saved.

    No `Exception`: like KeyboardInterrupt it ends a sweep, not just the job. `number` is the
    signal's.
    """

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}; saved {path}")
        self.path = path
        self.number = number


class ResumePoint(Resumable, Checkpoint):
    """Saves the run to one file after every epoch, every few minutes, and on Ctrl-C or SIGTERM.

    A signal lets the optimizer step under way finish, with all the batches that it accumulates, so
    that the checkpoint lies between two steps; then the fit ends with `Interrupted`. Several
    processes agree on it within `AGREE_EVERY` steps, whichever of them got the signal. A second
    signal ends it at once. The file is written beside and renamed: a kill while it is being
    written leaves the one before. The state of torch's random generators is in it, so that dropout
    goes on as if nothing had happened; so are the `seconds` of training so far.

    Args:
        path: The checkpoint file.
        minutes: Longest time of training between two checkpoints.
        about: What the checkpoint says of the run, for whoever reads it: plain data.
    """

    def __init__(
        self, path: Path, minutes: float = 5.0, about: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.minutes = minutes
        self.about = dict(about or {})
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._theirs: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._saved_at = 0.0
        self._started_at: float | None = None
        self._earlier = 0.0
        self._step = 0
        self._generators: dict[str, Any] | None = None
        self._loaders: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note who handles signals already; after this, Lightning does."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, *ADVANCE)}
        self._theirs = {number: h for number, h in handlers.items() if callable(h)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals; on resume, set the loaders where they were.

        Lightning (2.6) forgets the loaders' states where anything asked for the number of steps
        before training began, as every learning-rate schedule does.
        """
        loaders = CombinedLoader(trainer.train_dataloader).flattened
        stateful = [loader for loader in loaders if hasattr(loader, "load_state_dict")]
        for loader, state in zip(stateful, self._loaders, strict=False):
            loader.load_state_dict(state)
        self._loaders = []
        self._generators = self.take_resumed()
        self._earlier = self._generators["seconds"] if self._generators else 0.0
        self._saved_at = self._started_at = time.monotonic()
        self._step = trainer.global_step
        self._signal = None
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note)
                for number in {signal.SIGINT, signal.SIGTERM, *self._theirs}
            }

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _end_if_told_to(self) -> None:
        if self._signal is None:
            return
        number, self._signal = self._signal, None
        if number not in self._theirs:
            raise Interrupted(self.path, number)
        self._theirs[number](number, None)
        self._listen()

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
        """After an optimizer step: save if it is time, or if a signal came."""
        if trainer.global_step == self._step:
            return  # accumulated gradients are not part of a checkpoint
        self._step = trainer.global_step
        # Resumed from before a validation Lightning would skip it.
        if not trainer.is_last_batch and not self._validation_is_due(trainer):
            self._save_if_time(trainer)

    def _validation_is_due(self, trainer: L.Trainer) -> bool:
        epoch, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        return fetcher is not None and epoch._should_check_val_fx(fetcher)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After a validation within an epoch: likewise."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save_if_time(trainer)

    def _save_if_time(self, trainer: L.Trainer) -> None:
        due = time.monotonic() - self._saved_at > 60 * self.minutes
        if trainer.world_size > 1:
            if self._step % AGREE_EVERY:
                return
            due = self._agree(trainer, due)
        if self._signal is not None or due:
            self.save(trainer)
        self._end_if_told_to()

    def _agree(self, trainer: L.Trainer, due: bool) -> bool:
        """Whether any process is to save; a signal to one of them is a signal to all."""
        wishes = torch.tensor([self._signal or 0, due], device=trainer.strategy.root_device)
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        number, due = wishes.tolist()
        self._signal = number or None
        return bool(due)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after every epoch; end if a signal came while it was being validated."""
        if trainer.world_size > 1:
            self._agree(trainer, due=True)
        self.save(trainer)
        self._end_if_told_to()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop listening for signals."""
        self._listen_no_more()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening for signals."""
        super().on_exception(trainer, pl_module, exception)
        self._listen_no_more()

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint; the file is whole or the one before."""
        scratch = self.path.with_name(f"{self.path.name}.part")
        try:
            trainer.save_checkpoint(scratch)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink()
            raise
        if trainer.is_global_zero:
            scratch.replace(self.path)
        self._saved_at = time.monotonic()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the loaders' states until training starts."""
        if trainer.state.fn == "fit":
            fit_loop = checkpoint["loops"]["fit_loop"]["state_dict"]
            self._loaders = fit_loop.get("combined_loader", [])

    @property
    def seconds(self) -> float:
        """How long the fit has trained, all its parts together; what a kill lost is not in it."""
        now = 0.0 if self._started_at is None else time.monotonic() - self._started_at
        return self._earlier + now

    def state_dict(self) -> dict[str, Any]:
        """States of torch's random generators, the time, and what the run is."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "cpu": torch.get_rng_state(),
            "cuda": cuda,
            "seconds": self.seconds,
            "about": self.about,
        }
