"""Kernel of a sparse matrix times a tile: the loop that everything else serves."""

from __future__ import annotations

from kd_prune.inference.jit.emitter import (
    FLOAT,
    INT,
    INT16,
    INT32,
    POINTER,
    Emitter,
    Program,
    Value,
)
from kd_prune.inference.layout import Matrix

UNROLL = 2


def write(program: Program, width: int) -> None:
    """Write ``rows_<width>(matrix, input, output, residual, rows, panels)``.

    For the rows and panels given as ``first, end`` each: output = matrix · input + bias, plus the
    residual (a tile, or null). Panels are added in order, and panel 0 begins the sum, so that each
    output is the same sum in the same order however the rows are shared among threads.

    Per weight: its column, the weight broadcast, and `width` multiply-adds with a row of the input,
    which stays in the first-level cache while the panel's weights of all rows are used.
    """
    arguments = [POINTER] * 4 + [INT] * 4
    with program.function(f"rows_{width}", *arguments) as (emit, values):
        matrix, tile, output, residual, first_row, end_row, first_panel, end_panel = values
        starts = emit.load_pointer(matrix, Matrix.STARTS)
        columns = emit.load_pointer(matrix, Matrix.COLUMNS)
        weights = emit.load_pointer(matrix, Matrix.VALUES)
        bias = emit.load_pointer(matrix, Matrix.BIAS)
        rows = emit.load(matrix, Matrix.ROWS)

        def row(number: Value, panel: Value | None, initial: Value) -> None:
            where = number if panel is None else panel * rows + number
            start, end = (emit.load(starts, where + step, INT32) for step in (0, 1))
            total = emit.variable(initial)
            even = start + ((end - start) & -UNROLL)
            for first in emit.range(start, even, UNROLL):
                total.set(products(emit, first, UNROLL, total.get()))
            for first in emit.range(even, end):
                total.set(products(emit, first, 1, total.get()))
            emit.store(total.get(), output, number * width)

        def products(emit: Emitter, first: Value, count: int, total: Value) -> Value:
            for step in range(count):
                column = emit.load(columns, first + step, INT16)
                weight = emit.load(weights, first + step, FLOAT)
                inputs = emit.load_vector(tile, column * width, width)
                total = emit.multiply_add(weight, inputs, total)
            return total

        with emit.when(first_panel.equals(0)):
            with emit.choice(emit.is_null(residual)) as (without, with_residual):
                with without:
                    for number in emit.range(first_row, end_row):
                        row(number, None, emit.vector(emit.load(bias, number, FLOAT), width))
                with with_residual:
                    for number in emit.range(first_row, end_row):
                        before = emit.load_vector(residual, number * width, width)
                        row(number, None, before + emit.load(bias, number, FLOAT))
        for panel in emit.range(emit.maximum(first_panel, 1), end_panel):
            for number in emit.range(first_row, end_row):
                row(number, panel, emit.load_vector(output, number * width, width))


def boundary(emit: Emitter, matrix: Value, part: Value, parts: Value) -> Value:
    """Return the row at which a part of the rows begins; parts have about equal work."""
    work = emit.load_pointer(matrix, Matrix.WORK)
    rows = emit.load(matrix, Matrix.ROWS)
    wanted = emit.load(work, rows, INT32) * part // parts
    low, high = emit.variable(0), emit.variable(rows)
    for _ in emit.range(0, 32):  # halves the range of rows, whose number has 32 bits
        middle = (low.get() + high.get()) // 2
        below = emit.load(work, middle, INT32) < wanted
        low.set(emit.select(below, emit.minimum(middle + 1, rows), low.get()))
        high.set(emit.select(below, high.get(), middle))
    return low.get()
