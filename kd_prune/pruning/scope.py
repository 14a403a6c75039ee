"""Scope: which parameters may be pruned, by glob patterns over their names."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from kd_prune.errors import ConfigError, ConfigTypeError
from kd_prune.pruning.layers import LayerWeight, computed_name, layer_weights
from kd_prune.pruning.layout import LaidOutParameters


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name → parameter in the model's order, shared ones under each of their names.

    Parameters of a module whose class has a true attribute ``never_pruned`` are left out, those of
    its submodules too. ``_orig_mod``, which `torch.compile` inserts into names, is removed, so that
    masks and patterns fit the model compiled or not.

    Raises:
        ValueError: A lazy layer has no weights yet.

    >>> list(named_parameters(nn.Sequential(nn.Linear(1, 1))))
    ['0.weight', '0.bias']
    """
    never_pruned = {
        id(parameter)
        for module in model.modules()
        if getattr(type(module), "never_pruned", False)
        for parameter in module.parameters()
    }
    named = {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) not in never_pruned
    }
    for name, parameter in named.items():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(
                f"{name}: belongs to a lazy layer and has no shape yet; run one batch through the "
                "model first"
            )
    return named


class ScopedParameters(LaidOutParameters):
    """Parameters in scope, name → parameter, their layouts and the layers whose weights they are.

    Attributes:
        layers: Name → weight of a layer, which says how the parameter may be pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        layers: Mapping[int, LayerWeight],
    ) -> None:
        super().__init__(model, parameters)
        self.layers = {n: layers[id(p)] for n, p in parameters.items() if id(p) in layers}


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Parameters whose name matches an `include` pattern and no `exclude` pattern.

    Patterns are shell globs over full parameter names (``*`` crosses dots). A parameter that a
    layer's weight is computed from, by a weight norm for example, also has the name of that weight.
    Only real floating-point tensors of two dimensions or more are selected, so biases and norms
    never are.

    Args:
        include: Patterns of parameters that may be pruned.
        optional: Further such patterns, which may match nothing.
        exclude: Patterns of parameters that may not be pruned although included.
        frozen: Whether parameters that do not train may be among them, as in a frozen base under
            adapters (checked where the optimizers are known: by `SparsityCallback`).

    Raises:
        ConfigTypeError: One of these is a string instead of a list of strings.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> list(Scope(include=["*.weight"], exclude=["2.*"]).select(model))
    ['0.weight']
    """

    include: Sequence[str]
    exclude: Sequence[str] = ()
    optional: Sequence[str] = ()
    frozen: bool = False

    def __post_init__(self) -> None:
        for argument in ("include", "exclude", "optional"):
            # A string would be iterated as patterns of one letter each.
            if isinstance(patterns := getattr(self, argument), str):
                raise ConfigTypeError(argument, repr(patterns), "expected a list of patterns")

    def select(self, model: nn.Module) -> ScopedParameters:
        """Return the parameters of `model` in scope, name → parameter, in the model's order.

        Raises:
            ConfigError: A pattern matches nothing, the scope is empty, zeros in a parameter are no
                zeros of the weight that a layer makes of it, or a parameter in scope is shared with
                one outside it (pruning it would prune the other too).
        """
        named, layers = named_parameters(model), layer_weights(model)
        names = {name: all_names({name: p}, layers) for name, p in named.items()}
        self._check_patterns(all_names(named, layers))
        selected: dict[str, nn.Parameter] = {}
        first_name: dict[int, str] = {}
        for name, parameter in named.items():
            prunable = parameter.ndim >= 2 and not unprunable_reason(parameter)
            weight = layers.get(id(parameter))
            if not prunable or not self._matches(names[name]) or id(parameter) in first_name:
                continue
            if weight and weight.unprunable:
                raise ConfigError(
                    "scope",
                    expected=f"{name} cannot be pruned: {weight.unprunable}",
                    hint=f"exclude {names[name][-1]!r}, or take its parametrization away "
                    "(torch.nn.utils.parametrize.remove_parametrizations)",
                )
            if not (weight and weight.is_scale):
                selected[name] = parameter
                first_name[id(parameter)] = name
        for name, parameter in named.items():
            if id(parameter) in first_name and not self._matches(names[name]):
                raise ConfigError(
                    "scope",
                    expected=f"{first_name[id(parameter)]} is in scope but tied to {name}, which "
                    "is not",
                    hint="include both or exclude both",
                )
        if not selected:
            raise ConfigError(
                "scope",
                expected=f"include={list(self.include)} exclude={list(self.exclude)} leaves no "
                "floating-point parameter of two or more dimensions to prune",
            )
        return ScopedParameters(model, selected, layers)

    def as_code(self) -> str:
        """Format the scope as Python code.

        >>> print(Scope(include=["*.weight"], exclude=["head.*"]).as_code())
        Scope(include=["*.weight"], exclude=["head.*"])
        """
        arguments = [f"include={json.dumps([*self.include])}"]
        arguments += [f"exclude={json.dumps([*self.exclude])}"] if self.exclude else []
        arguments += [f"optional={json.dumps([*self.optional])}"] if self.optional else []
        arguments += ["frozen=True"] if self.frozen else []
        return f"Scope({', '.join(arguments)})"

    def _check_patterns(self, names: Collection[str]) -> None:
        """Refuse a pattern that matches none of the names."""
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    "scope",
                    repr(pattern),
                    "the pattern matches no parameter",
                    f"there are for example {', '.join(list(names)[:3])}",
                )

    def _matches(self, names: Sequence[str]) -> bool:
        """Return whether one of a parameter's names is included and none is excluded."""
        patterns = (*self.include, *self.optional)
        included = any(fnmatchcase(name, p) for name in names for p in patterns)
        return included and not any(fnmatchcase(name, p) for name in names for p in self.exclude)


def all_names(named: Mapping[str, nn.Parameter], layers: Mapping[int, LayerWeight]) -> list[str]:
    """Return the names of parameters and of the weights that layers compute from them."""
    names = list[str]()
    for name, parameter in named.items():
        names.append(name)
        weight = layers.get(id(parameter))
        if weight and (computed := computed_name(name, weight)) != name:
            names.append(computed)
    return names


def unprunable_reason(parameter: nn.Parameter) -> str | None:
    """Return why a tensor cannot be pruned, whatever its name; None if it can."""
    if not parameter.is_floating_point():
        return f"of {str(parameter.dtype).removeprefix('torch.')}"
    return None if parameter.numel() else "empty"
