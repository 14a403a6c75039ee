"""Int8 matrices: the 1×4 blocks that hold a nonzero weight, one scale per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_prune.errors import ConfigError
from kd_prune.inference import library
from kd_prune.inference.layout import GROUP
from kd_prune.inference.packing import PackedMatrix, biases

BLOCK = 4
"""Neighbouring inputs of a block: as many as an instruction multiplies and adds up."""
LARGEST = 127
MOST_BLOCKS = 0.5
"""Share of the blocks with a nonzero weight up to which a matrix is taken for one with zeros."""
BLOCK_COST = {"VPDPBUSD": 1.0, "VPMADDUBSW": 1.5}
"""Time of an int8 block over that of a float32 weight, by the processor's instruction: measured on
one thread for BERT-base's and MiniLM's shape with 90 to 99 % zeros."""


@dataclass
class QuantizedMatrix(PackedMatrix):
    """The blocks of four weights of a matrix that are not all zero, in int8.

    As in a `PackedMatrix`, with blocks in the place of weights: 6 bytes a block, its column and
    four weights. A panel is a group of inputs that are quantized together; columns count its rows.

    Attributes:
        values: Four weights each, the bytes of a 32-bit integer.
        scales: Per row: weight = scale · int8.
        sums: Sum of the int8 weights of every (panel, row), float32.
    """

    scales: Tensor
    sums: Tensor

    @property
    def nonzeros(self) -> int:
        """Return the number of weights that are not zero."""
        return int(self.values.view(torch.int8).count_nonzero())

    @property
    def panels(self) -> int:
        """Return the number of panels, at least one."""
        return max(1, -(-self.in_features // GROUP))

    @property
    def int8_addresses(self) -> list[int]:
        """Return the addresses of scales and sums, which only an int8 matrix has.

        Raises:
            ConfigError: The processor has no instruction for int8.
        """
        instruction()
        return [self.scales.data_ptr(), self.sums.data_ptr()]

    def integers(self) -> Tensor:
        """Return the matrix of int8, with its zeros."""
        counts = self.starts.diff().view(self.panels, self.out_features).flatten().long()
        places = torch.arange(self.panels * self.out_features).repeat_interleave(counts)
        columns = self.columns.view(torch.uint16).long() - 2
        columns += places // self.out_features * (GROUP // BLOCK)
        blocks = torch.zeros(self.out_features, -(-self.in_features // BLOCK), dtype=torch.int32)
        blocks[places % self.out_features, columns] = self.values
        return blocks.view(torch.int8)[:, : self.in_features].contiguous()

    def dense(self) -> Tensor:
        """Return the matrix with its zeros, in float32."""
        return self.integers() * self.scales[:, None]


def instruction() -> str:
    """Return the processor's instruction for products of int8.

    Raises:
        ConfigError: It has none that the kernels know.
    """
    target = library.kernels().target
    if not target.int8:
        raise ConfigError("int8", True, f"there is no kernel for this processor ({target.vectors})")
    return target.int8


def count_blocks(weight: Tensor) -> int:
    """Return the number of 1×4 blocks of a matrix that hold a nonzero weight."""
    nonzero = F.pad(weight.detach() != 0, (0, -weight.shape[1] % BLOCK))
    return int(nonzero.contiguous().view(torch.int32).count_nonzero())


def suits_int8(weight: Tensor) -> bool:
    """Return whether int8 is faster for a matrix: few of its 1×4 blocks hold a weight.

    Half of the blocks are empty, the others take no longer than their weights in float32, all
    weights are finite, and the processor has an instruction for int8.
    """
    cost = BLOCK_COST.get(library.kernels().target.int8)
    if cost is None or not weight.isfinite().all():
        return False
    blocks, weights = count_blocks(weight), int(weight.count_nonzero())
    return blocks * BLOCK <= MOST_BLOCKS * weight.numel() and cost * blocks <= weights


def quantize(layers: Sequence[nn.Linear]) -> QuantizedMatrix:
    """Round layers that have the same input to int8, as one matrix.

    A row's scale is its largest weight by size over 127; blocks of zeros are left out.

    Raises:
        ConfigError: The processor has no instruction for int8.
    """
    instruction()
    weight = torch.cat([layer.weight.detach() for layer in layers]).float()
    out_features, in_features = weight.shape
    largest = weight.abs().amax(1) if in_features else weight.new_zeros(out_features)
    scales = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    rounded = (weight / scales[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    rounded = F.pad(rounded, (0, -in_features % BLOCK))
    counts, columns, values, sums = [], [], [], []
    for first in range(0, max(in_features, 1), GROUP):
        panel = rounded[:, first : first + GROUP].contiguous()
        blocks = panel.view(torch.int32)
        kept = blocks != 0
        counts.append(kept.sum(1))
        columns.append(kept.nonzero()[:, 1] + 2)
        values.append(blocks[kept])
        sums.append(panel.sum(1, dtype=torch.float32))
    ends = torch.cat(counts).cumsum(0)
    return QuantizedMatrix(
        starts=torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
        columns=torch.cat(columns).to(torch.int16),
        values=torch.cat(values),
        bias=biases(layers),
        in_features=in_features,
        out_features=out_features,
        scales=scales,
        sums=torch.cat(sums),
    )


def quantized_groups(matrix: PackedMatrix) -> int:
    """Return the groups of a token's inputs that a matrix reads quantized; 0 if it is not int8."""
    return matrix.panels if isinstance(matrix, QuantizedMatrix) else 0
