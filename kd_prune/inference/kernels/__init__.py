"""Kernels of sparse inference, written as LLVM programs and compiled on the spot."""

from __future__ import annotations

from pathlib import Path

from kd_prune.inference.jit import objects
from kd_prune.inference.jit.emitter import Program
from kd_prune.inference.jit.target import Target, host
from kd_prune.inference.kernels import (
    attention,
    elementwise,
    encoder,
    int8_rows,
    linear,
    norm,
    quantize,
    rows,
    transpose,
)
from kd_prune.inference.layout import WIDTHS


def write(target: Target) -> Program:
    """Write all kernels for a processor."""
    program = Program(target.lanes, target.registers, target.int8)
    elementwise.write(program)
    int8_kernels = (quantize, int8_rows) if target.int8 else ()
    for width in WIDTHS:
        for part in (transpose, rows, *int8_kernels, norm, attention, linear, encoder):
            part.write(program, width)
    return program


def load() -> objects.Library:
    """Return the kernels for the processor at hand, compiled or from the cache."""
    return objects.load(write, Path(__file__).parents[1], host())
