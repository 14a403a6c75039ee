"""What kernels read: the order of the numbers in their argument blocks, shared with Python.

A block is an array of 64-bit slots: pointers, integers, and floats in the first four bytes of one.
A **tile** holds the activations of `width` consecutive tokens as ``[features, width]``: a weight
is multiplied with a whole row of it at once.
"""

from __future__ import annotations

from enum import IntEnum, auto

WIDTHS = (16, 32, 64)
"""Tokens in a tile; a call uses one of these."""
PANEL = 192
"""Inputs of a matrix whose weights are used one after the other: 48 KB of a tile of 64 tokens."""
GROUP = 4 * PANEL
"""Inputs of a token that are quantized together, and a panel of an int8 matrix: 48 KB likewise."""
GROUP_ROWS = GROUP // 4 + 2
"""Rows of a quantized group of a tile: step, offset, then four inputs in the bytes of each word."""


class _Slots(IntEnum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count


class Matrix(_Slots):
    """A packed matrix; `kd_prune.inference.packing` says what the arrays hold."""

    STARTS = auto()
    COLUMNS = auto()
    VALUES = auto()
    BIAS = auto()
    WORK = auto()
    ROWS = auto()
    PANELS = auto()
    SCALES = auto()
    """Of an int8 matrix, else null: what a unit of each row is worth."""
    SUMS = auto()
    """Of an int8 matrix: the sum of the weights of every (panel, row), as a float."""


class Norm(_Slots):
    """A layer norm."""

    WEIGHT = auto()
    BIAS = auto()
    EPSILON = auto()


class Layer(IntEnum):
    """A block of an encoder: where its matrices and norms begin."""

    QUERY_KEY_VALUE = 0
    OUTPUT = len(Matrix)
    UP = 2 * len(Matrix)
    DOWN = 3 * len(Matrix)
    ATTENTION_NORM = 4 * len(Matrix)
    FINAL_NORM = 4 * len(Matrix) + len(Norm)
    SLOTS = 4 * len(Matrix) + 2 * len(Norm)


class Team(_Slots):
    """First slots of every call: the threads, and how the work is split between them."""

    BARRIER = auto()
    THREAD_NUMBER = auto()
    TEAM_SIZE = auto()
    """Function that returns how many threads have come: a limit may allow fewer than planned."""
    THREADS = auto()
    PARTS = auto()
    """Threads that share the rows of one tile."""
    TILES = auto()
    TOKENS = auto()


class LinearCall(IntEnum):
    """Arguments of a single linear layer."""

    INPUT = len(Team)
    OUTPUT = len(Team) + 1
    IN_FEATURES = len(Team) + 2
    OUT_FEATURES = len(Team) + 3
    IN_TILES = len(Team) + 4
    OUT_TILES = len(Team) + 5
    QUANTIZED = len(Team) + 6
    QUANTIZED_SIZE = len(Team) + 7
    MATRIX = len(Team) + 8
    """A whole `Matrix`."""
    SLOTS = len(Team) + 8 + len(Matrix)


class EncoderCall(IntEnum):
    """Arguments of a stack of encoder blocks."""

    INPUT = len(Team)
    OUTPUT = len(Team) + 1
    BATCH = len(Team) + 2
    LENGTH = len(Team) + 3
    MASK = len(Team) + 4
    """Number added to the scores of every key, ``[batch, length]``; 0: no mask."""
    KEYS = len(Team) + 5
    """Keys of each sequence up to the last that is not masked, ``[batch]``."""
    LAYERS = len(Team) + 6
    TABLE = len(Team) + 7
    HIDDEN = len(Team) + 8
    HEADS = len(Team) + 9
    HEAD_SIZE = len(Team) + 10
    FEED_FORWARD = len(Team) + 11
    ACTIVATION = len(Team) + 12
    SCALE = len(Team) + 13
    STATES = len(Team) + 14
    PROJECTED = len(Team) + 15
    CONTEXT = len(Team) + 16
    MIDDLE = len(Team) + 17
    WIDE = len(Team) + 18
    SCRATCH = len(Team) + 19
    SCRATCH_SIZE = len(Team) + 20
    QUANTIZED = len(Team) + 21
    """Quantized tiles, two for each thread or shared tile; null where no matrix is int8."""
    QUANTIZED_SIZE = len(Team) + 22
    """Words from one pair to the next."""
    QUANTIZED_WIDE = len(Team) + 23
    """Words from the first of a pair, which layers read, to that of the feed-forward block."""
    SLOTS = len(Team) + 24


ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
"""Activation functions by their number in `EncoderCall.ACTIVATION`."""
