"""SummaryCallback: Hydra's part of a sweep's summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kd_prune.cli import launch
from kd_prune.sweep import run_id, search, status

log = logging.getLogger(__name__)
# `run_id` defines the resolvers of folder names; a launcher's worker imports it with this module.
__all__ = ["SummaryCallback", "run_id"]


class SummaryCallback(Callback):
    """Writes the summary at the end of every multirun; exit code 1 if a job failed.

    The summary covers all runs in the sweep's folder, also those of an earlier start or of another
    process. The best settings of a search are printed last.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forward SIGTERM to joblib's workers, which would otherwise outlive the command."""
        if "joblib" in str(config.hydra.launcher.get("_target_")):
            launch.forward_sigterm(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the summary; an error is logged, because the jobs' results are already saved."""
        from kd_prune.sweep import summarize_folders
        from kd_prune.sweep.collect import run_folders

        folder = Path(config.hydra.sweep.dir)
        if not any(run_folders(folder)):  # a sweep of evaluations (eval=…)
            return
        try:
            found = summarize_folders([folder], folder)
        except Exception as error:
            log.error("%s: no summary: %s", folder, status.reason(error))
            log.info("kd-prune summary %s makes one", folder)
            log.debug("no summary", exc_info=True)
            raise SystemExit(1) from None
        search.print_best(folder)
        if any(run.state == "failed" for run in found.runs):
            raise SystemExit(1)
