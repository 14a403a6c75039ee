"""Settings of a stage that change what trains: frozen parts, shares of layers, masked words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective, SoftTargets
from kd_prune.errors import ConfigError
from kd_prune.lit import LayerReplacement
from kd_prune.pipeline import Job, Stage, run
from kd_prune.pipeline.stage import dense

from .jobs import folder_of, weights

LABELS_ALONE = Objective({"hard_labels": HardLabels()})


def words(job: Job, **settings) -> Stage:
    """A stage of masked words on the job's rows."""
    task = replace(
        job.task,
        text=["things"],
        kind=hf.MaskedWords(),
        metrics=["accuracy", "perplexity"],
        monitor="accuracy",
    )
    return Stage(task=task, max_steps=2, **settings)


def test_frozen_parts_of_a_student_stay_as_they_are(make_job, tmp_path):
    job = make_job(
        tmp_path, sparsity=dense(), student=Stage(init="teacher", freeze=["embeddings", "head"])
    )
    teacher = load_file(f"{run(job).stages['teacher'].path}/model.safetensors")
    student = load_file(tmp_path / "student/model.safetensors")
    changed = {name for name in student if not student[name].equal(teacher[name])}
    assert changed == {name for name in student if ".layer." in name}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"student": Stage(freeze=["encoder"])}, "student.freeze=encoder"),
        ({"student": Stage(init="base"), "stages": {"base": Stage(freeze=["a*"])}}, "stages.base"),
    ],
)
def test_unknown_part_is_refused_before_training(make_job, tmp_path, no_training, settings, key):
    with pytest.raises(ConfigError, match=f"^{key}.*: expected embeddings, layers"):
        run(make_job(tmp_path, **settings))


def test_share_of_the_layers_is_of_the_initial_model(make_job, tmp_path):
    """Half of the base's one layer, rounded, and not of the pre-trained two."""
    job = make_job(
        tmp_path,
        sparsity=None,
        stages={"base": Stage(layers=0.5, max_epochs=1)},
        student=Stage(init="base", layers=0.5),
        distillation=LABELS_ALONE,
    )
    result = run(job)
    assert AutoConfig.from_pretrained(result.stages["base"].path).num_hidden_layers == 1
    assert AutoConfig.from_pretrained(tmp_path / "student").num_hidden_layers == 1


def test_masked_words_are_a_stage_that_others_learn_from(make_job, tmp_path):
    """A head, its model, and a student of masked words that learns their soft targets."""
    job = make_job(tmp_path)
    soft = Objective({"soft_targets": SoftTargets(temperature=2.0), "hard_labels": HardLabels()})
    stages = {
        "head": words(job, freeze=["embeddings", "layers"]),
        "general": words(job, init="head", layers=[1], teacher="head", objective=soft),
    }
    result = run(
        replace(job, stages=stages, student=Stage(init="general"), distillation=LABELS_ALONE)
    )
    assert result.stages["head"].metrics.keys() == {"accuracy", "perplexity"}
    config = AutoConfig.from_pretrained(result.stages["general"].path)
    assert config.architectures == ["BertForMaskedLM"]
    assert config.num_hidden_layers == 1
    before = load_file(f"{job.model.path}/model.safetensors")
    head = load_file(f"{result.stages['head'].path}/model.safetensors")
    assert all(head[name].equal(before[name]) for name in head if name.startswith("bert."))


def of_base(make_job, out, base, **settings):
    """A job whose student begins with a stage `base`."""
    student = {"student": Stage(init="base"), "distillation": LABELS_ALONE, "sparsity": None}
    return make_job(out, stages={"base": base}, **(student | settings))


def test_stage_of_masked_words_has_the_same_bytes_again(make_job, tmp_path):
    base = words(make_job(tmp_path))
    found = []
    for name in ("one", "other"):
        job = of_base(make_job, tmp_path / name, base, cache_dir=str(tmp_path / name / "cache"))
        found.append(weights(run(job).stages["base"].path))
    assert found[0] == found[1]


def test_settings_of_the_masks_decide_where_a_stage_is_kept(make_job, tmp_path):
    base = words(make_job(tmp_path))
    kinds = (hf.MaskedWords(), hf.MaskedWords(share=0.3), hf.MaskedWords(every_token=True))
    stages = [replace(base, task=replace(base.task, kind=kind)) for kind in kinds]
    stages.append(replace(base, freeze=["embeddings"]))
    folders = {folder_of(of_base(make_job, tmp_path, stage), "base") for stage in stages}
    assert len(folders) == 4


def test_replacement_without_layers_in_common_is_refused_before_training(
    make_job, tmp_path, no_training
):
    callback = LayerReplacement(layers="encoder.blocks")
    with pytest.raises(ConfigError, match=r"^callbacks\.theseus\.layers=encoder.blocks: module"):
        run(make_job(tmp_path, callbacks={"theseus": callback}))
