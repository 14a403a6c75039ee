"""Weights that stay dense for what they are: adapters of a frozen base, averages, copies."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kd_prune.pruning.layers import LayerWeight

_LORA = re.compile(r"(^|[._])lora([._]|$)", re.IGNORECASE)
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)", re.IGNORECASE)


def adapters(
    named: Mapping[str, nn.Parameter],
    layers: Mapping[int, LayerWeight],
    trained: Collection[int],
) -> set[int]:
    """Return the ids of trained layer weights that adapt a frozen layer.

    These are weights named ``lora_…`` in a module that has a frozen matrix too, and pairs of low
    rank, (r, a) and (b, r) with r < a and r < b, in a module that holds besides them only one
    frozen matrix, of these widths.

    Args:
        named: Name → parameter.
        layers: ``id(parameter)`` → weight of a layer.
        trained: Ids of the parameters that train.
    """
    weights = {name: p for name, p in named.items() if id(p) in layers and p.ndim == 2}
    frozen = {name: p for name, p in named.items() if id(p) not in trained and p.ndim == 2}
    free = {name: p for name, p in weights.items() if id(p) in trained}
    found = set[int]()
    for name, parameter in free.items():
        if match := _LORA.search(name):
            around = name[: match.start()]
            if any(other.startswith(f"{around}.") or not around for other in frozen):
                found.add(id(parameter))
    for name, base in frozen.items():
        for parent in _parents(name):
            inside = [p for other, p in free.items() if other.startswith(parent)]
            others = [n for n in frozen if n.startswith(parent) and n != name]
            if others or not inside:
                continue
            if _is_low_rank(inside, base):
                found.update(map(id, inside))
    return found


def _parents(name: str) -> Iterator[str]:
    """Yield the prefixes of the two modules around a layer, without the whole model.

    >>> list(_parents("block.0.adapted.base.weight"))
    ['block.0.adapted.', 'block.0.']
    """
    parts = name.split(".")[:-2]
    for length in (len(parts), len(parts) - 1):
        if length > 0:
            yield ".".join(parts[:length]) + "."


def _is_low_rank(pair: list[nn.Parameter], base: nn.Parameter) -> bool:
    """Return whether two weights are (r, a) and (b, r) with widths a, b of the base above r."""
    if len(pair) != 2:
        return False
    (rank, taken), (given, last) = (parameter.shape for parameter in pair)
    return rank == last and {taken, given} <= {*base.shape} and rank < min(taken, given)


def averages(model: nn.Module) -> dict[int, str]:
    """Return ``id(parameter)`` → reason for the moving averages that `model` keeps of a network.

    >>> model = nn.ModuleDict({"net": nn.Linear(2, 2)})
    >>> model["ema"] = AveragedModel(model["net"])
    >>> set(averages(model).values())
    {'moving average (AveragedModel)'}
    """
    return {
        id(parameter): "moving average (AveragedModel)"
        for module in model.modules()
        if isinstance(module, AveragedModel)
        for parameter in module.parameters()
    }


def copies(named: Mapping[str, nn.Parameter], trained: Collection[int]) -> dict[int, str]:
    """Return ``id(parameter)`` → reason for tensors that do not train and copy one that does.

    Such a tensor is named like a moving average, or its values are equal and its name ends alike.
    """
    sources: dict[str, list[str]] = {}
    for name, parameter in named.items():
        if id(parameter) in trained:
            sources.setdefault(_ending(name), []).append(name)
    found = {}
    for name, parameter in named.items():
        if id(parameter) in trained:
            continue
        for source in sources.get(_ending(name), ()):
            if named[source].shape == parameter.shape and _AVERAGE.search(name):
                found[id(parameter)] = f"not trained, by its name an average of {source}"
            elif _is_equal(named[source], parameter):
                found[id(parameter)] = f"not trained, a copy of {source}"
            else:
                continue
            break
    return found


def _ending(name: str) -> str:
    """Return the last two parts of a name, or the last one of a name with two."""
    parts = name.split(".")
    return ".".join(parts[-2:] if len(parts) > 2 else parts[-1:])


def _is_equal(one: nn.Parameter, other: nn.Parameter) -> bool:
    """Return whether plain tensors on the same device have the same values, not all equal."""
    if one.shape != other.shape or one.device != other.device or one.device.type == "meta":
        return False
    if type(one.data) is not torch.Tensor or type(other.data) is not torch.Tensor:
        return False  # a comparison of sharded tensors would have to communicate
    return torch.equal(one, other) and bool(one.detach().count_nonzero())
