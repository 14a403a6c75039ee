"""PruningPreview: what will be pruned, when, and what stays dense; printed before a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kd_prune.pruning.chosen_scope import DefaultScope
from kd_prune.pruning.scope import Scope
from kd_prune.pruning.scope_patterns import number_pattern
from kd_prune.pruning.update_schedule import UpdateSchedule


@dataclass(frozen=True, kw_only=True)
class TensorPreview:
    """A tensor in scope, how many of its weights will be zero at the end, whether it trains."""

    name: str
    shape: tuple[int, ...]
    size: int
    pruned: int
    trains: bool = True

    def __str__(self) -> str:
        """Format all but the name."""
        shape = "x".join(map(str, self.shape))
        return f"{shape}, {self.pruned:,} pruned{'' if self.trains else ', does not train'}"


@dataclass(frozen=True, kw_only=True)
class PruningPreview:
    """Summary of the updates that a Pruner will make; ``print(preview)`` shows it.

    Attributes:
        tensors: Tensors in scope. Counts that depend on scores (`Global`) are computed from the
            current scores.
        updates: Step → sparsity of each mask update.
        total: Length of the run, in `unit`.
        unit: Unit of steps and of the length.
        excluded: Name → reason, of tensors that stay dense; empty where a scope was given.
        equivalent: The `Scope` that selects the same tensors; None where one was given.
        notes: Sentences about what the preview does not know.
    """

    tensors: Sequence[TensorPreview]
    updates: UpdateSchedule
    total: int
    unit: str = "optimizer steps"
    excluded: Mapping[str, str] = field(default_factory=dict)
    equivalent: Scope | None = None
    notes: Sequence[str] = ()

    @property
    def pruned(self) -> int:
        """Number of weights that will be zero at the end."""
        return sum(tensor.pruned for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Number of weights in scope."""
        return sum(tensor.size for tensor in self.tensors)

    def __str__(self) -> str:
        """Format the ramp, the tensors in scope and the tensors that stay dense."""
        percent = 100 * self.pruned / self.size
        lines = [
            f"Pruning {self.pruned:,} of {self.size:,} weights ({percent:.2f} %) "
            f"in {len(self.tensors)} tensor{'s'[: len(self.tensors) - 1]}; {self._ramp()}",
            *_by_kind({tensor.name: str(tensor) for tensor in self.tensors}),
        ]
        if self.excluded:
            lines += ["Left dense:", *_by_kind(self.excluded)]
        if self.equivalent:
            lines += [f"To choose otherwise, change scope={self.equivalent.as_code()}"]
        lines += self.notes
        return "\n".join(lines)

    def with_scope(self, scope: DefaultScope) -> PruningPreview:
        """Add what is known of the scope: what stays dense and why, and what does not train."""
        tensors = [replace(t, trains=t.name not in scope.untrained) for t in self.tensors]
        return replace(
            self,
            tensors=tensors,
            excluded=scope.excluded,
            equivalent=scope.equivalent,
            notes=scope.notes,
        )

    def _ramp(self) -> str:
        if not self.updates:
            return "masks stay unchanged"
        first, last = min(self.updates), max(self.updates)
        return (
            f"{len(self.updates)} mask updates from {first} to {last} of {self.total} {self.unit}, "
            f"then {self.total - last} at {self.updates[last]:g}"
        )


def _by_kind(tensors: Mapping[str, str]) -> list[str]:
    """Merge lines of the same text whose names differ in numbers only."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, text in tensors.items():
        kinds.setdefault((number_pattern(name), text), []).append(name)
    return [
        f"  {kind}: {text} each ({len(names)} tensors)"
        if len(names) > 1
        else f"  {names[0]}: {text}"
        for (kind, text), names in kinds.items()
    ]
