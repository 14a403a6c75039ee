"""Memory and sharing of a kernel call: tiles, threads, arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_prune.inference import library, team
from kd_prune.inference.layout import WIDTHS

# Time per token in a tile of this width, relative to the best: measured with 95 % zeros on AVX2 and
# AVX-512. Narrow tiles use fewer registers per weight.
TOKEN_COST = {16: 1.4, 32: 1.05, 64: 1.0}
SHARED_COST = 1.15  # threads that share a tile wait for each other
SMALLEST_SHARE = 100_000  # multiply-adds for which a further thread is worth its start
LINE = 64
_free: list[Tensor] = []


@dataclass(frozen=True)
class Plan:
    """How a call is split: tokens per tile, threads per tile, tiles, threads."""

    width: int
    parts: int
    tiles: int
    threads: int

    @property
    def owners(self) -> int:
        """Return how many tiles are worked on at a time: each has memory of its own."""
        return self.tiles if self.parts > 1 else self.threads


def plan(tokens: int, work: int) -> Plan:
    """Choose the fastest split of a call.

    Args:
        tokens: Number of tokens, at least 1.
        work: Multiply-adds per token.
    """
    threads = max(1, min(team.size(), tokens * work // SMALLEST_SHARE))

    def cost(width: int) -> tuple[float, int]:
        tiles = -(-tokens // width)
        alone = -(-tiles // threads) * width * TOKEN_COST[width]
        shared = tiles * width * TOKEN_COST[width] * SHARED_COST / threads
        return (alone, 1) if alone <= shared or threads == 1 else (shared, threads)

    width = min(WIDTHS, key=lambda width: (cost(width)[0], -width))
    return Plan(width, cost(width)[1], -(-tokens // width), threads)


@contextmanager
def workspace(sizes: list[int]) -> Iterator[list[int]]:
    """Yield addresses of float arrays of the sizes, each on a cache line of its own.

    The memory stays for the next call of any thread: fresh memory costs a page fault per 4 KB.
    """
    places, total = [], 0
    for size in sizes:
        places.append(total)
        total += -(-(size * 4 + 16 * 4) // LINE) * LINE
    try:
        memory = _free.pop()
    except IndexError:
        memory = torch.empty(0, dtype=torch.uint8)
    if memory.numel() < total + LINE:
        memory = torch.empty(total + LINE, dtype=torch.uint8)
    try:
        base = -(-memory.data_ptr() // LINE) * LINE
        yield [base + place for place in places]
    finally:
        _free.append(memory)


def call(kernel: str, chosen: Plan, tokens: int, arguments: list[int]) -> None:
    """Run a kernel in the threads of a plan.

    Args:
        kernel: Its name without the width of the tiles.
        chosen: How the work is split.
        tokens: Number of tokens.
        arguments: The slots behind those of `Team`.
    """
    runtime = team.runtime()
    functions = [0, 0, 0]
    if runtime:
        functions = [runtime.barrier, runtime.thread_number, runtime.team_size]
    own = [*functions, chosen.threads, chosen.parts, chosen.tiles, tokens]
    block = np.array([*own, *arguments], dtype=np.int64)
    address = library.kernels().address(f"{kernel}_{chosen.width}")
    team.run(address, block.ctypes.data, chosen.threads)


def float_slot(number: float) -> int:
    """Return a float as a slot: its bits in the first four bytes."""
    block: Any = np.zeros(1, dtype=np.int64)
    block.view(np.float32)[0] = number
    return int(block[0])
