"""Kernels of attention within tiles: copies of one head, products of small matrices, softmax."""

from __future__ import annotations

from collections.abc import Iterator

from kd_prune.inference.jit.emitter import FLOAT, INT, POINTER, Emitter, Program, Value
from kd_prune.inference.kernels.elementwise import exponential

ROWS = 6
LOWEST = -3.0e38


def write(program: Program, width: int) -> None:
    """Write the kernels of attention for tiles of `width` tokens."""
    _write_gather(program, width)
    _write_scatter(program, width)
    _write_product(program, width)
    _write_softmax(program, width)
    _write_head(program, width)


def _write_gather(program: Program, width: int) -> None:
    """Write ``gather_<width>(tiles, features, feature, count, token, tokens, copy, stride, …)``.

    Copies `count` features from `feature` on, of `tokens` consecutive tokens from `token` on, which
    may lie in several tiles, into rows of `stride` floats, times ``…, scale``. Writes up to 15
    floats behind a row's end.
    """
    arguments = [POINTER, INT, INT, INT, INT, INT, POINTER, INT, FLOAT]
    with program.function(f"gather_{width}", *arguments) as (emit, values):
        tiles, features, feature, count, token, tokens, copy, stride, scale = values
        for source, begun, run in _runs(emit, tiles, features, feature, token, tokens, width):
            for row in emit.range(0, count):
                for start in emit.range(0, run, 16):
                    part = emit.load_vector(source, row * width + start, 16)
                    emit.store(part * scale, copy, row * stride + begun + start)


def _write_scatter(program: Program, width: int) -> None:
    """Write ``scatter_<width>(tiles, features, feature, count, token, tokens, copy, sums)``.

    The way back from rows of `width` floats, divided by the sum of each column; writes exactly
    the tokens that are asked for.
    """
    arguments = [POINTER, INT, INT, INT, INT, INT, POINTER, POINTER]
    with program.function(f"scatter_{width}", *arguments) as (emit, values):
        tiles, features, feature, count, token, tokens, copy, sums = values
        for target, begun, run in _runs(emit, tiles, features, feature, token, tokens, width):
            whole = run & -16
            for start in emit.range(0, whole, 16):
                scale = emit.vector(1.0, 16) / emit.load_vector(sums, begun + start, 16)
                for row in emit.range(0, count):
                    part = emit.load_vector(copy, row * width + begun + start, 16)
                    emit.store(part * scale, target, row * width + start)
            for start in emit.range(whole, run):
                scale = emit.constant_float(1.0) / emit.load(sums, begun + start, FLOAT)
                for row in emit.range(0, count):
                    number = emit.load(copy, row * width + begun + start, FLOAT)
                    emit.store(number * scale, target, row * width + start)


def _runs(
    emit: Emitter,
    tiles: Value,
    features: Value,
    feature: Value,
    token: Value,
    tokens: Value,
    width: int,
) -> Iterator[tuple[Value, Value, Value]]:
    """Write a loop over the runs of tokens within one tile: (address, tokens before it, length)."""
    position = emit.variable(0)
    first = token // width
    end = (token + tokens + (width - 1)) // width
    for tile in emit.range(first, end):
        begun = position.get()
        column = (token + begun) % width
        run = emit.minimum(emit.integer(width) - column, tokens - begun)
        yield emit.offset(tiles, (tile * features + feature) * width + column), begun, run
        position.set(begun + run)


def _write_product(program: Program, width: int) -> None:
    """Write ``product_<width>(left, row_step, step, right, right_step, output, rows, inner)``.

    output[r, :] = Σₖ left[r · row_step + k · step] · right[k · right_step, :] for rows of `width`
    floats, six at a time in registers.
    """
    span = min(width, (4 if program.registers >= 32 else 2) * program.lanes)
    arguments = [POINTER, INT, INT, POINTER, INT, POINTER, INT, INT]
    with program.function(f"product_{width}", *arguments) as (emit, values):
        left, row_step, step, right, right_step, output, rows, inner = values

        def block(row: Value, count: int, column: Value) -> None:
            totals = [emit.variable(emit.vector(0.0, span)) for _ in range(count)]
            base = emit.offset(left, row * row_step)
            for k in emit.range(0, inner):
                vector = emit.load_vector(right, k * right_step + column, span)
                for number, total in enumerate(totals):
                    factor = emit.load(base, k * step + row_step * number, FLOAT)
                    total.set(emit.multiply_add(factor, vector, total.get()))
            for number, total in enumerate(totals):
                emit.store(total.get(), output, (row + number) * width + column)

        for column in emit.range(0, width, span):
            whole = rows - rows % ROWS
            for row in emit.range(0, whole, ROWS):
                block(row, ROWS, column)
            for row in emit.range(whole, rows):
                block(row, 1, column)


def _write_softmax(program: Program, width: int) -> None:
    """Write ``softmax_<width>(scores, keys, mask, sums)``.

    Scores ``[keys, width]`` become exp(score + mask - largest) and `sums` their sums over the keys;
    dividing is left to what comes behind. The mask, a number per key, may be null.
    """
    span = min(width, 2 * program.lanes)
    with program.function(f"softmax_{width}", POINTER, INT, POINTER, POINTER) as (emit, values):
        scores, keys, mask, sums = values
        with emit.when(emit.not_null(mask)):
            for key in emit.range(0, keys):
                bias = emit.load(mask, key, FLOAT)
                score = emit.load_vector(scores, key * width, width)
                emit.store(score + bias, scores, key * width)
        for column in emit.range(0, width, span):
            largest = emit.variable(emit.vector(LOWEST, span))
            for key in emit.range(0, keys):
                score = emit.load_vector(scores, key * width + column, span)
                largest.set(emit.maximum(score, largest.get()))
            total = emit.variable(emit.vector(0.0, span))
            for key in emit.range(0, keys):
                score = emit.load_vector(scores, key * width + column, span)
                power = exponential(emit, score - largest.get())
                emit.store(power, scores, key * width + column)
                total.set(total.get() + power)
            emit.store(total.get(), sums, column)


def _write_head(program: Program, width: int) -> None:
    """Write ``head_<width>(projected, context, hidden, head, size, token, length, keys, …)``.

    Attention of one head of one sequence, from the tiles of queries, keys and values (in this
    order, `hidden` features each) to the tiles of contexts; then ``…, mask, scratch, scale``.
    """
    arguments = [POINTER, POINTER, INT, INT, INT, INT, INT, INT, POINTER, POINTER, FLOAT]
    with program.function(f"head_{width}", *arguments) as (emit, values):
        projected, context, hidden, head, size, token, length, keys, mask, scratch, scale = values
        stride = ((length + 15) & -16) + 16
        key_copy = scratch
        value_copy = emit.offset(key_copy, size * stride)
        query_copy = emit.offset(value_copy, size * stride)
        outputs = emit.offset(query_copy, size * (width + 16))
        sums = emit.offset(outputs, size * width)
        scores = emit.offset(sums, width)
        features, feature = hidden * 3, head * size
        one = emit.constant_float(1.0)

        def gather(which: int, first: Value, count: Value, copy: Value, factor: Value) -> None:
            start = feature + hidden * which
            row = stride if which else emit.integer(width + 16)
            place = (projected, features, start, size, first, count)
            emit.call(f"gather_{width}", *place, copy, row, factor)

        gather(1, token, keys, key_copy, one)
        gather(2, token, keys, value_copy, one)
        for query in emit.range(0, length, width):
            count = emit.minimum(length - query, width)
            gather(0, token + query, count, query_copy, scale)
            query_step = emit.integer(width + 16)
            step = emit.integer(1)
            emit.call(
                f"product_{width}",
                *(key_copy, step, stride, query_copy, query_step, scores, keys, size),
            )
            emit.call(f"softmax_{width}", scores, keys, mask, sums)
            emit.call(
                f"product_{width}",
                *(value_copy, stride, step, scores, emit.integer(width), outputs, size, keys),
            )
            emit.call(
                f"scatter_{width}",
                *(context, hidden, feature, size, token + query, count, outputs, sums),
            )
