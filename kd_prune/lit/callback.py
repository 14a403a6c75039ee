"""SparsityCallback: prunes any LightningModule on schedule while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as L

from kd_prune.pruning.criterion import Criterion, magnitude
from kd_prune.pruning.mask import Allocation, Select, exact, layerwise
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.schedule import Plan, Schedule, Shape, cubic, update_plan
from kd_prune.pruning.scope import Scope


class SparsityCallback(L.Callback):
    """Raises the sparsity of a module's weights from `initial` to `final` during training.

    After every optimizer step pruned weights are set to zero; at the schedule's steps the masks are
    updated. Logs ``sparsity/target`` and ``sparsity/counted`` (from the weights, at the last
    update) after every step. Masks are part of the checkpoint; a resumed run goes on with the ramp
    it began.

    Args:
        final: Sparsity at the end of the ramp, in [0, 1).
        scope: What may be pruned, as patterns over the module's parameter names.
        initial: Sparsity at its start.
        begin: Start of the ramp, as a fraction of the run's optimizer steps.
        end: End of the ramp, likewise; what follows is recovery at `final`.
        shape: Share of the way over the ramp: `cubic`, `linear`, `one_shot`, or your own.
        updates: Mask updates on the ramp.
        criterion: Weight → score, larger = keep.
        allocation: How the target is shared between tensors: `layerwise`, `Global()`, or your own.
        select: Scores, count and the mask so far → mask.
        plan: Schedule → update steps.

    Raises:
        ValueError: A fraction is out of range (see `Schedule`).
    """

    def __init__(
        self,
        final: float = 0.95,
        *,
        scope: Scope | None = None,
        initial: float = 0.0,
        begin: float = 0.0,
        end: float = 1.0,
        shape: Shape = cubic,
        updates: int = 100,
        criterion: Criterion = magnitude,
        allocation: Allocation = layerwise,
        select: Select = exact,
        plan: Callable[..., Plan] = update_plan,
    ) -> None:
        self.schedule = Schedule(final=final, initial=initial, begin=begin, end=end, shape=shape)
        self.scope = scope
        self.updates = updates
        self._plan = plan
        self._make_pruner = partial(
            Pruner,
            schedule=self.schedule,
            updates=updates,
            criterion=criterion,
            allocation=allocation,
            select=select,
            plan=plan,
        )
        self.pruner: Pruner | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._step = 0
        self._counted = 0.0

    def plan(self, total_steps: int) -> Plan:
        """Update steps and sparsities of a run of `total_steps` optimizer steps.

        Raises:
            ValueError: The ramp does not fit the run.
        """
        return self._plan(self.schedule, total_steps=total_steps, updates=self.updates)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the masks, or take over those of the checkpoint."""
        if self.scope is None:
            raise ValueError(
                "scope: say what may be pruned, for example "
                'Scope(include=["*encoder.layer.*.weight"])'
            )
        self.pruner = self._make_pruner(
            self.scope.select(pl_module), total_steps=int(trainer.estimated_stepping_batches)
        )
        self._step = trainer.global_step
        self._counted = self.pruner.sparsity
        if self._resumed is not None:
            self.pruner.load_state_dict(self._resumed["pruner"])
            self._step = self._resumed["step"]
            self._counted = self._resumed["counted"]
            self._resumed = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """After an optimizer step: update the masks if it is time, zero what is pruned."""
        if self.pruner is None or trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        updated = self.pruner.update(self._step)
        self.pruner.project()
        if updated:
            self._counted = self.pruner.sparsity
        pl_module.log("sparsity/target", self.pruner.target)
        pl_module.log("sparsity/counted", self._counted, prog_bar=True)

    @property
    def pruned(self) -> int:
        """How many weights the masks prune; 0 before the first fit."""
        masks = self.pruner.masks.values() if self.pruner else ()
        return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)

    def state_dict(self) -> dict[str, Any]:
        """Masks, ramp and step: plain tensors and numbers."""
        if self.pruner is None:
            return {}
        return {
            "pruner": self.pruner.state_dict(),
            "step": self._step,
            "counted": self._counted,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the masks are made."""
        self._resumed = state_dict or None
