"""Other processes of a command: a launcher's workers, and one process for each device of a job.

Lightning starts the processes of the devices by repeating this process's command.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import read_write

from kd_prune.cli.locations import CLONE
from kd_prune.results import STATUS_FILE
from kd_prune.sweep import status

SHUTDOWN_SECONDS = 60.0
"""Time limit for workers to finish the current step and write a checkpoint."""


def is_child_rank() -> bool:
    """Return whether a job started this process for its second, third … device."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


def is_sweep() -> bool:
    """Return whether the running job is one of a sweep."""
    return bool(HydraConfig.get().mode is RunMode.MULTIRUN)


def forward_sigterm(sweep: Path) -> None:
    """Send SIGTERM on to the workers of a launcher, which save a checkpoint and end.

    Ctrl-C needs no help: a terminal sends it to all processes of the command.

    Args:
        sweep: The sweep's folder, which holds the run folders of its jobs.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        runs = {file.parent for file in sweep.rglob(STATUS_FILE)}
        busy = [run for run in runs if status.is_running(run)]
        for pid in filter(None, (worker.pid for worker in multiprocessing.active_children())):
            with suppress(OSError):
                os.kill(pid, number)
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while any(map(status.is_running, busy)) and time.monotonic() < deadline:
            time.sleep(0.1)
        sys.stderr.write("terminated; run the same command again to resume\n")
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, forward)


@contextmanager
def repeatable_command(out: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Set this process's command to one that starts exactly the current job.

    Lightning (2.6) starts further processes with ``python -m`` and the name of the main module, or
    with ``sys.argv[0]``, and the other arguments of ``sys.argv``. In a sweep these would start all
    jobs, and in a launcher's worker another worker. Inside this context the command is ``python -m
    kd_prune train`` with the overrides of the job.

    Args:
        out: The run folder.
        overrides: Further overrides of the job.
    """
    hydra = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]  # a job is running
    main = sys.modules["__main__"]
    argv, spec = sys.argv, getattr(main, "__spec__", None)
    path = os.environ.get("PYTHONPATH")
    arguments = sys.argv[1:]
    if hydra.mode is RunMode.MULTIRUN:
        sources = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
        options = [part for source in sources for part in ("--config-dir", source)]
        searched = [o for o in hydra.overrides.hydra if o.startswith("hydra.searchpath")]
        name = ["--config-name", str(hydra.job.config_name)]
        arguments = [*name, *options, *searched, *hydra.overrides.task, *overrides]
        with read_write(hydra.run):  # Lightning passes on the folder of a single run
            hydra.run.dir = str(out)
    sys.argv = [argv[0], "train", *arguments]
    main.__spec__ = find_spec("kd_prune.__main__")
    if CLONE:  # the package may not be installed
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CLONE), *([path] if path else [])])
    try:
        yield
    finally:
        sys.argv = argv
        main.__spec__ = spec
        if CLONE and path is None:
            del os.environ["PYTHONPATH"]
        elif CLONE and path is not None:
            os.environ["PYTHONPATH"] = path
