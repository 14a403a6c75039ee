"""Messages of a run, on the console and in the run's ``train.log``."""

from __future__ import annotations

import logging

from lightning.pytorch.utilities import rank_zero_only

MESSAGES = logging.getLogger("kd_prune.run")
PROGRESS = logging.getLogger("kd_prune.progress")
"""Lines of progress; a terminal with a progress bar does not show them (`ProgressFilter`)."""


@rank_zero_only
def say(message: str) -> None:
    """Log a message in the first process only; print it if no logging is set up."""
    _write(MESSAGES, message)


@rank_zero_only
def say_progress(line: str) -> None:
    """Log a line of progress, as `say` logs a message."""
    _write(PROGRESS, line)


def _write(logger: logging.Logger, message: str) -> None:
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info(message)
    else:
        print(message, flush=True)
