"""Exponential, error function and activations of vectors, in a few multiply-adds each."""

from __future__ import annotations

import math

from kd_prune.inference.jit.emitter import INT, POINTER, Emitter, Program, Value
from kd_prune.inference.layout import ACTIVATIONS

# erf(x) = x · P(x²) / Q(x²) for |x| ≤ 3.9, and ±1 beyond; fitted by iterated least squares,
# largest absolute error 4e-7 in single precision.
ERF_NUMERATOR = (
    1.1283791476670264,
    0.18966473986942742,
    0.052667822295118946,
    0.003738262200860564,
    0.00028506122545785673,
    2.066500012651692e-06,
)
ERF_DENOMINATOR = (
    1.0,
    0.5014187812657466,
    0.11381811055243603,
    0.014914106652075102,
    0.0011573576541391265,
    3.827025038816148e-05,
)
ERF_BOUND = 3.9
# exp(r) for |r| ≤ ln 2 / 2: the Taylor series, relative error below 1e-8.
EXP_SERIES = tuple(1 / math.factorial(power) for power in range(8))
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
ROUND = 1.5 * 2**23  # added to a float below 2²², it leaves the nearest integer in the last bits


def exponential(emit: Emitter, value: Value) -> Value:
    """Return exp(value) = 2ⁿ · exp(r); values below -87 and above 88 are taken as these bounds."""
    value = emit.minimum(emit.maximum(value, -87.0), 88.0)
    shifted = emit.multiply_add(value, math.log2(math.e), emit.vector(ROUND, width(value)))
    power = shifted - ROUND
    rest = emit.multiply_add(power, -LN2_HIGH, value)
    rest = emit.multiply_add(power, -LN2_LOW, rest)
    bits = (emit.as_integers(shifted) << 23) + (127 << 23)
    return polynomial(emit, EXP_SERIES, rest) * emit.as_floats(bits)


def error_function(emit: Emitter, value: Value) -> Value:
    """Return erf(value)."""
    value = emit.minimum(emit.maximum(value, -ERF_BOUND), ERF_BOUND)
    square = value * value
    numerator = polynomial(emit, ERF_NUMERATOR, square)
    return value * numerator / polynomial(emit, ERF_DENOMINATOR, square)


def polynomial(emit: Emitter, coefficients: tuple[float, ...], value: Value) -> Value:
    """Return the sum of coefficients times powers of the value, by Horner's rule."""
    total = emit.vector(coefficients[-1], width(value))
    for coefficient in coefficients[-2::-1]:
        total = emit.multiply_add(total, value, emit.vector(coefficient, width(value)))
    return total


def activate(emit: Emitter, name: str, value: Value) -> Value:
    """Return an activation function of a vector.

    ``gelu``: x/2 · (1 + erf(x/√2)); ``gelu_tanh``: x · σ(2u) with u = √(2/π) · (x + 0.044715 x³),
    which equals x/2 · (1 + tanh u); ``relu``: max(x, 0); ``silu``: x · σ(x).
    """
    if name == "gelu":
        return value * 0.5 * (error_function(emit, value * math.sqrt(0.5)) + 1.0)
    if name == "relu":
        return emit.maximum(value, 0.0)
    argument = value
    if name == "gelu_tanh":
        cube = value * value * value
        argument = emit.multiply_add(cube, 0.044715, value) * (2 * math.sqrt(2 / math.pi))
    one = emit.vector(1.0, width(value))
    return value / (exponential(emit, argument * -1.0) + one)


def width(value: Value) -> int:
    """Return the number of floats in a vector."""
    count: int = value.llvm.type.count
    return count


def write(program: Program) -> None:
    """Write ``activate(values, count, function)``: an activation in place, by its number.

    The count is a multiple of 16, the smallest tile.
    """
    step = min(16, 2 * program.lanes)
    with program.function("activate", POINTER, INT, INT) as (emit, (values, count, function)):
        for number, name in enumerate(ACTIVATIONS):
            with emit.when(function.equals(number)):
                for start in emit.range(0, count, step):
                    changed = activate(emit, name, emit.load_vector(values, start, step))
                    emit.store(changed, values, start)
