"""The console's handler."""

from __future__ import annotations

import logging
import os

from kd_prune.cli.console import ConsoleHandler


def test_handler_is_quiet_after_a_broken_pipe(capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        handler = ConsoleHandler(stream)
        for message in ("one", "two"):
            handler.emit(logging.LogRecord("x", logging.INFO, "", 1, message, (), None))
        print("three", file=stream, flush=True)  # the run's table
    assert capsys.readouterr().err == ""


def test_handler_reports_other_errors(capsys):
    record = logging.LogRecord("x", logging.INFO, "", 1, "%d", ("no number",), None)
    ConsoleHandler().emit(record)
    assert "Logging error" in capsys.readouterr().err
