"""Hydra's launchers: jobs in processes of their own share a teacher and end in one summary."""

from __future__ import annotations

import csv
import functools
import json
import signal
import time
from importlib.util import find_spec
from pathlib import Path

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


@pytest.fixture(scope="module")
def sweep_with(tmp_path_factory):
    """Runs a small sweep with a launcher: its command, its folder, its exit code and outputs."""

    @functools.cache
    def run_sweep(launcher: str) -> tuple[tuple[str, ...], Path, tuple[int, str, str]]:
        plugin, setting = LAUNCHERS[launcher]
        try:
            there = find_spec(plugin)
        except ModuleNotFoundError:
            there = None
        if there is None:
            pytest.skip(f"the extra for {launcher} is not installed")
        folder = tmp_path_factory.mktemp(launcher)
        command = (
            "-m", f"hydra/launcher={launcher}", setting, *SMALL,
            "sparsity.final=0.5,0.9,95", f"hydra.sweep.dir={folder / 'sweep'}",
        )  # fmt: skip
        return command, folder, outcome(folder, command)

    return run_sweep


def outcome(folder, command) -> tuple[int, str, str]:
    process = start_interpreter(folder, folder, *command)
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


EITHER = pytest.mark.parametrize(
    "launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)]
)


@EITHER
def test_jobs_side_by_side(launcher, sweep_with):
    _, folder, (code, stdout, stderr) = sweep_with(launcher)
    assert code == 1, stderr  # one value is impossible
    sweep = folder / "sweep"
    states = {}
    for file in sweep.glob("*/status.json"):
        status = json.loads(file.read_text())
        states[status["config"]["sparsity"]["final"]] = status["state"]
        assert f"-s{status['config']['sparsity']['final']}-seed0-" in file.parent.name
    assert states == {0.5: "finished", 0.9: "finished", 95: "failed"}
    results = [json.loads(file.read_text()) for file in sweep.glob("*/result.json")]
    teachers = {result["stages"]["teacher"]["path"] for result in results}
    assert len(teachers) == 1
    assert len(list((folder / "stages").glob("*/stage.json"))) == 1  # though both began at once
    with (sweep / "summary.csv").open() as file:
        assert [row["target"] for row in csv.DictReader(file)] == ["0.5", "0.9"]
    assert "did you mean 0.95?" in stdout


@pytest.mark.slow
@EITHER
def test_finished_jobs_are_not_repeated(launcher, sweep_with):
    command, folder, _ = sweep_with(launcher)
    files = sorted(folder.glob("sweep/*/result.json"))
    before = [file.stat().st_mtime_ns for file in files]
    code, _, stderr = outcome(folder, command)
    assert code == 1, stderr
    assert len(list(folder.glob("sweep/*/status.json"))) == 3
    assert [file.stat().st_mtime_ns for file in files] == before
