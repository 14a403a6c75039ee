"""Console: format of log messages in a terminal; ``train.log`` has time and level too."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

PROGRESS = "kd_prune.progress"


class ConsoleFormatter(logging.Formatter):
    """Formats a record as its message, with the level in front of warnings and errors.

    >>> record = logging.LogRecord("x", logging.WARNING, "", 1, "no %s", ("head",), None)
    >>> ConsoleFormatter().format(record)
    'warning: no head'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, with the level of a warning or an error in front."""
        message = super().format(record)
        return (
            message if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {message}"
        )


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to the console until its reader is gone (``| head``); the run goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Discard all later output after a broken pipe; report any other error."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # also for what is printed
        os.close(nowhere)


class ProgressFilter(logging.Filter):
    """Drops lines of progress in a terminal, which shows a progress bar instead."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the console shows the record."""
        return record.name != PROGRESS or not sys.stdout.isatty()
