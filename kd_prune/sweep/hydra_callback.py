"""SummaryCallback: Hydra's part of a sweep's summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kd_prune.sweep import names, processes, search, status

log = logging.getLogger(__name__)
__all__ = ["SummaryCallback", "names"]  # a job's process has the folders' names by unpickling this


class SummaryCallback(Callback):
    """Writes the summary at the end of every multirun; exit code 1 if a job failed.

    It covers all that lies in the sweep's folder, so a sweep that was started again, or by several
    processes, ends in one table; a search's best settings come last.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Workers that joblib starts would outlive a command that is told to end."""
        if "joblib" in str(config.hydra.launcher.get("_target_")):
            processes.pass_on_termination(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise; the jobs' results are safe by now, so no fault here may hide them."""
        from kd_prune.sweep import summarize
        from kd_prune.sweep.collect import run_folders

        folder = Path(config.hydra.sweep.dir)
        if not any(run_folders(folder)):  # nothing was to be trained (eval=…)
            return
        try:
            found = summarize([folder], folder)
        except Exception as error:
            log.error("%s: no summary: %s", folder, status.reason(error))
            log.info("python -m kd_prune.sweep %s makes one", folder)
            log.debug("no summary", exc_info=True)
            raise SystemExit(1) from None
        search.print_best(folder)
        if any(run.state == "failed" for run in found.runs):
            raise SystemExit(1)
