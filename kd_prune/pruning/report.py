"""Sparsity as counted: zeros per tensor, over the scope, over the whole model."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from torch import nn

from kd_prune.pruning.scope import named_parameters


@dataclass(frozen=True)
class TensorCount:
    """One parameter's zeros."""

    name: str
    shape: str
    in_scope: bool
    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of the tensor that is zero; 0 for an empty one."""
        return share([self])


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of a model, counted parameter by parameter.

    Shared parameters count once. Buffers do not count.
    """

    tensors: tuple[TensorCount, ...]

    @classmethod
    def count(cls, model: nn.Module, scope: Collection[str]) -> SparsityReport:
        """Count the zeros of `model`; `scope` names the parameters that were to be pruned.

        Raises:
            ValueError: `scope` names a parameter that `model` has not (a sparsity of 0 would be
                reported as if it had been counted).
        """
        named = {id(p): name for name, p in reversed(named_parameters(model).items())}
        unknown = set(scope) - set(named.values())
        if unknown:
            raise ValueError(f"scope: the model has no parameter {min(unknown)!r} to count")
        return cls(
            tuple(
                TensorCount(
                    name=name,
                    shape="x".join(map(str, parameter.shape)),
                    in_scope=name in scope,
                    size=parameter.numel(),
                    zeros=parameter.numel() - int(parameter.count_nonzero()),
                )
                for parameter in model.parameters()
                for name in (named[id(parameter)],)
            )
        )

    @property
    def sparsity(self) -> float:
        """Share of in-scope weights that are zero; 0 for an empty scope."""
        return share(tensor for tensor in self.tensors if tensor.in_scope)

    @property
    def model_sparsity(self) -> float:
        """Share of all parameters that are zero."""
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
        """A line for each tensor in scope, then both sparsities."""
        rows = [t for t in self.tensors if t.in_scope]
        width = max((len(t.name) for t in rows), default=0)
        return "\n".join(
            [
                f"{'Sparsity as counted':{width}}  zeros / weights",
                *(
                    f"{t.name:{width}}  {100 * t.sparsity:6.2f} %  {t.zeros:,} / {t.size:,}"
                    for t in rows
                ),
                f"{'in scope':{width}}  {100 * self.sparsity:6.2f} %",
                f"{'whole model':{width}}  {100 * self.model_sparsity:6.2f} %",
            ]
        )

    def write_csv(self, path: Path) -> None:
        """One row per parameter."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(field.name for field in fields(TensorCount)), "sparsity"])
            writer.writerows((*astuple(t), f"{t.sparsity:.6f}") for t in self.tensors)


def share(tensors: Iterable[TensorCount]) -> float:
    """Zeros over weights of some tensors."""
    zeros = size = 0
    for tensor in tensors:
        zeros += tensor.zeros
        size += tensor.size
    return zeros / size if size else 0.0
