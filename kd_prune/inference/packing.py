"""Packed matrices: the nonzero weights in the order in which the kernel uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_prune.errors import ConfigError
from kd_prune.inference.layout import PANEL

MOST_COLUMNS = 2**16
ROW_WORK = 8
"""What beginning and ending a row of a panel costs, in weights."""


@dataclass
class PackedMatrix:
    """The nonzero weights of a matrix, panel by panel, and within a panel row by row.

    A panel is `PANEL` neighbouring inputs. 6 bytes a weight: column and value.

    Attributes:
        starts: Index of the first weight of every (panel, row), and the end; 32 bits.
        columns: Column of every weight, 16 bits without sign.
        values: The weights, float32.
        bias: A number per row; zeros where the layer has none.
        in_features, out_features: Shape of the matrix, ``[out_features, in_features]``.
        work: Cost of the rows before each row, and of all: how rows are shared.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor
    in_features: int
    out_features: int
    work: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Compute `work`: not at the first call, which several threads may make together."""
        counts = self.starts.diff().view(self.panels, self.out_features).sum(0)
        rows = torch.arange(self.out_features + 1, dtype=torch.int64) * ROW_WORK * self.panels
        rows[1:] += counts.cumsum(0)
        self.work = rows.to(torch.int32)

    @property
    def nonzeros(self) -> int:
        """Return the number of weights that are kept."""
        return self.values.numel()

    @property
    def sparsity(self) -> float:
        """Return the share of zeros."""
        return 1 - self.nonzeros / max(1, self.in_features * self.out_features)

    @property
    def steps(self) -> int:
        """Return the number of multiply-adds per token that a product takes."""
        return self.values.numel()

    @property
    def panels(self) -> int:
        """Return the number of panels, at least one."""
        return max(1, -(-self.in_features // PANEL))

    @cached_property
    def record(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the kernel's description of the matrix; valid as long as this object."""
        tensors = (self.starts, self.columns, self.values, self.bias, self.work)
        addresses = [tensor.data_ptr() for tensor in tensors]
        numbers = [*addresses, self.out_features, self.panels, *self.int8_addresses]
        return np.array(numbers, dtype=np.int64)

    @property
    def int8_addresses(self) -> list[int]:
        """Return the addresses that only an int8 matrix has."""
        return [0, 0]

    def dense(self) -> Tensor:
        """Return the matrix with its zeros."""
        counts = self.starts.diff().view(self.panels, self.out_features)
        rows = torch.arange(self.out_features).repeat(self.panels)
        rows = rows.repeat_interleave(counts.flatten().long())
        matrix = torch.zeros(self.out_features, self.in_features, dtype=torch.float32)
        matrix[rows, self.columns.view(torch.uint16).long()] = self.values
        return matrix

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without addresses, for copies and pickles."""
        return {name: value for name, value in vars(self).items() if name != "record"}


def pack(layers: Sequence[nn.Linear]) -> PackedMatrix:
    """Pack layers that have the same input as one matrix, their outputs one after the other.

    Raises:
        ConfigError: The layers have more inputs than a 16-bit column can name.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    out_features, in_features = weight.shape
    if in_features > MOST_COLUMNS:
        raise ConfigError("in_features", in_features, f"expected at most {MOST_COLUMNS}")
    counts, columns, values = [], [], []
    for first in range(0, max(in_features, 1), PANEL):
        panel = weight[:, first : first + PANEL]
        kept = panel != 0
        counts.append(kept.sum(1))
        columns.append(kept.nonzero()[:, 1] + first)
        values.append(panel[kept])
    ends = torch.cat(counts).cumsum(0)
    return PackedMatrix(
        starts=torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
        columns=torch.cat(columns).to(torch.uint16).view(torch.int16),
        values=torch.cat(values).float(),
        bias=biases(layers),
        in_features=in_features,
        out_features=out_features,
    )


def biases(layers: Sequence[nn.Linear]) -> Tensor:
    """Return the biases of layers one after the other; zeros where a layer has none."""
    found = [
        layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        for layer in layers
    ]
    return torch.cat(found).float()
