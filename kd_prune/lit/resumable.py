"""What callbacks that go on from a checkpoint have in common."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L


class Resumable(L.Callback):
    """Keeps a checkpoint's state until a fit takes it, and for that fit alone.

    Lightning (2.6) hands callbacks their state for ``trainer.validate(ckpt_path=…)``, `test` and
    `predict` too, and no later fit must take that for its own.
    """

    _resumed: dict[str, Any] | None = None

    def take_resumed(self) -> dict[str, Any] | None:
        """The checkpoint's state if the fit that begins goes on from one; the next does not."""
        resumed, self._resumed = self._resumed, None
        return resumed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the fit begins."""
        self._resumed = state_dict or None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget a state that no fit took."""
        self._resumed = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Likewise."""
        self._resumed = None
