"""Run folder: which results of an earlier run are removed, and when."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import lightning.pytorch as L
import pytest
from lightning.pytorch.callbacks import LambdaCallback

from kd_prune import hf
from kd_prune.distillation import HiddenStates, Objective
from kd_prune.lit import NonFiniteError
from kd_prune.pipeline import CheckpointError, Stage, run
from kd_prune.results import EXPORT_FILE

from .jobs import milestone_sparsity


def left(folder: Path) -> set[str]:
    """Results that lie in a run folder, and a milestone folder that no run made."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    results = {"result.json", "sparsity.csv", "curves.png", "student", "metrics.csv"}
    return found & {*results, "milestones/0.4", "milestones/0.7", "milestones/mine"}


@pytest.fixture
def again(curve, tmp_path):
    """A copy of a finished run's folder, and what lies in it."""
    shutil.copytree(curve.out, tmp_path / "again")
    (tmp_path / "again/milestones/mine").mkdir()
    return tmp_path / "again", left(tmp_path / "again")


def test_run_that_fails_leaves_no_results_of_an_earlier_one(again, make_job):
    folder, before = again
    assert len(before) == 8
    with pytest.raises(NonFiniteError, match=r"begin again with a lower optimizer\.lr or trainer"):
        run(
            make_job(folder, sparsity=milestone_sparsity(), optimizer=hf.AdamWWithSchedule(lr=1e30))
        )
    assert left(folder) == {"milestones/mine"}


EXPORTS = ("student-packed", "student-int8", "milestones/0.4-onnx")


@pytest.fixture
def exported(again):
    """The folder with exports beside its students, and folders that are none."""
    folder, _ = again
    for name in EXPORTS:
        (folder / name).mkdir()
        (folder / name / EXPORT_FILE).write_text('{"format": "packed"}')
    for name in ("student-of-mine", "milestones/mine-packed", "elsewhere"):
        (folder / name).mkdir()
    (folder / "milestones/mine-packed" / EXPORT_FILE).write_text("{}")
    (folder / "elsewhere" / EXPORT_FILE).write_text("{}")
    return folder


def test_new_run_removes_the_exports_beside_an_earlier_student(exported, make_job, capsys):
    run(make_job(exported))
    assert not [name for name in EXPORTS if (exported / name).exists()]
    for name in ("student-of-mine", "milestones/mine-packed", "elsewhere", "student"):
        assert (exported / name).is_dir()
    said = "Removed with the earlier student: milestones/0.4-onnx, student-int8, student-packed\n"
    assert said in capsys.readouterr().out


def test_run_that_resumes_or_reads_an_export_keeps_it(exported, make_job, capsys):
    last = str(exported / "last.ckpt")
    run(make_job(exported, sparsity=milestone_sparsity(), ckpt_path=last))
    assert all((exported / name).is_dir() for name in EXPORTS)
    shutil.copytree(exported / "student", exported / "student-int8", dirs_exist_ok=True)
    run(make_job(exported, teacher=Stage(path=str(exported / "student-int8"))))
    assert [name for name in EXPORTS if (exported / name).exists()] == ["student-int8"]
    assert "Removed with the earlier student: milestones/0.4-onnx, student-packed\n" in (
        capsys.readouterr().out
    )


class Refuse(L.Callback):
    def on_fit_start(self, trainer, pl_module):
        raise ValueError("by a callback")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": 1, "ckpt_path": "last.ckpt"}, "ckpt_path"),
        ({"trainer_settings": {"max_epochs": 1}, "ckpt_path": "last.ckpt"}, "ckpt_path"),
        (
            {"distillation": Objective({"hidden_states": HiddenStates(layer_map={1: 7})})},
            "layer_map",
        ),
        ({"callbacks": {"refuse": Refuse()}}, "by a callback"),
    ],
)
def test_run_that_is_refused_leaves_an_earlier_one_alone(again, make_job, settings, says):
    folder, before = again
    if "ckpt_path" in settings:
        settings = settings | {"ckpt_path": str(folder / "last.ckpt")}
    with pytest.raises(ValueError, match=says):
        run(make_job(folder, sparsity=milestone_sparsity(), **settings))
    assert left(folder) == before


def test_run_that_lacks_a_milestone_to_copy_leaves_an_earlier_one_alone(again, make_job, tmp_path):
    folder, before = again
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere/milestones/0.7")
    last = str(tmp_path / "elsewhere/last.ckpt")
    with pytest.raises(CheckpointError, match=r"its student of 0\.7 is not in"):
        run(make_job(folder, sparsity=milestone_sparsity(), ckpt_path=last))
    assert left(folder) == before


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_run_that_resumes_keeps_what_it_needs(again, make_job, tmp_path, place):
    folder, before = again
    shutil.copytree(folder, tmp_path / "elsewhere")
    last = {"here": folder, "elsewhere": tmp_path / "elsewhere"}[place] / "last.ckpt"
    run(make_job(folder, sparsity=milestone_sparsity(), ckpt_path=str(last)))
    assert left(folder) == before


@pytest.mark.filterwarnings("ignore:.*weights that are zero at the start:UserWarning")
def test_run_keeps_the_earlier_student_that_it_reads(again, make_job):
    folder, before = again
    job = make_job(folder, teacher=Stage(path=str(folder)))
    result = run(dataclasses.replace(job, model=hf.PretrainedEncoder(path=str(folder / "student"))))
    assert result.teacher.path == str(folder / "student")
    assert left(folder) == before - {"milestones/0.4", "milestones/0.7"}


@pytest.mark.filterwarnings("ignore:.*weights that are zero at the start:UserWarning")
@pytest.mark.parametrize("setting", ["init", "teacher"])
def test_run_keeps_the_earlier_run_that_its_student_names(again, make_job, setting):
    """By its run folder, in which the student lies."""
    folder, before = again
    kept = []
    callbacks = {"look": LambdaCallback(
        on_train_epoch_end=lambda *_: kept.append((folder / "student").is_dir())
    )}  # fmt: skip
    run(make_job(folder, student=Stage(**{setting: str(folder)}), callbacks=callbacks))
    assert kept
    assert all(kept)
    assert left(folder) == before - {"milestones/0.4", "milestones/0.7"}
