"""AveragedWeights: base of SparsityCallback that keeps averaged weights as sparse as the masks."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from torch import Tensor, nn

from kd_prune.errors import ConfigError
from kd_prune.lit.resumable import Resumable
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.scope import named_parameters


class AveragedWeights(Resumable):
    """Zeroes pruned weights wherever an average replaces the weights that the optimizer updates.

    Callbacks such as `WeightAveraging` and `StochasticWeightAveraging`, and schedule-free
    optimizers, replace the weights by an average: during validation, in checkpoints and at the end
    of the fit. An average over earlier steps has fewer zeros than the masks.

    Attributes:
        pruner: Holds the masks; None before the first fit.
        submodule: Attribute of the module that holds the pruned model; None: the module itself.
    """

    pruner: Pruner | None
    submodule: str | None
    _weights_dirty = False  # other weights may be in place: of a validation, or an average
    _other_module = False  # the Trainer's module is not the one that was fitted

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Drop the masks of a previous fit; note whether the module is the one they belong to."""
        if stage == "fit":
            self.pruner = None
        masked = self.pruner.parameters.values() if self.pruner else ()
        self._other_module = not {id(p) for p in masked} <= {id(p) for p in pl_module.parameters()}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the epoch may begin with an average, of which BatchNorm takes statistics."""
        self._weights_dirty = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Zero pruned weights where other weights may have been put in place since the last."""
        if self.pruner is not None and self._weights_dirty:
            self.pruner.project()
            self._weights_dirty = False

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Zero pruned weights before the first batch: an average may be in place."""
        if self.pruner is not None and trainer.state.fn == "fit" and batch_idx == 0:
            self.pruner.project()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the next training batch may begin with other weights."""
        self._weights_dirty = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Zero pruned weights: an average may have become the model's weights."""
        if self.pruner is not None:
            self.pruner.project()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Zero pruned weights in the saved state, which may be an average's."""
        if self.pruner is None or self._other_module or self.pruner.takes_sharded:
            return  # averages of sharded weights are refused
        if trainer.state.fn != "fit":
            return  # a test may have loaded another checkpoint, whose masks are not these
        names = self._mask_names(pl_module, self.pruner)
        masks, saved = self.pruner.masks, checkpoint["state_dict"]
        zeroed: dict[int, Tensor] = {}  # by storage: tensors shared in the model stay shared
        for name, weight in list(saved.items()):
            mask = masks.get(names.get(name.replace("_orig_mod.", ""), ""))
            if mask is None:
                continue
            storage = weight.data_ptr()
            if storage not in zeroed:  # not in place: the saved tensor is the model's own weight
                zeroed[storage] = weight.masked_fill(~mask.to(weight.device), 0.0)
            saved[name] = zeroed[storage]

    def _mask_names(self, module: L.LightningModule, pruner: Pruner) -> dict[str, str]:
        """Map names in the module's state dict to names of masks; a shared weight has several."""
        masked = {id(weight): name for name, weight in pruner.parameters.items()}
        prefix = f"{self.submodule}." if self.submodule else ""
        return {
            f"{prefix}{name}": masked[id(weight)]
            for name, weight in named_parameters(self._model(module)).items()
            if id(weight) in masked
        }

    def _model(self, module: L.LightningModule) -> nn.Module:
        """Return the model to be pruned, whose parameter names scopes and masks use."""
        if self.submodule is None:
            return module
        model = getattr(module, self.submodule, None)
        if not isinstance(model, nn.Module):
            children = ", ".join(name for name, _ in module.named_children()) or "none"
            raise ConfigError(
                "submodule",
                self.submodule,
                f"{type(module).__name__} has no module of this name",
                f"its modules are {children}",
            )
        return model
