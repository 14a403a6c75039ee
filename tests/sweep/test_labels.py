"""Labels of runs of several experiments, such as the rows of a table."""

from __future__ import annotations

from kd_prune.sweep import collect

from .runs import write_run


def labels(folder):
    return {run.folder.name: run.method for run in collect([folder]).runs}


def choices(experiment, distillation="none"):
    return {"experiment": experiment, "distillation": distillation}


def test_runs_of_several_experiments_are_labelled_by_the_experiment(tmp_path):
    write_run(tmp_path / "a", choices=choices("poster/bert"), student={"layers": None})
    write_run(tmp_path / "b", choices=choices("poster/pkd6", "pkd"), student={"layers": 0.5})
    write_run(
        tmp_path / "c", choices=choices("poster/pkd6", "pkd"), student={"layers": 0.5}, seed=2
    )
    write_run(tmp_path / "d", choices=choices("poster/theseus6"), student={"layers": 0.5})
    assert labels(tmp_path) == {
        "a": "poster/bert",
        "b": "poster/pkd6",
        "c": "poster/pkd6",
        "d": "poster/theseus6",
    }


def test_settings_that_differ_within_an_experiment_follow_its_name(tmp_path):
    write_run(tmp_path / "a", choices=choices("poster/bert"))
    write_run(tmp_path / "b", choices=choices("poster/pkd6", "pkd"))
    write_run(tmp_path / "c", choices=choices("poster/pkd6", "pkd"), optimizer__lr=1e-4)
    write_run(tmp_path / "d", choices=choices("poster/pkd6", "logits"))
    assert labels(tmp_path) == {
        "a": "poster/bert",
        "b": "poster/pkd6, pkd, optimizer.lr=0.001",
        "c": "poster/pkd6, pkd, optimizer.lr=0.0001",
        "d": "poster/pkd6, logits, optimizer.lr=0.001",
    }


def test_runs_of_one_experiment_are_labelled_by_their_distillation(tmp_path):
    write_run(tmp_path / "a", choices=choices("recovery"))
    write_run(tmp_path / "b", choices=choices("recovery", "logits"))
    assert labels(tmp_path) == {"a": "none", "b": "logits"}
