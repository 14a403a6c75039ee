"""A sweep killed again and again ends as one that was left alone: ``make faults``."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.script import SMALL, start

KILLS = 20
NOT_COMPARED = {"folder"}
SWEEP = (
    "-m",
    *SMALL,
    "seed=1,2",
    "sparsity.final=0.8,95",  # one that works, one that is refused
    "sparsity.milestones=[0.4]",
    "task.path.train=4096",
    "trainer.max_epochs=50",
    "checkpoint_minutes=0.005",
)


def rows(file: Path) -> list[dict[str, str]]:
    """Rows without places and times."""
    with file.open(newline="") as lines:
        return [
            {
                key: value
                for key, value in row.items()
                if key not in NOT_COMPARED and not key.endswith("/seconds")
            }
            for row in csv.DictReader(lines)
        ]


def weights(sweep: Path) -> dict[str, bytes]:
    files = sweep.glob("*/**/model.safetensors")
    return {str(file.relative_to(sweep)): file.read_bytes() for file in files}


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times_it_ends_in_the_same_summary(tmp_path):
    left_alone, killed = tmp_path / "left alone", tmp_path / "killed"
    process = start(tmp_path, tmp_path, *SWEEP, f"hydra.sweep.dir='{left_alone}'")
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 1, stderr  # one value is impossible

    cache = tmp_path / "another cache"  # teachers are killed too
    cache.mkdir()
    command = (*SWEEP, f"hydra.sweep.dir='{killed}'")
    moments = random.Random(0)  # noqa: S311
    states = set()
    for _ in range(KILLS):
        process = start(tmp_path, cache, *command, start_new_session=True)
        time.sleep(moments.uniform(4, 10))
        assert process.poll() is None, "the sweep was over before it was killed often enough"
        kill(process)
        for file in killed.glob("*/status.json"):  # whole whenever the kill came
            states.add(json.loads(file.read_text())["state"])
    assert "running" in states

    process = start(tmp_path, cache, *command)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 1, stderr
    for name in ("summary.csv", "runs.csv"):
        assert rows(killed / name) == rows(left_alone / name)
    assert len(rows(killed / "runs.csv")) == 2 * 2 + 2
    assert weights(killed) == weights(left_alone)
    assert len(weights(killed)) == 2 * 2
