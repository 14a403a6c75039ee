"""SparsityCallback: prunes any LightningModule on schedule while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
from torch import nn
from torch.optim import Optimizer

from kd_prune.errors import ConfigError
from kd_prune.lit.argument_checks import check_name, check_scope
from kd_prune.lit.averaged_weights import AveragedWeights
from kd_prune.lit.distributed import first_process_number, mask_sync, print_once, refuse_sharding
from kd_prune.lit.optimizer_hooks import OptimizerHooks
from kd_prune.lit.progress import RunLength, batches_of
from kd_prune.lit.ramp_warnings import warn_if_ramp_has_begun, warn_if_ramp_was_cut
from kd_prune.lit.settings import plain_settings
from kd_prune.pruning.allocation import Allocation, uniform
from kd_prune.pruning.checks import check_kinds
from kd_prune.pruning.criteria import Criterion, StatefulCriterion, magnitude
from kd_prune.pruning.granularity import CrossTensorGranularity
from kd_prune.pruning.optimizer_state import optimizer_parameters
from kd_prune.pruning.preview import PruningPreview
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.ramps import Ramp, cubic
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.scope import DefaultScope, Scope, default_scope
from kd_prune.pruning.selection import Selection, count_pruned, unstructured
from kd_prune.pruning.sharded_pruner import make_pruner
from kd_prune.pruning.update_schedule import UpdateSchedule, ramp_updates

OnMilestone = Callable[[L.LightningModule, float], None]


class SparsityCallback(AveragedWeights):
    """Raises the sparsity of a module's weights from `initial` to `final` during training.

    After every optimizer step pruned weights are set to zero; at the schedule's steps the masks
    are updated. If an AMP scaler skips such a step, the update is made at the next real step, or at
    the end of the run. ``sparsity/target`` and ``sparsity/counted`` (counted from the weights at
    the last update) are logged after every step. Masks are part of the checkpoint, and a resumed
    run continues its ramp.

    The arguments from `initial` to `milestone_length` are those of `Schedule`, and those from
    `updates` to `regrow` are those of `Pruner`; formulas and further choices are explained there.

    Args:
        final: Sparsity at the end of the ramp, in [0, 1); None: weights that are zero when the fit
            begins stay zero, and nothing else is pruned.
        scope: Parameters that may be pruned, as patterns over their names; None: the weights of
            all layers that train, except the output head (see `default_scope`).
        submodule: Attribute of the module that holds the model to be pruned; `scope` then matches
            that model's names. None: the module itself.
        initial: Sparsity at the start of the ramp.
        begin: Start of the ramp, as a fraction of the run.
        end: End of the ramp, as a fraction of the run.
        ramp: `cubic`, `linear`, `one_shot`, or your own function.
        milestones: Sparsities at which the ramp pauses.
        milestone_length: Length of each pause, as a fraction of the run.
        on_milestone: Called as ``on_milestone(module, sparsity)`` at the end of each pause, in
            every process, to save or evaluate the module at that sparsity.
        updates: Mask updates on the ramp.
        criterion: `magnitude`, `Movement()`, or your own.
        allocation: `uniform`, `Global()`, `ERK()`, or your own.
        granularity: `unstructured`, `NM()`, `Block()`, `Rows()`, `Heads()`, or your own.
        update_schedule: `ramp_updates`, `periodic_updates`, or your own.
        regrow: False, True or `RigL()`.
        verbose: Print the preview before training and the counted sparsity of every tensor after.
        name: Distinguishes several of these callbacks in one Trainer: all but one need a name. It
            is part of the checkpoint's key and of logged names (``sparsity/<name>/counted``).

    Raises:
        ConfigTypeError: A name or a class was given instead of a function or an object.
        ConfigError: A fraction is out of range (see `Schedule`); at the start of a fit: the ramp
            does not fit the run, nothing is left to prune, there is no module `submodule`, or the
            strategy shards parameters otherwise than as DTensors.
    """

    def __init__(
        self,
        final: float | None = 0.95,
        *,
        scope: Scope | None = None,
        submodule: str | None = None,
        initial: float = 0.0,
        begin: float = 0.0,
        end: float = 1.0,
        ramp: Ramp = cubic,
        milestones: Sequence[float] = (),
        milestone_length: float = 0.1,
        on_milestone: OnMilestone | None = None,
        updates: int = 100,
        criterion: Criterion | StatefulCriterion = magnitude,
        allocation: Allocation = uniform,
        granularity: Selection | CrossTensorGranularity = unstructured,
        update_schedule: Callable[..., UpdateSchedule] = ramp_updates,
        regrow: bool | RigL = False,
        verbose: bool = True,
        name: str | None = None,
    ) -> None:
        check_kinds(
            criterion=criterion,
            allocation=allocation,
            granularity=granularity,
            update_schedule=update_schedule,
            regrow=regrow,
        )
        check_scope(scope)
        check_name("submodule", submodule)
        check_name("name", name)
        self._schedule_settings: dict[str, Any] = {
            "initial": initial,
            "begin": begin,
            "end": end,
            "ramp": ramp,
            "milestones": milestones,
            "milestone_length": milestone_length,
        }
        self._pruner_settings: dict[str, Any] = {
            "updates": updates,
            "criterion": criterion,
            "allocation": allocation,
            "granularity": granularity,
            "update_schedule": update_schedule,
            "regrow": regrow,
        }
        self.schedule: Schedule | None = None
        if final is not None:
            self.schedule = Schedule(final=final, **self._schedule_settings)
        self.criterion = criterion
        self.scope = scope
        self.submodule = submodule
        self.on_milestone = on_milestone
        self.verbose = verbose
        self.name = name
        self.pruner: Pruner | None = None
        self._length = RunLength()
        self._hooks = OptimizerHooks()
        self._started_here = True  # False in a run resumed with this callback's state
        self._counted = 0.0
        self.step = 0  # step that the run has reached, in the unit of `preview`

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints: the class's name, and the callback's if it has one."""
        return f"{super().state_key}[{self.name}]" if self.name else super().state_key

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that make an equal callback."""
        return {
            "final": self.schedule.final if self.schedule else None,
            **self._schedule_settings,
            **self._pruner_settings,
            "scope": self.scope,
            "submodule": self.submodule,
            "on_milestone": self.on_milestone,
            "verbose": self.verbose,
            "name": self.name,
        }

    def replace(self, **changes: Any) -> SparsityCallback:
        """Make a callback with some arguments changed, without any state of a fit."""
        return type(self)(**(self.arguments() | changes))

    def settings(self) -> dict[str, Any]:
        """Return the constructor arguments as plain data (see `plain_settings`)."""
        return {name: plain_settings(value) for name, value in self.arguments().items()}

    def check(
        self, trainer: L.Trainer, parameters: Mapping[str, nn.Parameter], length: RunLength
    ) -> None:
        """Refuse settings that cannot prune these parameters in a run of this length."""
        stateful = isinstance(self.criterion, StatefulCriterion)
        # No refusal depends on scores, and a criterion's state may take many times the weights.
        settings = {"criterion": magnitude} if stateful else {}
        self._make_pruner(trainer, parameters, length, **settings)

    def preview(
        self,
        trainer: L.Trainer,
        module: L.LightningModule | None = None,
        train_dataloader: Any = None,
    ) -> PruningPreview:
        """Preview the pruning of a fit, before it or during it: tensors, ramp, final counts.

        Nothing is trained or changed. Before a fit there are no optimizers yet, so all parameters
        that require a gradient count as one network.

        Args:
            trainer: The trainer of the fit.
            module: The module; None: the one whose fit has begun.
            train_dataloader: The training loader or data module of the fit; None: the Trainer's
                ``max_steps`` is the length of the run.

        Raises:
            ConfigError: As the fit would.
        """
        if module is None:
            if self.pruner is None:
                raise ConfigError(
                    "module", None, "before a fit, give the module that is to be fitted"
                )
            return self.pruner.preview(self._length.unit)
        scope = self._choose_scope(module, None)
        batches = batches_of(train_dataloader)
        automatic = module.automatic_optimization
        length = RunLength.from_trainer_config(trainer, batches, automatic=automatic)
        pruner = self._make_pruner(trainer, scope.included, length)
        return pruner.preview(length.unit, scope.excluded)

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the masks, or load those of the checkpoint."""
        refuse_sharding(trainer)
        scope = self._choose_scope(pl_module, trainer.optimizers)
        resumed = self.take_resumed()
        self._length = RunLength(**resumed["length"]) if resumed else RunLength.from_fit(trainer)
        with warnings.catch_warnings():
            if resumed:  # the loaded masks tell new tensors from pruned ones
                warnings.filterwarnings("ignore", ".*zero altogether")
            self.pruner = self._make_pruner(trainer, scope.included, self._length)
        self._counted = self.pruner.sparsity
        if resumed:
            self.pruner.load_state_dict(resumed["pruner"])
            self._counted = resumed["counted"]
        self._weights_dirty, self._started_here = False, not resumed
        self._hooks = OptimizerHooks()
        self._hooks.attach(trainer, pl_module, self.pruner)
        if self.verbose:
            print_once(trainer, self.pruner.preview(self._length.unit, scope.excluded))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn when resuming from a checkpoint without this callback's state."""
        super().on_train_start(trainer, pl_module)
        if self.pruner is not None and self._started_here:
            step = self._length.step(trainer)
            warn_if_ramp_has_begun(self.pruner.update_schedule, step, self._length)

    def _choose_scope(
        self, module: L.LightningModule, optimizers: list[Optimizer] | None
    ) -> DefaultScope:
        model = self._model(module)
        if self.scope is not None:
            return DefaultScope(self.scope.select(model))
        networks = None if optimizers is None else list(map(optimizer_parameters, optimizers))
        return default_scope(model, networks)

    def _make_pruner(
        self,
        trainer: L.Trainer,
        parameters: Mapping[str, nn.Parameter],
        length: RunLength,
        **settings: Any,
    ) -> Pruner:
        schedule = self.schedule
        if schedule and getattr(trainer, "fast_dev_run", False):
            schedule = Schedule(final=schedule.final)  # few steps, so all of them are on the ramp
        return make_pruner(
            parameters, schedule, total_steps=length.total, **(self._pruner_settings | settings)
        )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Hook optimizers that replaced earlier ones; zero pruned weights after a validation."""
        if self.pruner is not None:
            self._hooks.begin_batch(trainer, pl_module, self.pruner)
        super().on_train_batch_start(trainer, pl_module, *args)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Pass the criterion the gradients, unscaled and not yet clipped."""
        if self.pruner is not None:
            self._hooks.observe_gradients(trainer, self.pruner, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Update the masks if the schedule says so, and log, after an optimizer step."""
        if self.pruner is None or not self._hooks.consume_step():
            return  # gradients are being accumulated
        self.step = self._length.step(trainer)
        if self._length.seconds:  # clocks differ between processes
            self.step = first_process_number(self.step, trainer.strategy.root_device)
        window = self.pruner.milestone_window
        if window and self.step >= window.stop and self.on_milestone:
            self.on_milestone(pl_module, self.pruner.target)
        self._update(self.pruner, self.step)
        prefix = f"sparsity/{self.name}" if self.name else "sparsity"
        pl_module.log(f"{prefix}/target", self.pruner.target)
        pl_module.log(f"{prefix}/counted", self._counted, prog_bar=True)

    def _update(self, pruner: Pruner, step: int) -> None:
        # Scores depend on the batches that each process has seen, so the first one's masks count.
        if pruner.update(step, mask_sync()):
            pruner.project()
            self._counted = pruner.sparsity

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the last update if the run reached its end without it; warn if the ramp was cut.

        A run has fewer steps than planned if a scaler skipped some or a training step gave None.
        """
        if self.pruner is None:
            return
        step = self._length.step(trainer)
        stepped, stopped = self._hooks.stepped, trainer.should_stop
        warn_if_ramp_was_cut(self.pruner, step, self._length, stepped=stepped, stopped=stopped)
        if not stopped or step >= self._length.total:
            self._update(self.pruner, self._length.total)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hooks, zero pruned weights a last time and print the counted sparsity."""
        if self.pruner is None:
            return
        self._hooks.detach()
        super().on_fit_end(trainer, pl_module)
        if self.verbose:
            model = self._model(pl_module)
            print_once(trainer, SparsityReport.count(model, self.pruner.parameters))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks."""
        super().on_exception(trainer, pl_module, exception)
        self._hooks.detach()

    @property
    def pruned(self) -> int:
        """Number of weights that the masks prune; 0 before the first fit."""
        masks = self.pruner.masks.values() if self.pruner else ()
        return sum(map(count_pruned, masks))

    def state_dict(self) -> dict[str, Any]:
        """Return masks, ramp and the position on it: plain tensors and numbers."""
        if self.pruner is None or self._other_module:
            return {}
        return {
            "pruner": self.pruner.state_dict(),
            "length": self._length.state_dict(),
            "counted": self._counted,
        }
