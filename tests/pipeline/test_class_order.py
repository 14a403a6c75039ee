"""Models whose head has the task's classes in another order are refused, whatever names them."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import AutoModelForSequenceClassification

from kd_prune import hf
from kd_prune.errors import ConfigError
from kd_prune.pipeline import Stage, run

from .jobs import LABELS


def fine_tuned(done, folder, labels):
    """The teacher with other class names."""
    model = hf.PretrainedEncoder(path=done.result.teacher.path)
    loaded = model.load(kind=hf.Classification(), num_outputs=8)
    hf.save(loaded, model.tokenizer(), folder, kind=hf.Classification(), labels=labels)
    return str(folder)


def of_other_order(done, make_job, tmp_path, case):
    """A job one of whose models has the classes in another order."""
    turned = [*reversed(LABELS)]
    folder = fine_tuned(done, tmp_path / "turned", turned)
    task = dataclasses.replace(make_job(tmp_path).task, labels=turned)
    other = {"other": Stage(task=task)}
    return {
        "model": lambda: {"model": hf.PretrainedEncoder(path=folder)},
        "pretrained": lambda: {
            "model": hf.PretrainedEncoder(path=folder),
            "teacher": Stage(path=done.result.teacher.path),
            "student": Stage(teacher="pretrained", init=done.job.model.path),
        },
        "init": lambda: {"student": Stage(init=folder)},
        "stage": lambda: {"stages": other, "student": Stage(teacher="other")},
        "init of a stage": lambda: {"stages": other, "student": Stage(init="other")},
    }[case]()


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("model", r"model\.path=\S+turned"),
        ("pretrained", r"student\.teacher=\S+turned"),
        ("init", r"student\.init=\S+turned"),
        ("stage", r"student\.teacher=other"),
        ("init of a stage", r"student\.init=other"),
    ],
)
def test_model_with_the_classes_in_another_order_is_refused(
    done, make_job, tmp_path, no_training, case, key
):
    settings = of_other_order(done, make_job, tmp_path, case)
    says = (
        rf"^{key}: the model's labels are \['vessel', .*the task's \['animal', .*set task\.labels"
    )
    with pytest.raises(ConfigError, match=says):
        run(make_job(tmp_path / "out", **settings))


def test_encoder_of_a_fine_tuned_model_may_have_any_class_names(
    done, make_job, tmp_path, no_training
):
    """Its head is not there, and a new one is made."""
    folder = tmp_path / "encoder"
    path = fine_tuned(done, tmp_path / "turned", [*reversed(LABELS)])
    model = AutoModelForSequenceClassification.from_pretrained(path)
    model.base_model.save_pretrained(folder)
    hf.PretrainedEncoder(path=path).tokenizer().save_pretrained(folder)
    with pytest.raises(AssertionError, match="training began"):
        run(make_job(tmp_path / "out", student=Stage(init=str(folder))))
