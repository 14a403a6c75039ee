"""SparsityCallback: prunes any LightningModule on schedule while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
from torch import nn
from torch.optim import Optimizer

from kd_prune.errors import ConfigError
from kd_prune.lit.argument_checks import check_name, check_scope
from kd_prune.lit.averaged_weights import AveragedWeights
from kd_prune.lit.before_fit import before_fit
from kd_prune.lit.callback_settings import CallbackSettings
from kd_prune.lit.distributed import mask_sync, print_once, refuse_later_average, refuse_sharding
from kd_prune.lit.optimizer_hooks import OptimizerHooks, observed_layers
from kd_prune.lit.progress import RunLength
from kd_prune.lit.ramp_position import RampPosition
from kd_prune.lit.replaced_parameters import warn_of_replaced_parameters
from kd_prune.lit.saved_files import warn_of_files_on_the_ramp
from kd_prune.lit.scope_choice import choose_scope, warn_of_zeros_outside_scope
from kd_prune.pruning.allocation import Allocation, uniform
from kd_prune.pruning.checks import check_kinds
from kd_prune.pruning.chosen_scope import DefaultScope
from kd_prune.pruning.criteria import Criterion, StatefulCriterion, magnitude
from kd_prune.pruning.granularity import CrossTensorGranularity
from kd_prune.pruning.masked_parameters import check_regrow
from kd_prune.pruning.preview import PruningPreview
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.ramps import Ramp, cubic
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.scope import Scope, named_parameters
from kd_prune.pruning.selection import Selection, count_pruned, unstructured
from kd_prune.pruning.sharded_pruner import make_pruner
from kd_prune.pruning.update_schedule import UpdateSchedule, ramp_updates
from kd_prune.pruning.validated_calls import try_criterion

OnMilestone = Callable[[L.LightningModule, float], None]


class SparsityCallback(CallbackSettings, AveragedWeights):
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
        keep_zeros: Whether weights that are zero when the fit begins stay zero. None: with
            ``final=None``, and in a scope that is at `initial` already, as that of a pruned model
            pruned further; other zeros train and are pruned like any weight, with a warning.
        allow_empty: Whether a tensor may lose all its weights; otherwise it keeps one.
        verbose: Print the preview before training and the counted sparsity of every tensor after.
        name: Distinguishes several of these callbacks in one Trainer: all but one need a name. It
            is part of the checkpoint's key and of logged names (``sparsity/<name>/counted``).

    Raises:
        ConfigTypeError: A name or a class was given instead of a function or an object.
        ConfigError: A fraction is out of range (see `Schedule`); at the start of a fit: the ramp
            does not fit the run, nothing is left to prune, there is no module `submodule`, the
            strategy shards parameters otherwise than as DTensors, or another callback has the same
            name or prunes the same parameters.
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
        keep_zeros: bool | None = None,
        allow_empty: bool = False,
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
        check_regrow(regrow, criterion=criterion, granularity=granularity)
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
            "keep_zeros": keep_zeros,
            "allow_empty": allow_empty,
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
        self._position = RampPosition()
        self._hooks = OptimizerHooks()
        self._counted = 0.0
        self.step = 0  # step that the run has reached, in the unit of `preview`

    def check(
        self,
        trainer: L.Trainer,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        length: RunLength,
    ) -> None:
        """Refuse settings that cannot prune these parameters in a run of this length."""
        if getattr(self.criterion, "observes", None) == "input":
            observed_layers(model, parameters, self.criterion)
        settings = {}
        if isinstance(self.criterion, StatefulCriterion):
            # Its state may take many times the weights, so it is tried on the smallest tensor, and
            # no other refusal depends on scores.
            name, weight = min(parameters.items(), key=lambda item: item[1].numel())
            try_criterion(self.criterion, name, weight.detach())
            settings = {"criterion": magnitude}
        self._make_pruner(trainer, parameters, length, **settings)

    def preview(
        self,
        trainer: L.Trainer,
        module: L.LightningModule | None = None,
        train_dataloader: Any = None,
    ) -> PruningPreview:
        """Preview the pruning of a fit, before it or during it: tensors, ramp, final counts.

        Nothing is trained or changed. Before a fit, `configure_optimizers` is tried out to learn
        which parameters train; if it fails, the preview says so, and all parameters that require a
        gradient count as one network.

        Args:
            trainer: The trainer of the fit.
            module: The module; None: the one whose fit has begun.
            train_dataloader: The training loader or data module of the fit; None: the module's own
                loader, if it has one, or else the Trainer's ``max_steps`` is the length of the run.

        Raises:
            ConfigError: As the fit would.
        """
        if module is None:
            if self.pruner is None:
                raise ConfigError(
                    "module", None, "before a fit, give the module that is to be fitted"
                )
            return self.pruner.preview(self._position.length.unit)
        with before_fit(trainer, module, train_dataloader) as fit:
            scope = self._choose_scope(trainer, module, fit.optimizers()).with_note(fit.note)
            length = fit.length if self.schedule else RunLength()
            pruner = self._make_pruner(trainer, scope.included, length)
            return pruner.preview(length.unit, scope)

    def start_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the masks, or load those of the checkpoint."""
        refuse_sharding(trainer)
        refuse_later_average(trainer, self)
        scope = self._choose_scope(trainer, pl_module, trainer.optimizers)
        resumed = self.take_resumed()
        saved_length = resumed["length"] if resumed else None
        self._position = RampPosition(label=self.label)  # without a ramp a run may have any length
        if self.schedule:
            self._position = RampPosition(trainer, resumed=saved_length, label=self.label)
        length = self._position.length
        self.pruner = self._make_pruner(trainer, scope.included, length)
        self.refuse_overlap(trainer, self.pruner)
        self._counted = self.pruner.sparsity
        self.step = 0
        if resumed:
            self.pruner.load_state_dict(resumed["pruner"])
            self._counted = resumed["counted"]
        self.pruner.warn_of_initial_zeros()
        keeps_zeros = self.schedule is None or self._pruner_settings["keep_zeros"]
        if keeps_zeros and self.scope is None and not resumed:
            warn_of_zeros_outside_scope(scope, self._model(pl_module))
        self._weights_dirty = False
        self._hooks = OptimizerHooks()
        self._hooks.attach(trainer, pl_module, self.pruner)
        if self.verbose:
            print_once(trainer, self.labelled(self.pruner.preview(length.unit, scope)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn when resuming from a checkpoint without this callback's state."""
        super().on_train_start(trainer, pl_module)
        if self.pruner is not None:
            self._position.warn_if_begun(trainer, self.pruner)

    def _choose_scope(
        self, trainer: L.Trainer, module: L.LightningModule, optimizers: list[Optimizer] | None
    ) -> DefaultScope:
        model, keep_only = self._model(module), self.schedule is None
        return choose_scope(
            self.scope, model, optimizers, module=module, trainer=trainer, keep_only=keep_only
        )

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
        """Update the masks if the schedule says so, and log, after an optimizer step.

        The last batch of the last epoch ends the ramp, before it is validated and saved.
        """
        if self.pruner is None:
            return
        stepped, last = self._hooks.consume_step(), self._position.ends_with_batch(trainer)
        if not stepped and not last:
            return  # gradients are being accumulated
        self.step = self._position.step(trainer)
        if last and self._position.claim_last_update(
            trainer, self.pruner, stepped=self._hooks.stepped
        ):
            self.step = self._position.length.total
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

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit the rest of the ramp to the run where it turns out shorter; end it with the run."""
        if self.pruner is not None and self._position.ends_with_epoch(trainer):
            self._end(trainer, self.pruner)
        elif self.pruner is not None:
            self._position.replan(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the last update if the run ended without it, otherwise than by its last epoch.

        Then zero pruned weights, before a last file is saved: an average may be in place.
        """
        if self.pruner is not None:
            self._end(trainer, self.pruner)
            self.pruner.project()

    def _end(self, trainer: L.Trainer, pruner: Pruner) -> None:
        if self._position.claim_last_update(trainer, pruner, stepped=self._hooks.stepped):
            self._update(pruner, self._position.length.total)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hooks, zero pruned weights a last time and print the counted sparsity."""
        if self.pruner is None:
            return
        self._hooks.detach()
        super().on_fit_end(trainer, pl_module)
        warn_of_replaced_parameters(self.pruner, pl_module, self.label)
        if self.verbose:
            model = self._model(pl_module)
            still_there = named_parameters(model).keys() & self.pruner.parameters.keys()
            report = SparsityReport.count(model, still_there)
            print_once(trainer, self.labelled(report))
        if self.schedule and trainer.is_global_zero:
            names = self._mask_names(pl_module, self.pruner)
            warn_of_files_on_the_ramp(
                trainer, self.state_key, names, self.schedule.final, self.label
            )

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
            "length": self._position.length.state_dict(),
            "counted": self._counted,
        }
