"""Jobs of a sweep: skipped, resumed or run, and a failure ends one of them only."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from kd_prune.errors import ConfigError
from kd_prune.results import STATUS_FILE, ModelResult, RunResult, StageResult, Status
from kd_prune.sweep import status
from kd_prune.sweep.runner import run_eval_job, run_sweep_job, sweep_metric

ABOUT = Status(state="running", task="mrpc", seed=1, monitor="accuracy", config={"seed": 1})


def make_result(seed=1):
    student = StageResult(metrics={"accuracy": 0.8}, task="mrpc")
    return RunResult(
        task="mrpc",
        seed=seed,
        data="",
        monitor="accuracy",
        stages={"student": student},
        config={"seed": seed},
    )


def job(folder, seed=1):
    """A job that writes its result, and the checkpoints that it was given."""
    given = []

    def run(checkpoint):
        given.append(checkpoint)
        make_result(seed).write(folder)
        return make_result(seed)

    return run, given


def fail(*_):
    raise ValueError("no such thing")


def test_run_sweep_job_runs_once(tmp_path):
    run, given = job(tmp_path)
    for _ in range(2):
        assert run_sweep_job(tmp_path, ABOUT, run) == make_result()
    assert given == [None]
    assert status.read(tmp_path).state == "finished"


def test_run_sweep_job_resumes_from_the_last_checkpoint(tmp_path):
    (tmp_path / "last.ckpt").touch()
    run, given = job(tmp_path)
    run_sweep_job(tmp_path, ABOUT, run)
    assert given == [str(tmp_path / "last.ckpt")]


def test_run_sweep_job_killed_after_its_result_is_recorded_as_finished(tmp_path):
    run, given = job(tmp_path)
    run_sweep_job(tmp_path, ABOUT, run)
    before = status.read(tmp_path)
    status.write(tmp_path, before, "running")
    assert run_sweep_job(tmp_path, ABOUT, run) == make_result()
    found = status.read(tmp_path)
    assert (found.state, found.started, found.pid) == ("finished", before.started, before.pid)
    assert given == [None]


def test_run_sweep_job_failed_before_runs_again_only_if_told_to(tmp_path, caplog):
    assert run_sweep_job(tmp_path, ABOUT, fail) is None
    assert (found := status.read(tmp_path)).state == "failed"
    assert found.reason == "no such thing"
    run, given = job(tmp_path)
    assert run_sweep_job(tmp_path, ABOUT, run) is None
    assert "failed before: no such thing (sweep.retry_failed=true runs it again)" in caplog.text
    assert given == []
    assert run_sweep_job(tmp_path, ABOUT, run, retry_failed=True) == make_result()


def test_run_sweep_job_stopped_trial_stays_stopped(tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def stop(_):
        error = RuntimeError("below the median")
        error.state = "stopped"
        raise error

    assert run_sweep_job(tmp_path, ABOUT, stop) is None
    assert status.read(tmp_path).state == "stopped"
    run, given = job(tmp_path)
    assert run_sweep_job(tmp_path, ABOUT, run, retry_failed=True) is None
    assert given == []
    assert "stopped before: below the median" in caplog.text


def test_run_sweep_job_killed_while_it_ended_is_ended_once_more(tmp_path):
    """The result was written, and what follows was not: the share to retain, cards, curves."""
    (tmp_path / "last.ckpt").touch()
    run, given = job(tmp_path)
    for state in ("running", "interrupted"):
        make_result().write(tmp_path)
        status.write(tmp_path, ABOUT, state)
        assert run_sweep_job(tmp_path, ABOUT, fail) is None
        assert status.read(tmp_path).state == "failed"
    assert run_sweep_job(tmp_path, ABOUT, run, retry_failed=True) == make_result()
    assert given == [str(tmp_path / "last.ckpt")]


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_run_sweep_job_in_the_folder_of_another_job_is_refused(tmp_path, state):
    """Else this job would be taken for finished or failed, and the sweep would end well."""
    other = replace(ABOUT, seed=2, config={"seed": 2})
    if state == "finished":
        make_result(seed=2).write(tmp_path)
    status.write(tmp_path, other, state, reason="its own")
    run, given = job(tmp_path)
    with pytest.raises(ConfigError, match=r"^hydra.sweep.subdir: .* choose a subdir that differs"):
        run_sweep_job(tmp_path, ABOUT, run)
    assert given == []
    assert status.read(tmp_path).seed == 2


@pytest.mark.parametrize("content", ["{", '{"student": {"accuracy": 0.8}}'])
def test_run_sweep_job_with_a_broken_result_runs_again(tmp_path, caplog, content):
    (tmp_path / "result.json").write_text(content)
    run, given = job(tmp_path)
    assert run_sweep_job(tmp_path, ABOUT, run) == make_result()
    assert "cannot be read" in caplog.text
    assert given == [None]


def test_run_sweep_job_in_a_locked_folder_is_skipped(tmp_path, caplog):
    run, given = job(tmp_path)
    with status.run_lock(tmp_path, ABOUT):
        assert run_sweep_job(tmp_path, ABOUT, run) is None
    assert "another process runs in this folder" in caplog.text
    assert given == []


def test_run_sweep_job_interrupt_ends_the_sweep(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep_job(tmp_path, ABOUT, interrupt)
    assert status.read(tmp_path).state == "interrupted"


def test_run_eval_job_leaves_a_status_only_if_it_fails(tmp_path):
    assert run_eval_job(tmp_path, ABOUT, fail) is None
    assert status.read(tmp_path).state == "failed"
    model = ModelResult(metrics={"accuracy": 0.7})
    assert run_eval_job(tmp_path, ABOUT, lambda: model) == model
    assert not (tmp_path / STATUS_FILE).exists()


def test_sweep_metric_is_that_of_the_student_or_nan():
    assert sweep_metric(make_result(), "accuracy") == 0.8
    assert sweep_metric(ModelResult(metrics={"accuracy": 0.7}), "accuracy") == 0.7
    assert sweep_metric(make_result(), "f1") != sweep_metric(make_result(), "f1")
    assert sweep_metric(None, "accuracy") != sweep_metric(None, "accuracy")


def test_job_that_another_process_finishes_meanwhile_is_not_run_again(tmp_path, monkeypatch):
    """It was running when its state was read, and ends before the lock is free."""
    run, given = job(tmp_path)
    ABOUT.write(tmp_path)
    acquire = status.FileLock.acquire

    def finish_first(lock, **settings):
        make_result().write(tmp_path)
        status.write(tmp_path, ABOUT, "finished")
        return acquire(lock, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(status.FileLock, "acquire", finish_first)
        assert run_sweep_job(tmp_path, ABOUT, run) is None
    assert given == []
    assert status.read(tmp_path).state == "finished"
    assert run_sweep_job(tmp_path, ABOUT, run) == make_result()
