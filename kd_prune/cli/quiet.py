"""Silence libraries, so that a run prints only its own lines and warnings for users."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from kd_prune.errors import ConfigError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with one line for an error that a user can do something about.

    Raises:
        SystemExit: Such an error.
        BrokenPipeError: Nobody reads the output any more, which is no error of the command.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def quiet_libraries() -> None:
    """Silence the notices and progress bars of the libraries that a run uses."""
    from datasets import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(
        logging.INFO
    )  # their report is asked for
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # lists fonts at import
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # logs the errors that it raises
    logging.getLogger("huggingface_hub.utils._http").addFilter(HubRetryFilter())
    hub_logging.disable_propagation()  # it has its own handler
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty():
        disable_progress_bars()
    # Lightning 2.6 calls a function of torch's in a deprecated way; users can do nothing about it.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)


class HubRetryFilter(logging.Filter):
    """Reports once that the hub does not answer, instead of at each try for each file."""

    reported = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to show a record: not a retry after the first, which is reworded."""
        message = record.getMessage()
        if "thrown while requesting" in message:
            return False
        if not message.startswith("Retrying in"):
            return True
        first, self.reported = not self.reported, True
        record.msg, record.args = "The hub does not answer; trying again for up to a minute", ()
        return first
