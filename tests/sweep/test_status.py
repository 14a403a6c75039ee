"""What a run folder says of itself."""

import pytest

from kd_prune.errors import ConfigError
from kd_prune.results import RESULT_FILE, Status
from kd_prune.sweep import status


def about(seed):
    return Status(state="running", seed=seed)


def finish(folder):
    with status.run_lock(folder, about(1)):
        (folder / RESULT_FILE).write_text('{"seed": 1}')


def fail(folder, do=lambda folder: None):
    with status.run_lock(folder, about(2)):
        assert status.read(folder).state == "running"
        do(folder)
        raise ValueError("no such thing")


def remove(folder):
    (folder / RESULT_FILE).unlink()


def replace(folder):
    (folder / "new").write_text('{"seed": 2}')
    (folder / "new").replace(folder / RESULT_FILE)


def interrupt(folder):
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [lambda folder: None, interrupt])
def test_a_command_that_touches_nothing_leaves_a_finished_runs_status(tmp_path, end):
    finish(tmp_path)
    before = status.read(tmp_path)
    assert before.state == "finished"
    with pytest.raises((ValueError, KeyboardInterrupt)):
        fail(tmp_path, end)
    assert status.read(tmp_path) == before


def test_a_result_that_cannot_be_read_is_none(tmp_path):
    finish(tmp_path)
    (tmp_path / RESULT_FILE).write_text('{"task": "ti')
    with pytest.raises(ValueError, match="no such thing"):
        fail(tmp_path)
    assert status.read(tmp_path).state == "failed"


@pytest.mark.parametrize("to_results", [remove, replace])
def test_a_run_that_fails_over_an_earlier_ones_results_has_failed(tmp_path, to_results):
    finish(tmp_path)
    with pytest.raises(ValueError, match="no such thing"):
        fail(tmp_path, to_results)
    found = status.read(tmp_path)
    assert (found.state, found.reason, found.seed) == ("failed", "no such thing", 2)


def test_run_lock_error_with_a_state_is_recorded_with_it(tmp_path):
    error = RuntimeError("below the median")
    error.state = "stopped"
    with pytest.raises(RuntimeError), status.run_lock(tmp_path, about(1)):
        raise error
    found = status.read(tmp_path)
    assert (found.state, found.reason) == ("stopped", "below the median")
    assert found.started is not None
    assert found.ended is not None


def test_run_lock_held_by_another_process_is_refused(tmp_path):
    with status.run_lock(tmp_path, about(1)):
        assert status.is_running(tmp_path)
        with (
            pytest.raises(status.RunLockedError, match="another process runs in this folder"),
            status.run_lock(tmp_path, about(2)),
        ):
            raise AssertionError
    assert not status.is_running(tmp_path)
    assert status.read(tmp_path).seed == 1


@pytest.mark.parametrize(
    ("error", "refused"), [(ConfigError("lr", -1, "expected more"), True), (OSError("x"), False)]
)
def test_status_tells_a_refusal_from_other_failures(tmp_path, error, refused):
    with pytest.raises(type(error)), status.run_lock(tmp_path, Status(state="running")):
        raise error
    found = status.read(tmp_path)
    assert (found.state, found.refused) == ("failed", refused)


@pytest.mark.parametrize("name", ["student", "milestones", "metrics.csv"])
def test_a_folder_that_no_run_made_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    status.refuse_results_without_run(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"^hydra.run.dir=.* holds {name}, which no run made"):
        status.refuse_results_without_run(tmp_path)
    (tmp_path / "last.ckpt").touch()
    status.refuse_results_without_run(tmp_path)
