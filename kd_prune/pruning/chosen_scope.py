"""DefaultScope: the parameters chosen for pruning, by default or by a scope, and why."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning.layer_trace import LayerTrace
from kd_prune.pruning.layers import LayerWeight, computed_name, holds_layer_weights, layer_weights
from kd_prune.pruning.scope import (
    Scope,
    ScopedParameters,
    all_names,
    named_parameters,
    unprunable_reason,
)
from kd_prune.pruning.scope_patterns import matching_patterns
from kd_prune.pruning.unpruned_kinds import adapters, averages, copies

NOT_TRAINED = "not trained"
NO_WEIGHT = "no layer's weight"
LAST_LAYER = "output head (last layer)"
OUTPUT_LAYER = "output head (no layer takes its output)"
UNUSED_LAYER = "output head (last of the layers that the traced forward pass leaves out)"
ADAPTER = "adapter of a frozen base; include it by name to prune it"
_TIED = {"embedding": "tied to an embedding", "norm": "tied to a norm"}


@dataclass(frozen=True)
class DefaultScope:
    """Parameters that will be pruned, and why the others stay dense.

    Attributes:
        included: Name → parameter.
        excluded: Name → reason, for tensors of two or more dimensions that stay dense.
        untrained: Names among `included` whose parameters do not train.
        equivalent: The `Scope` that selects the same parameters; None where one was given.
        notes: Sentences about what the reasons rest on.
    """

    included: dict[str, nn.Parameter] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    untrained: Collection[str] = ()
    equivalent: Scope | None = None
    notes: Sequence[str] = ()

    def with_note(self, note: str) -> DefaultScope:
        """Return the same scope with another note; an empty one is not added."""
        return replace(self, notes=[*self.notes, note]) if note else self


def default_scope(
    model: nn.Module,
    networks: Iterable[Collection[nn.Parameter]] | None = None,
    trace: LayerTrace | None = None,
) -> DefaultScope:
    """Select the weights of all trained linear, convolution, recurrent, attention, expert layers.

    Excluded are parameters that are not trained (frozen, or in no optimizer), embeddings, norms,
    biases, parameters held directly by a module of your own, parameters tied to any of these,
    low-rank adapters of a frozen base, moving averages, and the output heads of each network.

    Output heads are the layers whose output no other layer of the network takes, if a forward pass
    was traced, or else the network's last layer, in the order of the model's modules. Of a layer
    with several weights, such as an LSTM, the last weight counts as the head.

    Args:
        model: The module.
        networks: The parameters of each network: one collection per optimizer; optimizers that
            share a module, such as one for matrices and one for biases, train one network. None:
            all that require a gradient are one network.
        trace: A forward pass, ``trace_layers(model, inputs)``.

    Raises:
        ConfigError: Nothing is left to prune.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> scope = default_scope(model)
    >>> list(scope.included), scope.excluded
    (['1.weight'], {'0.weight': 'embedding', '3.weight': 'output head (last layer)'})
    """
    named = {name: p for name, p in named_parameters(model).items() if p.ndim >= 2}
    layers = layer_weights(model)
    averaged = averages(model)
    groups = [{id(p) for p in group} - averaged.keys() for group in networks or [_all(model)]]
    groups = _join_networks(model, groups)
    trained = {id(p) for p in named.values() if p.requires_grad} & set[int]().union(*groups)
    reasons = _outside_layers(model, named, layers)  # by name, unlike the following
    of_tensor: dict[int, str] = {}
    adapting = adapters(named, layers, trained)
    for group in groups:
        candidates = [
            layers[id(p)]
            for p in named.values()
            if id(p) in trained & group & layers.keys() - adapting
            if not layers[id(p)].is_scale
        ]
        of_tensor |= _heads(candidates, trace)
    of_tensor |= dict.fromkeys(adapting, ADAPTER)
    of_tensor |= {id(p): NOT_TRAINED for p in named.values() if id(p) not in trained}
    of_tensor |= copies(named, trained) | averaged
    included: dict[str, nn.Parameter] = {}
    excluded: dict[str, str] = {}
    seen = set[int]()
    for name, parameter in named.items():
        key = id(parameter)
        reason = unprunable_reason(parameter)
        reason = reason or (of_tensor[key] if key not in trained else reasons.get(name))
        reason = reason or of_tensor.get(key) or _part_reason(name, layers[key])
        if reason:
            excluded[name] = reason
        elif key not in seen:  # a weight shared by layers is pruned once
            included[name] = parameter
            seen.add(key)
    if not included:
        raise _nothing_to_prune(excluded)
    return DefaultScope(
        ScopedParameters(model, included, layers),
        excluded,
        equivalent=_equivalent_scope(named, included, layers),
        notes=[f"No forward pass could be traced: {trace.problem}"]
        if trace and trace.problem
        else (),
    )


def _join_networks(model: nn.Module, groups: Sequence[set[int]]) -> list[set[int]]:
    """Unite the parameters of optimizers that share a module, as those of matrices and of vectors.

    One optimizer may train the matrices of a network and another its biases: that is one network,
    with one output.
    """
    joined = list(groups)
    for module in model.modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        sharing = [group for group in joined if group & own]
        if len(sharing) > 1:
            joined = [group for group in joined if not group & own]
            joined.append(set[int]().union(*sharing))
    return joined


def given_scope(
    scope: Scope,
    model: nn.Module,
    networks: Iterable[Collection[nn.Parameter]] | None = None,
    *,
    frozen: bool | None = None,
) -> DefaultScope:
    """Select the parameters of a given scope; refuse those that do not train.

    Args:
        scope: The scope.
        model: The module.
        networks: As for `default_scope`.
        frozen: Whether parameters that do not train are accepted; None: as the scope says.

    Raises:
        ConfigError: As `Scope.select`, or parameters in scope do not train.
    """
    selected = scope.select(model)
    held = {id(p) for group in networks or [_all(model)] for p in group}
    untrained = [n for n, p in selected.items() if not p.requires_grad or id(p) not in held]
    if untrained and not (scope.frozen if frozen is None else frozen):
        layers = layer_weights(model)
        named = named_parameters(model)
        others = {n: p for n, p in named.items() if n in selected.keys() - {*untrained}}
        exclude = matching_patterns(untrained, all_names(others, layers))
        raise ConfigError(
            "scope",
            expected=f"{', '.join(untrained[:3])}{' and others' if untrained[3:] else ''} do not "
            "train (frozen, or in no optimizer), and pruned weights need training to recover",
            hint=f"exclude {json.dumps(exclude)}, or allow them: Scope(…, frozen=True)",
        )
    return DefaultScope(selected, untrained=untrained)


def _all(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def _outside_layers(
    model: nn.Module, named: Mapping[str, nn.Parameter], layers: Mapping[int, LayerWeight]
) -> dict[str, str]:
    """Return name → reason for parameters held by no layer, and for weights tied to such a one."""
    modules = {
        name.replace("_orig_mod.", "").removesuffix("_orig_mod").removesuffix("."): module
        for name, module in model.named_modules(remove_duplicate=False)
    }
    kinds: dict[str, str] = {}
    for name, parameter in named.items():
        owner = modules[name.rpartition(".")[0]]
        if id(parameter) not in layers or not holds_layer_weights(owner):
            kinds[name] = _kind(owner)
    outside = {id(named[name]): kind for name, kind in kinds.items()}
    tied = {
        name: _TIED.get(outside[id(parameter)], "tied to another module")
        for name, parameter in named.items()
        if id(parameter) in layers and id(parameter) in outside
    }
    return tied | kinds


def _kind(module: nn.Module) -> str:
    """Return what a module that is no layer is called in the list of what stays dense."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    return "norm" if "Norm" in type(module).__name__ else NO_WEIGHT


def _heads(candidates: Sequence[LayerWeight], trace: LayerTrace | None) -> dict[int, str]:
    """Return ``id(parameter)`` → reason for the output heads among the weights of a network."""
    last_of = {id(weight.layer): weight for weight in candidates}  # the last weight of each layer
    outputs = trace.outputs(last_of.keys()) if trace else set[int]()
    if not (trace and outputs):
        return {id(weight.parameter): LAST_LAYER for weight in candidates[-1:]}
    heads = {id(last_of[layer].parameter): OUTPUT_LAYER for layer in outputs}
    unused = [weight for layer, weight in last_of.items() if layer not in trace.used]
    return heads | {id(weight.parameter): UNUSED_LAYER for weight in unused[-1:]}


def _part_reason(name: str, weight: LayerWeight) -> str | None:
    """Return why a part of a parametrized weight is not pruned; None if it is."""
    return f"scale of {computed_name(name, weight)}" if weight.is_scale else weight.unprunable


def _equivalent_scope(
    named: Mapping[str, nn.Parameter],
    included: Mapping[str, nn.Parameter],
    layers: Mapping[int, LayerWeight],
) -> Scope:
    """Return the shortest `Scope` that selects what is included, by listing it or the others."""
    ids = {id(parameter) for parameter in included.values()}
    inside = {name: p for name, p in named.items() if id(p) in ids}
    outside = {name: p for name, p in named.items() if id(p) not in ids}
    include = matching_patterns(inside, all_names(outside, layers))
    exclude = matching_patterns(outside, all_names(inside, layers))
    if len(include) <= len(exclude) + 1:
        return Scope(include=include)
    return Scope(include=["*"], exclude=exclude)


def _nothing_to_prune(excluded: Mapping[str, str]) -> ConfigError:
    """Return the error for a model of which nothing would be pruned; its hint names tensors."""
    reasons = [f"{name} ({reason})" for name, reason in excluded.items()]
    more = f" and {len(reasons) - 5} more" if reasons[5:] else ""
    listed = list(excluded)[:5]
    heads = [n for n in listed if excluded[n].startswith("output head")]
    trained = [n for n in listed if excluded[n] in (ADAPTER, NO_WEIGHT, "embedding")]
    frozen = [n for n in listed if excluded[n].startswith(NOT_TRAINED)]
    names = heads or trained or frozen
    hint = "give the module a layer, or a scope with its own parameters"
    if names:
        scope = Scope(include=names, frozen=not (heads or trained))
        hint = f"say what may be pruned, for example {scope.as_code()}"
    return ConfigError(
        "scope",
        expected=f"no layer to prune found (excluded: {', '.join(reasons[:5]) or 'nothing'}{more})",
        hint=hint,
    )
