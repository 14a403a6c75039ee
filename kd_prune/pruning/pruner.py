"""Pruner: updates the masks of a model on schedule and keeps pruned weights at zero."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_prune.errors import ConfigTypeError
from kd_prune.pruning.allocation import Allocation, uniform
from kd_prune.pruning.checked_counts import CheckedCounts
from kd_prune.pruning.checks import check_kinds
from kd_prune.pruning.chosen_scope import DefaultScope
from kd_prune.pruning.criteria import Criterion, StatefulCriterion, magnitude
from kd_prune.pruning.granularity import CrossTensorGranularity
from kd_prune.pruning.granularity.on_rows import prunes_groups
from kd_prune.pruning.initial_zeros import InitialZerosWarning, set_initial_masks
from kd_prune.pruning.preview import PruningPreview, TensorPreview
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.saved_settings import (
    check_same_ramp,
    check_same_settings,
    described_settings,
)
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.selection import Counts, Selection, count_pruned, unstructured
from kd_prune.pruning.step_hooks import check_attachable, check_parameters, hook_steps
from kd_prune.pruning.update_schedule import UpdateSchedule, checked_updates, ramp_updates


class Pruner(CheckedCounts):
    """Masks over named parameters, updated to a schedule's sparsity.

    Weights stay plain parameters, and pruned ones are set to zero in place. Masks are nested unless
    `regrow` is given: pruned weights stay pruned. After the last update the masks are constant.

    In a plain training loop `attach` does everything. Other callers call `observe` before an
    optimizer step, and `update` and `project` after it.

    Args:
        parameters: Parameters that may be pruned, name → parameter (see `Scope.select`,
            `default_scope`), loaded and on their device. A plain dict of them is taken to hold
            weights stored as (output, input, …); these two know transposed layers.
        schedule: Sparsity over progress; None: the zeros present at construction stay zero, and
            nothing else is pruned.
        total_steps: Length of the run, in the unit in which `update` counts: optimizer steps with
            `attach`.
        updates: Number of mask updates on the ramp.
        criterion: Weight → scores of the same shape, larger = keep; or a `StatefulCriterion`.
        allocation: Distribution of the target over the tensors: `uniform`, `Global`, `ERK`,
            `GroupAllocation`, `Bounded`, `Threshold`, or your own function ``(masks, score,
            sparsity) → counts``.
        granularity: Weights that are pruned together: `unstructured` (single weights), `NM`,
            `Block`, `Rows`, `Heads`, `AttentionHeads`, or your own function ``(scores, count, mask
            so far) → mask``.
        update_schedule: Function from schedule, total steps and updates to the steps and sparsities
            of mask updates: `ramp_updates`, `periodic_updates`, or your own.
        regrow: True: pruned weights keep their last value as a dormant weight and compete again at
            every update. `RigL`: pruned weights with large gradients return from 0. Optimizer state
            of weights whose mask changes is reset. Takes one more value per weight.
        keep_zeros: Whether weights that are zero at construction count as pruned. None: in a scope
            that is at ``schedule.initial`` already, above 0, as that of a pruned model pruned
            further; elsewhere they train and are pruned like others (see `set_initial_masks`).
        allow_empty: Whether a tensor may lose all its weights. False: one stays (or one group),
            with a warning, and the total is lower by as much.

    Raises:
        ConfigError: The ramp does not fit the run (see `ramp_updates`), `allocation` or
            `granularity` refuses the final sparsity, or `regrow` does not suit `granularity`.
        ConfigTypeError: A string or a class was given where a function or an object is expected.

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
        allocation: Allocation = uniform,
        granularity: Selection | CrossTensorGranularity = unstructured,
        update_schedule: Callable[..., UpdateSchedule] = ramp_updates,
        regrow: bool | RigL = False,
        keep_zeros: bool | None = None,
        allow_empty: bool = False,
    ) -> None:
        check_kinds(
            criterion=criterion,
            allocation=allocation,
            granularity=granularity,
            update_schedule=update_schedule,
            regrow=regrow,
        )
        if not isinstance(schedule, Schedule | None):
            expected = "expected a Schedule, as Schedule(final=0.9)"
            raise ConfigTypeError("schedule", repr(schedule), expected)
        self.schedule = schedule
        self.updates = updates
        self.steps = 0
        self._make_update_schedule = update_schedule
        self._schedule_updates(total_steps)
        super().__init__(
            parameters,
            criterion=criterion,
            allocation=allocation,
            granularity=granularity,
            regrow=regrow,
            allow_empty=allow_empty,
        )
        self._initial_zeros = set_initial_masks(self.masks, schedule, keep_zeros)
        self._attached: list[Any] = []
        self._settings = described_settings(criterion, allocation, granularity)
        self.target = 0.0 if schedule else self.sparsity
        self.expected_pruned: Counts = {n: count_pruned(mask) for n, mask in self.masks.items()}
        """Name → pruned weights after the last update. Empty where it cannot be known: for your own
        granularity; and for groups in weights with zeros, until the last update."""
        unpruned = not any(self.expected_pruned.values())
        if granularity is not unstructured and not (unpruned and prunes_groups(granularity)):
            self.expected_pruned = {}
        self._updated_at = 0
        if schedule:
            self.check_final_sparsity(schedule.final)

    def warn_of_initial_zeros(self) -> None:
        """Warn once where zeros present at construction may not be treated as meant.

        Called by the first `update`: masks that are loaded before it leave nothing to guess.
        """
        if self._initial_zeros:
            warnings.warn(self._initial_zeros, InitialZerosWarning, stacklevel=3)
        self._initial_zeros = ""

    def _schedule_updates(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.update_schedule: UpdateSchedule = {}
        if self.schedule:
            make, final = self._make_update_schedule, self.schedule.final
            plan = make(self.schedule, total_steps=total_steps, updates=self.updates)
            self.update_schedule = checked_updates(
                plan, made_by=make, final=final, total_steps=total_steps
            )
            self.schedule.pauses.check_updates(self.update_schedule, make)
        self._update_steps = list(self.update_schedule)

    @torch.no_grad()
    def update(self, step: int, sync_mask: Callable[[Tensor], None] | None = None) -> bool:
        """Update the masks to the sparsity planned for `step` completed optimizer steps.

        An update that was missed is made now; of several missed updates only the last is made.

        Args:
            step: Completed optimizer steps.
            sync_mask: Called with each new mask before it is used. In distributed training it
                overwrites the mask in place with that of the first process.

        Returns:
            Whether the masks were updated. Call `project` afterwards.

        Raises:
            ValueError: A weight in scope or a score is NaN. Nothing has changed then.
            ConfigError: Your own function returns an invalid value. Nothing has changed then.
        """
        self.warn_of_initial_zeros()
        due = bisect_right(self._update_steps, step)
        if not due or self._update_steps[due - 1] <= self._updated_at:
            return False
        at = self._update_steps[due - 1]
        counts, new_masks = self._compute_masks(at, step)
        masks = dict(new_masks)  # all of them before the first one is used, because this may raise
        self._updated_at, self.target = at, self.update_schedule[at]
        if self.expected_pruned:
            self.expected_pruned = self._target_pruned(counts, self.expected_pruned)
        for name, mask in masks.items():
            if sync_mask:
                sync_mask(mask)
            if self._masks_are_nested:
                self.masks[name] = mask
            else:
                self._apply_new_mask(name, mask)
        is_last = self._updated_at == self._update_steps[-1]
        if prunes_groups(self.granularity) and not self.expected_pruned and is_last:
            self.expected_pruned = {name: count_pruned(mask) for name, mask in self.masks.items()}
        return True

    @property
    def _masks_are_nested(self) -> bool:
        """Whether new masks are nested bools of the right shape: two passes less over them."""
        simple = self.criterion is magnitude and self.granularity is unstructured
        return simple and not self.regrow

    def _compute_masks(self, at: int, step: int) -> tuple[Counts, Iterator[tuple[str, Tensor]]]:
        """Return the counts and the new masks, name by name, of the update planned for step `at`.

        Args:
            at: Step of the update.
            step: Completed optimizer steps, for messages.
        """
        candidates, score = self._candidates(), partial(self._score, step=step)
        counts = self._counts(self.update_schedule[at], candidates, score)
        self._last_weights.warn(self.update_schedule[at])
        observed = getattr(self.criterion, "observes", "gradient")
        self._observations.warn(observed, is_last=at == self._update_steps[-1])
        masks = self._new_masks(candidates, score, counts)
        if self._masks_are_nested:
            return counts, masks
        return counts, ((name, self._combine_masks(name, mask, at)) for name, mask in masks)

    def _combine_masks(self, name: str, mask: Tensor, at: int) -> Tensor:
        """Intersect a new mask with the current one, unless weights regrow, and apply RigL."""
        if self.regrow is not True:
            mask = mask & self.masks[name]
        if isinstance(self.regrow, RigL) and name in self._gradients:
            score, gradient = self._score(name), self._gradients[name]
            mask = self.regrow.drop_and_grow(mask, score, gradient, self._ramp_progress(at))
        return mask

    def _ramp_progress(self, step: int) -> float:
        """Return the progress from 0 where the ramp begins to 1 at the last update."""
        begin = round(self.schedule.begin * self.total_steps) if self.schedule else 0
        last = self._update_steps[-1]
        return 1.0 - (last - step) / max(1, last - begin)

    def attach(self, optimizer: Optimizer) -> None:
        """Register hooks that observe, update and project at every step of `optimizer`.

        With several attached optimizers the steps of each count, and `total_steps` is their sum.
        Steps skipped by a GradScaler do not count. A closure passed to ``optimizer.step`` runs
        after gradients are observed: use criteria without state there. Call `project` after
        ``eval()`` of a schedule-free optimizer, which averages weights.

        Args:
            optimizer: An optimizer, or a wrapper of one (Accelerate's, Fabric's, Lookahead): see
                `hook_steps`.

        Raises:
            ConfigTypeError: `optimizer` is no optimizer.
            ConfigError: This Pruner is attached to it already, or it updates none of the Pruner's
                parameters.
        """
        check_parameters(optimizer, self.parameters)
        self._attached.append(check_attachable(optimizer, self._attached))

        def after_step() -> None:
            self.steps += 1
            # Before the update as well: momentum moved pruned weights, and an update reads them.
            self.project(optimizer)
            if self.update(self.steps):
                # Those of other optimizers follow at their own step: a backward pass through their
                # network may be pending. At the end of the run all have to be zero.
                self.project(optimizer if self.steps < self.total_steps else None)

        hook_steps(
            optimizer,
            before=lambda stepping, *_: self.observe_gradients(stepping),
            after=after_step,
            after_wrapper=partial(self.project, optimizer),
        )
        self.track_optimizers([*self._optimizers, optimizer])

    @torch.no_grad()
    def preview(
        self, unit: str = "optimizer steps", scope: DefaultScope | None = None
    ) -> PruningPreview:
        """Return a printable summary; `scope` says why other tensors stay dense."""
        counts = {name: count_pruned(mask) for name, mask in self.masks.items()}
        if self.schedule:
            counts = self._target_pruned(self._counts(self.schedule.final), counts)
        tensors = [
            TensorPreview(name=n, shape=tuple(w.shape), size=w.numel(), pruned=counts[n])
            for n, w in self.parameters.items()
        ]
        preview = PruningPreview(
            tensors=tensors, updates=self.update_schedule, total=self.total_steps, unit=unit
        )
        return preview.with_scope(scope) if scope else preview

    @property
    def milestone_window(self) -> range | None:
        """Steps from the update at the current milestone to the next update; None elsewhere.

        >>> weight = nn.Parameter(torch.arange(10.0))
        >>> schedule = Schedule(final=0.8, milestones=[0.5], milestone_length=0.4)
        >>> pruner = Pruner({"weight": weight}, schedule, total_steps=10, updates=1)
        >>> pruner.update_schedule, pruner.update(3), pruner.milestone_window
        ({2: 0.5, 10: 0.8}, True, range(2, 10))
        """
        if not self.schedule:
            return None
        return self.schedule.pauses.window(self.update_schedule, self.target)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: not the optimizers, of which torch copies no hooks."""
        return {**vars(self), "_attached": [], "_optimizers": []}

    def state_dict(self) -> dict[str, Any]:
        """Return masks, criterion state, dormant weights and position on the ramp as plain data.

        The tensors are references, as in `torch.nn.Module.state_dict`.
        """
        return {
            **super().state_dict(),
            "target": self.target,
            "steps": self.steps,
            "updated_at": self._updated_at,
            "expected_pruned": dict(self.expected_pruned),
            "total_steps": self.total_steps,
            "update_schedule": dict(self.update_schedule),
            "settings": dict(self._settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state and continue its ramp, whatever the length of this run.

        Raises:
            ValueError: The state has other parameters, another kind of criterion, or, unless
                ``schedule=None`` leaves the masks unchanged, another ramp, allocation or
                granularity. Nothing has changed then.
        """
        self._check_state(state)
        if self.schedule:
            check_same_settings(self._settings, state.get("settings", {}))
        self._load_update_schedule(state)
        super().load_state_dict(state)
        self._initial_zeros = ""
        self.target = state["target"]
        self.steps = state["steps"]
        self._updated_at = state["updated_at"]
        self.expected_pruned = dict(state.get("expected_pruned", {}))

    def _load_update_schedule(self, state: Mapping[str, Any]) -> None:
        """Compute the updates for the saved length; raise ValueError if the saved ones differ."""
        total_steps = self.total_steps
        try:
            self._schedule_updates(state["total_steps"])
            if not self.schedule:
                return
            saved = state.get("update_schedule", self.update_schedule)
            check_same_ramp(self.update_schedule, saved, self.total_steps)
        except ValueError:
            self._schedule_updates(total_steps)
            raise
