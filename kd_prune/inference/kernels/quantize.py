"""Kernel that quantizes the inputs of a tile: what int8 matrices are multiplied with."""

from __future__ import annotations

from kd_prune.inference.jit.emitter import INT, INT32, POINTER, Emitter, Program, Value
from kd_prune.inference.kernels.elementwise import ROUND
from kd_prune.inference.layout import GROUP, GROUP_ROWS

LEVELS = {"VPDPBUSD": 254.0, "VPMADDUBSW": 126.0}
"""Steps between the least and the largest input of a token, by the instruction that multiplies.

One less than the bits allow, so that rounding never leads out of them. VPMADDUBSW adds two products
in 16 bits, where 2 · 255 · 127 does not fit and 2 · 127 · 127 does: 7 bits.
"""
SMALLEST = 1e-30
"""Range that is taken for the inputs of a token which are all smaller."""
ROUND_BITS = 0x4B400000
"""The bits of `ROUND`; those of ROUND + n, for n up to 2²², are n more."""


def tokens_at_once(program: Program, width: int) -> int:
    """Return the tokens that one pass over the features handles: two registers of them."""
    return min(width, 2 * program.lanes)


def write(program: Program, width: int) -> None:
    """Write ``quantize_<width>(tile, quantized, features, group, first, end)``.

    Quantizes one group of the features of a tile, for its tokens from `first` (a multiple of
    `tokens_at_once`) to `end`. For each token, with low = min(x, 0) and high = max(x, 0) over the
    group: step = (high - low) / levels, zero = round(-low / step), q = round(x / step) + zero.
    Row 0 of the quantized group becomes step, row 1 becomes -step · zero, and every further row
    four neighbouring features, a byte each. A token with NaN or an infinite input gets NaN as step.
    """
    span = tokens_at_once(program, width)
    levels = LEVELS[program.int8]
    arguments = [POINTER, POINTER, INT, INT, INT, INT]
    with program.function(f"quantize_{width}", *arguments) as (emit, values):
        tile, quantized, features, group, first, end = values
        count = emit.minimum(features - group * GROUP, GROUP)
        whole = count & -4
        for token in emit.range(first, end, span):
            inputs = emit.offset(tile, group * (GROUP * width) + token)
            output = emit.offset(quantized, group * (GROUP_ROWS * width) + token)
            low, high, invalid = _range(emit, inputs, count, width, span)
            spread = emit.maximum(high - low, SMALLEST)
            inverse = emit.vector(levels, span) / spread
            # Rounded once, as x / step + zero below: for x = low they cancel, and q = 0.
            zero = emit.multiply_add(low * -1.0, inverse, emit.vector(ROUND, span), fused=True)
            step = spread / levels + invalid
            emit.store(step, output, 0)
            emit.store(step * (emit.vector(ROUND, span) - zero), output, width)
            for feature in emit.range(0, whole, 4):
                four = [feature + number for number in range(4)]
                word = _quantize_four(emit, inputs, four, inverse, zero, width)
                emit.store(word, output, (feature // 4 + 2) * width)
            with emit.when(whole < count):  # the last feature stands for those behind it
                four = [emit.minimum(whole + number, count - 1) for number in range(4)]
                word = _quantize_four(emit, inputs, four, inverse, zero, width)
                emit.store(word, output, (whole // 4 + 2) * width)


def _range(
    emit: Emitter, inputs: Value, count: Value, width: int, span: int
) -> tuple[Value, Value, Value]:
    """Write a pass over features; return min(x, 0), max(x, 0), and 0, NaN if one is not finite."""
    none = emit.vector(0.0, span)
    low, high, invalid = (emit.variable(none) for _ in range(3))
    for feature in emit.range(0, count):
        value = emit.load_vector(inputs, feature * width, span)
        low.set(emit.minimum(low.get(), value))
        high.set(emit.maximum(high.get(), value))
        invalid.set(emit.multiply_add(value, none, invalid.get()))
    return low.get(), high.get(), invalid.get()


def _quantize_four(
    emit: Emitter, inputs: Value, features: list[Value], inverse: Value, zero: Value, width: int
) -> Value:
    """Quantize four features, x / step + zero; return them as the bytes of a word per token."""
    span = inverse.llvm.type.count
    begin = -sum(ROUND_BITS << 8 * number for number in range(4)) % 2**32
    total = emit.vector(begin, span, INT32)
    for number, feature in enumerate(features):
        value = emit.load_vector(inputs, feature * width, span)
        rounded = emit.multiply_add(value, inverse, zero, fused=True)
        total = total + (emit.as_integers(rounded) << 8 * number)
    return total
