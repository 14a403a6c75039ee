"""Which parameters may be pruned: glob patterns over parameter names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter, shared ones under each of their names, in the model's order.

    `torch.compile` puts ``_orig_mod`` into names; it is left out, so that masks and patterns fit
    the model compiled or not.

    Raises:
        ValueError: A lazy layer has no weights yet.

    >>> list(named_parameters(nn.Sequential(nn.Linear(1, 1))))
    ['0.weight', '0.bias']
    """
    named = {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for name, parameter in named.items():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(
                f"{name}: a lazy layer's, and not there before the first batch; run one through "
                "the model first"
            )
    return named


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Parameters whose name matches an `include` pattern and no `exclude` pattern.

    Patterns are shell globs over whole parameter names (``*`` crosses dots). Only tensors of real
    floating-point numbers and two dimensions or more are taken: biases and norms never match.

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
        named = named_parameters(model)
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ValueError(
                    f"scope pattern {pattern!r} matches no parameter; "
                    f"there are for example {', '.join(list(named)[:3])}"
                )
        chosen: dict[str, nn.Parameter] = {}
        taken: dict[int, str] = {}
        for name, parameter in named.items():
            prunable = parameter.ndim >= 2 and not _unfit(parameter) and self._matches(name)
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
                "floating-point parameter of two or more dimensions to prune"
            )
        return chosen

    def _matches(self, name: str) -> bool:
        included = any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self.exclude)


LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class DefaultScope:
    """What is pruned where nobody says so, and why the rest is not.

    Attributes:
        taken: Name → parameter.
        left: Name → reason, for the tensors of two or more dimensions that stay dense.
    """

    taken: dict[str, nn.Parameter] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def default_scope(
    model: nn.Module, networks: Iterable[Collection[nn.Parameter]] | None = None
) -> DefaultScope:
    """The weights of all Linear, convolution, recurrent and attention layers that train.

    Left out are what does not train (frozen, or in no optimizer), embeddings, norms, biases,
    parameters that a module of your own holds directly, what is tied to any of these, and the
    output head: the last layer of each network, in the order of the model's modules.

    Args:
        model: The module.
        networks: The parameters of each network: one collection per optimizer. None: all that
            require a gradient are one network.

    Raises:
        ValueError: Nothing is left to prune.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> scope = default_scope(model)
    >>> list(scope.taken), scope.left
    (['1.weight'], {'0.weight': "no layer's weight", '3.weight': 'output head'})
    """
    named = {name: p for name, p in named_parameters(model).items() if p.ndim >= 2}
    groups = [{id(p) for p in group} for group in networks or [list(model.parameters())]]
    trained = {id(p) for p in named.values() if p.requires_grad} & set[int]().union(*groups)
    of_layers = {id(p) for module in model.modules() for p in _weights(module)}
    names: dict[int, list[str]] = {}
    for name, parameter in named.items():
        names.setdefault(id(parameter), []).append(name)
    tied = of_layers & _of_other_modules(model)
    heads = set[int]()
    for group in groups:
        layers = [id(p) for p in named.values() if id(p) in trained & of_layers & group]
        heads.update(layers[-1:])
    scope = DefaultScope()
    for name, parameter in named.items():
        key = id(parameter)
        if unfit := _unfit(parameter):
            scope.left[name] = unfit
        elif key not in trained:
            scope.left[name] = "does not train"
        elif key not in of_layers:
            scope.left[name] = "no layer's weight"
        elif key in tied:
            scope.left[name] = "tied to no layer"
        elif key in heads:
            scope.left[name] = "output head"
        elif name == names[key][0]:  # what layers share is pruned once
            scope.taken[name] = parameter
    if not scope.taken:
        left = [f"{name} ({reason})" for name, reason in scope.left.items()]
        more = f" and {len(left) - 5} more" if left[5:] else ""
        raise ValueError(
            f"scope: found no layer to prune (left: {', '.join(left[:5]) or 'nothing'}{more}); say "
            'what may be pruned, for example Scope(include=["*.weight"])'
        )
    return scope


def _unfit(parameter: nn.Parameter) -> str | None:
    """Why such a tensor cannot be pruned, whatever its name."""
    if not parameter.is_floating_point():
        return f"of {str(parameter.dtype).removeprefix('torch.')}"
    return None if parameter.numel() else "empty"


def _is_layer(module: nn.Module) -> bool:
    # Conv1D is the Linear layer of GPT-2 in transformers, which is not imported here.
    return isinstance(module, LAYERS) or type(module).__name__ == "Conv1D"


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a layer: what it holds of two or more dimensions and calls so.

    Not the halves of an old ``weight_norm``: an emptied row of one is divided by its length, 0.
    """
    return [
        parameter
        for name, parameter in module.named_parameters(recurse=False)
        if _is_layer(module) and parameter.ndim >= 2 and "weight" in name
        if not name.endswith(("_g", "_v"))
    ]


def _of_other_modules(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if not _is_layer(module)
        for parameter in module.parameters(recurse=False)
    }
