"""ShardedPruner: the Pruner of parameters that are sharded between processes (FSDP2, DTensor)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd_prune.errors import UNSET, ConfigError, format_value
from kd_prune.pruning.chosen_scope import DefaultScope
from kd_prune.pruning.criteria import State, StatefulCriterion
from kd_prune.pruning.masked_parameters import finite
from kd_prune.pruning.preview import PruningPreview
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.selection import Counts, Masks
from kd_prune.pruning.sharding import any_sharded, gather, is_sharded, local_part, shard_like

_T = TypeVar("_T")
_Value = TypeVar("_Value")

FIRST = 0
"""The process that selects."""
SOURCES = ("parameters", "masks", "_dormant_weights", "_gradients", "_criterion_state")
"""Attributes whose tensors the first process asks for."""
CACHE_BYTES = 2**28
"""Memory in which the first process keeps gathered tensors while it selects."""
NEW_MASK, DONE = len(SOURCES), len(SOURCES) + 1
SAVED = ("masks", "criterion_state", "dormant_weights")
"""Entries of the saved state that hold tensors."""


class ShardedPruner(Pruner):
    """A `Pruner` of parameters that are DTensors, as those of FSDP2's ``fully_shard``.

    Masks, dormant weights and a criterion's state of the weight's shape are DTensors placed like
    their weights. What is pruned is what one process would prune that had the whole model: the
    first process computes the counts and selects as `Pruner` does, and gathers one tensor at a time
    while it does; the others send it their parts, and receive each new mask. Criteria, allocations
    and granularities, your own too, get whole plain tensors and need to know nothing of it. In
    between, each process observes gradients and zeroes weights in its own part.

    All processes make it, with the same arguments, and call its methods in the same order;
    `sparsity`, `preview`, `state_dict` and `update` are collective. Where each process has its own
    inputs, as `Wanda` sees them, those of the first count, as its masks do under DDP.

    Args:
        parameters: As for `Pruner`, sharded.
        schedule: As for `Pruner`.
        **settings: As for `Pruner`.

    Raises:
        ConfigError: As for `Pruner`; the processes have different parameters; the criterion keeps
            more than the weight's size of state that is not of its shape (`BlockFisher`).
    """

    takes_sharded = True

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        schedule: Schedule | None,
        **settings: Any,
    ) -> None:
        self._check_same_parameters(parameters)
        super().__init__(parameters, schedule, **settings)

    def _check_same_parameters(self, parameters: Mapping[str, nn.Parameter]) -> None:
        shapes = {name: tuple(weight.shape) for name, weight in parameters.items()}
        others: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(others, shapes)
        for rank, found in enumerate(others):
            if list(found.items()) != list(others[FIRST].items()):
                raise ConfigError(
                    "scope",
                    expected=f"process {rank} has other parameters than the first one, as in a "
                    "pipeline of stages",
                    hint="shard every tensor over all processes",
                )

    def _init_state(self, criterion: StatefulCriterion, name: str) -> State:
        weight = self.parameters[name]
        state = criterion.init_state(gather(weight))
        for key, tensor in state.items():
            if tensor.shape != weight.shape and tensor.numel() > weight.numel():
                raise ConfigError(
                    "criterion",
                    criterion,
                    f"keeps {tensor.numel():,} values in {key!r} for the {weight.numel():,} "
                    f"weights of {name}, which cannot be sharded with them",
                    "take DiagonalFisher, or train without sharding",
                )
        return {k: shard_like(v, weight) if _alike(v, weight) else v for k, v in state.items()}

    @torch.no_grad()
    def observe(self, grad_or_input: Mapping[str, Tensor]) -> None:
        """Update the criterion's state: elementwise in this process's part, else in the whole."""
        criterion = self.criterion
        if not isinstance(criterion, StatefulCriterion):
            return
        if criterion.elementwise or criterion.observes == "input":
            super().observe(grad_or_input)
            return
        for name in self.parameters:  # in the same order in all processes
            if name in grad_or_input:
                value = finite(gather(grad_or_input[name]))
                self._observations.add(name)
                state = self._gathered_state(name)
                criterion.observe(gather(self._effective_weight(name)), value, state)
                self._write_state(name, state)

    def _compensate(self, criterion: StatefulCriterion, name: str, dropped: Tensor) -> None:
        weight, state = self.parameters[name], self._gathered_state(name)
        if type(criterion).compensate is not StatefulCriterion.compensate:
            whole = gather(weight).clone()
            criterion.compensate(whole, gather(dropped), state)
            local_part(weight).copy_(local_part(shard_like(whole, weight)))
        criterion.after_update(state)
        self._write_state(name, state)

    def _gathered_state(self, name: str) -> State:
        return {key: gather(value) for key, value in self._criterion_state[name].items()}

    def _write_state(self, name: str, state: State) -> None:
        for key, own in self._criterion_state[name].items():
            if is_sharded(own):  # a plain tensor was changed in place
                local_part(own).copy_(local_part(shard_like(state[key], own)))

    def update(self, step: int, sync_mask: Callable[[Tensor], None] | None = None) -> bool:
        """Update the masks as `Pruner.update` does; the first process's are everybody's anyway."""
        return super().update(step)

    def _compute_masks(self, at: int, step: int) -> tuple[Counts, Iterator[tuple[str, Tensor]]]:
        masks: dict[str, Tensor] = {}

        def select(whole: WholeTensors) -> Counts:
            counts, new_masks = whole._compute_masks(at, step)
            for name, mask in new_masks:
                self._command(NEW_MASK, name)
                masks[name] = self._receive_mask(name, mask)
            return counts

        counts = self._on_first_process(select, masks)
        return counts, iter(masks.items())

    def _receive_mask(self, name: str, mask: Tensor | None = None) -> Tensor:
        """Send the first process's new mask to all; return it sharded like the weight."""
        like = self.masks[name]
        if mask is None:
            mask = torch.empty(like.shape, dtype=torch.bool, device=local_part(like).device)
        mask = mask.to(torch.bool).contiguous()
        dist.broadcast(mask.view(torch.uint8), FIRST)
        return shard_like(mask, like)

    def check_final_sparsity(self, final: float) -> None:
        """Refuse a final sparsity that no scores reach, as `Pruner` does, in all processes."""
        self._on_first_process(lambda whole: whole.check_final_sparsity(final))

    def preview(
        self, unit: str = "optimizer steps", scope: DefaultScope | None = None
    ) -> PruningPreview:
        """Return a printable summary, as `Pruner.preview`; to be called in all processes."""
        return self._on_first_process(lambda whole: whole.preview(unit, scope))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `Pruner` saves it: whole tensors, on the CPU of the first process.

        The other processes take part and get empty mappings in place of the tensors. Every process
        loads it, whatever their number, and so does a `Pruner`.
        """
        state = super().state_dict()
        first = dist.get_rank() == FIRST

        def whole(entry: Any) -> Any:
            if not isinstance(entry, Tensor):
                found = {name: whole(value) for name, value in entry.items()}
                return found if first else {}
            gathered = gather(entry)
            return gathered.cpu() if first else None

        return state | {key: whole(state[key]) for key in SAVED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state of whole tensors and continue its ramp, as `Pruner` does."""
        self._check_state(state)
        own = super().state_dict()

        def part(saved: Any, like: Any) -> Any:
            if isinstance(like, Tensor):
                return shard_like(saved, like)
            return {name: part(saved[name], value) for name, value in like.items()}

        super().load_state_dict({**state, **{key: part(state[key], own[key]) for key in SAVED}})

    def _on_first_process(
        self, compute: Callable[[WholeTensors], _T], masks: dict[str, Tensor] | None = None
    ) -> _T:
        """Return in all processes what the first one computes from gathered tensors.

        The first process asks for the tensors by name, so it alone decides which are gathered, how
        often and in which order: a process whose rounding differs cannot wait for another tensor.

        Args:
            compute: Called in the first process.
            masks: Filled, in the other processes, with the new masks that the first one sends.
        """
        answer: list[Any] = [None, None]
        if dist.get_rank() != FIRST:
            while (command := self._command())[0] != DONE:
                kind, name = command
                if kind != NEW_MASK:
                    self._fetch(kind, name)
                elif masks is not None:
                    masks[name] = self._receive_mask(name)
            dist.broadcast_object_list(answer, FIRST)
            if answer[1] is not None:
                raise _restored(*answer[1])
            found: _T = answer[0]
            return found
        try:
            result = compute(WholeTensors(self))
        except Exception as error:
            self._command(DONE)
            dist.broadcast_object_list([None, _described(error)], FIRST)
            raise
        self._command(DONE)
        dist.broadcast_object_list([result, None], FIRST)
        return result

    def _command(self, kind: int = DONE, name: str | None = None) -> tuple[int, str]:
        """Send the first process's command to all; return it."""
        names = list(self.parameters)
        device = local_part(self.parameters[names[0]]).device
        command = torch.tensor([kind, names.index(name) if name else 0], device=device)
        dist.broadcast(command, FIRST)
        kind, index = command.tolist()
        return kind, names[index]

    def _fetch(self, kind: int, name: str) -> Any:
        """Gather an entry of one of `SOURCES`, in all processes."""
        entry = getattr(self, SOURCES[kind])[name]
        if isinstance(entry, Tensor):
            return gather(entry)
        return {key: gather(value) for key, value in entry.items()}


class WholeTensors(Pruner):
    """A sharded pruner as the first process sees it: each tensor is gathered when it is read."""

    def __init__(self, pruner: ShardedPruner) -> None:
        vars(self).update(vars(pruner))
        cache: dict[tuple[int, str], Any] = {}
        room = CACHE_BYTES

        def lazy(source: str) -> Any:
            kind = SOURCES.index(source)

            def fetch(name: str) -> Any:
                nonlocal room
                if (kind, name) in cache:
                    return cache[kind, name]
                pruner._command(kind, name)
                found = pruner._fetch(kind, name)
                tensors = [found] if isinstance(found, Tensor) else found.values()
                size = sum(tensor.nbytes for tensor in tensors)
                if size <= room:
                    cache[kind, name] = found
                    room -= size
                return found

            return Lazy(getattr(pruner, source), fetch)

        self._weights: Masks = lazy("parameters")
        for source in SOURCES[1:]:
            setattr(self, source, lazy(source))

    def _effective_weight(self, name: str) -> Tensor:
        weight = self._weights[name]
        if not self._dormant_weights:
            return weight
        return weight.where(self.masks[name], self._dormant_weights[name])

    def _all_candidates(self) -> Any:
        def ones(name: str) -> Tensor:
            weight = self.parameters[name]
            return torch.ones(weight.shape, dtype=torch.bool, device=local_part(weight).device)

        return Lazy(self.parameters, ones)


class Lazy(Mapping[str, _Value]):
    """A mapping whose values are made at each access, so that only those in use take memory."""

    def __init__(self, names: Mapping[str, object], make: Callable[[str], _Value]) -> None:
        self._names = names
        self._make = make

    def __getitem__(self, name: str) -> _Value:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def make_pruner(
    parameters: Mapping[str, nn.Parameter], schedule: Schedule | None, **settings: Any
) -> Pruner:
    """Make a `ShardedPruner` of sharded parameters, a `Pruner` of others."""
    kind = ShardedPruner if any_sharded(parameters.values()) else Pruner
    return kind(parameters, schedule, **settings)


def _alike(tensor: Tensor, weight: Tensor) -> bool:
    return tensor.shape == weight.shape and is_sharded(weight)


def _described(error: Exception) -> tuple[type[Exception], tuple[Any, ...]]:
    """Describe an error in values that any other process can read."""
    if isinstance(error, ConfigError):
        value = None if error.value is UNSET else format_value(error.value)
        return type(error), (error.key, value, error.expected, error.hint)
    return (ValueError if isinstance(error, ValueError) else RuntimeError), (str(error),)


def _restored(kind: type[Exception], arguments: tuple[Any, ...]) -> Exception:
    if issubclass(kind, ConfigError) and arguments[1] is None:
        key, _, expected, hint = arguments
        return kind(key, UNSET, expected, hint)
    return kind(*arguments)
