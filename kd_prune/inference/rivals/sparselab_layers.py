"""SparseLab: linear layers on its sparse matrices, the rest of the model on torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from kd_prune.inference.benchmark import Batch, Engine

SPARSE = "SparseLab fp32"
LEAST_SPARSITY = 0.5
"""Share of zeros from which a layer is converted."""


class SparseLab:
    """A model whose sparse linear layers are SparseLab's product of a sparse and a dense matrix.

    It computes what `sparselab.SparseLinear` does, with given weights instead of random ones. Its
    kernels run on torch's OpenMP library, and so on as many threads as torch.

    Source: https://pypi.org/project/sparselab/ (MIT).
    """

    name = "sparselab"
    packages: tuple[str, ...] = ("sparselab",)
    install = "sparselab"
    reads_zeros = True

    def engines(
        self, model: Any, work: Sequence[Batch], threads: int
    ) -> Iterator[tuple[str, Engine]]:
        """Build the model with SparseLab's layers; none where no layer is sparse."""
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        converted = copy.deepcopy(model, shared)
        if convert(converted):
            yield SPARSE, converted


def convert(model: nn.Module) -> int:
    """Replace a model's sparse linear layers, in place; return their number."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Linear and share_of_zeros(child.weight) >= LEAST_SPARSITY:
                setattr(parent, name, SparseLabLinear(child))
                count += 1
    return count


def share_of_zeros(weight: Tensor) -> float:
    """Return the share of zeros of a weight."""
    return 1 - int(weight.count_nonzero()) / max(weight.numel(), 1)


class SparseLabLinear(nn.Module):
    """A linear layer with its weight in SparseLab's padded rows, without room for more values."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        import sparselab  # type: ignore[import-not-found, unused-ignore]

        self.bias = layer.bias
        self.product = sparselab.spmm
        with warnings.catch_warnings():  # torch calls its CSR tensors, which it reads, a beta
            warnings.simplefilter("ignore", UserWarning)
            weight = layer.weight.detach()
            self.weight = sparselab.PaddedCSR.from_dense(weight, padding_ratio=0.0)

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs of the layer."""
        columns = input.reshape(-1, input.shape[-1]).t().contiguous()
        output: Tensor = self.product(self.weight, columns).t()
        if self.bias is not None:
            output = output + self.bias
        return output.reshape(*input.shape[:-1], output.shape[-1])
