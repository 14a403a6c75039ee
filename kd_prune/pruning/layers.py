"""LayerWeight: which parameters are the weights that layers compute with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

LAYERS = (
    nn.Linear,
    nn.Bilinear,
    _ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


@dataclass(frozen=True, kw_only=True)
class LayerWeight:
    """A parameter from which a layer's weight is made; mostly it is that weight itself.

    Attributes:
        parameter: The parameter.
        layer: The layer that computes with it.
        name: Name of the weight in the layer, as ``weight``. A parametrized layer's parameter has
            another name: ``parametrizations.weight.original1``.
        unprunable: Why zeros in the parameter are no zeros of the weight; None if they are.
        is_scale: Whether it only rescales the weight (the length in a weight norm).
        divided_by_norm: Whether the layer divides by the norm of the parameter, or of each of its
            slices along `norm_dim`, so that none of them may be zero altogether.
        norm_dim: The dimension of these slices; None: the whole tensor is one.
        experts: Whether the first dimension counts experts, each with a matrix of its own.
        transposed: Whether matrices are (input, output); told for experts only.
    """

    parameter: nn.Parameter
    layer: nn.Module
    name: str
    unprunable: str | None = None
    is_scale: bool = False
    divided_by_norm: bool = False
    norm_dim: int | None = None
    experts: bool = False
    transposed: bool = False


def layer_weights(model: nn.Module) -> dict[int, LayerWeight]:
    """Return ``id(parameter)`` → weight of a layer, for all layers of `model`.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm([2, 2]))
    >>> [weight.layer for weight in layer_weights(model).values()]
    [Linear(in_features=2, out_features=2, bias=True)]
    """
    found: dict[int, LayerWeight] = {}
    for module in model.modules():
        for weight in _weights(module):
            found.setdefault(id(weight.parameter), weight)
    return found


def holds_layer_weights(module: nn.Module) -> bool:
    """Return whether parameters of the module itself may be weights of a layer."""
    return (
        _is_layer(module)
        or isinstance(module, ParametrizationList)
        or next(_expert_weights(module), None) is not None
    )


def _weights(module: nn.Module) -> Iterator[LayerWeight]:
    if not _is_layer(module):
        yield from _expert_weights(module)
        return
    own = dict(module.named_parameters(recurse=False))
    for name, parameter in own.items():
        if parameter.ndim < 2 or "weight" not in name:
            continue
        # Before `parametrize`, torch's norms kept their parts in the layer itself.
        base, _, part = name.rpartition("_")
        if part in ("g", "v") and {f"{base}_g", f"{base}_v"} <= own.keys():
            dim = _first_long_dim(own[f"{base}_g"])
            yield LayerWeight(
                parameter=parameter,
                layer=module,
                name=base,
                is_scale=part == "g",
                divided_by_norm=part == "v",
                norm_dim=dim if part == "v" else None,
            )
        elif part == "orig":
            spectral = hasattr(module, f"{base}_u")
            yield LayerWeight(
                parameter=parameter, layer=module, name=base, divided_by_norm=spectral
            )
        else:
            yield LayerWeight(parameter=parameter, layer=module, name=name)
    for name, parametrization in getattr(module, "parametrizations", {}).items():
        if "weight" in name:
            yield from _parametrized(module, name, parametrization)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' Conv1D, GPT-2's linear layer, or derived from it.

    Its weight is (input, output), and `nf` its number of outputs. transformers is not imported
    here.
    """
    return hasattr(module, "nf") and "Conv1D" in (kind.__name__ for kind in type(module).__mro__)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) or is_conv1d(module)


def _first_long_dim(scale: Tensor) -> int | None:
    """Return the dimension along which a weight norm has several lengths; None: it has one."""
    return next((dim for dim, size in enumerate(scale.shape) if size > 1), None)


def _parametrized(
    layer: nn.Module, name: str, parametrization: nn.ModuleList
) -> Iterator[LayerWeight]:
    """Yield the parameters of a parametrized weight, tried out with zeros in them.

    The weight is a function of one tensor or more. Of those that have its shape and in which zeros
    are zeros of the weight, the last is pruned: a weight norm's direction follows its length.
    """
    originals = dict(parametrization.named_parameters(recurse=False))
    kind = " and ".join(type(step).__name__.lstrip("_") for step in parametrization)
    trials = {
        key: _Trial.of(parametrization, originals, key)
        for key, parameter in originals.items()
        if parameter.ndim >= 2 and parameter.is_floating_point() and parameter.numel()
    }
    chosen = next((key for key in reversed(trials) if trials[key].carries_zeros), None)
    for key, trial in trials.items():
        if key == chosen:
            yield LayerWeight(
                parameter=originals[key],
                layer=layer,
                name=name,
                divided_by_norm=trial.divided_by_norm,
                norm_dim=trial.norm_dim,
            )
        elif chosen:
            yield LayerWeight(parameter=originals[key], layer=layer, name=name, is_scale=True)
        else:
            reason = f"zeros in it are no zeros of the weight that {kind} makes of it"
            if trial.problem:
                reason = f"{kind} cannot be tried out with zeros in it ({trial.problem})"
            yield LayerWeight(parameter=originals[key], layer=layer, name=name, unprunable=reason)


@dataclass(frozen=True)
class _Trial:
    """What zeros in one of a parametrization's tensors do to the weight that it computes."""

    carries_zeros: bool = False
    divided_by_norm: bool = False
    norm_dim: int | None = None
    problem: str = ""

    @classmethod
    def of(
        cls, parametrization: nn.ModuleList, originals: dict[str, nn.Parameter], key: str
    ) -> _Trial:
        """Compute the weight for values with zeros in various places; nothing is changed."""
        shape, device = originals[key].shape, originals[key].device
        # No two values are alike, and none is zero.
        index = torch.arange(originals[key].numel(), device=device)
        values = (1 + torch.sin(index.float()) / 2).to(originals[key].dtype).view(shape)
        # Drawn, because a regular pattern may be the parametrization's own (a symmetric one's).
        draws = torch.rand(len(index), generator=torch.Generator().manual_seed(0))
        half = (draws < 0.5).view(shape).to(device)

        def plain_ones(like: Tensor) -> Tensor:  # not sharded, whatever the parameter is
            return torch.ones(like.shape, dtype=like.dtype, device=like.device)

        def weight(tensor: Tensor) -> Tensor:
            inputs = [tensor if k == key else plain_ones(p) for k, p in originals.items()]
            first, *others = parametrization
            result = first(*inputs)
            for step in others:
                result = step(result)
            return result if isinstance(result, Tensor) else torch.empty(0)

        def keeps_zeros(zeroed: Tensor) -> bool:
            result = weight(values.masked_fill(zeroed, 0))
            # A slice without a weight left is NaN in a weight norm.
            return not bool(((result != 0) & ~result.isnan() & zeroed).any())

        def is_nan(zeroed: Tensor) -> bool:
            return bool(weight(values.masked_fill(zeroed, 0)).isnan().any())

        def slice_is_nan(dim: int) -> bool:
            first = torch.zeros(shape, dtype=torch.bool, device=device)
            first.select(dim, 0).fill_(True)
            return shape[dim] > 1 and is_nan(first)

        modes = {module: module.training for module in parametrization.modules()}
        try:
            # In training, a spectral norm changes its buffers at every call.
            parametrization.eval()
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                if weight(values).shape != shape or not bool((weight(values) != 0).any()):
                    return cls()
                carries = keeps_zeros(half) and keeps_zeros(~half)
                everything = torch.ones(shape, dtype=torch.bool, device=device)
                dim = next(filter(slice_is_nan, range(len(shape))), None)
                return cls(carries, is_nan(everything), dim)
        except Exception as error:  # a parametrization of the user's own may raise anything
            return cls(problem=f"{type(error).__name__}: {error}".splitlines()[0][:120])
        finally:
            for module, mode in modes.items():
                module.training = mode


def _expert_weights(module: nn.Module) -> Iterator[LayerWeight]:
    """Yield three-dimensional weights (expert, output, input) of a mixture of experts."""
    named = "expert" in type(module).__name__.lower()
    counts = {
        value for key, value in vars(module).items() if "expert" in key and isinstance(value, int)
    }
    weights = {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and "bias" not in name
        if parameter.shape[0] > 1 and (named or parameter.shape[0] in counts)
    }
    transposed = _are_transposed(module, list(weights.values()))
    for name, parameter in weights.items():
        yield LayerWeight(
            parameter=parameter, layer=module, name=name, experts=True, transposed=transposed
        )


def _are_transposed(module: nn.Module, weights: list[nn.Parameter]) -> bool:
    """Return whether experts compute ``x @ W``: told by transformers, or by the widths of two."""
    if isinstance(told := getattr(module, "is_transposed", None), bool):
        return told
    if len(weights) < 2:
        return False
    (_, first_rows, first_columns), (_, last_rows, last_columns) = (
        weights[0].shape,
        weights[-1].shape,
    )
    # The first takes what the last gives; gated experts give twice as much as the last takes.
    as_linear = first_columns == last_rows and first_rows in (last_columns, 2 * last_columns)
    as_product = first_rows == last_columns and first_columns in (last_rows, 2 * last_rows)
    return as_product and not as_linear


def computed_name(name: str, weight: LayerWeight) -> str:
    """Return the name of the layer's weight that is made of the parameter `name`.

    >>> weight = layer_weights(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    >>> computed_name("0.parametrizations.weight.original1", next(iter(weight.values())))
    '0.weight'
    """
    layer = name.rpartition(".")[0].removesuffix(f"parametrizations.{weight.name}")
    return ".".join(filter(None, (layer.removesuffix("."), weight.name)))
