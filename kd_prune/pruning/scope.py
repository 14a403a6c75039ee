"""Which parameters may be pruned: glob patterns over parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Parameters whose name matches an `include` pattern and no `exclude` pattern.

    Patterns are shell globs over whole parameter names (``*`` crosses dots). Only tensors of two
    dimensions or more are taken: biases and norms never match.

    Args:
        include: Patterns of what may be pruned.
        exclude: Patterns of what may not, though included.

    Raises:
        TypeError: `include` or `exclude` is a string instead of a list of them.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> list(Scope(include=["*.weight"], exclude=["2.*"]).select(model))
    ['0.weight']
    """

    include: Sequence[str]
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse a lone string: it would be read as patterns of one letter each."""
        for argument in ("include", "exclude"):
            if isinstance(patterns := getattr(self, argument), str):
                raise TypeError(f"{argument}={patterns!r}: expected a list of patterns")

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of `model` in scope, name → parameter, in the model's order.

        Raises:
            ValueError: A pattern matches nothing, the scope is empty, or a parameter in scope is
                shared with one outside it (pruning it would prune the other too).
        """
        named = dict(model.named_parameters(remove_duplicate=False))
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ValueError(
                    f"scope pattern {pattern!r} matches no parameter; "
                    f"there are for example {', '.join(list(named)[:3])}"
                )
        chosen: dict[str, nn.Parameter] = {}
        taken: dict[int, str] = {}
        for name, parameter in named.items():
            prunable = parameter.ndim >= 2 and self._matches(name)
            if prunable and id(parameter) not in taken:
                chosen[name] = parameter
                taken[id(parameter)] = name
        for name, parameter in named.items():
            if id(parameter) in taken and not self._matches(name):
                raise ValueError(
                    f"{taken[id(parameter)]} is in scope but tied to {name}, which is not; "
                    "include both or exclude both"
                )
        if not chosen:
            raise ValueError(
                f"scope include={list(self.include)} exclude={list(self.exclude)} leaves no "
                "parameter of two or more dimensions to prune"
            )
        return chosen

    def _matches(self, name: str) -> bool:
        included = any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
