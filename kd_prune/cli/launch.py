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
from omegaconf import DictConfig, read_write

from kd_prune.cli.locations import CLONE
from kd_prune.errors import ConfigError
from kd_prune.results import STATUS_FILE
from kd_prune.sweep import status

CHECKPOINT_FILE = "last.ckpt"
SHUTDOWN_SECONDS = 60.0
"""Time limit for workers to finish the current step and write a checkpoint."""


def is_on_nodes(config: DictConfig) -> bool:
    """Return whether the job is one of several machines: ``trainer=nodes``."""
    return "num_nodes" in config.trainer


def is_child_rank(config: DictConfig) -> bool:
    """Return whether this process is the job's second, third …, and the first keeps the record.

    Lightning says so to those that it starts itself, and torchrun and Slurm to those of a job on
    several machines. (Without one, ``srun -n 4`` may well start four jobs.)
    """
    ranks = ["LOCAL_RANK"]
    if is_on_nodes(config):
        ranks += ["RANK", "SLURM_PROCID", "NODE_RANK"]
    return any(int(os.environ.get(rank, 0)) > 0 for rank in ranks)


def check_nodes(config: DictConfig) -> None:
    """Refuse a job on several machines whose processes would not find each other's files.

    Raises:
        ConfigError: It is one of a sweep, or has no run folder of a fixed name.
    """
    if not is_on_nodes(config):
        return
    if is_sweep():
        raise ConfigError(
            "trainer.num_nodes",
            config.trainer.num_nodes,
            "each job of a sweep takes one machine",
            "start this job alone, under torchrun or srun, or take trainer=ddp (docs/cluster.md)",
        )
    given = [override.partition("=")[0] for override in HydraConfig.get().overrides.hydra]
    if "hydra.run.dir" not in given:
        raise ConfigError(
            "hydra.run.dir",
            expected="each process would make a folder of its own, named by the time",
            hint="name one that all machines share",
        )


def resumable_checkpoint(config: DictConfig, out: Path) -> str | None:
    """Return the checkpoint that a job on several machines left in its folder, if it was ended.

    A launcher that starts a job once more gives the same command.
    """
    checkpoint = out / CHECKPOINT_FILE
    if not is_on_nodes(config) or config.ckpt_path or not checkpoint.is_file():
        return None
    return str(checkpoint)


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
