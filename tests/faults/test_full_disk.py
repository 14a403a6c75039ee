"""A disk that fills up ends the job with a clear line; what is there stays whole."""

from __future__ import annotations

import json
import re
import resource
from types import SimpleNamespace

import pytest

from kd_prune.hf import Classification, save
from kd_prune.sweep import collect
from tests.cli.script import SMALL, start

LIMIT = 300_000  # above every file of the small model, below the weights of the larger one


def no_file_above_limit() -> None:
    """Files cannot grow above LIMIT: as where a disk is full, writing fails half-way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.mark.slow
def test_a_job_without_room_fails_and_says_so(tmp_path):
    sweep = tmp_path / "sweep"
    command = ("-m", *SMALL, "model.path.hidden_size=16,96", f"hydra.sweep.dir={sweep}")
    process = start(tmp_path, tmp_path, *command, before=no_file_above_limit)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr
    runs = {run.state: run for run in collect([sweep]).runs}
    assert runs["failed"].reason.startswith("the disk is full")
    assert runs["finished"].result.student.sparsity == pytest.approx(0.95, abs=1e-3)
    assert "the disk is full" in stdout
    assert "Traceback" not in stdout + stderr
    scraps = re.compile(r"\.part$|\.[0-9a-f]{32}$")
    assert not [path for path in tmp_path.rglob("*") if scraps.search(path.name)]

    process = start(tmp_path, tmp_path, *command, "sweep.retry_failed=true")
    _, stderr = process.communicate(timeout=240)  # somebody made room
    assert process.returncode == 0, stderr
    assert [run.state for run in collect([sweep]).runs] == ["finished"] * 2


def test_a_single_run_says_it_in_one_line(tmp_path):
    process = start(
        tmp_path / "run", tmp_path, *SMALL, "model.path.hidden_size=96",
        before=no_file_above_limit,
    )  # fmt: skip
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1
    assert stderr.strip().splitlines()[-1].startswith("error: the disk is full")
    assert "Traceback" not in stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"


def test_a_folder_that_could_not_be_saved_leaves_the_one_before(tmp_path):
    class Model:
        config = SimpleNamespace(num_labels=2)

        def save_pretrained(self, folder):
            (folder / "half").touch()
            raise OSError(28, "No space left on device")

    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "before").touch()
    with pytest.raises(OSError, match="No space left"):
        save(Model(), None, tmp_path / "student", kind=Classification())
    assert [file.name for file in tmp_path.rglob("*")] == ["student", "before"]
