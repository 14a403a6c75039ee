"""Resume check: a checkpoint is resumed only by the run that it is of."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from kd_prune import hf
from kd_prune.distillation import Embeddings, Objective
from kd_prune.lit import RewindCallback, SparsityCallback
from kd_prune.lit.signals import Interrupted
from kd_prune.pipeline import CheckpointError, Stage, run
from kd_prune.pipeline.preflight import check_stage
from kd_prune.pipeline.resume_check import check_resume_step, checkpoint_file
from kd_prune.pruning import Scope

from .jobs import BATCH, STEPS, InterruptAt, loaded_context, weights


def refused(make_job, tmp_path, path, says, **settings):
    """Assert that the refusal of a checkpoint is one line that says this."""
    with pytest.raises(CheckpointError, match=says) as refusal:
        run(make_job(tmp_path / "out", ckpt_path=str(path), **settings))
    assert str(refusal.value).startswith(f"ckpt_path={path}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.ckpt", r"nowhere\.ckpt: no such file"),
        ("student", r"student: a folder without last\.ckpt; name a run fol"),
        ("cut.ckpt", r"cut\.ckpt: truncated or no checkpoint"),
        ("text.ckpt", r"text\.ckpt: truncated or no checkpoint"),
        ("foreign.ckpt", r"foreign\.ckpt: not a checkpoint of this student"),
    ],
)
def test_file_that_is_no_checkpoint_of_the_student_is_refused(
    done, make_job, tmp_path, no_training, name, says
):
    path = tmp_path / name
    if name == "student":
        path.mkdir()
    elif name == "cut.ckpt":
        whole = (done.out / "last.ckpt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "text.ckpt":
        path.write_text("not a checkpoint")
    elif name == "foreign.ckpt":
        torch.save({"state_dict": {"layer.weight": torch.ones(2)}, "epoch": 1}, path)
    refused(make_job, tmp_path, path, says)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sparsity": None}, r"of a pruned fit, and this one is dense"),
        ({"seed": 1}, r"of another run, with .*seed=0 where this one has 1"),
        ({"final": 0.5}, r"of another run, with sparsity\.final=0\.9 where this one has 0\.5"),
        (
            {"sparsity": SparsityCallback(0.9, updates=5, end=0.5)},
            r"with sparsity\.updates=4 where this one has 5",
        ),
        ({"task": {"text": ["things"]}}, r"with (teacher\.)?data=.* where this one has"),
        (
            {"optimizer": hf.AdamWWithSchedule(lr=1e-6)},
            r"with optimizer\.lr=0\.002 where this one has 1e-06",
        ),
        (
            {"distillation": Objective({"embeddings": Embeddings(weight=0.5)})},
            r"with distillation\.[\w.]*embeddings\.weight=1\.0 where this one has 0\.5",
        ),
        (
            {"task": {"batch_size": 2 * BATCH}},
            r"with (teacher|task)\.batch_size=16 where this one has 32",
        ),
        ({"task": {"pad_to": 40}}, r"with task\.pad_to=None where this one has 40"),
        ({"trainer_settings": {"precision": "bf16-mixed"}}, r"with trainer\.precision=None where"),
        (
            {"trainer_settings": {"gradient_clip_val": 2.0}},
            r"with trainer\.gradient_clip_val=None where this one has 2\.0",
        ),
        (
            {"trainer_settings": {"gradient_clip_algorithm": "value"}},
            r"with trainer\.gradient_clip_algorithm=None where this one has value",
        ),
        (
            {"callbacks": {"rewind": RewindCallback(at=[0.5])}},
            r"with callbacks\.rewind\.[\w.]*=None where this one has",
        ),
        ({"student": Stage(dropout=0.2)}, r"with student\.dropout=None where this one has 0\.2"),
        ({"teacher": Stage(max_epochs=4)}, r"with teacher\.max_epochs=1 where this one has 4"),
    ],
)  # fmt: skip
def test_checkpoint_of_another_run_is_refused(
    done, make_job, tmp_path, no_training, settings, says
):
    refused(make_job, tmp_path, done.out / "last.ckpt", says, **settings)


def test_checkpoint_of_a_run_with_another_scope_of_the_model_is_refused(
    done, make_job, tmp_path, no_training
):
    model = dataclasses.replace(done.job.model, scope=Scope(include=["*query.weight"]))
    says = r"with model\.scope.*=None where this one has"
    refused(make_job, tmp_path, done.out / "last.ckpt", says, model=model)


def test_checkpoint_of_a_run_that_began_from_another_model_is_refused(
    done, make_job, tmp_path, no_training
):
    shutil.copytree(done.job.model.path, tmp_path / "model")
    settings = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(settings | {"hidden_act": "relu"}))
    other = hf.PretrainedEncoder(path=str(tmp_path / "model"))
    says = r"of another run, with model=\w+ where this one has"
    refused(make_job, tmp_path, done.out / "last.ckpt", says, model=other)


def test_checkpoint_with_a_setting_that_this_run_lacks_is_refused(
    done, make_job, tmp_path, no_training
):
    state = torch.load(done.out / "last.ckpt", weights_only=True)
    state["callbacks"]["ResumePoint"]["fingerprint"]["distillation.terms.other.weight"] = 0.5
    torch.save(state, tmp_path / "weighed.ckpt")
    says = r"with distillation\.terms\.other\.weight=0\.5 where this one has None"
    refused(make_job, tmp_path, tmp_path / "weighed.ckpt", says)


def check_step(job):
    """Check the step of the job's checkpoint against the length of its student's fit."""
    context = loaded_context(job)
    checkpoint = torch.load(job.ckpt_path, weights_only=True)
    check_resume_step(context, checkpoint, check_stage(context, context.chain["student"]))


@pytest.mark.parametrize(
    "end", [{"max_epochs": 1}, {"max_steps": STEPS - 1}, {"limit_train_batches": 5}]
)
def test_checkpoint_from_beyond_the_end_of_the_run_is_refused(done, make_job, tmp_path, end):
    last = str(done.out / "last.ckpt")
    with pytest.raises(CheckpointError, match=rf"ckpt_path=.*after step {STEPS}, .*this run ends"):
        check_step(make_job(tmp_path, ckpt_path=last, trainer_settings=end))


def test_checkpoint_of_a_run_that_is_longer_in_epochs_is_not_beyond_its_end(
    done, make_job, tmp_path
):
    last = str(done.out / "last.ckpt")
    longer = {"accumulate_grad_batches": 3, "max_epochs": 6}
    check_step(make_job(tmp_path, ckpt_path=last, trainer_settings=longer))


def test_checkpoint_at_the_end_of_a_shorter_run_is_refused(make_job, tmp_path):
    """Its ramp would lack an end."""
    with pytest.raises(Interrupted):
        run(make_job(tmp_path / "a", callbacks={"interrupt": InterruptAt(3)}))
    last = str(tmp_path / "a/last.ckpt")
    with pytest.raises(
        CheckpointError, match=rf"after step 3, in epoch 1, of a run of {STEPS} steps"
    ):
        run(make_job(tmp_path / "b", ckpt_path=last, trainer_settings={"max_steps": 3}))


def test_checkpoint_of_a_finished_run_is_resumed_and_evaluated_again(done, make_job, tmp_path):
    result = run(make_job(tmp_path, ckpt_path=str(done.out / "last.ckpt")))
    assert weights(tmp_path / "student") == weights(done.out / "student")
    assert result.student.metrics == done.result.student.metrics


class GradualPruning(SparsityCallback):
    """A subclass, as a user may write one; its state has its own name."""


def test_run_of_a_subclass_of_the_callback_is_resumed(make_job, tmp_path):
    def job(out, **settings):
        sparsity = GradualPruning(0.9, updates=4, end=0.5)
        return make_job(tmp_path / out, sparsity=sparsity, **settings)

    run(job("whole"))
    with pytest.raises(Interrupted):
        run(job("a", callbacks={"interrupt": InterruptAt(3)}))
    run(job("b", ckpt_path=str(tmp_path / "a")))
    assert weights(tmp_path / "b/student") == weights(tmp_path / "whole/student")


def test_run_folder_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").touch()
    assert checkpoint_file("~/run") == checkpoint_file("~/run/last.ckpt")
    assert checkpoint_file("~/run") == str(tmp_path / "run" / "last.ckpt")
