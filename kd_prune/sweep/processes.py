"""Other processes: a launcher's workers, and those of a job on several devices, one for each.

The latter are started by Lightning, with this process's command.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import read_write

from kd_prune.sweep import status

PATIENCE = 60.0
"""Seconds that jobs have for the step under way and its checkpoint."""


def is_further() -> bool:
    """Whether this process was started by a job for its second, third … device."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


def pass_on_termination(sweep: Path) -> None:
    """Let SIGTERM reach the workers of a launcher too: they save where they are, and end.

    A terminal's Ctrl-C reaches all of its processes by itself.

    Args:
        sweep: The sweep's folder, with that of each job in it.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        runs = {file.parent for file in sweep.rglob(status.FILE)}
        at_work = [run for run in runs if status.is_at_work(run)]
        for pid in filter(None, (worker.pid for worker in multiprocessing.active_children())):
            with suppress(OSError):
                os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE
        while any(map(status.is_at_work, at_work)) and time.monotonic() < deadline:
            time.sleep(0.1)
        sys.stderr.write("terminated; the same command goes on\n")
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, pass_on)


@contextmanager
def command_of_one_job(script: Path, out: Path, changes: Sequence[str] = ()) -> Iterator[None]:
    """Let the process's command be that of the one job that it is at.

    Lightning (2.6) repeats ``sys.argv`` for every further process, or ``python -m`` the main
    module. Of a sweep that is the whole sweep, and within a launcher's worker the worker; here it
    is ``train.py`` with the job's own overrides.

    Args:
        script: ``train.py``.
        out: The job's folder.
        changes: Overrides that the job got besides.
    """
    config = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]  # there is a job
    main = sys.modules["__main__"]
    argv, spec = sys.argv, getattr(main, "__spec__", None)
    if config.mode is RunMode.MULTIRUN:
        sources = [s.path for s in config.runtime.config_sources if s.provider == "command-line"]
        options = [part for path in sources for part in ("--config-dir", path)]
        searched = [o for o in config.overrides.hydra if o.startswith("hydra.searchpath")]
        name = ["--config-name", str(config.job.config_name)]
        sys.argv = [str(script), *name, *options, *searched, *config.overrides.task, *changes]
        main.__spec__ = None
        with read_write(config.run):  # Lightning hands on the folder of a single run
            config.run.dir = str(out)
    try:
        yield
    finally:
        sys.argv = argv
        main.__spec__ = spec
