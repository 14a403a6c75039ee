"""The Pruner: holds a model's masks, updates them on schedule and keeps pruned weights at zero."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_prune.pruning.allocation import layerwise
from kd_prune.pruning.criterion import Criterion, State, StatefulCriterion, magnitude
from kd_prune.pruning.granularity import (
    Granularity,
    Joint,
    chosen,
    pooled,
    reached,
    refuse_out_of_reach,
)
from kd_prune.pruning.mask import (
    Allocation,
    Counts,
    Masks,
    Score,
    Select,
    exact,
    holds_nan,
    pruned_in,
)
from kd_prune.pruning.plan import PlannedTensor, PruningPlan
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Plan, Schedule, check_function, update_plan

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_kinds(
    *, criterion: object, allocation: object, select: object, plan: object, regrow: object
) -> None:
    """Raise TypeError where a Pruner's choice is of another kind: a name, or a class.

    >>> choices = {"allocation": layerwise, "select": exact, "plan": update_plan, "regrow": False}
    >>> check_kinds(criterion="movement", **choices)
    Traceback (most recent call last):
    TypeError: criterion='movement': expected a function or an object, for example magnitude or ...
    """
    check_function("criterion", criterion, "magnitude or Movement()")
    check_function("allocation", allocation, "layerwise or Global()")
    check_function("select", select, "exact or NM()", or_a=Joint)
    check_function("plan", plan, "update_plan")
    if not isinstance(regrow, bool | RigL):
        shown = "RigL" if regrow is RigL else repr(regrow)
        raise TypeError(f"regrow={shown}: expected True, False or RigL()")


class Pruner:
    """Masks over named parameters, raised to a schedule's sparsity step by step.

    Weights stay plain parameters; pruned ones are set to zero in place. Masks are nested, unless
    `regrow` is asked for: what is pruned stays pruned, and so does every weight that is zero when
    the Pruner is made, so that a model pruned before keeps its zeros. (A tensor that is zero
    altogether is new, and pruned like others.) After the plan's last update the masks are frozen.

    In a plain loop `attach` does everything; who counts steps otherwise calls `observe` before an
    optimizer step, `update` and `project` after it.

    Args:
        parameters: What may be pruned, name → parameter (see `Scope.select`, `default_scope`),
            loaded and on its device.
        schedule: Sparsity over progress; None: the masks are the zeros that are there, for good.
        total_steps: Optimizer steps of the run.
        updates: Mask updates on the ramp.
        criterion: Weight → score of the same shape, larger = keep; or a `StatefulCriterion`.
        allocation: How the target is shared between the tensors: `layerwise`, `Global`, `ERK`,
            `PerType`, `Bounded`, `Threshold`, or your own function ``(masks, score, sparsity) →
            counts``.
        select: What goes together: `exact` (single weights), `NM`, `Block`, `Rows`, `Heads`,
            `AttentionHeads`, or your own function ``(scores, count, mask so far) → mask``.
        plan: Schedule → update steps.
        regrow: True: pruned weights keep their last value and compete again at every update.
            `RigL`: some come back from 0 where the gradient asks for them. Where a weight goes or
            comes back its optimizer state is cleared. Either takes one more value per weight.

    Raises:
        ValueError: The ramp does not fit the run (see `update_plan`), `allocation` or `select`
            refuses the sparsity at its end, or `regrow` does not go with `select`.
        TypeError: A name or a class was given where a function or an object was expected.

    >>> layer = nn.Linear(10, 10)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> pruner = Pruner({"weight": layer.weight}, Schedule(final=0.9), total_steps=5)
    >>> pruner.attach(optimizer)
    >>> for _ in range(5):
    ...     layer(torch.ones(10)).sum().backward()
    ...     optimizer.step()
    >>> pruner.sparsity
    0.9
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        schedule: Schedule | None,
        *,
        total_steps: int,
        updates: int = 100,
        criterion: Criterion | StatefulCriterion = magnitude,
        allocation: Allocation = layerwise,
        select: Select | Joint = exact,
        plan: Callable[..., Plan] = update_plan,
        regrow: bool | RigL = False,
    ) -> None:
        check_kinds(
            criterion=criterion, allocation=allocation, select=select, plan=plan, regrow=regrow
        )
        if not isinstance(schedule, Schedule | None):
            raise TypeError(f"schedule={schedule!r}: expected a Schedule, as Schedule(final=0.9)")
        try:
            self.parameters = dict(parameters)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"parameters={type(parameters).__name__}: expected name → parameter, for example "
                "default_scope(model).taken"
            ) from error
        if isinstance(regrow, RigL) and select is not exact:
            raise ValueError(
                f"regrow={regrow}: brings single weights back, so it goes with select=exact only, "
                f"not with {select}; take regrow=true"
            )
        self.schedule = schedule
        self.updates = updates
        self.criterion = criterion
        self.allocation = allocation
        self.select = select
        self.regrow = regrow
        self.steps = 0
        self._make_plan = plan
        self._plan_for(total_steps)
        self.masks = {name: weight.detach() != 0 for name, weight in self.parameters.items()}
        self._meet_fresh_zeros()
        self.target = 0.0 if schedule else self.sparsity
        self.promised: Counts = {name: pruned_in(mask) for name, mask in self.masks.items()}
        """What each mask has to prune after the last update; empty where that cannot be told: one
        that selects as it likes, and, until then, groups among weights that were zero before."""
        whole = not any(self.promised.values()) and not isinstance(regrow, RigL)
        if select is not exact and not (whole and isinstance(select, Granularity | Joint)):
            self.promised = {}
        self._updated_at = 0
        self._optimizers: list[Optimizer] = []
        # What pruned weights were worth when they went; where a weight is kept it says nothing.
        self._asleep = self._each(lambda w: w.detach().clone()) if regrow is True else {}
        self._gradients: dict[str, Tensor] = {}
        self._memory: dict[str, State] = {}
        if isinstance(criterion, StatefulCriterion):
            self._memory = self._each(lambda weight: criterion.start(weight.detach()))
        if schedule:
            self._try(schedule.final)

    def _try(self, final: float) -> None:
        """Refuse what cannot be done, and say what will be missed, now and not hours into a run."""
        shapes = self._each(lambda weight: weight.shape)
        sizes = self._each(lambda weight: weight.numel())
        most = reached(self.select, shapes, sizes)
        if most != sizes:
            # Whatever scores will be: here each tensor's are all below the next one's.
            dense = self._each(lambda weight: torch.ones_like(weight, dtype=torch.bool))
            level = {name: float(place) for place, name in enumerate(dense)}
            worst = self._counts(final, dense, lambda name: dense[name] * level[name])
            refuse_out_of_reach(self.select, worst, most, sizes)
        counts = self._counts(final)
        gone = {name: pruned_in(mask) for name, mask in self._rivals().items()}
        wanted = sum(max(counts[name], gone[name]) for name in gone)
        found, total = sum(self._to_go(counts, gone).values()), sum(sizes.values())
        # A twelfth of the weights, or a quarter of those that are to stay: at 0.95 that is 0.0125.
        if abs(found - wanted) > min(total / 12, (total - wanted) / 4):
            warnings.warn(
                f"select={self.select}: goes by whole groups and comes to sparsity "
                f"{found / total:.4g} where {wanted / total:.4g} is asked for; smaller groups come "
                "closer",
                stacklevel=3,
            )

    def _meet_fresh_zeros(self) -> None:
        """A mask that prunes a whole tensor would keep it from ever learning (LoRA's B is one)."""
        fresh = [name for name, mask in self.masks.items() if not mask.any()]
        for name in fresh if self.schedule else ():
            self.masks[name].fill_(True)
        if fresh:
            others = f" and {len(fresh) - 1} more" if fresh[1:] else ""
            taken = (
                "so taken for new weights that are to be pruned like others, not for pruned ones"
                if self.schedule
                else "so kept at zero; leave new weights, which are to learn, out of the scope"
            )
            warnings.warn(f"{fresh[0]}{others}: zero altogether, {taken}", stacklevel=3)

    def _each(self, make: Callable[[nn.Parameter], Any]) -> dict[str, Any]:
        return {name: make(weight) for name, weight in self.parameters.items()}

    def _plan_for(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.plan: Plan = (
            self._make_plan(self.schedule, total_steps=total_steps, updates=self.updates)
            if self.schedule
            else {}
        )
        self._plan_steps = sorted(self.plan)
        passed_over = set(self.schedule.milestones if self.schedule else ()) - {*self.plan.values()}
        if passed_over:
            raise ValueError(
                f"milestones: {self._make_plan} plans no update at {min(passed_over):g}; "
                "take plan=update_plan"
            )

    @torch.no_grad()
    def observe(self, evidence: Mapping[str, Tensor]) -> None:
        """Let the criterion see what it asks for, if it asks for anything.

        Args:
            evidence: Name → gradient (before an optimizer step, as it is used in it) or input of
                the layer, whichever the criterion `observes`; names out of scope are passed over.
                What is not finite counts as 0: one broken batch is not to break the memory.
        """
        if isinstance(self.criterion, StatefulCriterion):
            for name in evidence.keys() & self.parameters.keys():
                seen = evidence[name].nan_to_num(0.0, 0.0, 0.0)
                self.criterion.observe(self._value(name), seen, self._memory[name])

    @property
    def observes_gradients(self) -> bool:
        """Whether gradients are of use, to the criterion or to `RigL`."""
        by_criterion = getattr(self.criterion, "observes", None) == "gradient"
        return by_criterion or isinstance(self.regrow, RigL)

    def observe_gradients(self, optimizer: Optimizer, scale: float | Tensor = 1.0) -> None:
        """Before a step of `optimizer`: look at the gradients in its parameters, if they matter.

        Args:
            optimizer: The optimizer.
            scale: What the gradients are multiplied with: a GradScaler leaves it to a fused
                optimizer to take that out, and tells it in ``optimizer.grad_scale`` as it steps.
        """
        if not self.observes_gradients:
            return
        moving = {id(weight) for weight in parameters_of(optimizer)}
        gradients = {
            name: weight.grad
            for name, weight in self.parameters.items()
            if weight.grad is not None and id(weight) in moving
        }
        scale = getattr(optimizer, "grad_scale", None) or scale
        if scale != 1.0:
            gradients = {name: gradient / scale for name, gradient in gradients.items()}
        if getattr(self.criterion, "observes", None) == "gradient":
            self.observe(gradients)
        if isinstance(self.regrow, RigL):
            for name, gradient in gradients.items():
                # A copy: who zeroes gradients in place may do so before the next update.
                self._gradients[name] = gradient.detach().nan_to_num(0.0, 0.0, 0.0)

    @torch.no_grad()
    def update(self, step: int, agree: Callable[[Tensor], None] | None = None) -> bool:
        """Raise the masks to what the plan says for `step` completed optimizer steps.

        An update that was passed over is made up for; of several only the last is made.

        Args:
            step: Completed optimizer steps.
            agree: Given each new mask before it counts: where several processes train one model, it
                puts the first one's in its place.

        Returns:
            Whether the masks were updated. Call `project` afterwards.

        Raises:
            ValueError: A weight in scope or a score is NaN, or a function of your own gives what
                does not fit; nothing has changed then.
        """
        due = bisect_right(self._plan_steps, step)
        if not due or self._plan_steps[due - 1] <= self._updated_at:
            return False
        at = self._plan_steps[due - 1]
        rivals, score = self._rivals(), partial(self._score, step=step)
        counts = self._counts(self.plan[at], rivals, score)
        # All before the first one counts: this may fail.
        masks = dict(chosen(self.select, rivals, score, counts))
        # Masks of `exact` are nested bools of the right shape: two passes less over them.
        simple = self.criterion is magnitude and self.select is exact and not self.regrow
        if not simple:
            masks = {name: self._nested(name, mask, at) for name, mask in masks.items()}
        self._updated_at, self.target = at, self.plan[at]
        if self.promised:
            self.promised = self._to_go(counts, self.promised)
        for name, mask in masks.items():
            if agree:
                agree(mask)
            if simple:
                self.masks[name] = mask
            else:
                self._change(name, mask)
        groups = isinstance(self.select, Granularity | Joint)
        if groups and not self.promised and self._updated_at == self._plan_steps[-1]:
            self.promised = {name: pruned_in(mask) for name, mask in self.masks.items()}
        return True

    def _to_go(self, counts: Counts, gone: Counts) -> Counts:
        """How many weights of each tensor go, with what is gone, when `counts` are asked for."""
        found = reached(self.select, self._each(lambda weight: weight.shape), counts)
        if self.regrow is True:
            return found
        return {name: max(number, gone[name]) for name, number in found.items()}

    def _nested(self, name: str, mask: Tensor, at: int) -> Tensor:
        """What was selected, without what is gone already, and after RigL's exchange."""
        if mask.shape != self.masks[name].shape:
            raise ValueError(
                f"select={self.select}: gives a mask of shape {tuple(mask.shape)} for {name}; "
                f"expected the weight's, {tuple(self.masks[name].shape)}"
            )
        if self.regrow is not True:
            mask = mask & self.masks[name]
        if isinstance(self.regrow, RigL) and name in self._gradients:
            score, gradient = self._score(name), self._gradients[name]
            mask = self.regrow.exchange(mask, score, gradient, self._progress(at))
        return mask

    def _progress(self, step: int) -> float:
        """Place on the ramp, from 0 where it begins to 1 at its last update."""
        begin = round(self.schedule.begin * self.total_steps) if self.schedule else 0
        last = self._plan_steps[-1]
        return 1.0 - (last - step) / max(1, last - begin)

    def _counts(
        self, sparsity: float, rivals: Masks | None = None, score: Score | None = None
    ) -> Counts:
        """What the allocation gives, held against the tensors."""
        rivals = self._rivals() if rivals is None else rivals
        score = pooled(self.select, rivals, score or self._score)
        counts = dict(self.allocation(rivals, score, sparsity))
        for name, mask in self.masks.items():
            try:
                counts[name] = index(counts[name])
            except (KeyError, TypeError):
                counts[name] = -1
            if not 0 <= counts[name] <= mask.numel():
                raise ValueError(
                    f"allocation={self.allocation}: gave no whole number from 0 to the "
                    f"{mask.numel()} weights of {name}"
                )
        return counts

    def _rivals(self) -> Masks:
        """What competes for its place: the weights that are kept, or all if they may regrow."""
        if self.regrow is not True:
            return self.masks
        return self._each(lambda weight: torch.ones_like(weight, dtype=torch.bool))

    def _value(self, name: str) -> Tensor:
        """The weights, those that are pruned with the value they had when they went."""
        weight = self.parameters[name].detach()
        return weight.where(self.masks[name], self._asleep[name]) if self._asleep else weight

    def _score(self, name: str, step: int | None = None) -> Tensor:
        value = self._value(name)
        magnitudes = magnitude(value).float()
        if holds_nan(magnitudes):
            where = "" if step is None else f" at step {step}"
            raise ValueError(
                f"{name} holds NaN{where}, so its weights cannot be ranked: training has diverged; "
                "lower the learning rate or clip the gradients"
            )
        if self.criterion is magnitude:
            return magnitudes
        if isinstance(self.criterion, StatefulCriterion):
            score = self.criterion(value, self._memory[name])
        else:
            score = self.criterion(value)
        shape = tuple(score.shape) if isinstance(score, Tensor) else score
        if shape != tuple(value.shape):
            raise ValueError(
                f"criterion={self.criterion}: gives scores of shape {shape} for {name}; expected "
                f"the weight's, {tuple(value.shape)}"
            )
        if holds_nan(score):
            raise ValueError(
                f"criterion={self.criterion}: gives NaN for {name}, so its weights cannot be ranked"
            )
        return score.float()

    def _change(self, name: str, mask: Tensor) -> None:
        """Put `mask` in the place of the tensor's own, with all that hangs on it."""
        weight = self.parameters[name].detach()
        changed = mask ^ self.masks[name]
        if isinstance(self.criterion, StatefulCriterion):
            dropped = changed & self.masks[name]
            self.criterion.compensate(weight, dropped, self._memory[name])
            self.criterion.after_update(self._memory[name])
        if self._asleep:
            awake = self._value(name)
            self._asleep[name].copy_(awake)
            weight.copy_(awake)  # `project` puts to sleep what is not in the mask
        if self.regrow:
            self._forget(self.parameters[name], changed)
        if isinstance(self.regrow, RigL):
            weight.masked_fill_(changed, 0.0)
        self.masks[name].copy_(mask)

    def _forget(self, weight: nn.Parameter, where: Tensor) -> None:
        """Clear what optimizers remember of these weights: momentum of another time moves them."""
        for optimizer in self._optimizers:
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(where, 0.0)

    @torch.no_grad()
    def project(self, optimizer: Optimizer | None = None) -> None:
        """Set every pruned weight to zero, in place, whatever it holds (NaN too).

        Args:
            optimizer: Touch its parameters alone. Another network's may be awaited by a backward
                pass as they were in the forward pass, and autograd refuses what was written to.
        """
        held = {id(weight) for weight in parameters_of(optimizer)} if optimizer else None
        for name, weight in self.parameters.items():
            if held is not None and id(weight) not in held:
                continue
            # As integers, times 0 or 1: exact for NaN and -x, and free of the branches that make
            # masked_fill_ several times slower.
            mask = self.masks[name] = self.masks[name].to(weight.device)  # the model may have moved
            weight.view(_BITS[weight.element_size()]).mul_(mask)

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """The optimizers whose state is cleared where weights regrow."""
        self._optimizers = list(optimizers)

    def attach(self, optimizer: Optimizer) -> None:
        """Observe, update and project with every step that `optimizer` makes from now on.

        Of several attached optimizers each one's steps count: `total_steps` is that of all of them.
        Steps that a GradScaler skips are not made, so they do not count. A closure handed to
        ``optimizer.step`` is run after gradients are observed: use criteria without memory there.
        Call `project` after a schedule-free optimizer's ``eval()``, which averages weights anew.
        """

        def before(*_: Any) -> None:
            self.observe_gradients(optimizer)

        def after(*_: Any) -> None:
            self.steps += 1
            # Momentum moved what is pruned, and an update looks at the weights.
            self.project(optimizer)
            if self.update(self.steps):
                self.project()

        self.watch([*self._optimizers, optimizer])
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    @torch.no_grad()
    def preview(
        self, unit: str = "optimizer steps", left: Mapping[str, str] | None = None
    ) -> PruningPlan:
        """What is going to be done, to be printed; `left` says why other tensors stay dense."""
        counts = {name: pruned_in(mask) for name, mask in self.masks.items()}
        if self.schedule:
            counts = self._to_go(self._counts(self.schedule.final), counts)
        tensors = [
            PlannedTensor(name=n, shape=tuple(w.shape), size=w.numel(), pruned=counts[n])
            for n, w in self.parameters.items()
        ]
        return PruningPlan(
            tensors=tensors, updates=self.plan, total=self.total_steps, unit=unit, left=left or {}
        )

    @property
    def sparsity(self) -> float:
        """Share of in-scope weights that are zero, counted from the weights."""
        total = sum(weight.numel() for weight in self.parameters.values())
        kept = sum(int(weight.count_nonzero()) for weight in self.parameters.values())
        return (total - kept) / total

    @property
    def rest(self) -> range | None:
        """Where the ramp rests at a milestone: the steps from that update to the next; else None.

        >>> weight = nn.Parameter(torch.arange(10.0))
        >>> schedule = Schedule(final=0.8, milestones=[0.5], hold=0.4)
        >>> pruner = Pruner({"weight": weight}, schedule, total_steps=10, updates=1)
        >>> pruner.plan, pruner.update(3), pruner.rest
        ({2: 0.5, 10: 0.8}, True, range(2, 10))
        """
        if not self.schedule or self.target not in self.schedule.milestones:
            return None
        here = [step for step, sparsity in self.plan.items() if sparsity == self.target]
        return range(here[0], self._plan_steps[bisect_right(self._plan_steps, here[-1])])

    def state_dict(self) -> dict[str, Any]:
        """Masks, the criterion's memory and the place on the planned ramp: plain data.

        The tensors are references, as in `torch.nn.Module.state_dict`.
        """
        return {
            "masks": dict(self.masks),
            "memory": {name: dict(state) for name, state in self._memory.items()},
            "asleep": dict(self._asleep),
            "target": self.target,
            "steps": self.steps,
            "updated_at": self._updated_at,
            "promised": dict(self.promised),
            "total_steps": self.total_steps,
            "plan": dict(self.plan),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state. Its ramp is gone on with, however long the run is now.

        Raises:
            ValueError: The state is of other parameters, of another kind of criterion, or, unless
                ``schedule=None`` leaves the masks as they are, of another ramp.
        """
        _same_tensors("masks", self.masks, state["masks"])
        for kind, here in (("asleep", self._asleep), ("memory", self._memory)):
            if here.keys() != state[kind].keys():
                raise ValueError(
                    f"this state was saved {'with' if state[kind] else 'without'} {kind!r} and is "
                    f"loaded {'with' if here else 'without'} it; resume with the criterion and "
                    "the regrowth it was saved with"
                )
        self._same_ramp(state)
        for name, mask in self.masks.items():
            mask.copy_(state["masks"][name])
            if self._asleep:
                self._asleep[name].copy_(state["asleep"][name])
            if self._memory:
                _same_tensors(f"memory of {name}", self._memory[name], state["memory"][name])
                for key, value in self._memory[name].items():
                    value.copy_(state["memory"][name][key])
        self.target = state["target"]
        self.steps = state["steps"]
        self._updated_at = state["updated_at"]
        self.promised = dict(state.get("promised", {}))

    def _same_ramp(self, state: Mapping[str, Any]) -> None:
        """Plan for the steps of the saved run; raise ValueError if that is not its ramp."""
        before = self.total_steps
        self._plan_for(state["total_steps"])
        here, saved = self.plan, state.get("plan", self.plan)
        steps = sorted({*here, *saved}) if self.schedule else ()
        for step in steps:
            if not math.isclose(here.get(step, -1.0), saved.get(step, -1.0)):
                self._plan_for(before)
                raise ValueError(
                    f"this state is of another ramp: for step {step} of {state['total_steps']} it "
                    f"plans {saved.get(step, 'nothing')}, the settings here "
                    f"{here.get(step, 'nothing')}; resume with the schedule it was saved with"
                )


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """What an optimizer moves, in all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _same_tensors(what: str, here: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless both have tensors of the same names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in here.items()}
    others = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes != others:
        name = next(n for n in (*shapes, *others) if shapes.get(n) != others.get(n))
        raise ValueError(
            f"these {what} are of another model or scope: {name} is {others.get(name)} in the "
            f"state and {shapes.get(name)} here; resume with the model and scope they are of"
        )
