"""Scope: which parameters may be pruned, by glob patterns over their names or by default."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from kd_prune.errors import ConfigError, ConfigTypeError
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


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Parameters whose name matches an `include` pattern and no `exclude` pattern.

    Patterns are shell globs over full parameter names (``*`` crosses dots). Only real
    floating-point tensors of two dimensions or more are selected, so biases and norms never are.

    Args:
        include: Patterns of parameters that may be pruned.
        exclude: Patterns of parameters that may not be pruned although included.

    Raises:
        ConfigTypeError: `include` or `exclude` is a string instead of a list of strings.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> list(Scope(include=["*.weight"], exclude=["2.*"]).select(model))
    ['0.weight']
    """

    include: Sequence[str]
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        for argument in ("include", "exclude"):
            # A string would be iterated as patterns of one letter each.
            if isinstance(patterns := getattr(self, argument), str):
                raise ConfigTypeError(argument, repr(patterns), "expected a list of patterns")

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of `model` in scope, name → parameter, in the model's order.

        Raises:
            ConfigError: A pattern matches nothing, the scope is empty, or a parameter in scope is
                shared with one outside it (pruning it would prune the other too).
        """
        named = named_parameters(model)
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ConfigError(
                    "scope",
                    repr(pattern),
                    "the pattern matches no parameter",
                    f"there are for example {', '.join(list(named)[:3])}",
                )
        selected: dict[str, nn.Parameter] = {}
        first_name: dict[int, str] = {}
        for name, parameter in named.items():
            prunable = parameter.ndim >= 2 and not _unprunable_reason(parameter)
            if prunable and self._matches(name) and id(parameter) not in first_name:
                selected[name] = parameter
                first_name[id(parameter)] = name
        for name, parameter in named.items():
            if id(parameter) in first_name and not self._matches(name):
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
        return LaidOutParameters(model, selected)

    def _matches(self, name: str) -> bool:
        included = any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self.exclude)


LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class DefaultScope:
    """Parameters pruned by default, and why the others stay dense.

    Attributes:
        included: Name → parameter.
        excluded: Name → reason, for tensors of two or more dimensions that stay dense.
    """

    included: dict[str, nn.Parameter] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)


def default_scope(
    model: nn.Module, networks: Iterable[Collection[nn.Parameter]] | None = None
) -> DefaultScope:
    """Select the weights of all trained linear, convolution, recurrent and attention layers.

    Excluded are parameters that are not trained (frozen, or in no optimizer), embeddings, norms,
    biases, parameters held directly by a module of your own, parameters tied to any of these, and
    the output head: the last layer of each network, in the order of the model's modules.

    Args:
        model: The module.
        networks: The parameters of each network: one collection per optimizer. None: all that
            require a gradient are one network.

    Raises:
        ConfigError: Nothing is left to prune.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> scope = default_scope(model)
    >>> list(scope.included), scope.excluded
    (['1.weight'], {'0.weight': "no layer's weight", '3.weight': 'output head'})
    """
    named = {name: p for name, p in named_parameters(model).items() if p.ndim >= 2}
    groups = [{id(p) for p in group} for group in networks or [list(model.parameters())]]
    trained = {id(p) for p in named.values() if p.requires_grad} & set[int]().union(*groups)
    layer_weights = {id(p) for module in model.modules() for p in _weights(module)}
    names: dict[int, list[str]] = {}
    for name, parameter in named.items():
        names.setdefault(id(parameter), []).append(name)
    tied = layer_weights & _outside_layers(model)
    heads = set[int]()
    for group in groups:
        layers = [id(p) for p in named.values() if id(p) in trained & layer_weights & group]
        heads.update(layers[-1:])
    scope = DefaultScope()
    for name, parameter in named.items():
        key = id(parameter)
        if reason := _unprunable_reason(parameter):
            scope.excluded[name] = reason
        elif key not in trained:
            scope.excluded[name] = "not trained"
        elif key not in layer_weights:
            scope.excluded[name] = "no layer's weight"
        elif key in tied:
            scope.excluded[name] = "tied to another module"
        elif key in heads:
            scope.excluded[name] = "output head"
        elif name == names[key][0]:  # a weight shared by layers is pruned once
            scope.included[name] = parameter
    if not scope.included:
        reasons = [f"{name} ({reason})" for name, reason in scope.excluded.items()]
        more = f" and {len(reasons) - 5} more" if reasons[5:] else ""
        raise ConfigError(
            "scope",
            expected=f"no layer to prune found (excluded: {', '.join(reasons[:5]) or 'nothing'}"
            f"{more})",
            hint='say what may be pruned, for example Scope(include=["*.weight"])',
        )
    return DefaultScope(LaidOutParameters(model, scope.included), scope.excluded)


def _unprunable_reason(parameter: nn.Parameter) -> str | None:
    """Return why a tensor cannot be pruned, whatever its name; None if it can."""
    if not parameter.is_floating_point():
        return f"of {str(parameter.dtype).removeprefix('torch.')}"
    return None if parameter.numel() else "empty"


def _is_layer(module: nn.Module) -> bool:
    # Conv1D is the linear layer of GPT-2 in transformers, which is not imported here.
    return isinstance(module, LAYERS) or type(module).__name__ == "Conv1D"


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a layer: its parameters of two or more dimensions named weight.

    Not the parts of an old ``weight_norm``, which divides by the norm of a row: 0 if pruned.
    """
    return [
        parameter
        for name, parameter in module.named_parameters(recurse=False)
        if _is_layer(module) and parameter.ndim >= 2 and "weight" in name
        if not name.endswith(("_g", "_v"))
    ]


def _outside_layers(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if not _is_layer(module)
        for parameter in module.parameters(recurse=False)
    }
