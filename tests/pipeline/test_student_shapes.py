"""Students with fewer layers or another width than the pre-trained model or the teacher."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from kd_prune import hf
from kd_prune.distillation import Embeddings, HiddenStates, Objective, SoftTargets
from kd_prune.errors import ConfigError
from kd_prune.hf.tiny import make_model
from kd_prune.lit.signals import Interrupted
from kd_prune.pipeline import Stage, run

from .jobs import LABELS, InterruptAt


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), ([1], [1]), ([0, 1], [0, 1])])
def test_student_of_fewer_layers_begins_with_those_layers(make_job, tmp_path, layers, kept):
    stage = Stage(init="teacher", layers=layers, max_epochs=None)
    job = make_job(
        tmp_path / "run",
        student=stage,
        sparsity=None,
        optimizer=hf.AdamWWithSchedule(lr=1e-12, weight_decay=0.0),
        distillation=Objective({"soft_targets": SoftTargets()}),
    )
    result = run(job)
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    teacher = AutoModelForSequenceClassification.from_pretrained(result.teacher.path)
    assert student.config.num_hidden_layers == len(kept)
    for ours, index in zip(student.bert.encoder.layer, kept, strict=True):
        for mine, his in zip(
            ours.parameters(), teacher.bert.encoder.layer[index].parameters(), strict=True
        ):
            torch.testing.assert_close(mine, his, atol=1e-6, rtol=0)


def test_student_of_another_width_learns_a_projection(make_job, tmp_path):
    job = make_job(
        tmp_path / "run",
        student=Stage(hidden_size=8, intermediate_size=20, layers=1),
        distillation=Objective(
            {"hidden_states": HiddenStates(layer_map={1: 2}), "embeddings": Embeddings()}
        ),
    )
    result = run(job)
    folder = tmp_path / "run" / "student"
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (
        8,
        20,
        1,
    )
    saved = load_file(folder / "model.safetensors")
    assert not any("projection" in name or "objective" in name for name in saved)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    projections = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("objective.")}
    assert {tuple(v.shape) for v in projections.values() if v.ndim == 2} == {(16, 8)}
    assert all((v != 0).all() for v in projections.values() if v.ndim == 2)
    assert result.student.sparsity == pytest.approx(0.9, abs=0.01)


def test_student_with_a_projection_resumes_to_the_same_bytes(make_job, tmp_path):
    def job(out, **settings):
        return make_job(
            tmp_path / out,
            student=Stage(hidden_size=8),
            distillation=Objective(
                {"hidden_states": HiddenStates(), "soft_targets": SoftTargets()}
            ),
            **settings,
        )

    run(job("whole"))
    with pytest.raises(Interrupted):
        run(job("cut", callbacks={"interrupt": InterruptAt(5)}))
    run(job("cut", ckpt_path=str(tmp_path / "cut")))
    ours, theirs = (tmp_path / name / "student" / "model.safetensors" for name in ("whole", "cut"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (Stage(layers=3), "student.layers=3: the encoder has 2 layers"),
        (Stage(layers=[0, 2]), r"student.layers=\[0, 2\]: the encoder has layers 0 to 1"),
        (Stage(init="teacher", layers=[2]), r"student.layers=\[2\]: the encoder has layers 0 to 1"),
        (Stage(hidden_size=7), "student.hidden_size=7: not divisible"),
        (Stage(init="/no/such/folder"), "student.init=/no/such/folder: there is no such folder"),
        (Stage(init="bases"), "student.init=bases: not a local folder"),
    ],
)
def test_student_of_an_impossible_shape_is_refused(make_job, tmp_path, no_training, student, says):
    with pytest.raises(ConfigError, match=says):
        run(make_job(tmp_path, student=student))


def test_student_of_a_wider_teacher_learns_a_projection(make_job, cache, tmp_path):
    """A teacher of another width needs no setting of its own."""
    wide = make_model(str(cache), layers=2, hidden_size=32, heads=2)
    kind = hf.Classification()
    encoder = hf.PretrainedEncoder(path=wide)
    teacher = encoder.load(kind=kind, num_outputs=len(LABELS))
    hf.save(teacher, encoder.tokenizer(), tmp_path / "teacher", kind=kind, labels=LABELS)
    result = run(make_job(tmp_path / "run", teacher=Stage(path=str(tmp_path / "teacher"))))
    assert result.student.sparsity == pytest.approx(0.9, abs=0.01)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    projections = [v for k, v in checkpoint["state_dict"].items() if k.startswith("objective.")]
    assert {tuple(v.shape) for v in projections if v.ndim == 2} == {(32, 16)}
