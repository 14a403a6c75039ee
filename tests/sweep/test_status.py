"""What a run folder says of itself."""

import pytest

from kd_prune.sweep import status


def finish(folder):
    with status.at_work(folder, {"seed": 1}):
        (folder / status.RESULT).write_text('{"seed": 1}')


def fail(folder, do=lambda folder: None):
    with status.at_work(folder, {"seed": 2}):
        assert status.read(folder)["state"] == "running"
        do(folder)
        raise ValueError("no such thing")


def remove(folder):
    (folder / status.RESULT).unlink()


def replace(folder):
    (folder / "new").write_text('{"seed": 2}')
    (folder / "new").replace(folder / status.RESULT)


def interrupt(folder):
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [lambda folder: None, interrupt])
def test_a_command_that_touches_nothing_leaves_a_finished_runs_status(tmp_path, end):
    finish(tmp_path)
    before = status.read(tmp_path)
    assert before["state"] == "finished"
    with pytest.raises((ValueError, KeyboardInterrupt)):
        fail(tmp_path, end)
    assert status.read(tmp_path) == before


def test_a_result_that_cannot_be_read_is_none(tmp_path):
    finish(tmp_path)
    (tmp_path / status.RESULT).write_text('{"task": "ti')
    with pytest.raises(ValueError, match="no such thing"):
        fail(tmp_path)
    assert status.read(tmp_path)["state"] == "failed"


@pytest.mark.parametrize("to_results", [remove, replace])
def test_a_run_that_fails_over_an_earlier_ones_results_has_failed(tmp_path, to_results):
    finish(tmp_path)
    with pytest.raises(ValueError, match="no such thing"):
        fail(tmp_path, to_results)
    found = status.read(tmp_path)
    assert (found["state"], found["reason"], found["seed"]) == ("failed", "no such thing", 2)
