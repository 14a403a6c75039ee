"""Which layers gain: dense and sparse products, timed on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from kd_prune.inference.linear import SparseLinear
from kd_prune.inference.quantized import count_blocks, suits_int8

TOKENS = 128
SPARSITIES = (0.8, 0.98)
REPEATS = 5


@dataclass(frozen=True)
class Costs:
    """Seconds of a layer of one shape, for 128 tokens.

    Attributes:
        dense: torch's product.
        fixed: The sparse product without weights.
        per_step: Its time for each nonzero weight, or block of an int8 matrix.
    """

    dense: float
    fixed: float
    per_step: float

    def sparse_time(self, steps: int) -> float:
        """Return the estimated seconds of a sparse product of `steps` weights or blocks."""
        return self.fixed + self.per_step * steps


@cache
def measure(out_features: int, in_features: int, threads: int, int8: bool = False) -> Costs:
    """Time random layers of a shape: dense, and with two sparsities, by turns.

    Measured once per process and number of threads.
    """
    generator = torch.Generator().manual_seed(0)
    shape, dtype = (out_features, in_features), torch.float32  # whatever torch's default is
    weight = torch.randn(shape, generator=generator, dtype=dtype)
    drawn = torch.rand(shape, generator=generator, dtype=dtype)
    inputs = torch.randn(TOKENS, in_features, generator=generator, dtype=dtype)
    layers = []
    for sparsity in SPARSITIES:
        layer = nn.Linear(in_features, out_features, device="meta")
        layer.weight = nn.Parameter(weight * (drawn >= sparsity), requires_grad=False)
        layer.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype), requires_grad=False)
        layers.append(SparseLinear(layer, int8=int8))
    with torch.no_grad():
        calls: list[Callable[[], object]] = [lambda: F.linear(inputs, weight)]
        calls += [lambda layer=layer: layer(inputs) for layer in layers]  # type: ignore[misc]
        dense, more, less = fastest(calls)
    steps = [layer.packed.steps for layer in layers]
    per_step = max(more - less, 1e-12) / max(steps[0] - steps[1], 1)
    return Costs(dense, max(less - per_step * steps[1], 0.0), per_step)


def fastest(calls: list[Callable[[], object]]) -> list[float]:
    """Return the shortest time of each call, taking turns."""
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Choice:
    """What is converted, and to what.

    Attributes:
        minimum_sparsity: Share of zeros from which a layer is converted; None: where that gains.
        int8: Whether layers with enough blocks of zeros are rounded to int8.
    """

    minimum_sparsity: float | None = None
    int8: bool = False

    def in_int8(self, layers: Sequence[nn.Linear]) -> bool:
        """Return whether layers with the same input become an int8 matrix, if converted."""
        return self.int8 and all(suits_int8(layer.weight) for layer in layers)

    def gains(self, matrices: Sequence[Sequence[nn.Linear]]) -> bool:
        """Return whether layers that can only be converted together are to be.

        Args:
            matrices: The layers, those together that become one matrix.
        """
        layers = [layer for matrix in matrices for layer in matrix]
        if self.minimum_sparsity is not None:
            size = sum(layer.weight.numel() for layer in layers)
            nonzeros = sum(int(layer.weight.count_nonzero()) for layer in layers)
            return 1 - nonzeros / size >= self.minimum_sparsity
        sparse = dense = 0.0
        for matrix in matrices:
            int8 = self.in_int8(matrix)
            for layer in matrix:
                costs = measure(*layer.weight.shape, torch.get_num_threads(), int8)
                steps = count_blocks(layer.weight) if int8 else int(layer.weight.count_nonzero())
                sparse, dense = sparse + costs.sparse_time(steps), dense + costs.dense
        return sparse < dense
