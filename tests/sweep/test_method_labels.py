"""Labels of methods: the distillation, and what differs between the runs of a sweep."""

from __future__ import annotations

import json

import pytest

from kd_prune.sweep import collect, summarize_runs

from .runs import write_run


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


def test_settings_that_follow_the_target_or_the_seed_make_no_method_beside_others(tmp_path):
    for i, final in enumerate((0.8, 0.9)):
        write_run(tmp_path / f"follows{i}", sparsity__final=final, sparsity__initial=final)
        write_run(tmp_path / f"plain{i}", sparsity__final=final, sparsity__initial=0.0)
    assert labels(tmp_path) == {
        "follows0": "sparsebert, sparsity.initial={final}",
        "follows1": "sparsebert, sparsity.initial={final}",
        "plain0": "sparsebert, sparsity.initial=0.0",
        "plain1": "sparsebert, sparsity.initial=0.0",
    }


def test_a_value_that_only_happens_to_be_the_seed_is_no_placeholder(tmp_path):
    """In a grid: the diagonal's runs are of different methods, not seeds of one."""
    for updates in (1, 2):
        for seed in (1, 2):
            write_run(
                tmp_path / f"{updates}-{seed}",
                seed=seed,
                sparsity__updates=updates,
                model={"path": f"models/v{updates}"},
            )
    found = labels(tmp_path)
    assert found["1-1"] == found["1-2"] != found["2-1"] == found["2-2"]
    assert not any("{" in label for label in found.values())


def test_an_end_that_only_happens_to_be_the_target_is_no_placeholder(tmp_path):
    for end in (0.8, 0.9):
        for final in (0.8, 0.9):
            write_run(tmp_path / f"{end}-{final}", sparsity__final=final, sparsity__end=end)
    found = labels(tmp_path)
    assert found["0.8-0.8"] == found["0.8-0.9"] != found["0.9-0.8"] == found["0.9-0.9"]
