"""Chains of stages, in process and tiny: sparse bases, other shapes, learned terms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from kd_prune import hf
from kd_prune.distillation import AttentionScores, Embeddings, HiddenStates, Objective, SoftTargets
from kd_prune.errors import ConfigError
from kd_prune.lit import DistillModule, SparsityCallback
from kd_prune.lit.signals import Interrupted
from kd_prune.pipeline import Stage, run
from kd_prune.pipeline.stage_cache import obtain_stage
from kd_prune.results import RunResult

from .jobs import BATCH, Finished, InterruptAt, folder_of, loaded_context, weights


def layers_objective():
    return Objective(
        {
            "embeddings": Embeddings(),
            "hidden_states": HiddenStates(),
            "attention_scores": AttentionScores(),
        }
    )


@pytest.fixture(scope="module")
def sparse_base(make_job):
    """Jobs whose student begins with an encoder that was pruned on text, masks fixed."""

    def make(out, **settings):
        task = make_job(out).task
        text = hf.Task(
            name="text", path=task.path, text=["things"], kind=hf.Text(), metrics=(),
            monitor="loss", max_length=32, batch_size=BATCH,
        )  # fmt: skip
        base = Stage(
            task=text,
            teacher="pretrained",
            objective=layers_objective(),
            sparsity=SparsityCallback(0.8, updates=3, end=0.5),
            max_steps=6,
        )
        defaults = {
            "stages": {"base": base},
            "student": Stage(init="base"),
            "sparsity": SparsityCallback(None),
        }
        return make_job(out, **(defaults | settings))

    return make


def zeros(folder):
    return {
        name: tensor == 0
        for name, tensor in load_file(folder / "model.safetensors").items()
        if "encoder.layer" in name and name.endswith("weight") and tensor.ndim == 2
    }


@pytest.fixture(scope="module")
def of_base(sparse_base, tmp_path_factory):
    """A finished run whose student begins from the sparse base."""
    job = sparse_base(tmp_path_factory.mktemp("of_base"))
    return Finished(job.out, job, run(job))


def test_student_of_a_sparse_base_keeps_its_masks(of_base):
    result = of_base.result
    assert list(result.stages) == ["base", "teacher", "student"]
    base, student = result.stages["base"], result.student
    terms = ("embeddings", "hidden_states", "attention_scores")
    assert base.metrics.keys() == {"loss", *(f"loss/{term}" for term in terms)}
    assert (base.task, base.monitor) == ("text", "loss")
    assert base.sparsity == pytest.approx(0.8, abs=1e-3)
    assert base.seconds > 0
    assert not base.reused
    assert student.sparsity == pytest.approx(0.8, abs=1e-3)
    before, after = zeros(Path(base.path)), zeros(of_base.out / "student")
    for name, pruned in after.items():
        assert torch.equal(pruned, before[name.removeprefix("bert.")]), name
    assert RunResult.read(of_base.out).stages == result.stages


def test_base_is_fitted_once_for_two_tasks(of_base, sparse_base, tmp_path):
    task = replace(of_base.job.task, name="other", text=["which", "things"])
    second = run(replace(sparse_base(tmp_path), task=task))
    base = of_base.result.stages["base"]
    assert second.stages["base"] == replace(base, reused=True)
    assert second.teacher.path != of_base.result.teacher.path


@pytest.mark.parametrize(
    "change", ["sparsity", "objective", "steps", "optimizer", "kind", "dropout", "seed"]
)
def test_base_of_other_settings_is_another_stage(of_base, sparse_base, tmp_path, change):
    base = of_base.job.stages["base"]
    changed = {
        "sparsity": {"sparsity": SparsityCallback(0.8, updates=3, end=0.6)},
        "objective": {"objective": Objective({"hidden_states": HiddenStates(weight=2.0)})},
        "steps": {"max_steps": 7},
        "optimizer": {"optimizer": hf.AdamWWithSchedule(lr=1e-3)},
        "kind": {"task": replace(base.task, kind=hf.Text(pack=True))},
        "dropout": {"dropout": 0.3},
        "seed": {"seed": 1},
    }[change]
    first = Path(of_base.result.stages["base"].path)
    assert folder_of(sparse_base(tmp_path), "base") == first
    other = sparse_base(tmp_path, stages={"base": replace(base, **changed)})
    assert folder_of(other, "base") != first


@pytest.mark.parametrize("change", ["name", "task of the job"])
def test_stage_of_the_same_settings_is_the_same_stage(make_job, tmp_path, change):
    """Whatever it is called, and wherever its task is named."""
    assistant = Stage(max_epochs=1)
    task = make_job(tmp_path).task
    name, other = {
        "name": ("other", assistant),
        "task of the job": ("assistant", replace(assistant, task=task)),
    }[change]
    folders = {
        folder_of(make_job(tmp_path, stages={n: one}, student=Stage(init=n)), n)
        for n, one in (("assistant", assistant), (name, other))
    }
    assert len(folders) == 1


def test_loss_of_a_stage_is_that_of_the_projection_that_it_learned(sparse_base, tmp_path, cache):
    job = sparse_base(tmp_path)
    base = replace(
        job.stages["base"],
        hidden_size=8,
        sparsity=None,
        objective=Objective({"hidden_states": HiddenStates()}),
    )
    context = loaded_context(replace(job, stages={"base": base}, cache_dir=str(tmp_path / "cache")))
    objectives = []
    with pytest.MonkeyPatch.context() as patch:
        init = DistillModule.__init__

        def keep(self, *args, objective, **settings):
            objectives.append(objective)
            init(self, *args, objective=objective, **settings)

        patch.setattr(DistillModule, "__init__", keep)
        obtain_stage(context, context.chain["base"])
    fitted, evaluated = objectives
    assert evaluated is fitted


def test_stage_with_a_seed_of_its_own_does_not_depend_on_the_jobs(of_base, sparse_base, tmp_path):
    base = replace(of_base.job.stages["base"], seed=0)
    job = sparse_base(tmp_path, seed=13, stages={"base": base})
    assert folder_of(job, "base") == Path(of_base.result.stages["base"].path)
    assert folder_of(sparse_base(tmp_path, seed=13), "base") != folder_of(job, "base")


def test_interrupted_base_is_resumed_to_the_same_bytes(of_base, sparse_base, tmp_path):
    def job(step):
        callbacks = {"interrupt": InterruptAt(step)}
        base = replace(of_base.job.stages["base"], callbacks=callbacks)
        return sparse_base(tmp_path / "run", stages={"base": base})

    with pytest.raises(Interrupted):
        run(job(4))
    (left,) = (tmp_path / "run/stages").glob("base-*.ckpt")
    resumed = run(job(-1))
    assert weights(resumed.stages["base"].path) == weights(of_base.result.stages["base"].path)
    assert weights(tmp_path / "run/student") == weights(of_base.out / "student")
    assert not left.exists()


def test_two_stages_before_the_student_are_fitted_in_order(of_base, sparse_base, tmp_path):
    """An assistant learns from the teacher, the student from the assistant and from the base."""
    assistant = Stage(
        teacher="teacher",
        layers=1,
        objective=Objective({"soft_targets": SoftTargets()}),
        max_epochs=1,
    )
    stages = {"assistant": assistant, **of_base.job.stages}
    soft = Objective({"soft_targets": SoftTargets()})
    result, plain = (
        run(
            sparse_base(
                tmp_path / teacher,
                stages=stages,
                student=Stage(init="base", teacher=teacher),
                distillation=soft,
            )
        )
        for teacher in ("assistant", "teacher")
    )
    assert result.teacher == result.stages["assistant"]  # what the student is compared with
    assert plain.teacher == plain.stages["teacher"]
    order = list(result.stages)
    assert set(order) == {"base", "teacher", "assistant", "student"}
    assert order.index("teacher") < order.index("assistant")
    assert order[-1] == "student"
    assert result.stages["base"].reused
    assert result.stages["assistant"].metrics.keys() == {"accuracy"}
    of_layers = AutoModelForSequenceClassification.from_pretrained
    assert of_layers(result.stages["assistant"].path).config.num_hidden_layers == 1
    assert of_layers(tmp_path / "assistant/student").config.num_hidden_layers == 2
    assert "assistant" not in plain.stages
    assert weights(tmp_path / "assistant/student") != weights(tmp_path / "teacher/student")
    assert (
        zeros(tmp_path / "assistant/student").keys() == zeros(tmp_path / "teacher/student").keys()
    )
    assert result.student.sparsity == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("setting", ["init", "teacher"])
def test_misspelt_name_of_a_stage_is_refused_with_the_stages(
    make_job, tmp_path, no_training, setting
):
    job = make_job(
        tmp_path, stages={"warm": Stage(max_epochs=1)}, student=Stage(**{setting: "wram"})
    )
    with pytest.raises(ConfigError) as error:
        run(job)
    assert str(error.value) == (
        f"student.{setting}=wram: there is no such stage, folder or hub id; there are pretrained, "
        "teacher, warm; did you mean warm?"
    )


def broken_shape(weight):
    return weight.abs().sum()


def test_criterion_of_a_wrong_shape_is_refused_by_its_full_key_and_name(make_job, tmp_path):
    sparsity = SparsityCallback(0.9, criterion=broken_shape, updates=4)
    with pytest.raises(ConfigError) as error:
        run(make_job(tmp_path, sparsity=sparsity))
    said = str(error.value)
    assert said.startswith(f"sparsity.criterion={__name__}.broken_shape: gives scores of shape ()")


def test_stage_with_a_part_that_no_other_process_knows_stays_in_the_run_folder(
    of_base, sparse_base, tmp_path, cache
):
    base = replace(of_base.job.stages["base"], callbacks={"mine": InterruptAt(-1)})
    before = set((cache / "stages").iterdir())
    result = run(sparse_base(tmp_path / "run", stages={"base": base}))
    found = Path(result.stages["base"].path)
    assert found.parent == tmp_path / "run" / "stages"
    longer = replace(base, max_steps=7)
    other = folder_of(sparse_base(tmp_path / "run", stages={"base": longer}), "base")
    assert other != found  # a run in the same folder with other settings does not take it
    assert set((cache / "stages").iterdir()) == before
    assert weights(result.stages["base"].path) == weights(of_base.result.stages["base"].path)


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("base", "student.teacher=base: it is fitted on text, so its head is not one for tiny"),
        ("pretrained", "student.teacher=.*: classifier.bias is missing or of another shape"),
    ],
)
def test_teacher_without_a_head_that_the_student_learns_from_is_refused(
    sparse_base, tmp_path, no_training, teacher, says
):
    student = Stage(init="base", teacher=teacher)
    with pytest.raises(ConfigError, match=says):
        run(sparse_base(tmp_path, student=student))


def test_teacher_without_a_head_serves_terms_over_layers(of_base, sparse_base, tmp_path):
    student = Stage(init="base", teacher="base")
    job = sparse_base(tmp_path, student=student, distillation=layers_objective())
    assert run(job).student.sparsity == pytest.approx(0.8, abs=1e-3)


def test_stage_that_is_given_is_not_fitted(of_base, sparse_base, tmp_path):
    """An encoder without a head, as it learned layers alone."""
    given = Stage(path=of_base.result.stages["base"].path, objective=layers_objective())
    result = run(sparse_base(tmp_path, stages={"base": given}))
    base = result.stages["base"]
    assert (base.metrics, base.seconds, base.reused) == ({}, 0.0, True)
    assert weights(tmp_path / "student") == weights(of_base.out / "student")
