"""Kernel of the layer norm of a tile."""

from __future__ import annotations

from kd_prune.inference.jit.emitter import FLOAT, INT, POINTER, Program
from kd_prune.inference.layout import Norm


def columns_at_once(program: Program, width: int) -> int:
    """Return the tokens that one pass over the features handles: four registers of them."""
    return min(width, 4 * program.lanes)


def write(program: Program, width: int) -> None:
    """Write ``norm_<width>(norm, tile, features, column)``: layer norm of some tokens, in place.

    (x - mean) / √(variance + ε) · weight + bias over the features, for the `columns_at_once` tokens
    from `column` on; mean first, then the variance about it, as torch does.
    """
    span = columns_at_once(program, width)
    with program.function(f"norm_{width}", POINTER, POINTER, INT, INT) as (emit, values):
        norm, tile, features, column = values
        weight = emit.load_pointer(norm, Norm.WEIGHT)
        bias = emit.load_pointer(norm, Norm.BIAS)
        epsilon = emit.load(emit.offset(norm, Norm.EPSILON, INT), 0, FLOAT)
        tile = emit.offset(tile, column)
        count = emit.vector(emit.as_float(features), span)

        total = emit.variable(emit.vector(0.0, span))
        for feature in emit.range(0, features):
            total.set(total.get() + emit.load_vector(tile, feature * width, span))
        mean = total.get() / count

        squares = emit.variable(emit.vector(0.0, span))
        for feature in emit.range(0, features):
            centred = emit.load_vector(tile, feature * width, span) - mean
            squares.set(emit.multiply_add(centred, centred, squares.get()))
        deviation = emit.square_root(squares.get() / count + epsilon)
        scale = emit.vector(1.0, span) / deviation

        for feature in emit.range(0, features):
            centred = emit.load_vector(tile, feature * width, span) - mean
            factor = scale * emit.load(weight, feature, FLOAT)
            shift = emit.vector(emit.load(bias, feature, FLOAT), span)
            emit.store(emit.multiply_add(factor, centred, shift), tile, feature * width)
