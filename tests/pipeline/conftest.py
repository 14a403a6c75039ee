"""Fixtures of the pipeline's tests: jobs of tiny models that run in this process."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
from transformers import (
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
)

from kd_prune import hf
from kd_prune.distillation import (
    AttentionScores,
    Embeddings,
    HiddenStates,
    Objective,
    SoftTargets,
)
from kd_prune.hf.tiny import make_model, make_task
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import Job, Stage, run

from .jobs import BATCH, ROWS, Finished, KeepSparsity, milestone_sparsity, trainer


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def make_job(cache):
    """Jobs that differ where a test says so; a fresh callback each time."""
    model = make_model(str(cache), layers=2, hidden_size=16, heads=2)
    rows = make_task(str(cache), train=ROWS, validation=32)

    def make(out, *, final=0.9, trainer_settings=None, task=None, **settings):
        defaults = {
            "task": hf.Task(
                name="tiny",
                path=rows,
                **(
                    {"text": ["things", "which"], "max_length": 32, "batch_size": BATCH}
                    | (task or {})
                ),
            ),
            "model": hf.PretrainedEncoder(path=model),
            "teacher": Stage(max_epochs=1, optimizer=hf.AdamWWithSchedule(lr=2e-3)),
            "distillation": Objective(
                {
                    "embeddings": Embeddings(),
                    "hidden_states": HiddenStates(),
                    "attention_scores": AttentionScores(),
                    "soft_targets": SoftTargets(),
                }
            ),
            "sparsity": SparsityCallback(final, updates=4, end=0.5),
            "optimizer": hf.AdamWWithSchedule(lr=2e-3),
            "trainer": trainer(**(trainer_settings or {})),
            "cache_dir": str(cache),
            "config": {"seed": 0},
            "out": out,
        }
        return Job(**(defaults | settings))

    return make


@pytest.fixture(scope="session")
def done(make_job, tmp_path_factory):
    """A finished run."""
    job = make_job(tmp_path_factory.mktemp("done"), callbacks={"kept": KeepSparsity()})
    return Finished(job.out, job, run(job))


@pytest.fixture
def no_training(monkeypatch):
    """Whatever is trained fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(L.Trainer, "fit", refuse)


@pytest.fixture
def distilbert(done, tmp_path):
    """A DistilBERT that reads the same words as the runs' BERT."""
    folder = tmp_path / "distilbert"
    words = AutoTokenizer.from_pretrained(done.result.teacher.path).get_vocab()
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
    config = DistilBertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    DistilBertTokenizer(vocab=words).save_pretrained(folder)
    return hf.PretrainedEncoder(path=str(folder))


@pytest.fixture(scope="session")
def curve(make_job, tmp_path_factory):
    """A finished run with two milestones."""
    job = make_job(tmp_path_factory.mktemp("curve"), sparsity=milestone_sparsity())
    return Finished(job.out, job, run(job))
