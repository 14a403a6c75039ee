"""Models of a stage: where they come from, and what they are changed to."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective
from kd_prune.errors import ConfigError
from kd_prune.lit import DistillModule, SparsityCallback
from kd_prune.pipeline import Stage, run

from .jobs import STEPS, found_again, timeless


def test_dropout_of_the_student_is_the_students_alone(done, make_job, tmp_path, monkeypatch):
    seen = []
    original = DistillModule.training_step

    def look(self, batch, batch_idx):
        dropouts = (m for m in self.student.modules() if isinstance(m, torch.nn.Dropout))
        seen.append({module.p for module in dropouts})
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DistillModule, "training_step", look)
    result = run(make_job(tmp_path, student=Stage(dropout=0.25)))
    assert seen == [{0.25}] * STEPS  # the teacher was found, so all steps are the student's
    assert result.teacher == found_again(done.result.teacher)
    assert AutoConfig.from_pretrained(tmp_path / "student").hidden_dropout_prob == 0.0  # its own


@pytest.mark.parametrize("given", [True, False], ids=["given", "fitted_here"])
def test_models_of_two_families_both_get_segments(
    done, distilbert, make_job, tmp_path, monkeypatch, given
):
    seen = {}
    forward = hf.forward

    def look(model, batch, requires):
        seen.setdefault(model.config.model_type, batch["token_type_ids"].unique().tolist())
        return forward(model, batch, requires)

    monkeypatch.setattr(hf, "forward", look)
    theirs = done.result.teacher
    teacher = Stage(path=theirs.path) if given else Stage(init=theirs.path, max_epochs=1)
    result = run(make_job(tmp_path / "run", model=distilbert, teacher=teacher))
    assert seen == {"distilbert": [0, 1], "bert": [0, 1]}
    assert (result.teacher.path == theirs.path) == given
    if given:
        assert result.teacher.metrics == theirs.metrics
    saved = AutoTokenizer.from_pretrained(tmp_path / "run/student")
    assert "token_type_ids" not in saved("the fox", "first")


def test_student_that_reads_segments_which_its_tokenizer_does_not_make_is_refused(
    done, make_job, tmp_path, no_training
):
    """It would learn from segments that it never gets once it is saved."""
    folder = tmp_path / "student"
    shutil.copytree(done.job.model.path, folder)
    file = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    job = make_job(
        tmp_path / "out",
        model=hf.PretrainedEncoder(path=str(folder)),
        teacher=Stage(path=done.result.teacher.path),
    )
    with pytest.raises(
        ConfigError,
        match=r"^teacher\.path=.*read token_type_ids, which.*name them in model_input_names",
    ):
        run(job)


def test_teacher_that_is_given_by_its_run_folder_is_evaluated_and_not_fitted(
    done, make_job, tmp_path
):
    first = done.result
    by_run_folder = tmp_path / "teachers run"
    shutil.copytree(first.teacher.path, by_run_folder / "student")
    result = run(make_job(tmp_path, teacher=Stage(path=str(by_run_folder))))
    assert result.teacher.path == str(by_run_folder / "student")
    assert (result.teacher.reused, result.teacher.seconds) == (True, 0.0)
    assert result.teacher.metrics == pytest.approx(first.teacher.metrics)
    assert timeless(result.student) == timeless(first.student)


def test_student_that_begins_as_the_teacher_keeps_its_weights(done, make_job, tmp_path):
    """With next to no learning it ends as the teacher, but for what is pruned."""
    job = make_job(
        tmp_path,
        final=0.5,
        student=Stage(init="teacher"),
        optimizer=hf.AdamWWithSchedule(lr=1e-12),
        trainer_settings={"max_epochs": 1},
    )
    result = run(job)
    ours, theirs = (
        AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "student", done.result.teacher.path)
    )
    for name, tensor in theirs.items():
        kept = ours[name] != 0
        assert torch.allclose(ours[name][kept], tensor[kept], atol=1e-8), name
    assert result.student.sparsity == 0.5


@pytest.mark.parametrize("part", ["", "student"])
def test_student_that_begins_from_a_folder_keeps_its_masks(done, make_job, tmp_path, part):
    """A run folder, or the folder of a model."""
    job = make_job(
        tmp_path,
        student=Stage(init=str(done.out / part)),
        sparsity=SparsityCallback(None),
        distillation=Objective({"hard_labels": HardLabels()}),
    )
    result = run(job)
    assert result.student.sparsity == done.result.student.sparsity
    ours, theirs = (
        load_file(folder / "student/model.safetensors") for folder in (tmp_path, done.out)
    )
    for name, tensor in theirs.items():
        if ".layer." in name and tensor.ndim == 2:
            assert torch.equal(ours[name] == 0, tensor == 0), name
            assert not torch.equal(ours[name], tensor), name
