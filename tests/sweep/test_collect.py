"""Collecting: everything that lies in a folder is either counted or named."""

from __future__ import annotations

import json

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


BASE = {
    "_target_": "kd_prune.pipeline.Stage",
    "optimizer": {"lr": 1e-3, "betas": None},
    "sparsity": {"final": 0.5},
}


@pytest.mark.parametrize("ordinary", [{}, {"more": {}}])
def test_label_names_a_part_that_others_lack_in_one_difference(tmp_path, ordinary):
    write_run(tmp_path / "a", **ordinary)
    write_run(tmp_path / "b", more={"base": BASE})
    assert labels(tmp_path) == {"a": "sparsebert", "b": "sparsebert, more=base"}
    write_run(tmp_path / "c", more={"base": BASE | {"max_epochs": 3}})
    assert labels(tmp_path) == {
        "a": "sparsebert",
        "b": "sparsebert, more=base",
        "c": "sparsebert, more=base, more.base.max_epochs=3",
    }


def test_label_says_nothing_of_a_setting_that_is_missing(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", optimizer__warmup=0.1)
    assert labels(tmp_path) == {"a": "sparsebert", "b": "sparsebert, optimizer.warmup=0.1"}


def test_label_names_a_class_by_its_name_and_none_of_its_settings(tmp_path):
    for name, settings in (("First", {"decay": 0.5}), ("Second", {"seed": 3})):
        criterion = {"_target_": f"package.module.{name}", **settings}
        write_run(tmp_path / name, sparsity__criterion=criterion)
    write_run(tmp_path / "none", sparsity__criterion=None)
    assert labels(tmp_path) == {
        "First": "sparsebert, sparsity.criterion=First",
        "Second": "sparsebert, sparsity.criterion=Second",
        "none": "sparsebert, sparsity.criterion=null",
    }


def test_labels_with_many_differences_are_short_and_all_different(tmp_path):
    for i in range(16):
        settings = {f"key{k}": "x" * 100 + str(i >> k & 1) for k in range(4)}
        write_run(tmp_path / f"{i}", student=settings)
        write_run(tmp_path / f"{i}-again", student=settings, seed=2)
    found = labels(tmp_path)
    assert len(set(found.values())) == 16
    assert all(found[f"{i}"] == found[f"{i}-again"] for i in range(16))
    assert all(label.count("student.") == 3 and "+1 more" in label for label in found.values())
    assert max(map(len, found.values())) < 200


def test_labels_of_classes_of_the_same_name_are_different(tmp_path):
    for module in "ab":
        write_run(tmp_path / module, sparsity__criterion={"_target_": f"{module}.Magnitude"})
    assert len(set(labels(tmp_path).values())) == 2


def test_refused_run_changes_no_label_of_others(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", optimizer__lr="fast", state="failed", refused=True)
    assert labels(tmp_path)["a"] == "sparsebert"
