"""Coding of one tensor: positions and values of a sparse matrix, or int8 rows of an embedding.

A coded tensor is a few small tensors in place of ``weight``, told apart by their suffix:

==================  ========  ====================================================================
``_bitmask``        uint8     one bit per element in row-major order, first element in the highest
                              bit; unused bits of the last byte are 0
``_gaps``           uint8     the zeros before each stored element, and before the end: 0 … 254 is
                              a gap, 255 stands for 255 zeros that a further byte continues
``_values``         floating  the stored elements, in row-major order
``_shape``          int64     shape of the matrix
``_int8``           int8      rows, rounded
``_scale``          float32   one factor per row
==================  ========  ====================================================================

A matrix has `_bitmask` or `_gaps`, whichever takes fewer bytes: gaps below a density of about 1/8.
Reading is bit-equal, NaN and infinities included, but for −0.0, which becomes 0.0: multiplying a
weight by a mask leaves −0.0 in place of a negative one, and storing those would double the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BITMASK, GAPS, VALUES, SHAPE = "_bitmask", "_gaps", "_values", "_shape"
INT8, SCALE = "_int8", "_scale"
SPARSE = frozenset({BITMASK, GAPS, VALUES, SHAPE})
ROWS = frozenset({INT8, SCALE})
SUFFIXES = (BITMASK, GAPS, VALUES, SHAPE, INT8, SCALE)
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ESCAPE = 255
MAX_DIMENSIONS = 8


class CodingError(ValueError):
    """Parts that are no coded tensor: one is missing, or they contradict each other."""


def encode(tensor: Tensor) -> dict[str, Tensor]:
    """Return the parts of a sparse tensor, suffix → part; positions take the smaller form.

    Args:
        tensor: A floating tensor of one dimension or more, on the CPU.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    stored = flat != 0
    positions = stored.nonzero().squeeze(1)
    parts = {
        VALUES: flat[positions].clone(),
        SHAPE: torch.tensor(tensor.shape, dtype=torch.int64),
    }
    gaps = to_gaps(positions, flat.numel())
    if gaps.numel() < math.ceil(flat.numel() / 8):
        return {GAPS: gaps, **parts}
    return {BITMASK: to_bitmask(stored), **parts}


def decode(parts: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Return the dense tensor of some parts, on their device.

    Args:
        parts: Suffix → part, as `encode` or `encode_rows` returns them.
        dtype: Type of the result; None: that of the stored values.

    Raises:
        CodingError: The parts contradict each other; raised before the tensor is allocated.
    """
    check(parts)
    if INT8 in parts:
        dense = parts[INT8].to(torch.float32) * parts[SCALE].unsqueeze(1)
        return dense.to(dtype or torch.float32)
    values = parts[VALUES] if dtype is None else parts[VALUES].to(dtype)
    shape = tuple(parts[SHAPE].tolist())
    dense = torch.zeros(math.prod(shape), dtype=values.dtype, device=values.device)
    if GAPS in parts:
        dense[positions_of_gaps(parts[GAPS])[0]] = values
    else:
        dense[bits(parts[BITMASK])[: dense.numel()]] = values
    return dense.view(shape)


def encode_rows(table: Tensor) -> dict[str, Tensor]:
    """Return the parts of a table with rows in int8, suffix → part.

    Row r becomes round(row / scale_r) with scale_r = max |row| / 127: the error of an element is at
    most half of its row's scale.

    Args:
        table: A floating matrix, rows × columns.
    """
    rows = table.detach().to(torch.float32)
    scale = rows.abs().amax(dim=1) / 127
    steps = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(1)
    return {INT8: (rows / steps).round().clamp(-127, 127).to(torch.int8), SCALE: scale}


def check(parts: Mapping[str, Tensor]) -> None:
    """Check that parts belong together, without allocating the tensor that they stand for.

    Raises:
        CodingError: A part is missing, superfluous, of another type, or contradicts another.
    """
    names = set(parts)
    if names == ROWS:
        _check_rows(parts[INT8], parts[SCALE])
    elif names in (SPARSE - {GAPS}, SPARSE - {BITMASK}):
        _check_sparse(parts)
    else:
        raise CodingError(f"has the parts {', '.join(sorted(names))}, which make no tensor")


def counts(parts: Mapping[str, Tensor]) -> tuple[tuple[int, ...], int]:
    """Return shape and number of elements that are not zero, without decoding.

    Raises:
        CodingError: As in `check`.
    """
    check(parts)
    if INT8 in parts:
        return tuple(parts[INT8].shape), int(parts[INT8].count_nonzero())
    return tuple(parts[SHAPE].tolist()), int(parts[VALUES].count_nonzero())


def to_bitmask(stored: Tensor) -> Tensor:
    """Pack booleans to bytes, the first into the highest bit.

    >>> to_bitmask(torch.tensor([True, False, False, False, False, False, False, True, True]))
    tensor([129, 128], dtype=torch.uint8)
    """
    padded = stored.new_zeros(math.ceil(stored.numel() / 8) * 8)
    padded[: stored.numel()] = stored
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=stored.device)
    return (padded.view(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)


def bits(bitmask: Tensor) -> Tensor:
    """Unpack bytes to booleans, the highest bit first."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bitmask.device)
    return (bitmask.unsqueeze(1).bitwise_right_shift(shifts) & 1).view(-1).bool()


def to_gaps(positions: Tensor, size: int) -> Tensor:
    """Code increasing positions below `size` as gaps, with one more gap up to the end.

    >>> to_gaps(torch.tensor([2, 3, 300]), 301)
    tensor([  2,   0, 255,  41,   0], dtype=torch.uint8)
    """
    ends = torch.cat([positions, positions.new_tensor([size])])
    zeros = ends.diff(prepend=ends.new_tensor([-1])) - 1
    escapes = zeros // ESCAPE
    last = (escapes + 1).cumsum(0) - 1  # index of the byte that ends each gap
    gaps = torch.full((int(last[-1]) + 1,), ESCAPE, dtype=torch.uint8, device=positions.device)
    gaps[last] = (zeros % ESCAPE).to(torch.uint8)
    return gaps


def positions_of_gaps(gaps: Tensor) -> tuple[Tensor, int]:
    """Return the positions that gaps stand for, and the size that they end at.

    >>> positions_of_gaps(torch.tensor([2, 0, 255, 41, 0], dtype=torch.uint8))
    (tensor([  2,   3, 300]), 301)
    """
    ends = gaps != ESCAPE
    steps = gaps.to(torch.int64) + ends  # an element itself takes one position
    reached = steps.cumsum(0)[ends] - 1
    return reached[:-1], int(reached[-1])


def _check_rows(rows: Tensor, scale: Tensor) -> None:
    if rows.dtype != torch.int8 or rows.ndim != 2:
        raise CodingError("has rows that are no int8 matrix")
    if scale.dtype != torch.float32 or scale.shape != rows.shape[:1]:
        raise CodingError(f"has {tuple(scale.shape)} factors for {rows.shape[0]} rows")


def _check_sparse(parts: Mapping[str, Tensor]) -> None:
    values, shape = parts[VALUES], parts[SHAPE]
    if values.dtype not in FLOATING or values.ndim != 1:
        raise CodingError("has values that are no list of numbers")
    if shape.dtype != torch.int64 or shape.ndim != 1 or not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise CodingError("has a shape that is no list of sizes")
    sizes = shape.tolist()
    if min(sizes) < 0:
        raise CodingError(f"has the shape {sizes}")
    size = math.prod(sizes)
    where = parts[GAPS] if GAPS in parts else parts[BITMASK]
    if where.dtype != torch.uint8 or where.ndim != 1:
        raise CodingError("has positions that are no list of bytes")
    stored = _count_gaps(where, size) if GAPS in parts else _count_bits(where, size)
    if stored != values.numel():
        raise CodingError(f"has {values.numel()} values for {stored} positions")


def _count_gaps(gaps: Tensor, size: int) -> int:
    """Count the elements of a list of gaps, after checking that it ends at `size`."""
    ends = gaps != ESCAPE
    if not gaps.numel() or not bool(ends[-1]):
        raise CodingError("has positions that end within a gap")
    reached = int(gaps.sum(dtype=torch.int64)) + int(ends.sum()) - 1
    if reached != size:
        raise CodingError(f"has positions that end at {reached}, and {size} elements")
    return int(ends.sum()) - 1


def _count_bits(bitmask: Tensor, size: int) -> int:
    """Count the elements of a bitmask, after checking its length and its unused bits."""
    if bitmask.numel() != math.ceil(size / 8):
        raise CodingError(f"has a bitmask of {bitmask.numel()} bytes for {size} elements")
    if size % 8 and int(bitmask[-1]) & ((1 << (8 - size % 8)) - 1):
        raise CodingError(f"has bits set beyond its {size} elements")
    counts = torch.bincount(bitmask.to(torch.int64), minlength=256)
    ones = torch.tensor([byte.bit_count() for byte in range(256)], device=bitmask.device)
    return int((counts * ones).sum())
