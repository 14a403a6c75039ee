"""Collecting: everything that lies in a folder is either counted or named."""

from __future__ import annotations

import json

import pytest
from filelock import FileLock

from kd_prune.sweep import collect
from kd_prune.sweep.summary import summarize_runs

from .runs import write_run


def states(collection):
    return {run.folder.name: run.state for run in collection.runs}


def test_what_a_run_left_is_what_is_read(tmp_path):
    write_run(tmp_path / "a", accuracy=0.75, milestones={0.5: 0.85}, seed=3)
    (run,) = collect([tmp_path]).runs
    assert (run.state, run.task, run.seed, run.monitor) == ("finished", "mrpc", 3, "accuracy")
    assert run.teacher == {"accuracy": 0.9}
    way, last = run.points
    assert (way.target, way.milestone, way.student) == (0.5, True, {"accuracy": 0.85})
    assert (last.target, last.milestone, last.student) == (0.9, False, {"accuracy": 0.75})
    assert (last.sparsity, last.nonzero, run.bytes) == (0.9, 1100, 8000)
    assert run.seconds["student"] == 60.0
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
    write_run(tmp_path / "pruned", state="pruned", reason="below the median")
    (tmp_path / "killed" / "run.lock").touch()
    with FileLock(tmp_path / "alive" / "run.lock"):
        found = collect([tmp_path])
    assert states(found) == {
        "alive": "running",
        "failed": "failed",
        "interrupted": "interrupted",
        "killed": "interrupted",
        "pruned": "pruned",
    }
    assert found.broken == []
    assert not any(run.points for run in found.runs)
    reasons = {run.folder.name: run.reason for run in found.runs}
    assert reasons["failed"] == "sparsity.final=95: no"
    assert "killed" in reasons["killed"]


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


def change(file, **values):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | values))


NAN = {"accuracy": float("nan")}


@pytest.mark.parametrize(
    ("name", "spoil", "why"),
    [
        ("result.json", lambda f: f.write_text(f.read_text()[:200]), "half-written or no JSON"),
        ("result.json", lambda f: f.write_bytes(b"\xff\xfe\x00"), "it is no text"),
        ("result.json", lambda f: f.write_text("[]"), "it holds no JSON object"),
        ("result.json", lambda f: f.write_text("{}"), "it has no 'student'"),
        ("result.json", lambda f: change(f, student={"accuracy": None}), "no finite number"),
        ("result.json", lambda f: change(f, student=NAN), "no finite number"),
        ("result.json", lambda f: change(f, student={"accuracy": True}), "no finite number"),
        ("result.json", lambda f: change(f, student={}), "it has no metric"),
        ("result.json", lambda f: change(f, student="good"), "AttributeError"),
        ("result.json", lambda f: change(f, teacher={}), "it has no metric"),
        ("result.json", lambda f: change(f, milestones=[{"target": 0.5}]), "it has no 'student'"),
        ("result.json", lambda f: change(f, seconds=None), "AttributeError"),
        ("result.json", lambda f: f.unlink(), None),
    ],
)  # fmt: skip
def test_a_result_that_is_not_whole_never_counts(tmp_path, name, spoil, why):
    write_run(tmp_path / "good")
    spoil(write_run(tmp_path / "spoilt", seed=2) / name)
    found = collect([tmp_path])
    assert states(found) == {"good": "finished", "spoilt": "failed"}
    spoilt = found.runs[1]
    assert spoilt.points == ()
    assert "result.json" in spoilt.reason
    if why is None:
        assert found.broken == []
    else:
        ((path, reason),) = found.broken
        assert path == tmp_path / "spoilt" / name
        assert why in reason


@pytest.mark.parametrize("name", ["status.json", "metrics.csv", "sparsity.csv"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"{", b"name,step\nx,y\n"])
def test_a_file_beside_the_result_is_named_and_the_result_counts(tmp_path, name, content):
    folder = write_run(tmp_path / "a")
    (folder / name).write_bytes(content)
    found = collect([tmp_path])
    assert states(found) == {"a": "finished"}
    assert found.runs[0].points[0].student == {"accuracy": 0.8}
    assert [path for path, _ in found.broken] == [folder / name] or content == b"{"


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no run in there"):
        collect([tmp_path])


def test_a_sweep_may_be_called_as_a_folder_within_runs_is(tmp_path):
    write_run(tmp_path / "milestones" / "a")
    (tmp_path / "milestones/a/student").mkdir(exist_ok=True)
    (tmp_path / "milestones/a/student/status.json").write_text("{}")
    assert [run.folder.name for run in collect([tmp_path]).runs] == ["a"]


def labels(tmp_path):
    return {run.folder.name: run.method for run in collect([tmp_path]).runs}


def test_a_method_is_its_distillation_and_what_differs(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=2, sparsity__final=0.5, cache_dir="elsewhere")
    assert set(labels(tmp_path).values()) == {"sparsebert"}
    write_run(tmp_path / "c", choices={"distillation": "none"}, distillation={"terms": {}})
    write_run(tmp_path / "d", optimizer__lr=2e-3)
    write_run(tmp_path / "e", choices={"sparsity": "oneshot"}, sparsity__criterion="other")
    write_run(tmp_path / "f", task__name="rte", optimizer__lr=5e-3)
    assert labels(tmp_path) == {
        "a": "sparsebert, sparsity=sparsebert, optimizer.lr=0.001",
        "b": "sparsebert, sparsity=sparsebert, optimizer.lr=0.001",
        "c": "none, sparsity=sparsebert, optimizer.lr=0.001",
        "d": "sparsebert, sparsity=sparsebert, optimizer.lr=0.002",
        "e": "sparsebert, sparsity=oneshot, optimizer.lr=0.001",
        "f": "sparsebert",
    }


def test_what_a_command_changed_in_an_option_shows_beside_other_options(tmp_path):
    none = {"choices": {"distillation": "none"}}
    write_run(tmp_path / "a", distillation__terms={"soft_targets": {"weight": 1.0}})
    write_run(tmp_path / "b", distillation__terms={"soft_targets": {"weight": 0.5}})
    write_run(tmp_path / "c", distillation__terms={"hard_labels": {"weight": 1.0}}, **none)
    assert labels(tmp_path) == {
        "a": "sparsebert, distillation.terms.soft_targets.weight=1.0",
        "b": "sparsebert, distillation.terms.soft_targets.weight=0.5",
        "c": "none",
    }


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("student.min_retained", (0, 0.9)),
        ("eval", (None, "a folder")),
        ("checkpoint_minutes", (5.0, 1.0)),
        ("sparsity.verbose", (True, False)),
        ("task.eval_batch_size", (32, 64)),
        ("task.metrics", (["accuracy"], ["accuracy", "f1"])),
        ("trainer.enable_progress_bar", (True, False)),
        ("trainer.log_every_n_steps", (1, 10)),
    ],
)
def test_what_a_student_does_not_depend_on_is_no_part_of_a_method(tmp_path, key, values):
    for seed, value in enumerate(values):
        empty: dict = {"student": {}, "trainer": {}}
        write_run(tmp_path / str(seed), seed=seed, **empty, **{key.replace(".", "__"): value})
    assert set(labels(tmp_path).values()) == {"sparsebert"}
    (row,) = summarize_runs(collect([tmp_path]).runs).rows
    assert row.seeds == 2


def test_a_method_says_null_and_true_as_its_command_did(tmp_path):
    write_run(tmp_path / "a", optimizer__warmup=None)
    write_run(tmp_path / "b", optimizer__warmup=True)
    assert labels(tmp_path) == {
        "a": "sparsebert, optimizer.warmup=null",
        "b": "sparsebert, optimizer.warmup=true",
    }


def test_settings_of_a_task_are_part_of_a_method_but_not_where_its_rows_lie(tmp_path):
    write_run(tmp_path / "a", task__batch_size=16, task__path="here")
    write_run(tmp_path / "b", task__batch_size=32, task__path="there")
    assert labels(tmp_path) == {
        "a": "sparsebert, task.batch_size=16",
        "b": "sparsebert, task.batch_size=32",
    }


def test_other_rows_are_another_method(tmp_path):
    for name, data in (("a", "1f"), ("b", "2e"), ("c", "2e")):
        write_run(tmp_path / name, task__path=name)
        file = tmp_path / name / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"data": data}))
    assert labels(tmp_path) == {name: f"sparsebert, task.path={name}" for name in "abc"}


def test_what_follows_seed_and_target_is_no_method_of_its_own(tmp_path):
    """As `initial: ${.final}` of RigL, the seed of random scores, a teacher for each seed."""
    for seed, final, dropout in ((1, 0.8, 0), (2, 0.8, 0.0), (1, 0.9, 0)):
        write_run(
            tmp_path / f"{seed}-{final}",
            seed=seed,
            sparsity={"final": final, "initial": final, "criterion": {"seed": seed}},
            student={"like": f"teachers/seed{seed}", "dropout": dropout},
        )
    assert set(labels(tmp_path).values()) == {"sparsebert"}
    for seed in (1, 2):
        write_run(tmp_path / f"lr{seed}", seed=seed, optimizer={"lr": seed * 1e-5})
    assert ["optimizer.lr=1e-05" in labels(tmp_path)[f"lr{seed}"] for seed in (1, 2)] == [1, 0]
    write_run(tmp_path / "other", seed=3, sparsity={"final": 0.9, "initial": 0.7, "criterion": 3})
    assert "sparsity.initial=0.7" in labels(tmp_path)["other"]


def test_students_on_the_way_to_other_sparsities_are_told_apart(tmp_path):
    for name, final, seed in (("a", 0.9, 1), ("b", 0.95, 1), ("c", 0.9, 2)):
        way = {"sparsity__final": final, "sparsity__milestones": [0.5], "seed": seed}
        write_run(tmp_path / name, milestones={0.5: final}, **way)
    assert labels(tmp_path) == {
        "a": "sparsebert, sparsity.final=0.9",
        "b": "sparsebert, sparsity.final=0.95",
        "c": "sparsebert, sparsity.final=0.9",
    }
    rows = {(row.method, row.target): row for row in summarize_runs(collect([tmp_path]).runs).rows}
    on_the_way = rows["sparsebert, sparsity.final=0.9", 0.5]
    assert (on_the_way.seeds, on_the_way.student.mean) == (2, 0.9)
    assert rows["sparsebert, sparsity.final=0.95", 0.5].seeds == 1


def test_runs_with_milestones_are_a_method_of_their_own(tmp_path):
    """Their last student had less time at its sparsity than one that was trained for it alone."""
    write_run(tmp_path / "a", sparsity__milestones=[])
    write_run(tmp_path / "b", sparsity__milestones=[0.5, 0.8])
    assert labels(tmp_path) == {
        "a": "sparsebert, sparsity.milestones=[]",
        "b": "sparsebert, sparsity.milestones=[0.5, 0.8]",
    }
