"""Folders that the processes of a job on several machines share."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kd_prune.errors import ConfigError
from kd_prune.pipeline.context import Context

SHARED_SECONDS = 60.0
"""Time after which a file of the first process should be seen on a disk that is shared."""
MARKER = ".processes"
"""File by which the first process shows that it sees a folder."""


def check_shared(context: Context) -> None:
    """Refuse a run folder or a cache that this process does not share with the first one.

    The first process leaves a file in each, and the others look for it.

    Raises:
        ConfigError: The file of the first process is not there.
    """
    deadline = time.monotonic() + SHARED_SECONDS
    for key, folder in {"hydra.run.dir": context.job.out, "cache_dir": context.cache}.items():
        marker = folder / MARKER
        if context.first_process:
            marker.write_text(_launch())
        while not _announced(marker):
            if time.monotonic() > deadline:
                raise ConfigError(
                    key,
                    folder,
                    f"the job's first process left nothing here in {SHARED_SECONDS:.0f} seconds",
                    "name a folder that all machines share",
                )
            time.sleep(0.1)


def _announced(marker: Path) -> bool:
    try:
        return marker.read_text() == _launch()
    except OSError:
        return False


def _launch() -> str:
    """Return what tells the processes of this launch from those of others."""
    names = ("MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")
    return " ".join(os.environ.get(name, "") for name in names)
