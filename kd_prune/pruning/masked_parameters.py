"""MaskedParameters: masks of a model with the state needed to compute and apply new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_prune.errors import ConfigError, ConfigTypeError
from kd_prune.pruning.allocation import Allocation
from kd_prune.pruning.criteria import BlockFisher, Criterion, State, StatefulCriterion
from kd_prune.pruning.granularity import (
    CrossTensorGranularity,
    compute_masks,
    pool_scores,
    reachable_counts,
)
from kd_prune.pruning.layers import LayerWeight
from kd_prune.pruning.observations import Observations
from kd_prune.pruning.optimizer_state import (
    optimizer_parameters,
    reset_optimizer_state,
    unscaled_gradients,
)
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.selection import Counts, Masks, Score, Selection, unstructured
from kd_prune.pruning.sharding import any_sharded, count_nonzero, local_part
from kd_prune.pruning.tensor_parts import TensorParts, check_groups, keep_best, most_prunable
from kd_prune.pruning.validated_calls import check_mask_shape, compute_counts, compute_scores

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_T = TypeVar("_T")


class MaskedParameters:
    """Parameters with masks, criterion state and dormant weights; the base of `Pruner`.

    Computes counts and scores for a given sparsity and applies new masks. It has no schedule.

    Args:
        parameters: Name → parameter. Those of `Scope.select` and `default_scope` also say which
            tensors hold several experts, and by the norm of which a layer divides.
        criterion: See `Pruner`, as for the other arguments.
        allocation: Distribution of the target over the tensors.
        granularity: Weights that are pruned together.
        regrow: Whether and how pruned weights return.

    Raises:
        ConfigError: `regrow` does not suit `granularity`, or `granularity` a tensor.
        ConfigTypeError: `parameters` is no mapping, or of DTensors (see `ShardedPruner`).
    """

    takes_sharded = False
    """Whether parameters may be DTensors."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        criterion: Criterion | StatefulCriterion,
        allocation: Allocation,
        granularity: Selection | CrossTensorGranularity,
        regrow: bool | RigL,
    ) -> None:
        try:
            self.parameters = dict(parameters)
        except (TypeError, ValueError) as error:
            expected = "expected name → parameter, for example default_scope(model).included"
            raise ConfigTypeError("parameters", type(parameters).__name__, expected) from error
        if any_sharded(self.parameters.values()) and not self.takes_sharded:
            raise ConfigTypeError(
                "parameters", "DTensor", "are sharded between processes", "take ShardedPruner"
            )
        check_regrow(regrow, criterion=criterion, granularity=granularity)
        layers: Mapping[str, LayerWeight] = getattr(parameters, "layers", {})
        self._parts = TensorParts(layers, self._for_each(lambda weight: weight.shape))
        self._normed = {name: weight for name, weight in layers.items() if weight.divided_by_norm}
        check_groups(granularity, self._normed)
        self.criterion = criterion
        self.allocation = allocation
        self.granularity = granularity
        self.regrow = regrow
        self.masks = self._for_each(lambda weight: weight.detach() != 0)
        self._optimizers: list[Optimizer] = []
        # Values of pruned weights at the time of pruning; entries of kept weights are not used.
        self._dormant_weights: dict[str, Tensor] = (
            self._for_each(lambda weight: weight.detach().clone()) if regrow is True else {}
        )
        self._gradients: dict[str, Tensor] = {}
        self._observations = Observations(self.parameters)
        self._criterion_state: dict[str, State] = {}
        if isinstance(criterion, StatefulCriterion):
            self._criterion_state = {
                name: self._init_state(criterion, name) for name in self.parameters
            }

    def _for_each(self, function: Callable[[nn.Parameter], _T]) -> dict[str, _T]:
        return {name: function(weight) for name, weight in self.parameters.items()}

    def _init_state(self, criterion: StatefulCriterion, name: str) -> State:
        return criterion.init_state(self.parameters[name].detach())

    @torch.no_grad()
    def observe(self, grad_or_input: Mapping[str, Tensor]) -> None:
        """Update the state of a `StatefulCriterion`; do nothing for other criteria.

        Args:
            grad_or_input: Name → gradient (before an optimizer step) or input of the layer,
                whichever the criterion `observes`. Names out of scope are ignored. Values that are
                not finite count as 0, so that one bad batch does not spoil the state.
        """
        if isinstance(self.criterion, StatefulCriterion):
            for name in grad_or_input.keys() & self.parameters.keys():
                value = finite(grad_or_input[name])
                self._observations.add(name)
                weight = self._effective_weight(name)
                self.criterion.observe(weight, value, self._criterion_state[name])

    @property
    def observes_gradients(self) -> bool:
        """Whether the criterion or `RigL` uses gradients."""
        by_criterion = getattr(self.criterion, "observes", None) == "gradient"
        return by_criterion or isinstance(self.regrow, RigL)

    def observe_gradients(self, optimizer: Optimizer, scale: float | Tensor = 1.0) -> None:
        """Observe the gradients of an optimizer's parameters before its step, if they are used.

        Args:
            optimizer: The optimizer.
            scale: Factor of the gradients: a GradScaler leaves the division to a fused optimizer
                and passes the factor in ``optimizer.grad_scale`` during the step.
        """
        if not self.observes_gradients:
            return
        gradients = unscaled_gradients(optimizer, self.parameters, scale)
        if getattr(self.criterion, "observes", None) == "gradient":
            self.observe(gradients)
        if isinstance(self.regrow, RigL):
            for name, gradient in gradients.items():
                # A copy: gradients may be zeroed in place before the next update.
                self._gradients[name] = finite(gradient.detach())

    @torch.no_grad()
    def project(self, optimizer: Optimizer | None = None) -> None:
        """Set every pruned weight to zero in place, whatever its value (NaN too).

        Args:
            optimizer: Restrict to its parameters. Another network's weights may be needed unchanged
                by a pending backward pass, and autograd refuses tensors modified in place.
        """
        updated = {id(weight) for weight in optimizer_parameters(optimizer)} if optimizer else None
        for name, weight in self.parameters.items():
            if updated is not None and id(weight) not in updated:
                continue
            # Multiplied as integers by 0 or 1: exact for NaN and negative zero, and without the
            # branches that make masked_fill_ several times slower.
            mask = self.masks[name] = self.masks[name].to(weight.device)  # the model may have moved
            part = local_part(weight)
            part.view(_INTEGER_OF_SIZE[part.element_size()]).mul_(local_part(mask))

    def track_optimizers(self, optimizers: Iterable[Optimizer]) -> None:
        """Set the optimizers whose state is reset where weights regrow."""
        self._optimizers = list(optimizers)

    @property
    def sparsity(self) -> float:
        """Fraction of in-scope weights that are zero, counted from the weights."""
        total = sum(weight.numel() for weight in self.parameters.values())
        kept = sum(count_nonzero(self.parameters.values()))
        return (total - kept) / total

    def _candidates(self) -> Masks:
        """Return the masks of weights that may be kept: the kept ones, or all with regrowth."""
        return self._all_candidates() if self.regrow is True else self.masks

    def _all_candidates(self) -> dict[str, Tensor]:
        return self._for_each(lambda weight: torch.ones_like(weight, dtype=torch.bool))

    def _effective_weight(self, name: str) -> Tensor:
        """Return the weights, with dormant values in place of pruned ones."""
        weight = self.parameters[name].detach()
        if not self._dormant_weights:
            return weight
        return weight.where(self.masks[name], self._dormant_weights[name])

    def _score(self, name: str, step: int | None = None) -> Tensor:
        state = self._criterion_state.get(name)
        scores = compute_scores(self.criterion, name, self._effective_weight(name), state, step)
        if weight := self._normed.get(name):
            kept = torch.ones_like(self.masks[name]) if self.regrow is True else self.masks[name]
            scores = keep_best(scores, kept.to(scores.device), weight.norm_dim)
        return scores

    def _counts(
        self, sparsity: float, candidates: Masks | None = None, score: Score | None = None
    ) -> Counts:
        """Return how many weights of each part of a tensor are to be pruned."""
        counts = self._asked_counts(sparsity, candidates, score)
        limits = {name: most_prunable(weight) for name, weight in self._normed.items()}
        return counts | {name: min(counts[name], limit) for name, limit in limits.items()}

    def _asked_counts(
        self, sparsity: float, candidates: Masks | None = None, score: Score | None = None
    ) -> Counts:
        """Return how many weights of each part of a tensor the allocation asks to prune."""
        candidates = self._parts.split(self._candidates() if candidates is None else candidates)
        score = self._observations.comparable(score or self._score, self.masks)
        score = self._parts.split_score(score)
        score = pool_scores(self.granularity, candidates, score)
        masks = self._parts.split(self.masks)
        return compute_counts(self.allocation, candidates, score, sparsity, masks)

    def _target_pruned(self, counts: Counts, pruned: Counts) -> Counts:
        """Return how many weights will be pruned for `counts`, given those `pruned` already."""
        reachable = reachable_counts(self.granularity, self._parts.shapes, counts)
        if self.regrow is not True:
            before = self._parts.split_pruned(pruned, self.masks)
            reachable = {name: max(count, before[name]) for name, count in reachable.items()}
        return self._parts.sum(reachable)

    def _new_masks(
        self, candidates: Masks, score: Score, counts: Counts
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield name and new mask of every tensor, as the granularity selects them."""
        candidates, score = self._parts.split(candidates), self._parts.split_score(score)

        def checked() -> Iterator[tuple[str, Tensor]]:
            shapes = self._parts.shapes
            for name, mask in compute_masks(self.granularity, candidates, score, counts):
                if mask.shape != shapes[name]:
                    check_mask_shape(self.granularity, name, mask, candidates[name])
                yield name, mask

        return self._parts.join(checked())

    def _apply_new_mask(self, name: str, mask: Tensor) -> None:
        """Replace a mask and update weights, criterion state and optimizer state accordingly."""
        weight = self.parameters[name].detach()
        changed = mask ^ self.masks[name]
        if isinstance(self.criterion, StatefulCriterion):
            self._compensate(self.criterion, name, changed & self.masks[name])
        if self._dormant_weights:
            effective = self._effective_weight(name)
            self._dormant_weights[name].copy_(effective)
            weight.copy_(effective)  # `project` zeroes the pruned ones again
        if self.regrow:
            reset_optimizer_state(self._optimizers, self.parameters[name], changed)
        if isinstance(self.regrow, RigL):
            weight.masked_fill_(changed, 0.0)
        self.masks[name].copy_(mask)

    def _compensate(self, criterion: StatefulCriterion, name: str, dropped: Tensor) -> None:
        state = self._criterion_state[name]
        criterion.compensate(self.parameters[name].detach(), dropped, state)
        criterion.after_update(state)

    def state_dict(self) -> dict[str, Any]:
        """Return masks, criterion state and dormant weights.

        The tensors are references, as in `torch.nn.Module.state_dict`.
        """
        return {
            "masks": dict(self.masks),
            "criterion_state": {n: dict(state) for n, state in self._criterion_state.items()},
            "dormant_weights": dict(self._dormant_weights),
            "observed": self._observations.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy saved masks, criterion state and dormant weights.

        Raises:
            ValueError: The state has other parameters, or another kind of criterion or regrowth.
                Nothing has changed then.
        """
        self._check_state(state)
        self._observations.load(state.get("observed"))
        for name, mask in self.masks.items():
            mask.copy_(state["masks"][name])
            if self._dormant_weights:
                self._dormant_weights[name].copy_(state["dormant_weights"][name])
            for key, value in self._criterion_state.get(name, {}).items():
                value.copy_(state["criterion_state"][name][key])

    def _check_state(self, state: Mapping[str, Any]) -> None:
        check_same_tensors("masks", self.masks, state["masks"])
        own: dict[str, Mapping[str, Any]] = {
            "dormant_weights": self._dormant_weights,
            "criterion_state": self._criterion_state,
        }
        for key, value in own.items():
            if value.keys() != state[key].keys():
                raise ValueError(
                    f"this state was saved {'with' if state[key] else 'without'} {key!r} and is "
                    f"loaded {'with' if value else 'without'} it; resume with the criterion and "
                    "the regrowth it was saved with"
                )
        for name, tensors in self._criterion_state.items():
            saved = state["criterion_state"][name]
            check_same_tensors(f"criterion states of {name}", tensors, saved)


def finite(gradient_or_input: Tensor) -> Tensor:
    """Return a dense copy with 0 in place of what is not finite."""
    if gradient_or_input.is_sparse:  # of an embedding with sparse gradients
        gradient_or_input = gradient_or_input.to_dense()
    return gradient_or_input.nan_to_num(0.0, 0.0, 0.0)


def check_same_tensors(kind: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless both have tensors of the same names and shapes."""
    own_shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    saved_shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if own_shapes != saved_shapes:
        names = (*own_shapes, *saved_shapes)
        name = next(n for n in names if own_shapes.get(n) != saved_shapes.get(n))
        raise ValueError(
            f"the saved {kind} are of another model or scope: {name} has shape "
            f"{saved_shapes.get(name)} there and {own_shapes.get(name)} here; resume with the same "
            "model and scope"
        )


def check_regrow(
    regrow: bool | RigL,
    *,
    criterion: Criterion | StatefulCriterion,
    granularity: Selection | CrossTensorGranularity,
) -> None:
    """Raise ConfigError where pruned weights cannot return in the way that `regrow` says."""
    if not isinstance(regrow, bool | RigL):
        raise ConfigTypeError("regrow", repr(regrow), "expected True, False or RigL()")
    if isinstance(regrow, RigL) and granularity is not unstructured:
        raise ConfigError(
            "regrow",
            regrow,
            "lets single weights return, which suits granularity=unstructured only, not "
            f"{granularity}",
            "take regrow=true",
        )
    if regrow is True and isinstance(criterion, BlockFisher):
        raise ConfigError(
            "regrow",
            regrow,
            "pruned weights keep their values, and BlockFisher takes them for zeros",
            "take regrow=false, or another criterion",
        )
