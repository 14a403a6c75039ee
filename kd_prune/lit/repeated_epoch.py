"""RepeatedEpoch: the same batches in every epoch, to test whether a model can learn them."""

from __future__ import annotations

import lightning.pytorch as L


class RepeatedEpoch(L.Callback):
    """Repeats the first epoch's order, so that ``limit_train_batches`` takes the same batches.

    Lightning's own `overfit_batches` does so for a loader with a sampler, but not for a loader
    whose batch sampler draws the order. The loader's sampler, or its batch sampler's `sampler`,
    must have the method `set_epoch`, which Lightning calls before every epoch.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the samplers back to epoch 0; Lightning has just set them to the current epoch."""
        loader = trainer.train_dataloader
        batches = getattr(loader, "batch_sampler", None)
        for sampler in (getattr(loader, "sampler", None), getattr(batches, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(0)
