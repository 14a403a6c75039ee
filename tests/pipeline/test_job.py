"""Jobs: the order of stages, what they take from the job, and what is refused."""

from __future__ import annotations

import pytest

from kd_prune import hf
from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import Stage


def test_chain_of_a_plain_job_is_teacher_and_student(make_job, tmp_path):
    job = make_job(tmp_path, seed=3)
    chain = job.chain()
    assert list(chain) == ["teacher", "student"]
    assert chain["student"].teacher == "teacher"
    assert chain["student"].objective is job.distillation
    assert chain["student"].sparsity is job.sparsity
    assert all(stage.task == job.task for stage in chain.values())
    assert {stage.seed for stage in chain.values()} == {3}
    assert chain["teacher"].optimizer == job.teacher.optimizer
    assert (chain["teacher"].teacher, chain["teacher"].sparsity) == (None, None)


def test_chain_orders_stages_by_what_they_refer_to(make_job, tmp_path):
    stages = {
        "third": Stage(init="second", teacher="first"),
        "second": Stage(init="first"),
        "first": Stage(init="pretrained", teacher="pretrained"),
        "unused": Stage(),
    }
    chain = make_job(tmp_path, stages=stages, student=Stage(init="third")).chain()
    order = list(chain)
    assert order.index("first") < order.index("second") < order.index("third")
    assert order[-1] == "student"
    assert "unused" not in chain


def test_chain_leaves_out_what_only_a_given_stage_refers_to(make_job, tmp_path):
    stages = {"base": Stage(), "given": Stage(init="base", path="somewhere")}
    chain = make_job(tmp_path, stages=stages, student=Stage(init="given")).chain()
    assert "base" not in chain
    assert "given" in chain


def test_stage_with_a_batch_size_of_its_own_changes_its_task_alone(make_job, tmp_path):
    chain = make_job(tmp_path, teacher=Stage(batch_size=7)).chain()
    assert chain["teacher"].task.batch_size == 7
    assert chain["student"].task.batch_size != 7


def test_keys_of_settings_are_those_of_a_command(make_job, tmp_path):
    task = hf.Task(name="other", path="x", text=["a"])
    stages = {"base": Stage(task=task), "plain": Stage(init="base")}
    chain = make_job(tmp_path, stages=stages, student=Stage(init="plain")).chain()
    keys = {name: (stage.key, stage.task_key) for name, stage in chain.items()}
    assert keys == {
        "base": ("stages.base", "stages.base.task"),
        "plain": ("stages.plain", "task"),
        "teacher": ("teacher", "task"),
        "student": ("student", "task"),
    }
    assert chain["student"].setting_key("objective") == "distillation"
    assert chain["student"].setting_key("optimizer") == "optimizer"
    assert chain["student"].setting_key("init") == "student.init"
    assert chain["base"].setting_key("objective") == "stages.base.objective"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stages": {"a": Stage(init="b"), "b": Stage(init="a")}, "student": Stage(init="a")},
         "stages: they refer to each other in a circle"),
        ({"student": Stage(init="student")}, "in a circle, student → student"),
        ({"teacher": Stage(init="student")}, "in a circle"),
        ({"stages": {"pretrained": Stage()}}, "stages.pretrained: a reserved name"),
        ({"student": Stage(path="x")}, "student.path=x: the student is always fitted"),
        ({"student": Stage(max_epochs=2)}, "student.max_epochs: for the student it is trainer.max"),
        ({"student": Stage(optimizer=hf.AdamWWithSchedule())}, "student.optimizer: for the stud"),
        ({"teacher": Stage(min_retained=0.5)}, "teacher.min_retained=0.5: only the student"),
        ({"stages": {"a": Stage(min_retained=0.5)}}, "stages.a.min_retained=0.5: only the student"),
        ({"seed": -1}, "seed=-1: expected a whole number"),
        ({"checkpoint_minutes": float("nan")}, "checkpoint_minutes=nan: expected a number"),
    ],
)  # fmt: skip
def test_job_that_cannot_be_is_refused(make_job, tmp_path, settings, says):
    with pytest.raises(ConfigError, match=says):
        make_job(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_epochs": 0}, "max_epochs=0: expected a number above 0"),
        ({"max_steps": 0}, "max_steps=0: expected a number above 0"),
        ({"batch_size": -3}, "batch_size=-3: expected a number above 0"),
        ({"dropout": 1.0}, r"dropout=1.0: expected a fraction in \[0, 1\)"),
        ({"min_retained": 1.5}, "min_retained=1.5: expected a share"),
        ({"layers": 0}, "layers=0: expected at least 1"),
        ({"init": ""}, "init=: expected pretrained, a stage or a folder"),
        ({"hidden_size": 32, "freeze": ["embeddings"]}, "freeze=.* would stay random; set freeze="),
    ],
)
def test_stage_setting_out_of_range_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        Stage(**settings)


def test_a_stage_that_prunes_and_is_not_run_is_named(make_job, tmp_path, caplog):
    base = Stage(max_epochs=1, sparsity=SparsityCallback(0.8))
    make_job(tmp_path, stages={"base": base}, student=Stage(init="base"))
    assert not caplog.records
    make_job(tmp_path, stages={"base": base, "dense": Stage(max_epochs=1)})
    assert caplog.messages == [
        "stages.base prunes, but is not run: no stage that is run refers to it (init, teacher, "
        "masks_from)"
    ]
