"""How a kernel's threads share its work."""

from __future__ import annotations

from collections.abc import Iterator

from kd_prune.inference.jit.emitter import INT32, Emitter, Value
from kd_prune.inference.layout import Team


class Crew:
    """The threads of a call, seen from one of them.

    Work is a grid: tiles, and parts of a tile's rows. Every part of every tile belongs to one
    thread; with one part per tile, a tile's thread is the same in every step, so that no thread
    has to wait for another one between steps of the same tile.
    """

    def __init__(self, emit: Emitter, call: Value) -> None:
        self.emit = emit
        planned = emit.load(call, Team.THREADS)
        self.parts = emit.load(call, Team.PARTS)
        self.tiles = emit.load(call, Team.TILES)
        self.tokens = emit.load(call, Team.TOKENS)
        self._barrier = emit.load_pointer(call, Team.BARRIER)
        threads, number = emit.variable(1), emit.variable(0)
        with emit.when(planned > 1):
            for variable, slot in ((threads, Team.TEAM_SIZE), (number, Team.THREAD_NUMBER)):
                found = emit.call_address(emit.load_pointer(call, slot), INT32)
                variable.set(emit.widened(found))
        self.threads, self.number = threads.get(), number.get()

    def work(self) -> Iterator[tuple[Value, Value]]:
        """Write a loop over this thread's (tile, part)."""
        for item in self.emit.range(self.number, self.tiles * self.parts, self.threads):
            yield item // self.parts, item % self.parts

    def wait(self) -> None:
        """Write a wait until all threads are here."""
        with self.emit.when(self.threads > 1):
            self.emit.call_address(self._barrier)

    def wait_for_parts(self) -> None:
        """Write a wait where a tile is shared by several threads."""
        with self.emit.when(self.parts > 1):
            self.wait()

    def share(self, count: Value, part: Value, multiple: int) -> tuple[Value, Value]:
        """Return the first and the end of a part of `count` things, at multiples of a number."""
        size = (count + (self.parts * multiple - 1)) // (self.parts * multiple) * multiple
        first = self.emit.minimum(part * size, count)
        return first, self.emit.minimum(first + size, count)
