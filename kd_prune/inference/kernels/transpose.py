"""Kernels between torch's layout ``[tokens, features]`` and tiles ``[features, tokens]``."""

from __future__ import annotations

from kd_prune.inference.jit.emitter import FLOAT, INT, POINTER, Emitter, Program, Value


def transposed(emit: Emitter, rows: list[Value]) -> list[Value]:
    """Return the transpose of a square of vectors, by exchanging ever smaller blocks."""
    count = len(rows)
    step = count // 2
    while step:
        # Element k of the pair's first row, then of its second; `count` onwards are the second's.
        first = [k if not k & step else count + k - step for k in range(count)]
        second = [k + step if not k & step else count + k for k in range(count)]
        for index in range(count):
            if not index & step:
                pair = rows[index], rows[index | step]
                rows[index] = emit.shuffle(*pair, first)
                rows[index | step] = emit.shuffle(*pair, second)
        step //= 2
    return rows


def write(program: Program, width: int) -> None:
    """Write ``pack_<width>`` and ``unpack_<width>(tokens, tile, features, count, first, end)``.

    `tokens` is where the tile's first token begins in an array ``[…, features]``, `count` the
    number of tokens there are; pack repeats the last one, unpack leaves the others out. Both
    handle the features from `first` (a multiple of the register's width) to `end`.
    """
    lanes = program.lanes
    arguments = [POINTER, POINTER, INT, INT, INT, INT]
    with program.function(f"pack_{width}", *arguments) as (emit, values):
        tokens, tile, features, count, first, end = values
        whole = first + ((end - first) & -lanes)
        for token in emit.range(0, width, lanes):
            positions = [emit.minimum(token + step, count - 1) * features for step in range(lanes)]
            for feature in emit.range(first, whole, lanes):
                square = [
                    emit.load_vector(tokens, position + feature, lanes) for position in positions
                ]
                for step, row in enumerate(transposed(emit, square)):
                    emit.store(row, tile, (feature + step) * width + token)
            for feature in emit.range(whole, end):
                for step, position in enumerate(positions):
                    number = emit.load(tokens, position + feature, FLOAT)
                    emit.store(number, tile, feature * width + token + step)

    with program.function(f"unpack_{width}", *arguments) as (emit, values):
        tokens, tile, features, count, first, end = values
        whole = first + ((end - first) & -lanes)
        for token in emit.range(0, emit.minimum(count, width), lanes):
            for feature in emit.range(first, whole, lanes):
                square = [
                    emit.load_vector(tile, (feature + step) * width + token, lanes)
                    for step in range(lanes)
                ]
                rows = transposed(emit, square)
                for step, row in enumerate(rows):
                    with emit.when(token + step < count):
                        emit.store(row, tokens, (token + step) * features + feature)
            for step in range(lanes):
                with emit.when(token + step < count):
                    for feature in emit.range(whole, end):
                        number = emit.load(tile, feature * width + token + step, FLOAT)
                        emit.store(number, tokens, (token + step) * features + feature)
