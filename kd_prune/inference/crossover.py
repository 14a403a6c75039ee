"""Which layers gain: dense and sparse products, timed on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from kd_prune.inference.linear import SparseLinear

TOKENS = 128
SPARSITIES = (0.8, 0.98)
REPEATS = 5


@dataclass(frozen=True)
class Costs:
    """Seconds of a layer of one shape, for 128 tokens.

    Attributes:
        dense: torch's product.
        fixed: The sparse product without weights.
        per_weight: Its time for each nonzero weight.
    """

    dense: float
    fixed: float
    per_weight: float

    def sparse(self, nonzeros: int) -> float:
        """Return the time of the sparse product."""
        return self.fixed + self.per_weight * nonzeros

    @property
    def break_even(self) -> float:
        """Return the sparsity above which the sparse product is faster, as weights per layer."""
        return (self.dense - self.fixed) / self.per_weight


def costs(layer: nn.Linear) -> Costs:
    """Return the costs of a layer's shape, measured once per process and number of threads."""
    return measure(layer.out_features, layer.in_features, torch.get_num_threads())


@cache
def measure(out_features: int, in_features: int, threads: int) -> Costs:
    """Time random layers of a shape: dense, and with two sparsities, by turns."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator)
    drawn = torch.rand(weight.shape, generator=generator)
    inputs = torch.randn(TOKENS, in_features, generator=generator)
    layers = []
    for sparsity in SPARSITIES:
        layer = nn.Linear(in_features, out_features, device="meta")
        layer.weight = nn.Parameter(weight * (drawn >= sparsity), requires_grad=False)
        layer.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False)
        layers.append(SparseLinear(layer))
    with torch.no_grad():
        calls: list[Callable[[], object]] = [lambda: F.linear(inputs, weight)]
        calls += [lambda layer=layer: layer(inputs) for layer in layers]  # type: ignore[misc]
        dense, more, less = fastest(calls)
    weights = [layer.packed.nonzeros for layer in layers]
    per_weight = max(more - less, 1e-12) / max(weights[0] - weights[1], 1)
    return Costs(dense, max(less - per_weight * weights[1], 0.0), per_weight)


def fastest(calls: list[Callable[[], object]]) -> list[float]:
    """Return the shortest time of each call, taking turns."""
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def gains(layer: nn.Linear, minimum_sparsity: float | None) -> bool:
    """Return whether a layer is faster with the sparse kernel.

    Args:
        layer: The layer.
        minimum_sparsity: Share of zeros from which it is taken to be; None measures.
    """
    nonzeros = int(layer.weight.count_nonzero())
    if minimum_sparsity is not None:
        return 1 - nonzeros / layer.weight.numel() >= minimum_sparsity
    found = costs(layer)
    return found.sparse(nonzeros) < found.dense


def all_gain(layers: list[nn.Linear], minimum_sparsity: float | None) -> bool:
    """Return whether layers that can only be converted together gain together."""
    nonzeros = [int(layer.weight.count_nonzero()) for layer in layers]
    if minimum_sparsity is not None:
        size = sum(layer.weight.numel() for layer in layers)
        return 1 - sum(nonzeros) / size >= minimum_sparsity
    found = [costs(layer) for layer in layers]
    sparse = sum(cost.sparse(count) for cost, count in zip(found, nonzeros, strict=True))
    return sparse < sum(cost.dense for cost in found)
