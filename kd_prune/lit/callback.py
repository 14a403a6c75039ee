"""SparsityCallback: prunes any LightningModule on schedule while it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_prune.lit.resumable import Resumable
from kd_prune.lit.run_length import RunLength, batches_of
from kd_prune.lit.steps import Steps
from kd_prune.pruning.allocation import layerwise
from kd_prune.pruning.criterion import Criterion, StatefulCriterion, magnitude
from kd_prune.pruning.granularity import Joint
from kd_prune.pruning.mask import Allocation, Select, exact
from kd_prune.pruning.plan import PruningPlan
from kd_prune.pruning.pruner import Pruner, check_kinds, parameters_of
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Plan, Schedule, Shape, cubic, update_plan
from kd_prune.pruning.scope import DefaultScope, Scope, default_scope, named_parameters

OnMilestone = Callable[[L.LightningModule, float], None]
SHARDED = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}


class SparsityCallback(Resumable):
    """Raises the sparsity of a module's weights from `initial` to `final` during training.

    After every optimizer step pruned weights are set to zero; at the schedule's steps the masks are
    updated. Steps that an AMP scaler skips update nothing; the next step makes up for it, and the
    end of the run for the last. Logs ``sparsity/target`` and ``sparsity/counted`` (from the
    weights, at the last update) after every step. Masks are part of the checkpoint; a resumed run
    goes on with the ramp it began.

    Args:
        final: Sparsity at the end of the ramp, in [0, 1); None: the zeros that the weights have
            when the fit begins stay, and nothing else is pruned.
        scope: What may be pruned, as patterns over parameter names; None: the weights of all
            layers that train, but the output head (see `default_scope`).
        within: The module's attribute that holds the model to be pruned, whose names then count;
            None: the module itself.
        initial: Sparsity at its start.
        begin: Start of the ramp, as a fraction of the run.
        end: End of the ramp, likewise; what follows is recovery at `final`.
        shape: Share of the way over the ramp: `cubic`, `linear`, `one_shot`, or your own.
        milestones: Sparsities on the way at which the ramp rests (see `Schedule`).
        hold: Length of each rest, as a fraction of the run.
        on_milestone: Called as ``on_milestone(module, sparsity)`` at the end of each rest, in every
            process: the place to save or judge the module at that sparsity.
        updates: Mask updates on the ramp.
        criterion: Weight → score, larger = keep; or a `StatefulCriterion`.
        allocation: How the target is shared between tensors: `layerwise`, `Global`, `ERK`,
            `PerType`, `Bounded`, `Threshold`, or your own.
        select: What goes together: `exact` (single weights), `NM`, `Block`, `Rows`, `Heads`,
            `AttentionHeads`, or your own.
        plan: Schedule → update steps.
        regrow: True: pruned weights keep their last value and compete again at every update;
            `RigL`: some come back from 0 where the gradient asks for them.
        verbose: Print the plan before training and the counted sparsity of every tensor after it.
        name: Tells several in one Trainer apart: all but one need a name, which then is in the
            checkpoint and in what is logged (``sparsity/<name>/counted``).

    Raises:
        TypeError: A name or a class was given where a function or an object was expected.
        ValueError: A fraction is out of range (see `Schedule`); at the start of a fit: the ramp
            does not fit the run, there is nothing to prune, there is no module `within`, or the
            strategy shards parameters.
    """

    def __init__(
        self,
        final: float | None = 0.95,
        *,
        scope: Scope | None = None,
        within: str | None = None,
        initial: float = 0.0,
        begin: float = 0.0,
        end: float = 1.0,
        shape: Shape = cubic,
        milestones: Sequence[float] = (),
        hold: float = 0.1,
        on_milestone: OnMilestone | None = None,
        updates: int = 100,
        criterion: Criterion | StatefulCriterion = magnitude,
        allocation: Allocation = layerwise,
        select: Select | Joint = exact,
        plan: Callable[..., Plan] = update_plan,
        regrow: bool | RigL = False,
        verbose: bool = True,
        name: str | None = None,
    ) -> None:
        check_kinds(
            criterion=criterion, allocation=allocation, select=select, plan=plan, regrow=regrow
        )
        if not isinstance(scope, Scope | None):
            patterns = [scope] if isinstance(scope, str) else scope
            given = patterns if isinstance(patterns, list | tuple) else ["*.weight"]
            raise TypeError(
                f"scope={scope!r}: expected a Scope; write Scope(include={list(given)})"
            )
        for argument, value in (("within", within), ("name", name)):
            if not isinstance(value, str | None):
                kind = type(value).__name__
                raise TypeError(f"{argument}={kind}(…): expected a name, as within='student'")
        self.schedule = None
        if final is not None:
            self.schedule = Schedule(
                final=final,
                initial=initial,
                begin=begin,
                end=end,
                shape=shape,
                milestones=milestones,
                hold=hold,
            )
        self.on_milestone = on_milestone
        self.scope = scope
        self.within = within
        self.updates = updates
        self.criterion = criterion
        self.verbose = verbose
        self.name = name
        self._make_pruner = partial(
            Pruner,
            updates=updates,
            criterion=criterion,
            allocation=allocation,
            select=select,
            plan=plan,
            regrow=regrow,
        )
        self.pruner: Pruner | None = None
        self._length = RunLength()
        self._steps = Steps()
        self._stirred = False
        self._elsewhere = False
        self._fresh = True
        self._counted = 0.0
        self.position = 0
        """How far the run has come, in the unit of `plan`."""

    @property
    def state_key(self) -> str:
        """Under what checkpoints hold its state: the class's name, and its own if it has one."""
        return f"{super().state_key}[{self.name}]" if self.name else super().state_key

    def check(
        self, trainer: L.Trainer, parameters: Mapping[str, nn.Parameter], length: RunLength
    ) -> None:
        """Raise ValueError unless such weights can be pruned so in a run of this length."""
        remembers = isinstance(self.criterion, StatefulCriterion)
        # Nothing hangs on the scores, and a memory may take many times what the weights take.
        self._prune(trainer, parameters, length, **{"criterion": magnitude} if remembers else {})

    def plan(
        self,
        trainer: L.Trainer,
        module: L.LightningModule | None = None,
        train_dataloader: Any = None,
    ) -> PruningPlan:
        """What a fit would do, or the fit under way does: tensors, ramp, final counts.

        Nothing is trained or changed. Before a fit, give what you are going to give to
        ``trainer.fit``; without a loader the Trainer's ``max_steps`` says how long the run is.
        There are no optimizers yet, so all that requires a gradient counts as one network.

        Raises:
            ValueError: As the fit would.
        """
        if module is None:
            if self.pruner is None:
                raise ValueError("module=None: before a fit, give the module that is to be fitted")
            return self.pruner.preview(self._length.unit)
        chosen = self._choose(module, None)
        batches = batches_of(train_dataloader)
        length = RunLength.ahead(trainer, batches, automatic=module.automatic_optimization)
        pruner = self._prune(trainer, chosen.taken, length)
        return pruner.preview(length.unit, chosen.left)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier fit: what it left is not this one's, nor another module's, to save."""
        if stage == "fit":
            self.pruner = None
        self._elsewhere = not self._prunes(pl_module)

    def _prunes(self, module: L.LightningModule) -> bool:
        """Whether the masks are of this module's parameters, and not of another that was fitted."""
        ours = self.pruner.parameters.values() if self.pruner else ()
        return {id(p) for p in ours} <= {id(p) for p in module.parameters()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the masks, or take over those of the checkpoint."""
        refuse_sharding(trainer)
        chosen = self._choose(pl_module, trainer.optimizers)
        resumed = self.take_resumed()
        self._length = RunLength(**resumed["length"]) if resumed else RunLength.of(trainer)
        with warnings.catch_warnings():
            if resumed:  # its masks know better
                warnings.filterwarnings("ignore", ".*zero altogether")
            self.pruner = self._prune(trainer, chosen.taken, self._length)
        self._counted = self.pruner.sparsity
        if resumed:
            self.pruner.load_state_dict(resumed["pruner"])
            self._counted = resumed["counted"]
        self._stirred, self._fresh = False, not resumed
        self._steps = Steps()
        self._steps.listen(trainer, pl_module, self.pruner)
        if self.verbose and trainer.is_global_zero:
            print(self.pruner.preview(self._length.unit, chosen.left), flush=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where a run goes on that was begun without this callback."""
        if self.pruner is None:
            return
        position, total = self._length.position(trainer), self._length.total
        passed = [sparsity for step, sparsity in self.pruner.plan.items() if step <= position]
        begun = any(step < position for step in self.pruner.plan)
        if begun and self._fresh:
            warnings.warn(
                f"the run goes on at {position} of {total} {self._length.unit} without a state of "
                f"SparsityCallback, so its next step prunes to {passed[-1]:.4g} at once; "
                f"begin={math.ceil(100 * position / total) / 100:g} lets the ramp begin here",
                stacklevel=2,
            )

    def _model(self, module: L.LightningModule) -> nn.Module:
        """Whose names count."""
        if self.within is None:
            return module
        model = getattr(module, self.within, None)
        if not isinstance(model, nn.Module):
            there = ", ".join(name for name, _ in module.named_children()) or "none"
            raise ValueError(
                f"within={self.within!r}: {type(module).__name__} has no module of this name; "
                f"there are {there}"
            )
        return model

    def _choose(
        self, module: L.LightningModule, optimizers: list[Optimizer] | None
    ) -> DefaultScope:
        model = self._model(module)
        if self.scope is not None:
            return DefaultScope(self.scope.select(model))
        networks = None
        if optimizers is not None:
            networks = list(map(parameters_of, optimizers))
        return default_scope(model, networks)

    def _prune(
        self,
        trainer: L.Trainer,
        parameters: Mapping[str, nn.Parameter],
        length: RunLength,
        **instead: Any,
    ) -> Pruner:
        schedule = self.schedule
        if schedule and getattr(
            trainer, "fast_dev_run", False
        ):  # a few steps, for the code's sake: all of them ramp
            schedule = Schedule(final=schedule.final)
        if schedule and schedule.milestones and length.steps not in (None, length.total):
            # Rests that fit into the ticks of a run with several limits may fall between its steps.
            plan = self._make_pruner.keywords["plan"]
            plan(schedule, total_steps=length.steps, updates=self.updates)
        return self._make_pruner(parameters, schedule, total_steps=length.total, **instead)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Listen to optimizers that took the place of others; zero what a validation stirred."""
        if self.pruner is None:
            return
        self._steps.begin_batch(trainer, pl_module, self.pruner)
        if self._stirred:
            self.pruner.project()
            self._stirred = False

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Show the criterion the gradients, unscaled and not yet clipped."""
        if self.pruner is not None:
            self._steps.show(trainer, self.pruner, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """After an optimizer step: update the masks if it is time, zero what is pruned."""
        if self.pruner is None or not self._steps.take():
            return  # gradients are still being accumulated
        self.position = self._position_now(trainer)
        rest = self.pruner.rest
        if rest and self.position >= rest.stop and self.on_milestone:
            self.on_milestone(pl_module, self.pruner.target)
        self._update(self.pruner, self.position)
        prefix = f"sparsity/{self.name}" if self.name else "sparsity"
        pl_module.log(f"{prefix}/target", self.pruner.target)
        pl_module.log(f"{prefix}/counted", self._counted, prog_bar=True)

    def _position_now(self, trainer: L.Trainer) -> int:
        position = self._length.position(trainer)
        if self._length.seconds and _together():  # clocks differ between processes
            place = torch.tensor(position, device=trainer.strategy.root_device)
            dist.broadcast(place, 0)
            position = int(place)
        return position

    def _update(self, pruner: Pruner, position: int) -> None:
        # Scores of what each process has seen may differ.
        if pruner.update(position, _broadcast if _together() else None):
            pruner.project()
            self._counted = pruner.sparsity

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the updates that are still due where the run came to its end; say so if it did not.

        A run has fewer steps than planned where a scaler skipped the last, or a training step
        returned None.
        """
        if self.pruner is None:
            return
        position = self._length.position(trainer)
        if self._steps.heard is False and position >= min(self.pruner.plan, default=math.inf):
            warnings.warn(
                "no optimizer's step() was called, so the ramp was not followed and all is pruned "
                "at once now; step through self.optimizers()",
                stacklevel=2,
            )
        elif position < max(self.pruner.plan, default=0):
            how = "stopped" if trainer.should_stop else "shorter than planned"
            warnings.warn(
                f"the fit was {how}: it ended at {position} of {self._length.total} "
                f"{self._length.unit}, on the ramp, at sparsity {self.pruner.target:.4g}"
                + ("" if trainer.should_stop else ", and is pruned to the end at once"),
                stacklevel=2,
            )
        if not trainer.should_stop or position >= self._length.total:
            self._update(self.pruner, self._length.total)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Zero what is pruned: a moving average of the weights may stand in for them."""
        if self.pruner is not None and trainer.state.fn == "fit":
            self.pruner.project()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What follows may put other weights in place: schedule-free optimizers do."""
        self._stirred = True

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Zero what is pruned in the saved weights, which may be an average's."""
        if self.pruner is None or self._elsewhere:
            return
        pruner, saved = self.pruner, checkpoint["state_dict"]
        own = {id(weight): name for name, weight in pruner.parameters.items()}
        prefix = f"{self.within}." if self.within else ""
        names = {  # under all of its names, where it is shared
            f"{prefix}{name}": own[id(weight)]
            for name, weight in named_parameters(self._model(pl_module)).items()
            if id(weight) in own
        }
        zeroed: dict[int, Tensor] = {}
        for name, weight in list(saved.items()):
            mask = pruner.masks.get(names.get(name.replace("_orig_mod.", ""), ""))
            if mask is not None:  # the model's own weight is not to be written to
                here = weight.data_ptr()
                if here not in zeroed:
                    zeroed[here] = weight.masked_fill(~mask.to(weight.device), 0.0)
                saved[name] = zeroed[here]

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Zero what is pruned once more: averages of weights may have taken their place."""
        if self.pruner is None:
            return
        self._steps.stop()
        self.pruner.project()
        if self.verbose and trainer.is_global_zero:
            print(SparsityReport.count(self._model(pl_module), self.pruner.parameters), flush=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening to the optimizers."""
        super().on_exception(trainer, pl_module, exception)
        self._steps.stop()

    @property
    def pruned(self) -> int:
        """How many weights the masks prune; 0 before the first fit."""
        masks = self.pruner.masks.values() if self.pruner else ()
        return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)

    def state_dict(self) -> dict[str, Any]:
        """Masks, ramp and place on it: plain tensors and numbers."""
        if self.pruner is None or self._elsewhere:
            return {}
        return {
            "pruner": self.pruner.state_dict(),
            "length": self._length.state_dict(),
            "counted": self._counted,
        }


def refuse_sharding(trainer: L.Trainer) -> None:
    """Raise ValueError where the trainer's strategy shards parameters."""
    strategy = type(trainer.strategy).__name__
    if strategy in SHARDED:
        raise ValueError(
            f"strategy={strategy}: it shards parameters between processes, and a mask needs "
            "whole ones; take strategy='ddp'"
        )


def _broadcast(mask: Tensor) -> None:
    """Put the first process's mask in its place."""
    dist.broadcast(mask.view(torch.uint8), 0)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
