"""Positions and values of one tensor: bit-equal there and back, contradictions refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.export import coding

from .models import same_bits

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    density = draw(st.sampled_from([0.0, 0.002, 0.05, 0.12, 0.3, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    made = torch.randn(shape, generator=generator)
    made[torch.rand(shape, generator=generator) >= density] = 0.0
    for value in (-0.0, math.nan, math.inf, 1e-45):
        if made.numel() and draw(st.booleans()):
            made.view(-1)[draw(st.integers(0, made.numel() - 1))] = value
    return made.to(draw(st.sampled_from(DTYPES)))


@given(tensors())
def test_decode_of_encode_is_bit_equal(tensor):
    parts = coding.encode(tensor)
    assert same_bits(coding.decode(parts), torch.where(tensor == 0, 0.0, tensor))  # −0.0 is 0.0
    shape, nonzero = coding.counts(parts)
    assert shape == tuple(tensor.shape)
    assert nonzero == int(tensor.count_nonzero())


@given(tensors())
def test_encode_takes_the_smaller_positions(tensor):
    parts = coding.encode(tensor)
    bitmask = math.ceil(tensor.numel() / 8)
    positions = parts.get(coding.GAPS, parts.get(coding.BITMASK))
    assert positions.numel() <= bitmask
    assert (coding.GAPS in parts) == (positions.numel() < bitmask)


@given(tensors())
def test_bitmask_is_that_of_numpy(tensor):
    stored = tensor.reshape(-1) != 0
    found = coding.to_bitmask(stored)
    assert found.tolist() == np.packbits(stored.numpy()).tolist()
    assert torch.equal(coding.bits(found)[: stored.numel()], stored)


@given(tensors())
def test_gaps_are_those_of_a_loop(tensor):
    positions = (tensor.reshape(-1) != 0).nonzero().squeeze(1)
    expected, before = [], -1
    for position in [*positions.tolist(), tensor.numel()]:
        zeros = position - before - 1
        expected += [255] * (zeros // 255) + [zeros % 255]
        before = position
    found = coding.to_gaps(positions, tensor.numel())
    assert found.tolist() == expected
    again, size = coding.positions_of_gaps(found)
    assert torch.equal(again, positions)
    assert size == tensor.numel()


def test_tensor_that_is_not_contiguous_is_coded_in_row_order():
    matrix = torch.eye(20)[:, :10].t()
    assert same_bits(coding.decode(coding.encode(matrix)), matrix.contiguous())


def test_rows_in_int8_err_by_half_a_step_at_most():
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    table[3] = 0.0
    found = coding.decode(coding.encode_rows(table))
    steps = table.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((found - table).abs() <= steps * 0.5001).all())
    assert bool((found[3] == 0).all())
    assert coding.decode(coding.encode_rows(table), torch.float16).dtype == torch.float16


def broken(change):
    """Parts of a matrix, changed."""
    matrix = torch.zeros(40, 50)
    matrix[::7, ::9] = 1.5
    parts = coding.encode(matrix)
    assert coding.GAPS in parts
    return parts | change(parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {coding.VALUES: p[coding.VALUES][1:]}, "35 values for 36 positions"),
        (lambda p: {coding.VALUES: p[coding.VALUES].view(1, -1)}, "no list of numbers"),
        (lambda p: {coding.VALUES: p[coding.VALUES].int()}, "no list of numbers"),
        (lambda p: {coding.GAPS: p[coding.GAPS][:-1]}, "end at"),
        (lambda p: {coding.GAPS: p[coding.GAPS][:0]}, "within a gap"),
        (lambda p: {coding.GAPS: torch.cat([p[coding.GAPS], p[coding.GAPS][:0] + 1])}, None),
        (lambda p: {coding.GAPS: torch.full((9,), 255, dtype=torch.uint8)}, "within a gap"),
        (lambda p: {coding.GAPS: p[coding.GAPS].int()}, "no list of bytes"),
        (lambda p: {coding.SHAPE: torch.tensor([2**40, 2**20])}, "end at 2000"),
        (lambda p: {coding.SHAPE: torch.tensor([-40, -50])}, "the shape"),
        (lambda p: {coding.SHAPE: torch.ones(99, dtype=torch.int64)}, "no list of sizes"),
        (lambda p: {coding.SHAPE: torch.tensor([40.0, 50.0])}, "no list of sizes"),
        (lambda p: {coding.BITMASK: p[coding.GAPS]}, "make no tensor"),
        (lambda p: {coding.INT8: p[coding.GAPS]}, "make no tensor"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(change, message):
    parts = broken(change)
    if message is None:  # unchanged: the control
        coding.check(parts)
        return
    with pytest.raises(coding.CodingError, match=message):
        coding.decode(parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {coding.BITMASK: p[coding.BITMASK][:-1]}, "bitmask of 1 bytes for 10 elements"),
        (lambda p: {coding.BITMASK: p[coding.BITMASK] | 1}, "beyond its 10 elements"),
    ],
)
def test_bitmask_of_another_size_is_refused(change, message):
    parts = coding.encode(torch.ones(2, 5))
    with pytest.raises(coding.CodingError, match=message):
        coding.check(parts | change(parts))


def test_rows_without_their_factors_are_refused():
    parts = coding.encode_rows(torch.ones(4, 3))
    with pytest.raises(coding.CodingError, match="factors for 4 rows"):
        coding.check({**parts, coding.SCALE: parts[coding.SCALE][:3]})
    with pytest.raises(coding.CodingError, match="int8 matrix"):
        coding.check({**parts, coding.INT8: parts[coding.INT8].view(-1)})
