"""What a run folder says of itself."""

import pytest

from kd_prune.sweep import status


def finish(folder):
    with status.at_work(folder, {"seed": 1}):
        (folder / status.RESULT).write_text("{}")


def fail(folder, do=lambda folder: None):
    with status.at_work(folder, {"seed": 2}):
        assert status.read(folder)["state"] == "running"
        do(folder)
        raise ValueError("no such thing")


def remove(folder):
    (folder / status.RESULT).unlink()


def replace(folder):
    (folder / "new").write_text("{}")
    (folder / "new").replace(folder / status.RESULT)


def test_a_refused_command_leaves_a_finished_runs_status_beside_its_results(tmp_path):
    finish(tmp_path)
    before = status.read(tmp_path)
    assert before["state"] == "finished"
    with pytest.raises(ValueError, match="no such thing"):
        fail(tmp_path)
    assert status.read(tmp_path) == before


@pytest.mark.parametrize("to_results", [remove, replace])
def test_a_run_that_fails_over_an_earlier_ones_results_has_failed(tmp_path, to_results):
    finish(tmp_path)
    with pytest.raises(ValueError, match="no such thing"):
        fail(tmp_path, to_results)
    found = status.read(tmp_path)
    assert (found["state"], found["reason"], found["seed"]) == ("failed", "no such thing", 2)
