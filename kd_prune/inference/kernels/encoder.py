"""Kernel of a stack of encoder blocks: one call, in tiles from the first to the last."""

from __future__ import annotations

from kd_prune.inference.jit.emitter import FLOAT, INT, POINTER, Emitter, Program, Value
from kd_prune.inference.kernels.norm import columns_at_once
from kd_prune.inference.kernels.products import Inputs, Products
from kd_prune.inference.kernels.rows import boundary
from kd_prune.inference.kernels.threads import Crew
from kd_prune.inference.layout import GROUP, EncoderCall, Layer


def write(program: Program, width: int) -> None:
    """Write ``encoder_<width>(call)``, run in every thread.

    A block of the kind of BERT: h = norm(x + O · attention(Q x, K x, V x)), then
    norm(h + D · f(U h)). Threads wait for each other before and after attention; and, where several
    share a tile, after every matrix.
    """
    with program.function(f"encoder_{width}", POINTER, exported=True) as (emit, (call,)):
        stack = Stack(program, emit, call, width)
        stack.pack()
        for number in emit.range(0, emit.load(call, EncoderCall.LAYERS)):
            layer = emit.offset(stack.pointer(EncoderCall.TABLE), number * Layer.SLOTS, INT)
            stack.project(layer)
            stack.crew.wait()
            stack.attend()
            stack.crew.wait()
            stack.combine(layer)
            stack.feed_forward(layer)
        stack.unpack()


class Stack:
    """Writes the steps of an encoder block."""

    def __init__(self, program: Program, emit: Emitter, call: Value, width: int) -> None:
        self.program, self.emit, self.call, self.width = program, emit, call, width
        self.crew = Crew(emit, call)
        self.hidden = emit.load(call, EncoderCall.HIDDEN)
        self.wide = emit.load(call, EncoderCall.FEED_FORWARD)
        self.inner = emit.load(call, EncoderCall.HEADS) * emit.load(call, EncoderCall.HEAD_SIZE)
        self.states = self.pointer(EncoderCall.STATES)
        self.middle = self.pointer(EncoderCall.MIDDLE)
        quantized = self.pointer(EncoderCall.QUANTIZED)
        size = emit.load(call, EncoderCall.QUANTIZED_SIZE)
        self.products = Products(program, emit, self.crew, width, quantized, size)
        self.wide_place = emit.load(call, EncoderCall.QUANTIZED_WIDE)

    def pointer(self, slot: EncoderCall) -> Value:
        """Read a pointer of the call."""
        return self.emit.load_pointer(self.call, slot)

    def tile(self, tiles: Value, number: Value, features: Value) -> Value:
        """Return the address of a tile's first value."""
        return self.emit.offset(tiles, number * features * self.width)

    def pack(self) -> None:
        """Write: torch's input to tiles."""
        self._transpose("pack", EncoderCall.INPUT)
        self.crew.wait_for_parts()

    def unpack(self) -> None:
        """Write: tiles to torch's output."""
        self._transpose("unpack", EncoderCall.OUTPUT)

    def _transpose(self, kernel: str, slot: EncoderCall) -> None:
        for tile, part in self.crew.work():
            first, end = self.crew.share(self.hidden, part, self.program.lanes)
            self.emit.call(
                f"{kernel}_{self.width}",
                self.tile(self.pointer(slot), tile, self.hidden),
                self.tile(self.states, tile, self.hidden),
                *(self.hidden, self.crew.tokens - tile * self.width, first, end),
            )

    def project(self, layer: Value) -> None:
        """Write: queries, keys and values as one matrix."""
        inputs = (self.states, self.hidden)
        outputs = (self.pointer(EncoderCall.PROJECTED), self.inner * 3)
        self._linear(layer, Layer.QUERY_KEY_VALUE, inputs, outputs)

    def attend(self) -> None:
        """Write: attention, a head of a sequence at a time."""
        emit, call = self.emit, self.call
        heads = emit.load(call, EncoderCall.HEADS)
        size = emit.load(call, EncoderCall.HEAD_SIZE)
        length = emit.load(call, EncoderCall.LENGTH)
        scale = emit.load(emit.offset(call, EncoderCall.SCALE, INT), 0, FLOAT)
        scratch_size = emit.load(call, EncoderCall.SCRATCH_SIZE)
        scratch = emit.offset(self.pointer(EncoderCall.SCRATCH), self.crew.number * scratch_size)
        masks = self.pointer(EncoderCall.MASK)
        items = emit.load(call, EncoderCall.BATCH) * heads
        for item in emit.range(self.crew.number, items, self.crew.threads):
            sequence, head = item // heads, item % heads
            row = emit.offset(masks, sequence * length)
            mask = emit.select(emit.is_null(masks), masks, row)
            emit.call(
                f"head_{self.width}",
                self.pointer(EncoderCall.PROJECTED),
                self.pointer(EncoderCall.CONTEXT),
                *(self.inner, head, size, sequence * length, length),
                emit.load(self.pointer(EncoderCall.KEYS), sequence),
                *(mask, scratch, scale),
            )

    def combine(self, layer: Value) -> None:
        """Write: the attention's output matrix, plus the block's input, and the first norm."""
        inputs = (self.pointer(EncoderCall.CONTEXT), self.inner)
        outputs = (self.middle, self.hidden)
        self._linear(layer, Layer.OUTPUT, inputs, outputs, (self.states, self.hidden))
        self.crew.wait_for_parts()
        self._norm(layer, Layer.ATTENTION_NORM, self.middle)
        self.crew.wait_for_parts()

    def feed_forward(self, layer: Value) -> None:
        """Write: matrix, activation, matrix, plus their input, and the second norm."""
        with self.emit.choice(self.crew.parts > 1) as (shared, alone):
            with shared:
                wide = (self.pointer(EncoderCall.WIDE), self.wide)
                inputs = (self.middle, self.hidden)
                self._linear(layer, Layer.UP, inputs, wide, activated=True)
                self.crew.wait()
                outputs = (self.states, self.hidden)
                self._linear(layer, Layer.DOWN, wide, outputs, inputs)
                self.crew.wait()
            with alone:
                self._feed_forward_in_chunks(layer)
        self._norm(layer, Layer.FINAL_NORM, self.states)
        self.crew.wait_for_parts()

    def _feed_forward_in_chunks(self, layer: Value) -> None:
        """Write the two matrices of a whole tile, so that what is between them stays in the cache.

        The first matrix makes a group of the inputs of the second, which is then added.
        """
        emit, products = self.emit, self.products
        up, down = emit.offset(layer, Layer.UP, INT), emit.offset(layer, Layer.DOWN, INT)
        for tile, _ in self.crew.work():
            middle = products.inputs(self.tile(self.middle, tile, self.hidden), self.hidden, tile)
            memory = self.tile(self.pointer(EncoderCall.WIDE), self.crew.number, self.wide)
            wide = products.inputs(memory, self.wide, tile, self.wide_place)
            states = self.tile(self.states, tile, self.hidden)
            products.quantize(up, middle)
            for group in emit.range(0, (self.wide + (GROUP - 1)) // GROUP):
                first = group * GROUP
                end = emit.minimum(first + GROUP, self.wide)
                products.rows(up, middle, memory, (first, end))
                self._activate(memory, first, end)
                moved = products.quantize_group(down, wide, group)
                rows = (emit.integer(0), self.hidden)
                products.rows(down, moved, states, rows, middle.tile, group)

    def _linear(
        self,
        layer: Value,
        which: Layer,
        inputs: tuple[Value, Value],
        outputs: tuple[Value, Value],
        residual: tuple[Value, Value] | None = None,
        activated: bool = False,
    ) -> None:
        """Write a matrix over this thread's tiles and parts; tiles come with their features."""
        matrix = self.emit.offset(layer, which, INT)

        def inputs_of(tile: Value) -> Inputs:
            """Return tile number `tile` as what the matrix is multiplied with."""
            return self.products.inputs(self.tile(inputs[0], tile, inputs[1]), inputs[1], tile)

        self.products.quantize_shared(matrix, inputs_of)
        for tile, part in self.crew.work():
            source = inputs_of(tile)
            self.products.quantize(matrix, source)
            first, end = (
                boundary(self.emit, matrix, number, self.crew.parts) for number in (part, part + 1)
            )
            output = self.tile(outputs[0], tile, outputs[1])
            before = self.tile(residual[0], tile, residual[1]) if residual else None
            self.products.rows(matrix, source, output, (first, end), before)
            if activated:
                self._activate(output, first, end)

    def _activate(self, tile: Value, first: Value, end: Value) -> None:
        values = self.emit.offset(tile, first * self.width)
        function = self.emit.load(self.call, EncoderCall.ACTIVATION)
        self.emit.call("activate", values, (end - first) * self.width, function)

    def _norm(self, layer: Value, which: Layer, tiles: Value) -> None:
        """Write a layer norm; where threads share a tile, each takes some of its tokens."""
        emit = self.emit
        norm = emit.offset(layer, which, INT)
        span = columns_at_once(self.program, self.width)
        for tile, part in self.crew.work():
            first, end = self.crew.share(emit.integer(self.width), part, span)
            for column in emit.range(first, end, span):
                values = (norm, self.tile(tiles, tile, self.hidden), self.hidden, column)
                emit.call(f"norm_{self.width}", *values)
