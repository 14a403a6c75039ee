"""Milestones: students saved on the way to the final sparsity."""

from __future__ import annotations

import shutil

import lightning.pytorch as L
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kd_prune.lit.signals import Interrupted
from kd_prune.pipeline import CheckpointError, run
from kd_prune.pipeline.milestones import Milestones

from .jobs import STEPS, InterruptAt, KeepSparsity, milestone_sparsity, weights

FOLDERS = ("milestones/0.4", "milestones/0.7", "student")


def test_milestone_is_a_student_of_its_sparsity(curve):
    out, _, result = curve
    assert [found.target for found in result.milestones] == [0.4, 0.7]
    for found in result.milestones:
        model = AutoModelForSequenceClassification.from_pretrained(out / found.path)
        counted = [
            (int((weight == 0).sum()), weight.numel())
            for name, weight in model.named_parameters()
            if ".layer." in name and weight.ndim == 2
        ]
        assert [zeros for zeros, _ in counted] == [round(found.target * n) for _, n in counted]
        assert found.sparsity == pytest.approx(found.target, abs=1e-3)
        assert found.nonzero == sum(int(w.count_nonzero()) for w in model.parameters())
        assert found.metrics.keys() == result.student.metrics.keys()
    steps = [found.step for found in result.milestones]
    assert 0 < steps[0] < steps[1] < STEPS
    assert result.student.sparsity == pytest.approx(0.9, abs=1e-3)


def test_milestone_is_the_mean_of_the_second_half_of_its_length(make_job, tmp_path):
    seen = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen[trainer.global_step] = {
                name: weight.detach().double().cpu()
                for name, weight in pl_module.student.named_parameters()
            }

    kept = KeepSparsity()
    callbacks = {"watch": Watch(), "kept": kept}
    run(make_job(tmp_path / "run", sparsity=milestone_sparsity(), callbacks=callbacks))
    schedule = kept.sparsity.pruner.update_schedule
    start = next(step for step, value in schedule.items() if value == 0.4)
    stop = next(step for step, value in schedule.items() if value > 0.4)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/milestones/0.4")
    # After the milestone is saved at `stop`, a mask update zeros further weights, but no bias.
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            values = [seen[step][name] for step in range((start + stop) // 2, stop + 1)]
            assert len(values) > 1
            torch.testing.assert_close(weight.double(), sum(values) / len(values))


def test_saving_milestones_leaves_the_fit_as_it_is(make_job, tmp_path, curve, monkeypatch):
    """The same ramp without anything saved ends in the same weights."""
    job = make_job(tmp_path / "run", sparsity=milestone_sparsity())
    monkeypatch.setattr(Milestones, "_on_milestone", lambda *args: None)
    run(job)
    assert weights(tmp_path / "run/student") == weights(curve.out / "student")


@pytest.mark.parametrize(
    "step",
    [
        step if step % 3 == 1 else pytest.param(step, marks=pytest.mark.slow)
        for step in range(1, STEPS)
    ],
)
def test_run_interrupted_at_any_step_saves_the_same_milestones(make_job, tmp_path, curve, step):
    callbacks = {"interrupt": InterruptAt(step)}
    with pytest.raises(Interrupted):
        run(make_job(tmp_path / "run", sparsity=milestone_sparsity(), callbacks=callbacks))
    last = str(tmp_path / "run/last.ckpt")
    again = run(make_job(tmp_path / "run", sparsity=milestone_sparsity(), ckpt_path=last))
    assert again.milestones == curve.result.milestones
    for name in FOLDERS:
        assert weights(tmp_path / "run" / name) == weights(curve.out / name)


@pytest.fixture(scope="module")
def interrupted(make_job, curve, tmp_path_factory):
    """The run folder of a run that was interrupted after its second milestone."""
    out = tmp_path_factory.mktemp("interrupted")
    callbacks = {"interrupt": InterruptAt(curve.result.milestones[1].step)}
    with pytest.raises(Interrupted):
        run(make_job(out, sparsity=milestone_sparsity(), callbacks=callbacks))
    return out


def test_run_resumed_in_another_folder_copies_the_milestones(
    make_job, tmp_path, curve, interrupted
):
    last = str(interrupted / "last.ckpt")
    again = run(make_job(tmp_path, sparsity=milestone_sparsity(), ckpt_path=last))
    assert again.milestones == curve.result.milestones
    for name in FOLDERS:
        assert weights(tmp_path / name) == weights(curve.out / name)


def test_run_resumed_in_the_folder_of_another_run_replaces_its_milestones(
    make_job, tmp_path, curve, interrupted
):
    for name in ("0.4", "0.7"):
        shutil.copytree(curve.out / "student", tmp_path / "milestones" / name)
    last = str(interrupted / "last.ckpt")
    run(make_job(tmp_path, sparsity=milestone_sparsity(), ckpt_path=last))
    for name in FOLDERS:
        assert weights(tmp_path / name) == weights(curve.out / name)


def test_checkpoint_whose_milestones_are_gone_is_refused(
    make_job, tmp_path, interrupted, no_training
):
    shutil.copytree(interrupted, tmp_path / "earlier")
    shutil.rmtree(tmp_path / "earlier/milestones/0.4")
    last = str(tmp_path / "earlier/last.ckpt")
    with pytest.raises(
        CheckpointError, match=r"^ckpt_path=.*its student of 0\.4 is not in .*take the"
    ):
        run(make_job(tmp_path / "out", sparsity=milestone_sparsity(), ckpt_path=last))
