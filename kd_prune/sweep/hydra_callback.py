"""SummaryCallback: Hydra's part of a sweep's summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kd_prune.sweep import names  # a job's process has the names of folders by unpickling this

log = logging.getLogger(__name__)
__all__ = ["SummaryCallback", "names"]


class SummaryCallback(Callback):
    """Writes the summary at the end of every multirun; exit code 1 if a job failed.

    It covers all that lies in the sweep's folder, so a sweep that was started again, or by several
    processes, ends in one table.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise; the jobs' results are safe by now, so no fault here may hide them."""
        from kd_prune.sweep import summarize

        folder = Path(config.hydra.sweep.dir)
        try:
            found = summarize([folder], folder)
        except Exception:
            log.exception("no summary of %s; python -m kd_prune.sweep makes one", folder)
            raise SystemExit(1) from None
        if any(run.state == "failed" for run in found.runs):
            raise SystemExit(1)
