"""Products of packed matrices with tiles: with float32 or int8 weights, as each matrix says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kd_prune.inference.jit.emitter import Emitter, Program, Value
from kd_prune.inference.kernels.quantize import tokens_at_once
from kd_prune.inference.kernels.threads import Crew
from kd_prune.inference.layout import GROUP, GROUP_ROWS, PANEL, Matrix


@dataclass(frozen=True)
class Inputs:
    """The tile that a matrix is multiplied with, in float32 and quantized.

    Attributes:
        tile: Its floats ``[features, width]``.
        features: Their number.
        quantized: Memory for its quantized groups; null in a program without int8.
    """

    tile: Value
    features: Value
    quantized: Value


class Products:
    """Writes products of a tile, and before them the quantized tile that an int8 matrix reads.

    Args:
        program: The program.
        emit: Writes the kernel.
        crew: Its threads.
        width: Tokens of a tile.
        quantized: Memory for quantized tiles.
        size: Words of it for each thread or, where threads share a tile, for each tile.
    """

    def __init__(
        self,
        program: Program,
        emit: Emitter,
        crew: Crew,
        width: int,
        quantized: Value,
        size: Value,
    ) -> None:
        self.program, self.emit, self.crew, self.width = program, emit, crew, width
        self._quantized, self._size = quantized, size

    def inputs(self, tile: Value, features: Value, number: Value, place: Value | int = 0) -> Inputs:
        """Return tile `number` as inputs, whose quantized groups begin behind `place` words."""
        emit = self.emit
        if not self.program.int8:
            return Inputs(tile, features, emit.null())
        owner = emit.select(self.crew.parts > 1, number, self.crew.number)
        return Inputs(tile, features, emit.offset(self._quantized, owner * self._size + place))

    def quantize_shared(self, matrix: Value, inputs_of: Callable[[Value], Inputs]) -> None:
        """Write code that quantizes all tiles to int8 where several threads share a tile.

        Each thread quantizes its part of the tokens, then all wait once, before any product.

        Args:
            matrix: Nothing is quantized unless it is int8.
            inputs_of: Tile number → inputs.
        """
        if not self.program.int8:
            return
        emit = self.emit
        with emit.when(self.crew.parts > 1), emit.when(_is_int8(emit, matrix)):
            span = tokens_at_once(self.program, self.width)
            for tile, part in self.crew.work():
                tokens = self.crew.share(emit.integer(self.width), part, span)
                self._quantize_groups(matrix, inputs_of(tile), tokens)
            self.crew.wait()

    def quantize(self, matrix: Value, inputs: Inputs) -> None:
        """Write code that quantizes one tile to int8 where a thread has the tile for itself."""
        if not self.program.int8:
            return
        emit = self.emit
        with emit.when(self.crew.parts < 2), emit.when(_is_int8(emit, matrix)):
            self._quantize_groups(matrix, inputs, (emit.integer(0), emit.integer(self.width)))

    def _quantize_groups(self, matrix: Value, inputs: Inputs, tokens: tuple[Value, Value]) -> None:
        """Write code that quantizes all groups of features of some tokens."""
        for group in self.emit.range(0, self.emit.load(matrix, Matrix.PANELS)):
            self._quantize_group(inputs, group, tokens)

    def quantize_group(self, matrix: Value, inputs: Inputs, group: Value) -> Inputs:
        """Write: quantize one group, in this thread, to where the first one belongs."""
        if not self.program.int8:
            return inputs
        emit = self.emit
        first = emit.offset(inputs.quantized, group * (-GROUP_ROWS * self.width))
        moved = Inputs(inputs.tile, inputs.features, first)
        with emit.when(_is_int8(emit, matrix)):
            self._quantize_group(moved, group, (emit.integer(0), emit.integer(self.width)))
        return moved

    def _quantize_group(self, inputs: Inputs, group: Value, tokens: tuple[Value, Value]) -> None:
        name = f"quantize_{self.width}"
        values = (inputs.tile, inputs.quantized, inputs.features, group, *tokens)
        self.emit.call(name, *values)

    def rows(
        self,
        matrix: Value,
        inputs: Inputs,
        output: Value,
        rows: tuple[Value, Value],
        residual: Value | None = None,
        group: Value | None = None,
    ) -> None:
        """Write: output = matrix · inputs + bias + residual, for the rows given as first, end.

        With a group, only its part of the sum, which group 0 begins.
        """
        emit = self.emit
        panels = emit.load(matrix, Matrix.PANELS)
        around = (output, residual or emit.null(), *rows)

        def write_float_rows() -> None:
            """Write the call of the float32 kernel."""
            first, end = emit.integer(0), panels
            if group is not None:
                first = group * (GROUP // PANEL)
                end = emit.minimum(first + GROUP // PANEL, panels)
            emit.call(f"rows_{self.width}", matrix, inputs.tile, *around, first, end)

        if not self.program.int8:
            write_float_rows()
            return
        with emit.choice(_is_int8(emit, matrix)) as (quantized, unquantized):
            with quantized:
                groups = (emit.integer(0), panels) if group is None else (group, group + 1)
                emit.call(f"int8_rows_{self.width}", matrix, inputs.quantized, *around, *groups)
            with unquantized:
                write_float_rows()


def _is_int8(emit: Emitter, matrix: Value) -> Value:
    return emit.not_null(emit.load_pointer(matrix, Matrix.SCALES))
