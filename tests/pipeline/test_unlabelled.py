"""Rows without labels in a job: the teacher leaves them out, the student learns from them."""

from __future__ import annotations

import math
from dataclasses import replace

import lightning.pytorch as L
import pytest

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective, SoftTargets
from kd_prune.errors import ConfigError
from kd_prune.pipeline import run

from .jobs import BATCH, EPOCHS, ROWS, folder_of, loaded_context


class CountSteps(L.Callback):
    """Keeps the number of steps and the losses on hard labels."""

    def __init__(self):
        self.steps, self.losses = 0, []

    def on_train_batch_end(self, trainer, *args):
        self.steps = trainer.global_step
        self.losses.append(float(trainer.callback_metrics["train/hard_labels"]))


@pytest.fixture
def augmented(make_job, tmp_path):
    def make(out="run", **settings):
        job = make_job(tmp_path / out, **settings)
        return replace(job, task=replace(job.task, augment=hf.Augmentation(copies=1)))

    return make


def test_stage_without_a_teacher_leaves_out_rows_without_labels(augmented, make_job, tmp_path):
    job, plain = augmented(), make_job(tmp_path / "plain")
    inputs = loaded_context(job).inputs
    assert len(inputs["teacher"].data.splits["train"]) == ROWS
    assert len(inputs["student"].data.splits["train"]) > 2 * ROWS
    assert folder_of(job, "teacher") == folder_of(plain, "teacher")
    assert inputs["student"].data.rows == loaded_context(plain).inputs["student"].data.rows


def test_student_learns_from_all_rows_and_hard_labels_from_their_own(augmented):
    terms = {"soft_targets": SoftTargets(), "hard_labels": HardLabels()}
    counted = CountSteps()
    job = augmented(distillation=Objective(terms), callbacks={"counted": counted})
    rows = len(loaded_context(job).inputs["student"].data.splits["train"])
    result = run(job)
    assert result.student.sparsity == pytest.approx(0.9, abs=1e-3)
    assert counted.steps == EPOCHS * math.ceil(rows / BATCH)
    # A mean over the labelled rows: about log 8 in the beginning, whatever their share of a batch.
    assert sum(counted.losses) / len(counted.losses) == pytest.approx(math.log(8), abs=0.3)


def test_student_of_labels_alone_refuses_rows_without(augmented, make_job, tmp_path):
    labels = Objective({"hard_labels": HardLabels()})
    says = "the student learns from labels alone, and these rows have none; choose a distillation"
    with pytest.raises(ConfigError, match=f"^task.augment: {says}"):
        augmented(distillation=labels)
    job = make_job(tmp_path / "plain", distillation=labels)
    with pytest.raises(ConfigError, match=f"^task.unlabelled: {says}"):
        replace(job, task=replace(job.task, unlabelled=["more.txt"]))
