"""Verification: a finished student is as sparse as its masks were to make it."""

from __future__ import annotations

import dataclasses
import importlib

import lightning.pytorch as L
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kd_prune import hf
from kd_prune.hf import encoder_scope
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import Stage, VerificationError, run
from kd_prune.pipeline.verification import (
    ExpectedSparsity,
    verify_retained,
    verify_sparsity,
)
from kd_prune.pruning import NM, GroupAllocation, Rows, Scope, SparsityReport

from .jobs import scoped_rows


def test_fit_that_was_stopped_on_its_ramp_is_no_success(make_job, tmp_path):
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    job = make_job(tmp_path, sparsity=SparsityCallback(0.9, updates=4), callbacks={"stop": Stop()})
    with (
        pytest.warns(UserWarning, match="the fit was stopped"),
        pytest.raises(
            VerificationError, match=r"ended on the ramp, at sparsity 0\.\d+ of 0\.9; let it train"
        ),
    ):
        run(job)
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "student").is_dir()


@pytest.mark.parametrize(("owner", "share"), [("sparsity", 0.5), ("model", 0.9)])
def test_scope_is_in_the_students_own_names(done, make_job, tmp_path, owner, share):
    """Those that sparsity.csv shows; the module that is fitted has a prefix before them."""
    scope = Scope(include=["bert.encoder.layer.*.query.weight"], exclude=["bert.encoder.layer.0.*"])
    settings = {
        "sparsity": {"sparsity": SparsityCallback(0.5, updates=4, scope=scope)},
        "model": {"model": dataclasses.replace(done.job.model, scope=scope)},
    }[owner]
    run(make_job(tmp_path, **settings))
    rows = scoped_rows(tmp_path)
    assert [row["name"] for row in rows] == ["bert.encoder.layer.1.attention.self.query.weight"]
    assert int(rows[0]["zeros"]) == round(share * int(rows[0]["size"]))


def test_patterns_of_an_allocation_are_in_the_students_own_names(make_job, tmp_path):
    share = {"bert.encoder.layer.0.*": 2.0}
    sparsity = SparsityCallback(0.75, updates=4, allocation=GroupAllocation(ratios=share))
    run(make_job(tmp_path, sparsity=sparsity))
    kept = {
        row["name"].split(".")[3]: 1 - int(row["zeros"]) / int(row["size"])
        for row in scoped_rows(tmp_path)
    }
    assert kept["0"] == pytest.approx(2 * kept["1"], rel=0.02)


@pytest.mark.parametrize(("granularity", "final"), [(NM(), 0.5), (Rows(), 0.95)])
def test_groups_of_a_model_that_holds_zeros_already_pass(
    done, make_job, tmp_path, granularity, final
):
    """How many weights such groups prune is known only once they are chosen."""
    sparse = hf.PretrainedEncoder(path=str(done.out / "student"))
    sparsity = SparsityCallback(final, updates=4, granularity=granularity, keep_zeros=True)
    result = run(make_job(tmp_path, model=sparse, sparsity=sparsity))
    assert result.student.sparsity > done.result.student.sparsity


def test_fewer_zeros_than_expected_are_an_error(done, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(done.out / "student")
    scope = encoder_scope(model).select(model)
    expected = ExpectedSparsity.of(done.job.callbacks["kept"].sparsity.pruner)
    verify_sparsity(expected, SparsityReport.count(model, scope.keys()), tmp_path)
    with torch.no_grad():
        next(iter(scope.values())).fill_(1.0)
    with pytest.raises(VerificationError, match=r"zeros in scope where the masks prune"):
        verify_sparsity(expected, SparsityReport.count(model, scope.keys()), tmp_path)


@pytest.fixture
def refill(monkeypatch):
    """No zero of a model reaches the disk."""
    save = hf.save

    def refill(model, *args, **settings):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter[parameter == 0] = 1e-9
        save(model, *args, **settings)

    monkeypatch.setattr(hf, "save", refill)


def test_student_whose_zeros_were_lost_in_saving_is_not_reported(done, make_job, tmp_path, refill):
    with pytest.raises(VerificationError, match=r" 0 zeros in scope"):
        run(make_job(tmp_path))
    assert not (tmp_path / "result.json").exists()


def test_stage_whose_zeros_were_lost_in_saving_is_not_shared(make_job, cache, tmp_path, refill):
    teacher = Stage(max_epochs=1, sparsity=SparsityCallback(0.5, updates=2))
    before = set((cache / "stages").glob("*/stage.json"))
    with pytest.raises(VerificationError, match=r" 0 zeros in scope"):
        run(make_job(tmp_path, teacher=teacher))
    assert set((cache / "stages").glob("*/stage.json")) == before


@pytest.mark.parametrize(
    ("min_retained", "student", "teacher", "passes"),
    [
        (0.0, -0.2, -0.1, True),  # nothing is asked for by default; correlations may be negative
        (0.9, 0.9, 1.0, True),
        (0.9, 0.89, 1.0, False),
        (1.0, 0.5, 0.5, True),
    ],
)
def test_retained_share_is_compared_with_what_was_asked_for(
    tmp_path, min_retained, student, teacher, passes
):
    if passes:
        verify_retained(min_retained, "accuracy", student, teacher, tmp_path)
    else:
        with pytest.raises(
            VerificationError,
            match=r"^student\.min_retained=0\.9: .* has accuracy 0\.8900, the teacher 1\.0000",
        ):
            verify_retained(min_retained, "accuracy", student, teacher, tmp_path)


def test_retained_share_of_a_loss_is_that_of_its_inverse(tmp_path):
    verify_retained(0.9, "perplexity", 11.0, 10.0, tmp_path)
    verify_retained(0.9, "perplexity", 8.0, 10.0, tmp_path)
    with pytest.raises(VerificationError, match="perplexity 12"):
        verify_retained(0.9, "perplexity", 12.0, 10.0, tmp_path)


def test_student_that_retains_too_little_fails_the_run_but_is_reported(
    done, make_job, tmp_path, monkeypatch
):
    def half(*args, **settings):
        return {"accuracy": done.result.teacher.metrics["accuracy"] / 2}

    monkeypatch.setattr(importlib.import_module("kd_prune.pipeline.run"), "evaluate", half)
    with pytest.raises(VerificationError, match=r"^student\.min_retained=0\.6: "):
        run(make_job(tmp_path, student=Stage(min_retained=0.6)))
    assert (tmp_path / "result.json").exists()
