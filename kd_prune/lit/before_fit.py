"""BeforeFit: what a fit will be like, found out before it begins and without changing anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from kd_prune.errors import ConfigError
from kd_prune.lit.progress import RunLength, batches_of
from kd_prune.pruning.unchanged import unchanged


class BeforeFit:
    """A fit that has not begun: its length and its optimizers. Use within `before_fit`.

    Attributes:
        trainer: The trainer of the fit.
        module: The module.
        loaders: The training loader or data module, the module's own one included; None: unknown.
        note: What could not be found out, as a sentence.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, loaders: Any) -> None:
        self.trainer = trainer
        self.module = module
        self.loaders = loaders
        self.note = ""

    @cached_property
    def batches(self) -> float:
        """Batches of an epoch in one process; infinite if unknown."""
        connector = self.trainer._accelerator_connector
        divided = connector.use_distributed_sampler and connector.is_distributed
        return batches_of(self.loaders, self.trainer.world_size if divided else 1)

    @cached_property
    def length(self) -> RunLength:
        """Length of the run.

        Raises:
            ConfigError: It cannot be known.
        """
        trainer, automatic = self.trainer, self.module.automatic_optimization
        try:
            return RunLength.from_trainer_config(trainer, self.batches, automatic=automatic)
        except ConfigError as error:
            if self.loaders is not None or (trainer.max_epochs or 0) < 1:
                raise
            raise ConfigError(
                "train_dataloader",
                None,
                f"max_epochs={trainer.max_epochs} is counted in batches of the training loader",
                "give the loader or the data module of the fit",
            ) from error

    def optimizers(self) -> list[Optimizer] | None:
        """Return the optimizers of the fit; None, with a `note`, if they are not known yet."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the fit will repeat them
                configured = self.module.configure_optimizers()
        except Exception as error:  # the user's code may need what only a fit provides
            self.note = (
                f"configure_optimizers fails before the fit ({type(error).__name__}), so which "
                "parameters train is not known: all that require a gradient are taken"
            )
            return None
        return list(_optimizers(configured)) or None


@contextmanager
def before_fit(
    trainer: L.Trainer, module: L.LightningModule, train_dataloader: Any
) -> Iterator[BeforeFit]:
    """Try out parts of a fit; the module is left as it was.

    The module's own loader is made if none is given, as a fit makes it: after its ``prepare_data``
    and ``setup``.
    """
    with unchanged(module):
        fit = BeforeFit(trainer, module, train_dataloader)
        module.trainer = _TrainerBeforeFit(fit)  # type: ignore[assignment]
        if train_dataloader is None and is_overridden("train_dataloader", module):
            module.prepare_data()
            module.setup("fit")
            fit.loaders = module.train_dataloader()
        yield fit


class _TrainerBeforeFit:
    """The trainer as `configure_optimizers` will see it, with the length of the run."""

    def __init__(self, fit: BeforeFit) -> None:
        self._fit = fit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fit.trainer, name)

    @property
    def lightning_module(self) -> L.LightningModule:
        return self._fit.module

    @property
    def datamodule(self) -> Any:
        return self._fit.loaders if hasattr(self._fit.loaders, "train_dataloader") else None

    @property
    def num_training_batches(self) -> float:
        return self._fit.batches

    @property
    def estimated_stepping_batches(self) -> float:
        return self._fit.length.total


def _optimizers(configured: Any) -> Iterator[Optimizer]:
    """Yield the optimizers in what `configure_optimizers` returns: one, lists, dicts."""
    if hasattr(configured, "param_groups"):
        yield configured
    elif isinstance(configured, dict):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, list | tuple):
        for entry in configured:
            yield from _optimizers(entry)
