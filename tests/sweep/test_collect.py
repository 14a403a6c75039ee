"""Collecting: everything that lies in a folder is either counted or named."""

from __future__ import annotations

import json
import shutil

import pytest
from filelock import FileLock

from kd_prune.sweep import collect, summarize_runs

from .runs import write_run


def states(collection):
    return {run.folder.name: run.state for run in collection.runs}


def test_what_a_run_left_is_what_is_read(tmp_path):
    write_run(tmp_path / "a", accuracy=0.75, milestones={0.5: 0.85}, seed=3)
    (run,) = collect([tmp_path]).runs
    assert (run.state, run.task, run.seed, run.monitor) == ("finished", "mrpc", 3, "accuracy")
    assert run.teacher == {"accuracy": 0.9}
    saved, last = run.students
    assert (saved.target, saved.milestone, saved.result.metrics) == (0.5, True, {"accuracy": 0.85})
    assert (last.target, last.milestone, last.result.metrics) == (0.9, False, {"accuracy": 0.75})
    assert (last.result.sparsity, last.result.nonzero, last.result.bytes) == (0.9, 1100, 8000)
    assert run.result.student.seconds == 60.0
    assert len(run.curves) == 10
    assert "val/accuracy" not in run.curves[0]
    assert run.curves[4]["val/accuracy"] == pytest.approx(0.375)
    assert [t["name"] for t in run.tensors] == [
        f"bert.encoder.layer.{i}.output.dense.weight" for i in range(3)
    ]


def test_nested_and_repeated_folders_count_once(tmp_path):
    write_run(tmp_path / "one" / "a")
    write_run(tmp_path / "two" / "deep" / "b", seed=2)
    found = collect([tmp_path, tmp_path / "one", tmp_path / "one" / "a"])
    assert list(states(found)) == ["a", "b"]


def test_inner_folders_of_a_run_are_no_runs(tmp_path):
    write_run(tmp_path / "a")
    for inner in ("student", "milestones/0.5", ".hydra"):
        write_run(tmp_path / "a" / inner)
    assert list(states(collect([tmp_path]))) == ["a"]


def test_states(tmp_path):
    write_run(tmp_path / "failed", state="failed", reason="sparsity.final=95: no")
    write_run(tmp_path / "interrupted", state="interrupted", reason="SIGTERM")
    write_run(tmp_path / "killed", state="running")
    write_run(tmp_path / "alive", state="running")
    write_run(tmp_path / "stopped", state="stopped", reason="below the median")
    (tmp_path / "killed" / "run.lock").touch()
    with FileLock(tmp_path / "alive" / "run.lock"):
        found = collect([tmp_path])
    assert states(found) == {
        "alive": "running",
        "failed": "failed",
        "interrupted": "interrupted",
        "killed": "interrupted",
        "stopped": "stopped",
    }
    assert found.broken == []
    assert not any(run.students for run in found.runs)
    reasons = {run.folder.name: run.reason for run in found.runs}
    assert reasons["failed"] == "sparsity.final=95: no"
    assert "killed" in reasons["killed"]


def test_run_that_ends_while_it_is_read_is_finished(tmp_path, monkeypatch):
    """Its lock is free because it has just written its results."""
    write_run(tmp_path / "a", state="running")

    def ends(folder):
        shutil.rmtree(folder)
        write_run(folder)
        return False

    monkeypatch.setattr("kd_prune.sweep.status.is_locked", ends)
    assert states(collect([tmp_path])) == {"a": "finished"}


def test_a_lock_that_cannot_be_tried_is_taken_for_held(tmp_path, monkeypatch):
    """As where the disk is mounted for reading only."""
    write_run(tmp_path / "a", state="running")
    (tmp_path / "a" / "run.lock").touch()

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FileLock, "__enter__", refuse)
    assert states(collect([tmp_path])) == {"a": "running"}


def test_looking_does_not_stand_in_the_way_of_a_run(tmp_path):
    """A summary made at any time must not make a job believe that its folder is taken."""
    write_run(tmp_path / "a", state="running")
    with FileLock(tmp_path / "a" / "run.lock"):
        collect([tmp_path])
    collect([tmp_path])
    # Raises Timeout unless the lock is free.
    FileLock(tmp_path / "a" / "run.lock").acquire(timeout=0).lock.release()


def change(file, *path, **values):
    """Change values of the object below `path`."""
    content = json.loads(file.read_text())
    node = content
    for part in path:
        node = node[part]
    node.update(values)
    file.write_text(json.dumps(content))


def change_stage(name, **values):
    return lambda file: change(file, "stages", name, **values)


def change_metric(value):
    return change_stage("student", metrics={"accuracy": value})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda f: f.write_text(f.read_text()[:200]), "half-written or no JSON"),
        (lambda f: f.write_bytes(b"\xff\xfe\x00"), "it is no text"),
        (lambda f: f.write_text("[]"), "it holds no JSON object"),
        (lambda f: f.write_text("{}"), "it has no 'stages'"),
        (lambda f: change(f, stages={}), "it has no stage named student"),
        (change_metric(None), "accuracy is None, no number"),
        (change_metric(float("nan")), "no finite number"),
        (change_metric(True), "accuracy is True, no number"),
        (change_stage("student", metrics={}), "its student has no metric"),
        (lambda f: change(f, "stages", student="good"), "it holds 'good' where a StageResult"),
        (change_stage("student", metrics="good"), "mapping"),
        (change_stage("teacher", metrics={"accuracy": None}), "accuracy is None, no number"),
        (lambda f: change(f, milestones=[{"target": 0.5}]), "metrics"),
        (lambda f: change(f, milestones=None), "not iterable"),
        (change_stage("student", seconds=None), "seconds is None, no number"),
        (change_stage("student", bytes="many"), "bytes is 'many', no number"),
        (lambda f: f.unlink(), None),
    ],
)  # fmt: skip
def test_collect_broken_result_counts_as_failed(tmp_path, spoil, why):
    write_run(tmp_path / "good")
    spoil(write_run(tmp_path / "spoilt", seed=2) / "result.json")
    found = collect([tmp_path])
    assert states(found) == {"good": "finished", "spoilt": "failed"}
    spoilt = found.runs[1]
    assert spoilt.students == ()
    assert "result.json" in spoilt.reason
    if why is None:
        assert found.broken == []
    else:
        ((path, reason),) = found.broken
        assert path == tmp_path / "spoilt" / "result.json"
        assert why in reason


def test_collect_result_of_the_old_schema_is_named_in_one_line(tmp_path):
    folder = write_run(tmp_path / "a")
    old = {"task": "mrpc", "seed": 1, "student": {"accuracy": 0.8}, "teacher": {"accuracy": 0.9}}
    (folder / "result.json").write_text(json.dumps(old))
    found = collect([tmp_path])
    assert states(found) == {"a": "failed"}
    ((path, reason),) = found.broken
    assert path == folder / "result.json"
    assert reason == (
        "written by an older version of kd_prune (it has no 'stages'); run the job again"
    )


def test_collect_unknown_state_is_named(tmp_path):
    folder = write_run(tmp_path / "a", state="pruned")
    found = collect([tmp_path])
    assert states(found) == {"a": "failed"}
    ((path, reason),) = found.broken
    assert path == folder / "status.json"
    assert "its state is 'pruned', none of running, finished" in reason


def test_collect_run_without_teacher_has_no_difference(tmp_path):
    folder = write_run(tmp_path / "a")
    content = json.loads((folder / "result.json").read_text())
    del content["stages"]["teacher"]
    (folder / "result.json").write_text(json.dumps(content))
    (row,) = summarize_runs(collect([tmp_path]).runs).rows
    assert (row.student.mean, row.teacher, row.delta) == (0.8, None, None)


@pytest.mark.parametrize("name", ["status.json", "metrics.csv", "sparsity.csv"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"{", b"name,step\nx,y\n"])
def test_a_file_beside_the_result_is_named_and_the_result_counts(tmp_path, name, content):
    folder = write_run(tmp_path / "a")
    (folder / name).write_bytes(content)
    found = collect([tmp_path])
    assert states(found) == {"a": "finished"}
    assert found.runs[0].students[0].result.metrics == {"accuracy": 0.8}
    assert [path for path, _ in found.broken] == [folder / name] or content == b"{"


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="contains no run"):
        collect([tmp_path])


def test_a_sweep_may_be_called_as_a_folder_within_runs_is(tmp_path):
    write_run(tmp_path / "milestones" / "a")
    (tmp_path / "milestones/a/student").mkdir(exist_ok=True)
    (tmp_path / "milestones/a/student/status.json").write_text("{}")
    assert [run.folder.name for run in collect([tmp_path]).runs] == ["a"]
