"""History: logged values by step, in a CSV file that a resumed run continues."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_only

from kd_prune import atomic_io
from kd_prune.lit.resumable import Resumable

Row = dict[str, float]


class History(Resumable):
    """Keeps one row per recorded step and writes all rows to a CSV file after every validation.

    A row has the learning rate and what is logged below ``train/``, ``val/``, ``sparsity/`` and
    ``replacement/``, as `DistillModule` and the callbacks here do.
    The rows are part of the checkpoint, so a resumed run continues the same curve; Lightning's
    CSVLogger would begin a new file.

    Args:
        path: The CSV file.
        every: Record training values every so many optimizer steps, and at an epoch's end.
    """

    def __init__(self, path: Path, every: int = 10) -> None:
        self.path = path
        self.every = every
        self.rows: list[Row] = []

    def start_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a fit; one that resumes goes on with the rows of its checkpoint."""
        resumed = self.take_resumed()
        self.rows = resumed["rows"] if resumed else []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Record training values and the learning rate after an optimizer step."""
        step = trainer.global_step
        if step == (self.rows[-1]["step"] if self.rows else 0):
            return  # gradients are being accumulated
        if step % self.every and step != trainer.max_steps and not trainer.is_last_batch:
            return
        values = self._values(trainer, ("train/", "sparsity/", "replacement/"))
        self._record(step, values | {"lr": trainer.optimizers[0].param_groups[0]["lr"]})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the validation metrics and write the file."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._record(trainer.global_step, self._values(trainer, ("val/", "sparsity/")))
            self.write()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write all rows; an interrupted write leaves the previous file."""
        columns = sorted({name for row in self.rows for name in row} - {"step"})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["step", *columns])
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_io.write(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Return all rows so far."""
        return {"rows": self.rows}

    def _values(self, trainer: L.Trainer, prefixes: tuple[str, ...]) -> Row:
        logged = trainer.callback_metrics.items()
        return {name: float(value) for name, value in logged if name.startswith(prefixes)}

    def _record(self, step: int, values: Row) -> None:
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1] |= values
