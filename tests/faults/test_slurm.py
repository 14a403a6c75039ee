"""A sweep on Slurm, or what submitit takes for it: out of time, queued again, finished."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.script import SMALL, start

# As docs/sweeps.md shows it, but for the jobs and the time they get. (Under ten minutes submitit
# takes the signal for the end of the time whenever it comes, else for preemption.)
LAUNCHER = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.partition=gpu",
    "hydra.launcher.gpus_per_node=1",
    "hydra.launcher.cpus_per_task=4",
    "hydra.launcher.timeout_min=10",
    "hydra.launcher.signal_delay_s=300",
    "hydra.launcher.max_num_timeout=10",
    "hydra.launcher.array_parallelism=64",
)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands on the path, and the folder where they keep their jobs."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    commands, jobs = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    jobs.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        file = commands / name
        stand_in = Path(__file__).with_name("slurm.py")
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} {name} "$@"\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    yield jobs
    for leader in jobs.glob("array-*"):
        with suppress(ProcessLookupError):  # all done
            os.killpg(int(leader.read_text()), signal.SIGKILL)


def sweep_in(folder, slurm, *, out_of_time):
    """Sparsity → the student's file, of a sweep whose jobs run out of time once, or not."""
    sweep = folder / "sweep"
    settings = ("sparsity.final=0.5,0.9", "trainer.max_epochs=200", f"hydra.sweep.dir={sweep}")
    with start(folder, folder, "-m", *LAUNCHER, *SMALL, *settings) as process:
        while out_of_time and len(list(sweep.glob("*/metrics.csv"))) < 2:  # students in training
            assert process.poll() is None
            time.sleep(0.1)
        for pid in slurm.glob("*/pid") if out_of_time else ():
            if (pid.parent / "state").read_text() == "RUNNING":
                os.kill(int(pid.read_text()), signal.SIGUSR2)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    logs = [file.read_text() for file in sweep.glob(".submitit/*/*.out")]
    assert ["Job has timed out" in log for log in logs] == [out_of_time] * 2
    assert ["Resuming after step" in log for log in logs] == [out_of_time] * 2
    assert (sweep / "summary.csv").is_file()
    return {
        json.loads(file.read_text())["config"]["sparsity"]["final"]: (
            file.with_name("student") / "model.safetensors"
        ).read_bytes()
        for file in sweep.glob("*/result.json")
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_out_of_time_and_queued_again_is_as_undisturbed(slurm, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    undisturbed = sweep_in(tmp_path / "one", slurm, out_of_time=False)
    assert undisturbed.keys() == {0.5, 0.9}
    assert sweep_in(tmp_path / "other", slurm, out_of_time=True) == undisturbed
