"""Hydra's launchers: jobs in processes of their own share a teacher and end in one summary."""

from __future__ import annotations

import csv
import json
import signal
import time
from importlib.util import find_spec

import pytest

from .script import SMALL, start_interpreter


@pytest.mark.slow
def test_a_command_that_is_told_to_end_takes_its_workers_along(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="joblib is not installed")
    command = (
        "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SMALL,
        "trainer.max_epochs=2000", "sparsity.final=0.5,0.9", f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    process = start_interpreter(tmp_path, tmp_path, *command)
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "sweep").glob("*/last.ckpt"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert "terminated; run the same command again to resume" in stderr
    for file in (tmp_path / "sweep").glob("*/status.json"):
        assert json.loads(file.read_text())["reason"].startswith(
            "Interrupted: interrupted by SIGTER"
        )


LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra.launcher.cpus_per_task=1"),
}


@pytest.mark.parametrize(
    "launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)]
)
def test_jobs_side_by_side(launcher, tmp_path):
    plugin, setting = LAUNCHERS[launcher]
    try:
        there = find_spec(plugin)
    except ModuleNotFoundError:
        there = None
    if there is None:
        pytest.skip(f"the extra for {launcher} is not installed")
    sweep = tmp_path / "sweep"
    command = (
        "-m", f"hydra/launcher={launcher}", setting, *SMALL,
        "sparsity.final=0.5,0.9,95", f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    process = start_interpreter(tmp_path, tmp_path, *command)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr  # one value is impossible
    states = {}
    for file in sweep.glob("*/status.json"):
        status = json.loads(file.read_text())
        states[status["config"]["sparsity"]["final"]] = status["state"]
        assert f"-s{status['config']['sparsity']['final']}-seed0-" in file.parent.name
    assert states == {0.5: "finished", 0.9: "finished", 95: "failed"}
    results = [json.loads(file.read_text()) for file in sweep.glob("*/result.json")]
    teachers = {result["stages"]["teacher"]["path"] for result in results}
    assert len(teachers) == 1
    assert len(list((tmp_path / "stages").glob("*/stage.json"))) == 1  # though both began at once
    with (sweep / "summary.csv").open() as file:
        assert [row["target"] for row in csv.DictReader(file)] == ["0.5", "0.9"]
    assert "did you mean 0.95?" in stdout

    process = start_interpreter(tmp_path, tmp_path, *command)  # again: nothing to do
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr
    assert len(list(sweep.glob("*/status.json"))) == 3
