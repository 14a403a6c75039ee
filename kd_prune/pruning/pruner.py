"""The Pruner: holds a model's masks, updates them on schedule and keeps pruned weights at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_prune.pruning.criterion import Criterion, magnitude
from kd_prune.pruning.mask import Allocation, Select, exact, layerwise
from kd_prune.pruning.schedule import Plan, Schedule, update_plan

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Pruner:
    """Masks over named parameters, raised to a schedule's sparsity step by step.

    Weights stay plain parameters; pruned ones are set to zero in place. Masks are nested: what is
    pruned stays pruned, and so does every weight that is zero when the Pruner is made, so that a
    model pruned before keeps its zeros. After the plan's last update the masks are frozen.

    Args:
        parameters: What may be pruned, name → parameter (see `Scope.select`), loaded and on its
            device.
        schedule: Sparsity over progress.
        total_steps: Optimizer steps of the run.
        updates: Mask updates on the ramp.
        criterion: Weight → score of the same shape, larger = keep.
        allocation: How the target is shared between the tensors: `layerwise`, `Global()`, or your
            own function ``(masks, score, sparsity) → counts``.
        select: How a tensor gets its count: `exact`, or your own function
            ``(scores, count, mask so far) → mask``.
        plan: Schedule → update steps.

    Raises:
        ValueError: The ramp does not fit the run (see `update_plan`), or `allocation` refuses the
            sparsity at its end.

    >>> layer = nn.Linear(10, 10)
    >>> pruner = Pruner({"weight": layer.weight}, Schedule(final=0.9), total_steps=5)
    >>> for step in range(1, 6):  # after each optimizer.step()
    ...     _ = pruner.update(step)
    ...     pruner.project()
    >>> pruner.sparsity
    0.9
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        schedule: Schedule,
        *,
        total_steps: int,
        updates: int = 100,
        criterion: Criterion = magnitude,
        allocation: Allocation = layerwise,
        select: Select = exact,
        plan: Callable[..., Plan] = update_plan,
    ) -> None:
        self.parameters = dict(parameters)
        self.schedule = schedule
        self.updates = updates
        self.criterion = criterion
        self.allocation = allocation
        self.select = select
        self._make_plan = plan
        self._plan_for(total_steps)
        self.masks = {name: weight.detach() != 0 for name, weight in self.parameters.items()}
        self.target = 0.0
        # A trial: a sparsity out of the allocation's reach is refused now, not hours into the run.
        allocation(self.masks, self._score, schedule.final)

    def _plan_for(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.plan = self._make_plan(self.schedule, total_steps=total_steps, updates=self.updates)

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Raise the masks to the plan's sparsity if `step` completed optimizer steps call for it.

        Returns:
            Whether the masks were updated. Call `project` afterwards.

        Raises:
            ValueError: A weight in scope is NaN.
        """
        if step not in self.plan:
            return False
        for name, weight in self.parameters.items():
            if weight.max().isnan():  # max passes NaN on, and is one cheap read
                raise ValueError(
                    f"{name} holds NaN at step {step}, so its weights cannot be ranked: training "
                    "has diverged; lower the learning rate or clip the gradients"
                )
        self.target = self.plan[step]
        counts = self.allocation(self.masks, self._score, self.target)
        for name, mask in self.masks.items():
            mask &= self.select(self._score(name), counts[name], mask)
        return True

    def _score(self, name: str) -> Tensor:
        return self.criterion(self.parameters[name].detach()).float()

    @torch.no_grad()
    def project(self) -> None:
        """Set every pruned weight to zero, in place, whatever it holds (NaN too)."""
        for name, weight in self.parameters.items():
            # As integers, times 0 or 1: exact for NaN and -x, and free of the branches that make
            # masked_fill_ three to nine times slower.
            weight.view(_BITS[weight.element_size()]).mul_(self.masks[name])

    @property
    def sparsity(self) -> float:
        """Share of in-scope weights that are zero, counted from the weights."""
        total = sum(weight.numel() for weight in self.parameters.values())
        kept = sum(int(weight.count_nonzero()) for weight in self.parameters.values())
        return (total - kept) / total

    def state_dict(self) -> dict[str, Any]:
        """Masks, the target reached and the length of the planned run: plain tensors and numbers.

        The masks are references, as in `torch.nn.Module.state_dict`.
        """
        return {"masks": dict(self.masks), "target": self.target, "total_steps": self.total_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state. The ramp planned then is kept, however long the run is now.

        Raises:
            ValueError: The state is of other parameters.
        """
        saved = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        here = {name: tuple(mask.shape) for name, mask in self.masks.items()}
        if saved != here:
            name = next(n for n in (*here, *saved) if saved.get(n) != here.get(n))
            raise ValueError(
                f"these masks are of another model or scope: {name} is {saved.get(name)} in the "
                f"state and {here.get(name)} here; resume with the model and scope they are of"
            )
        for name, mask in self.masks.items():
            mask.copy_(state["masks"][name])
        self.target = state["target"]
        self._plan_for(state["total_steps"])
