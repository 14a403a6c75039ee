"""SparsityReport: zeros counted per tensor, over the scope and over the model."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning.scope import named_parameters
from kd_prune.pruning.sharding import count_nonzero
from kd_prune.pruning.unpruned_kinds import averages


@dataclass(frozen=True)
class TensorCount:
    """Size and number of zeros of one parameter."""

    name: str
    shape: str
    in_scope: bool
    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of the tensor that is zero; 0 for an empty tensor."""
        return share([self])


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of a model, counted for every parameter.

    Shared parameters count once. Buffers and modules marked ``never_pruned`` do not count.

    Attributes:
        tensors: One entry per parameter.
        scope: Name of the parameters in scope in the printed table.
        averages: Names of the parameters of moving averages (`AveragedModel`) inside the model:
            they keep weights from before the pruning.
    """

    tensors: tuple[TensorCount, ...]
    scope: str = "in scope"
    averages: frozenset[str] = frozenset()

    @classmethod
    def count(cls, model: nn.Module, scope: Collection[str]) -> SparsityReport:
        """Count the zeros of `model`; `scope` names the parameters in scope of pruning.

        A sharded model is counted by all processes together, so each has to call this.

        Raises:
            ConfigError: `model` lacks a parameter named in `scope`.
        """
        first: dict[int, tuple[str, nn.Parameter]] = {}
        for name, parameter in named_parameters(model).items():
            first.setdefault(id(parameter), (name, parameter))
        averaged = averages(model)
        unknown = set(scope) - {name for name, _ in first.values()}
        if unknown:
            raise ConfigError("scope", expected=f"the model has no parameter {min(unknown)!r}")
        nonzero = count_nonzero(parameter for _, parameter in first.values())
        return cls(
            tuple(
                TensorCount(
                    name=name,
                    shape="x".join(map(str, parameter.shape)),
                    in_scope=name in scope,
                    size=parameter.numel(),
                    zeros=parameter.numel() - kept,
                )
                for (name, parameter), kept in zip(first.values(), nonzero, strict=True)
            ),
            averages=frozenset(name for key, (name, _) in first.items() if key in averaged),
        )

    @property
    def sparsity(self) -> float:
        """Fraction of in-scope weights that are zero; 0 for an empty scope."""
        return share(tensor for tensor in self.tensors if tensor.in_scope)

    @property
    def model_sparsity(self) -> float:
        """Fraction of all parameters that are zero."""
        return share(self.tensors)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nonzero(self) -> int:
        """Number of parameters that are not zero."""
        return self.parameters - sum(tensor.zeros for tensor in self.tensors)

    def __str__(self) -> str:
        """Format a line for each tensor in scope, then the sparsities of scope and model."""
        rows = [t for t in self.tensors if t.in_scope]
        width = max(
            [len(t.name) for t in rows] + [len("without averages")] * bool(self.averages), default=0
        )
        others = [t for t in self.tensors if t.name not in self.averages]
        lines = (
            [f"{'without averages':{width}}  {100 * share(others):6.2f} %"] if self.averages else []
        )
        return "\n".join(
            [
                f"{'Sparsity as counted':{width}}  zeros / weights",
                *(
                    f"{t.name:{width}}  {100 * t.sparsity:6.2f} %  {t.zeros:,} / {t.size:,}"
                    for t in rows
                ),
                f"{self.scope:{width}}  {100 * self.sparsity:6.2f} %",
                f"{'whole model':{width}}  {100 * self.model_sparsity:6.2f} %",
                *lines,
            ]
        )

    def write_csv(self, path: Path) -> None:
        """Write one row per parameter."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(field.name for field in fields(TensorCount)), "sparsity"])
            writer.writerows((*astuple(t), f"{t.sparsity:.6f}") for t in self.tensors)


def share(tensors: Iterable[TensorCount]) -> float:
    """Return the fraction of zeros over all weights of the tensors."""
    zeros = size = 0
    for tensor in tensors:
        zeros += tensor.zeros
        size += tensor.size
    return zeros / size if size else 0.0
