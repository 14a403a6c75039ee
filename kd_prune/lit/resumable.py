"""Resumable: base of callbacks that continue from a checkpoint's state."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L


class Resumable(L.Callback):
    """Keeps a checkpoint's state until a fit begins; only that fit uses it.

    Lightning (2.6) passes callbacks their state for ``trainer.validate(ckpt_path=…)``, `test` and
    `predict` too; a later fit must not use that state.
    """

    _resumed: dict[str, Any] | None = None

    def start_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare for a fit; called when the checkpoint of one that resumes has been read."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the fit, unless it resumes and the state is loaded later."""
        if not _loads_after_fit_start(trainer):
            self.start_fit(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the fit whose state was loaded after `on_fit_start`."""
        if _loads_after_fit_start(trainer):
            self.start_fit(trainer, pl_module)

    def take_resumed(self) -> dict[str, Any] | None:
        """Return the checkpoint's state once, if the fit resumes from one; then None."""
        resumed, self._resumed = self._resumed, None
        return resumed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the fit begins."""
        self._resumed = state_dict or None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Drop a state that no fit used."""
        self._resumed = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Drop a state that no fit used."""
        self._resumed = None


def _loads_after_fit_start(trainer: L.Trainer) -> bool:
    """Return whether the fit resumes with a strategy that shards first and then loads."""
    later: bool = trainer.strategy.restore_checkpoint_after_setup
    return later and trainer.ckpt_path is not None
