"""Emitter: write LLVM functions as Python expressions over integers, pointers and vectors."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

INT = ir.IntType(64)
INT32 = ir.IntType(32)
INT16 = ir.IntType(16)
INT8 = ir.IntType(8)
FLOAT = ir.FloatType()
POINTER = ir.PointerType()
VOID = ir.VoidType()
# Products and sums may become one fused operation; nothing is reordered, and NaN stays NaN.
FLOAT_FLAGS = ("contract", "nsz")


class Value:
    """A number, vector of numbers or pointer of the program that is being written.

    Operators write the instruction. A Python number on the other side becomes a constant of the
    same type; a scalar next to a vector is broadcast.
    """

    __slots__ = ("emitter", "llvm")

    def __init__(self, emitter: Emitter, llvm: ir.Value) -> None:
        self.emitter = emitter
        self.llvm = llvm

    def __add__(self, other: Operand) -> Value:
        return self._binary(other, "add", "fadd")

    def __sub__(self, other: Operand) -> Value:
        return self._binary(other, "sub", "fsub")

    def __mul__(self, other: Operand) -> Value:
        return self._binary(other, "mul", "fmul")

    def __truediv__(self, other: Operand) -> Value:
        return self._binary(other, "", "fdiv")

    def __floordiv__(self, other: Operand) -> Value:
        return self._binary(other, "udiv", "")

    def __mod__(self, other: Operand) -> Value:
        return self._binary(other, "urem", "")

    def __and__(self, other: Operand) -> Value:
        return self._binary(other, "and_", "")

    def __lshift__(self, other: Operand) -> Value:
        return self._binary(other, "shl", "")

    def __lt__(self, other: Operand) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Operand) -> Value:
        return self._compare(">", other)

    def equals(self, other: Operand) -> Value:
        """Return whether two integers are equal, as one bit."""
        return self._compare("==", other)

    def _binary(self, other: Operand, integer: str, floating: str) -> Value:
        builder, right = self.emitter.builder, self.emitter.lift(other, self.llvm.type)
        if is_integer(self.llvm.type):
            return Value(self.emitter, getattr(builder, integer)(self.llvm, right))
        return Value(self.emitter, getattr(builder, floating)(self.llvm, right, flags=FLOAT_FLAGS))

    def _compare(self, operator: str, other: Operand) -> Value:
        builder, right = self.emitter.builder, self.emitter.lift(other, self.llvm.type)
        if is_integer(self.llvm.type):
            return Value(self.emitter, builder.icmp_signed(operator, self.llvm, right))
        return Value(self.emitter, builder.fcmp_ordered(operator, self.llvm, right))


Operand = Value | int | float


class Variable:
    """A value that loops change; LLVM keeps it in a register."""

    def __init__(self, emitter: Emitter, value: Value) -> None:
        self.emitter = emitter
        self.type = value.llvm.type
        with emitter.builder.goto_entry_block():
            self.address = emitter.builder.alloca(self.type)
        self.set(value)

    def get(self) -> Value:
        """Load the variable's value."""
        return Value(self.emitter, self.emitter.builder.load(self.address, typ=self.type))

    def set(self, value: Value) -> None:
        """Replace the value."""
        self.emitter.builder.store(value.llvm, self.address)


class Emitter:
    """Writes the instructions of one function, in the order of the calls."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    # --- constants and conversions

    def integer(self, number: Operand) -> Value:
        """Return an integer of 64 bits."""
        return Value(self, self.lift(number, INT))

    def variable(self, value: Operand) -> Variable:
        """Return a variable; an integer, if it begins as a Python number."""
        return Variable(self, value if isinstance(value, Value) else self.integer(value))

    def vector(self, value: Operand, width: int, element: ir.Type = FLOAT) -> Value:
        """Return a vector of `width` equal numbers."""
        return Value(self, self.lift(value, ir.VectorType(element, width)))

    def lift(self, value: Operand, kind: ir.Type) -> ir.Value:
        """Return a value of an LLVM type: constants are made, scalars broadcast."""
        if not isinstance(value, Value):
            if isinstance(kind, ir.VectorType):
                return ir.Constant(kind, [rounded(value, kind.element)] * kind.count)
            return ir.Constant(kind, rounded(value, kind))
        if isinstance(kind, ir.VectorType) and not isinstance(value.llvm.type, ir.VectorType):
            undefined = ir.Constant(kind, ir.Undefined)
            one = self.builder.insert_element(undefined, value.llvm, ir.Constant(INT32, 0))
            zeros = ir.Constant(ir.VectorType(INT32, kind.count), [0] * kind.count)
            return self.builder.shuffle_vector(one, undefined, zeros)
        return value.llvm

    # --- memory

    def offset(self, base: Value, index: Operand, kind: ir.Type = FLOAT) -> Value:
        """Return the address of the element `index` of an array of `kind`."""
        address = self.builder.gep(base.llvm, [self.lift(index, INT)], source_etype=kind)
        return Value(self, address)

    def load(self, base: Value, index: Operand, kind: ir.Type = INT) -> Value:
        """Read element `index` of an array; integers are widened to 64 bits."""
        loaded = self.builder.load(self.offset(base, index, kind).llvm, typ=kind)
        if is_integer(kind) and kind.width < INT.width:
            loaded = self.builder.zext(loaded, INT)
        return Value(self, loaded)

    def load_pointer(self, base: Value, index: Operand) -> Value:
        """Read element `index` of an array of pointers."""
        return self.load(base, index, POINTER)

    def load_vector(
        self, base: Value, index: Operand, width: int, element: ir.Type = FLOAT
    ) -> Value:
        """Read `width` floats, or others of 32 bits, from element `index` on, aligned to one."""
        address = self.offset(base, index, element).llvm
        kind = ir.VectorType(element, width)
        return Value(self, self.builder.load(address, typ=kind, align=4))

    def store(self, value: Value, base: Value, index: Operand) -> None:
        """Write a number of 32 bits or a vector of such from element `index` on."""
        self.builder.store(value.llvm, self.offset(base, index).llvm, align=4)

    # --- arithmetic

    def multiply_add(
        self, factor: Value, other: Operand, addend: Value, fused: bool = False
    ) -> Value:
        """Return ``factor · other + addend``; rounded once if `fused`, else where that is fast."""
        kind = addend.llvm.type
        values = [self.lift(factor, kind), self.lift(other, kind), addend.llvm]
        return self._intrinsic("llvm.fma" if fused else "llvm.fmuladd", kind, values)

    def as_float(self, integer: Value) -> Value:
        """Return an integer, or each of a vector, as a float."""
        count = getattr(integer.llvm.type, "count", None)
        kind = FLOAT if count is None else ir.VectorType(FLOAT, count)
        return Value(self, self.builder.sitofp(integer.llvm, kind))

    def constant_float(self, number: float) -> Value:
        """Return a float."""
        return Value(self, self.lift(number, FLOAT))

    def widened(self, integer: Value) -> Value:
        """Return an integer as one of 64 bits."""
        return Value(self, self.builder.zext(integer.llvm, INT))

    def null(self) -> Value:
        """Return a null pointer."""
        return Value(self, POINTER(None))

    def is_null(self, pointer: Value) -> Value:
        """Return whether a pointer is null."""
        return Value(self, self.builder.icmp_unsigned("==", pointer.llvm, POINTER(None)))

    def not_null(self, pointer: Value) -> Value:
        """Return whether a pointer is not null."""
        return Value(self, self.builder.icmp_unsigned("!=", pointer.llvm, POINTER(None)))

    def square_root(self, value: Value) -> Value:
        """Return the square root of a float or of a vector's elements."""
        return self._intrinsic("llvm.sqrt", value.llvm.type, [value.llvm])

    def select(self, condition: Value, yes: Value, no: Operand) -> Value:
        """Return `yes` where the condition holds, else `no`."""
        other = self.lift(no, yes.llvm.type)
        return Value(self, self.builder.select(condition.llvm, yes.llvm, other))

    def minimum(self, value: Value, bound: Operand) -> Value:
        """Return the smaller of two values; NaN in `value` stays NaN."""
        bound = Value(self, self.lift(bound, value.llvm.type))
        return self.select(bound < value, bound, value)

    def maximum(self, value: Value, bound: Operand) -> Value:
        """Return the larger of two values; NaN in `value` stays NaN."""
        bound = Value(self, self.lift(bound, value.llvm.type))
        return self.select(bound > value, bound, value)

    def as_integers(self, vector: Value) -> Value:
        """Return the bits of floats as integers of 32 bits."""
        return self._same_bits(vector, ir.VectorType(INT32, vector.llvm.type.count))

    def as_floats(self, vector: Value) -> Value:
        """Return integers of 32 bits as the floats that have these bits."""
        return self._same_bits(vector, ir.VectorType(FLOAT, vector.llvm.type.count))

    def as_bytes(self, vector: Value) -> Value:
        """Return integers of 32 bits as four bytes each."""
        return self._same_bits(vector, ir.VectorType(INT8, 4 * vector.llvm.type.count))

    def _same_bits(self, vector: Value, kind: ir.Type) -> Value:
        return Value(self, self.builder.bitcast(vector.llvm, kind))

    def shuffle(self, left: Value, right: Value, order: Sequence[int]) -> Value:
        """Return the elements ``order`` of the two vectors, one behind the other."""
        indices = ir.Constant(ir.VectorType(INT32, len(order)), list(order))
        return Value(self, self.builder.shuffle_vector(left.llvm, right.llvm, indices))

    def _intrinsic(self, name: str, kind: ir.Type, values: list[ir.Value]) -> Value:
        vector = isinstance(kind, ir.VectorType)
        full = f"{name}.v{kind.count}f32" if vector else f"{name}.f32"
        return self.instruction(full, kind, [Value(self, value) for value in values])

    def instruction(self, name: str, returns: ir.Type, values: Sequence[Value]) -> Value:
        """Write an instruction by the name of LLVM's intrinsic function for it."""
        module, given = self.builder.module, [value.llvm for value in values]
        function = module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(returns, [value.type for value in given])
            function = ir.Function(module, kind, name)
        return Value(self, self.builder.call(function, given))

    # --- control

    def range(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Value]:
        """Write a loop: the body of the ``for`` statement is run once, to write the loop's body."""
        counter, stop = self.variable(start), self.integer(stop)
        blocks = [self.builder.append_basic_block(name) for name in ("head", "body", "end")]
        head, body, end = blocks
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch((counter.get() < stop).llvm, body, end)
        self.builder.position_at_end(body)
        yield counter.get()
        counter.set(counter.get() + step)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Write a block that runs where the condition holds."""
        with self.builder.if_then(condition.llvm):
            yield

    @contextmanager
    def choice(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """Write two blocks, of which one runs; yields a context manager for each."""
        with self.builder.if_else(condition.llvm) as blocks:
            yield blocks

    def call(self, name: str, *values: Value) -> None:
        """Call a function of the same module that returns nothing."""
        self.builder.call(self.builder.module.globals[name], [value.llvm for value in values])

    def call_address(self, address: Value, returns: ir.Type = VOID) -> Value:
        """Call a function without arguments at an address."""
        callee = _Callee(address.llvm, ir.FunctionType(returns, []))
        return Value(self, self.builder.call(callee, []))


class _Callee:
    """An address with the type of what lies there; llvmlite calls only what knows its type."""

    def __init__(self, address: ir.Value, function_type: ir.FunctionType) -> None:
        self.type = address.type
        self.function_type = function_type
        self.get_reference = address.get_reference


class Program:
    """A module under construction.

    Args:
        lanes: Floats in one vector register of the processor.
        registers: Its number of vector registers.
        int8: Its instruction for products of int8: ``VPDPBUSD``, ``VPMADDUBSW``, or nothing.
    """

    def __init__(self, lanes: int, registers: int, int8: str = "") -> None:
        self.lanes = lanes
        self.registers = registers
        self.int8 = int8
        self.module = ir.Module("kd_prune")

    @contextmanager
    def function(
        self, name: str, *kinds: ir.Type, exported: bool = False
    ) -> Iterator[tuple[Emitter, list[Value]]]:
        """Write a function that returns nothing; yields its emitter and its arguments."""
        kind = ir.FunctionType(VOID, list(kinds))
        function = ir.Function(self.module, kind, name)
        function.linkage = "external" if exported else "internal"
        function.attributes.add("nounwind")
        if not exported:
            function.attributes.add("noinline")
        emitter = Emitter(ir.IRBuilder(function.append_basic_block("entry")))
        yield emitter, [Value(emitter, argument) for argument in function.args]
        emitter.builder.ret_void()

    def __str__(self) -> str:
        return str(self.module)


def is_integer(kind: ir.Type) -> bool:
    """Return whether a type is an integer or a vector of integers."""
    return isinstance(getattr(kind, "element", kind), ir.IntType)


def rounded(number: float, kind: ir.Type) -> float:
    """Round a constant to what its type can hold."""
    if isinstance(kind, ir.IntType):
        return int(number)
    rounded_value: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded_value
