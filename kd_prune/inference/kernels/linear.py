"""Kernel of one linear layer between torch's layouts."""

from __future__ import annotations

from kd_prune.inference.jit.emitter import INT, POINTER, Program, Value
from kd_prune.inference.kernels.products import Inputs, Products
from kd_prune.inference.kernels.rows import boundary
from kd_prune.inference.kernels.threads import Crew
from kd_prune.inference.layout import LinearCall


def write(program: Program, width: int) -> None:
    """Write ``linear_<width>(call)``: input to tiles, rows, tiles to output, in every thread."""
    with program.function(f"linear_{width}", POINTER, exported=True) as (emit, (call,)):
        crew = Crew(emit, call)
        tokens, outputs, in_tiles, out_tiles = (
            emit.load_pointer(call, slot)
            for slot in (
                LinearCall.INPUT,
                LinearCall.OUTPUT,
                LinearCall.IN_TILES,
                LinearCall.OUT_TILES,
            )
        )
        in_features = emit.load(call, LinearCall.IN_FEATURES)
        out_features = emit.load(call, LinearCall.OUT_FEATURES)
        matrix = emit.offset(call, LinearCall.MATRIX, INT)
        quantized = emit.load_pointer(call, LinearCall.QUANTIZED)
        size = emit.load(call, LinearCall.QUANTIZED_SIZE)
        products = Products(program, emit, crew, width, quantized, size)
        for tile, part in crew.work():
            first, end = crew.share(in_features, part, program.lanes)
            emit.call(
                f"pack_{width}",
                emit.offset(tokens, tile * width * in_features),
                emit.offset(in_tiles, tile * width * in_features),
                *(in_features, crew.tokens - tile * width, first, end),
            )
        crew.wait_for_parts()

        def inputs_of(tile: Value) -> Inputs:
            """Return tile number `tile` as what the matrix is multiplied with."""
            source = emit.offset(in_tiles, tile * width * in_features)
            return products.inputs(source, in_features, tile)

        products.quantize_shared(matrix, inputs_of)
        for tile, part in crew.work():
            inputs = inputs_of(tile)
            products.quantize(matrix, inputs)
            output = emit.offset(out_tiles, tile * width * out_features)
            first = boundary(emit, matrix, part, crew.parts)
            end = boundary(emit, matrix, part + 1, crew.parts)
            products.rows(matrix, inputs, output, (first, end))
        crew.wait_for_parts()
        for tile, part in crew.work():
            first, end = crew.share(out_features, part, program.lanes)
            emit.call(
                f"unpack_{width}",
                emit.offset(outputs, tile * width * out_features),
                emit.offset(out_tiles, tile * width * out_features),
                *(out_features, crew.tokens - tile * width, first, end),
            )
