"""``kd-prune train``: compose the job with Hydra, run it, and report every error in one line."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kd_prune.cli import launch, suggestions
from kd_prune.cli.arguments import normalize_argv, quote_override
from kd_prune.cli.job import (
    check_command,
    describe,
    keys_as_set,
    make_job,
    trial_callbacks,
)
from kd_prune.cli.locations import CONF
from kd_prune.cli.quiet import quiet_libraries
from kd_prune.cli.recorded_task import with_recorded_task
from kd_prune.config_utils import quote_value
from kd_prune.errors import ConfigError
from kd_prune.results import ModelResult, RunResult, Status
from kd_prune.sweep import status
from kd_prune.sweep.runner import run_eval_job, run_sweep_job, sweep_metric

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)
JOB_STARTED = threading.Event()
"""Set once a job runs in this process: errors before that are Hydra's."""


def main(arguments: Sequence[str]) -> None:
    """Compose and run the job, or the sweep, that the overrides describe.

    Raises:
        SystemExit: An error, in one line; a failed job of a sweep; an interrupt.
    """
    try:
        sys.argv = [sys.argv[0], *normalize_argv(arguments)]
    except ConfigError as error:
        of_a_flag = error.key.startswith("-")
        hint = f"; {suggestions.suggest_flag(error.key)}" if of_a_flag else ""
        sys.exit(f"error: {error}{hint}")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises errors instead of printing
    JOB_STARTED.clear()
    compose_and_run = hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    try:
        compose_and_run(run_composed)()
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        if JOB_STARTED.is_set() and isinstance(error, TypeError):
            raise  # of the job: a fault, and no setting's
        sys.exit(f"error: {suggestions.describe_composition_error(error, sys.argv[1:])}")
    except BrokenProcessPool:
        sys.exit(
            "error: a worker was killed, probably because memory ran out; run the same command "
            "again to resume, with fewer jobs at once (hydra.launcher.n_jobs) if it repeats"
        )
    except yaml.MarkedYAMLError as error:
        sys.exit(f"error: {suggestions.describe_yaml_error(error)}")
    except OSError as error:
        if JOB_STARTED.is_set():
            raise
        sys.exit(f"error: {describe_folder_error(error)}")


def run_composed(config: DictConfig) -> float | None:
    """Run the composed job and keep its record; Hydra's task function.

    Returns:
        The metric that a sweep compares; None in a process that a job started for another device.
    """
    # Imported after composing, so that a wrong key is reported before torch is loaded.
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from kd_prune.lit.signals import Interrupted

    JOB_STARTED.set()
    quiet_libraries()
    out = Path(HydraConfig.get().runtime.output_dir)
    record = describe(config)
    try:
        return sweep_metric(run_recorded(config, out, record), config.task.monitor)
    except Interrupted as interrupted:
        if launch.is_child_rank(config):
            return None
        by_itself = launch.is_sweep() or launch.is_on_nodes(config)
        hint = resume_hint(interrupted.path, out, by_itself=by_itself)
        sys.stderr.write(f"{interrupted}\n{hint}\n")
        sys.exit(128 + interrupted.number)
    except SystemExit as end:
        # Lightning turns KeyboardInterrupt into exit code 1.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    except Exception as error:
        ours = type(error).__module__.startswith("kd_prune.")
        known = isinstance(error, (ValueError, MisconfigurationException))
        if not (ours or known or status.disk_is_full(error)):
            raise
        log.debug("refused", exc_info=True)
        sys.exit(f"error: {status.reason(error)}")


def run_recorded(config: DictConfig, out: Path, record: Status) -> RunResult | ModelResult | None:
    """Run the job, and record its state as that of a sweep's job or a single run."""
    sweep = launch.is_sweep()
    if config.eval is not None and sweep:
        return run_eval_job(out, record, lambda: evaluate_model(config, out))
    if config.eval is not None:  # no record: evaluation.json is the only result
        return None if launch.is_child_rank(config) else evaluate_model(config, out)
    resume = launch.resumable_checkpoint(config, out)
    if launch.is_child_rank(config):  # the first process keeps the record
        return run_job(config, out, resume)
    status.refuse_results_without_run(out)
    if sweep:
        return run_sweep_job(
            out,
            record,
            lambda checkpoint: run_job(config, out, checkpoint),
            retry_failed=config.sweep.retry_failed,
        )
    with status.run_lock(out, record):
        return run_job(config, out, resume)


def evaluate_model(config: DictConfig, out: Path) -> ModelResult:
    """Evaluate the saved model that the setting `eval` names."""
    from kd_prune.pipeline import evaluate_saved

    check_command(config)
    if not str(config.eval).strip():
        raise ConfigError("eval", '""', "names no model", "give a folder or hub id")
    job = make_job(with_recorded_task(config, Path(config.eval).expanduser()), out)
    return evaluate_saved(job, config.eval)


def run_job(config: DictConfig, out: Path, checkpoint: str | None = None) -> RunResult | None:
    """Build the job and run it.

    Args:
        config: The composed configuration.
        out: The run folder.
        checkpoint: Checkpoint that was found in the run folder; training starts from the
            beginning if it cannot be read.

    Returns:
        The result; None in a process that a job started for another device.
    """
    from kd_prune.pipeline import CheckpointError, run

    check_command(config)
    with keys_as_set(config):
        job = make_job(config, out)
    job = dataclasses.replace(
        job,
        ckpt_path=checkpoint or job.ckpt_path,
        callbacks={**job.callbacks, **trial_callbacks(config)},
    )
    resume = [f"ckpt_path={quote_value(checkpoint)}"] if checkpoint else []
    try:
        with launch.repeatable_command(out, resume), keys_as_set(config):
            return run(job)
    except CheckpointError as error:
        if not checkpoint:
            raise
        log.warning("%s; training starts from the beginning", error)
        return run_job(config, out)


def resume_hint(checkpoint: Path, out: Path, *, by_itself: bool) -> str:
    """Return the instruction that resumes an interrupted run.

    A sweep and a job on several machines find their checkpoints by themselves, and every command
    finds the checkpoint of a teacher.
    """
    if checkpoint.parent == out and not by_itself:
        override = quote_override("ckpt_path", str(checkpoint))
        return f"To resume, run the same command with {override}"
    return "To resume, run the same command again"


def describe_folder_error(error: OSError) -> str:
    """Describe why Hydra could not make the run folder."""
    key = "hydra.sweep.dir" if {"-m", "--multirun"}.intersection(sys.argv) else "hydra.run.dir"
    return (
        f"{key}: {error.filename} is no folder that can be written to ({error.strerror}); "
        f"name another: {key}=<folder>"
    )
