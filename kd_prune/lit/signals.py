"""SignalListener: delays Ctrl-C, SIGTERM and a cluster's signals until the fit can act on them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a cluster warns that it is going to end the job."""


class Interrupted(BaseException):
    """A signal ended the fit after its state was saved.

    Not an `Exception`: like KeyboardInterrupt it ends all jobs of a sweep, not just one.

    Attributes:
        path: The checkpoint.
        number: The signal's number.
    """

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}; saved {path}")
        self.path = path
        self.number = number


class SignalListener:
    """Remembers a signal that arrives during a fit; a second signal has its usual effect.

    SIGINT and SIGTERM are listened to, and those of `WARNINGS` that the user's process handles.

    Attributes:
        received: Number of the signal that arrived; None: no signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._old_handlers: dict[int, Any] = {}
        self._user_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def find_user_handlers(self) -> None:
        """Note the handlers of the user's process; call it before Lightning installs its own."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, *WARNINGS)}
        self._user_handlers = {number: h for number, h in handlers.items() if callable(h)}

    def start(self) -> None:
        """Forget an earlier signal and listen; only the main thread can."""
        self.received = None
        self._install()

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._old_handlers = {
                number: signal.signal(number, self._on_signal)
                for number in {signal.SIGINT, signal.SIGTERM, *self._user_handlers}
            }

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.stop()

    def stop(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    def act(self, saved: Path) -> None:
        """Act on the signal that arrived, if any, now that the state is saved.

        A handler of the user's process is called; if it returns, the fit continues.

        Args:
            saved: The checkpoint.

        Raises:
            Interrupted: The user's process has no handler for the signal.
        """
        if self.received is None:
            return
        number, self.received = self.received, None
        if number not in self._user_handlers:
            raise Interrupted(saved, number)
        self._user_handlers[number](number, None)
        self._install()
