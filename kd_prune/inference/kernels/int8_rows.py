"""Kernel of a matrix of int8 blocks times a quantized tile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kd_prune.inference.jit.emitter import (
    FLOAT,
    INT,
    INT16,
    INT32,
    POINTER,
    Emitter,
    Program,
    Value,
    Variable,
)
from kd_prune.inference.layout import GROUP_ROWS, Matrix

PAIRS = {
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}
"""VPMADDUBSW and VPMADDWD by the words in a register."""


def write(program: Program, width: int) -> None:
    """Write ``int8_rows_<width>(matrix, quantized, output, residual, rows, groups)``.

    As ``rows_<width>``, with the rows and groups given as ``first, end`` each. Per group and row,
    (Σ w · q · step - step · zero · Σ w) · scale is added to the output. Σ w · q is a sum of
    integers below 2³¹, and as exact in any order.

    Per block: its column, four weights in one word that is broadcast, and an instruction for each
    register of the tile, which adds four products to the sum of each of its tokens.
    """
    arguments = [POINTER] * 4 + [INT] * 4
    with program.function(f"int8_rows_{width}", *arguments) as (emit, values):
        matrix, quantized, output, residual, first_row, end_row, first_group, end_group = values
        kernel = _Kernel(program, emit, width, matrix, output)
        with emit.when(first_group.equals(0)):
            group = kernel.group(quantized, emit.integer(0))
            with emit.choice(emit.is_null(residual)) as (without, with_residual):
                with without:
                    for row in emit.range(first_row, end_row):
                        kernel.write_row(group, row, bias=emit.load(kernel.bias, row, FLOAT))
                with with_residual:
                    for row in emit.range(first_row, end_row):
                        before = emit.offset(residual, row * width)
                        kernel.write_row(group, row, before, emit.load(kernel.bias, row, FLOAT))
        for number in emit.range(emit.maximum(first_group, 1), end_group):
            group = kernel.group(quantized, number)
            for row in emit.range(first_row, end_row):
                kernel.write_row(group, row, emit.offset(output, row * width))


@dataclass(frozen=True)
class _Group:
    """Input features that were quantized together, with a step and a zero per token.

    Attributes:
        number: Which it is.
        rows: Where its rows begin.
        steps, offsets: Step and -step · zero of every token, in registers.
    """

    number: Value
    rows: Value
    steps: list[Value]
    offsets: list[Value]


class _Kernel:
    """Writes the parts of the kernel."""

    def __init__(
        self, program: Program, emit: Emitter, width: int, matrix: Value, output: Value
    ) -> None:
        self.program, self.emit, self.width, self.output = program, emit, width, output
        self.lanes = program.lanes
        self.places = range(0, width, program.lanes)
        self.starts = emit.load_pointer(matrix, Matrix.STARTS)
        self.columns = emit.load_pointer(matrix, Matrix.COLUMNS)
        self.weights = emit.load_pointer(matrix, Matrix.VALUES)
        self.bias = emit.load_pointer(matrix, Matrix.BIAS)
        self.scales = emit.load_pointer(matrix, Matrix.SCALES)
        self.sums = emit.load_pointer(matrix, Matrix.SUMS)
        self.rows = emit.load(matrix, Matrix.ROWS)

    @cached_property
    def chains(self) -> int:
        """Return the sums that run side by side, so that blocks need not wait for each other."""
        return 1 if len(self.places) >= 4 else 2

    def group(self, quantized: Value, number: Value) -> _Group:
        """Write: load what all rows need of a group."""
        emit = self.emit
        rows = emit.offset(quantized, number * (GROUP_ROWS * self.width))
        steps = [emit.load_vector(rows, place, self.lanes) for place in self.places]
        offsets = [emit.load_vector(rows, self.width + place, self.lanes) for place in self.places]
        return _Group(number, rows, steps, offsets)

    def write_row(
        self, group: _Group, row: Value, before: Value | None = None, bias: Value | None = None
    ) -> None:
        """Write code: output = row · group + `before` + `bias`, for every token."""
        emit = self.emit
        where = group.number * self.rows + row
        totals = self._products(group.rows, where)
        scale = emit.load(self.scales, row, FLOAT)
        weights = emit.load(self.sums, where, FLOAT)
        for number, place in enumerate(self.places):
            begin = emit.vector(0.0, self.lanes)
            if before is not None:
                begin = emit.load_vector(before, place, self.lanes)
            if bias is not None:
                begin = begin + bias
            products = emit.as_float(totals[number])
            offset = group.offsets[number] * weights
            value = emit.multiply_add(products, group.steps[number], offset, fused=True)
            value = emit.multiply_add(value, scale, begin, fused=True)
            emit.store(value, self.output, row * self.width + place)

    def _products(self, inputs: Value, where: Value) -> list[Value]:
        """Write the loop over the blocks of a row; return Σ w · q, a register each."""
        emit, chains = self.emit, self.chains
        start, end = (emit.load(self.starts, where + step, INT32) for step in (0, 1))
        none = emit.vector(0, self.lanes, INT32)
        sums = [[emit.variable(none) for _ in self.places] for _ in range(chains)]
        whole = start + (end - start) // chains * chains
        for first in emit.range(start, whole, chains):
            for number, chain in enumerate(sums):
                self._block(inputs, first + number, chain)
        if chains > 1:
            for index in emit.range(whole, end):
                self._block(inputs, index, sums[0])
        totals = [total.get() for total in sums[0]]
        for chain in sums[1:]:
            totals = [total + more.get() for total, more in zip(totals, chain, strict=True)]
        return totals

    def _block(self, inputs: Value, index: Value, chain: list[Variable]) -> None:
        """Write: the products of a block with every token, added to a chain of sums."""
        emit = self.emit
        column = emit.load(self.columns, index, INT16)
        word = emit.load_vector(self.weights, index, 1, INT32)
        four = emit.shuffle(word, word, [0] * self.lanes)
        row = emit.offset(inputs, column * self.width)
        for place, total in zip(self.places, chain, strict=True):
            quantized = emit.load_vector(row, place, self.lanes, INT32)
            total.set(self.dot(total.get(), quantized, four))

    def dot(self, total: Value, inputs: Value, weights: Value) -> Value:
        """Return sums plus the products of four inputs and weights in the bytes of words."""
        emit, kind = self.emit, total.llvm.type
        if self.program.int8 == "VPDPBUSD":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * kind.count}"
            return emit.instruction(name, kind, [total, inputs, weights])
        names = PAIRS[kind.count]
        ones = emit.vector(1, 2 * kind.count, INT16)
        factors = [emit.as_bytes(inputs), emit.as_bytes(weights)]
        pairs = emit.instruction(names[0], ones.llvm.type, factors)
        return total + emit.instruction(names[1], kind, [pairs, ones])
