"""Every row of the poster's table, end to end on the embedded task and model, with tiny budgets."""

from __future__ import annotations

import json
import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoConfig

from kd_prune.cli.arguments import normalize_argv
from kd_prune.cli.locations import CONF
from kd_prune.errors import ConfigError

ALL = sorted(
    f"{folder}/{file.stem}"
    for folder in ("poster", "paradigm")
    for file in (CONF / "experiment" / folder).glob("*.yaml")
)
# What the others do is in test_pruning_experiments.py.
PRUNING = {f"poster/{n}" for n in ("bert_tickets", "bert_tickets_oneshot", "rpp", "rpp_downstream")}
ROWS = [row for row in ALL if row not in PRUNING]
TINY = (
    "model.path.hidden_size=32",
    "model.path.layers=4",
    "task.path.train=64",
    "task.path.validation=32",
    "task.batch_size=32",
    "pretraining.task.path.train=64",
    "pretraining.task.path.validation=32",
    "pretraining.task.batch_size=8",
    "pretraining.max_steps=2",
    "teacher.max_epochs=1",
    "trainer.max_epochs=2",
)
HALF = ("pkd6", "theseus6", "distilbert6", "distilbert6_task", "minilm6", "minilm6_task")
LAYERS = {f"poster/{name}": 2 for name in (*HALF, "tinybert6")} | {"poster/tinybert4": 1}
"""Layers of the student where the model has 4."""
LAYERS |= {"poster/elmo": 2}
SPARSITY = {
    "poster/sparsebert": 0.95,
    "poster/sparsebert_augmented": 0.95,
    "poster/compressbert": 0.9,
    "poster/compressbert_downstream": 0.9,
    "paradigm/prune_at_pretraining": 0.95,
    "paradigm/prune_at_finetuning": 0.95,
    "paradigm/prune_at_distilling": 0.95,
}
STAGES = {
    "poster/distilbert6": {"head", "words", "general"},
    "poster/elmo": {"language_model"},
    "poster/minilm6": {"general"},
    "poster/minilm6_task": {"intermediate"},
    "poster/tinybert4": {"general", "intermediate"},
    "poster/tinybert6": {"general", "intermediate"},
    "poster/compressbert": {"head", "words", "pruned"},
    **{row: {"head", "words", "pretraining", "finetuning"} for row in ROWS if "paradigm" in row},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(call, runs):
    """Run an experiment, once for all tests; return its folder and result."""

    def run_row(row, *overrides):
        out = runs / re.sub(r"[^\w.]+", "-", "-".join([row, *overrides]))
        if not (out / "result.json").is_file():
            code, _, stderr = call(f"experiment={row}", *TINY, *overrides, f"hydra.run.dir={out}")
            assert code == 0, stderr
        return out, json.loads((out / "result.json").read_text())

    return run_row


def stage_weights(result, stage):
    return load_file(f"{result['stages'][stage]['path']}/model.safetensors")


def test_table_is_complete():
    assert len(ROWS) >= 15
    assert LAYERS.keys() | SPARSITY.keys() | STAGES.keys() | {"poster/bert"} == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_row_runs_and_leaves_the_student_it_says(run, row):
    out, result = run(row)
    assert AutoConfig.from_pretrained(out / "student").num_hidden_layers == LAYERS.get(row, 4)
    assert result["stages"].keys() == STAGES.get(row, set()) | {"teacher", "student"}
    sparsity = result["stages"]["student"]["sparsity"]
    assert sparsity == pytest.approx(SPARSITY.get(row, 0.0), abs=1e-3)


def test_tinybert4_is_as_narrow_as_its_share(run):
    out, result = run("poster/tinybert4")
    config = AutoConfig.from_pretrained(out / "student")
    assert (config.hidden_size, config.intermediate_size) == (12, 50)  # of 32 and 128, four heads
    assert result["stages"]["general"]["metrics"].keys() == {
        "loss",
        "loss/embeddings",
        "loss/hidden_states",
        "loss/attention_scores",
    }


def test_theseus_trains_the_successors_alone(run):
    """Embeddings, pooler and classifier stay the teacher's; both layers change."""
    out, result = run("poster/theseus6")
    student, teacher = (
        load_file(out / "student/model.safetensors"),
        stage_weights(result, "teacher"),
    )
    changed = {name for name in student if not student[name].equal(teacher[name])}
    in_layers = {name for name in student if ".layer." in name}
    assert changed == in_layers
    assert {name.split(".layer.")[1][0] for name in in_layers} == {"0", "1"}


def test_head_is_trained_on_the_frozen_encoder_and_then_the_last_layer(run):
    _, result = run("poster/distilbert6")
    head, words = stage_weights(result, "head"), stage_weights(result, "words")
    changed = {name for name in words if not words[name].equal(head[name])}
    assert {name for name in changed if name.startswith("bert.")} == {
        name for name in words if ".layer.3." in name
    }
    assert any(name.startswith("cls.") for name in changed)
    metrics = result["stages"]["words"]["metrics"]
    assert metrics.keys() == {"accuracy", "perplexity"}
    assert metrics["perplexity"] > 1


def test_student_keeps_the_zeros_of_an_earlier_phase(run):
    out, result = run("paradigm/prune_at_pretraining")
    student = load_file(out / "student/model.safetensors")
    before = stage_weights(result, "pretraining")
    pruned = {name for name, weight in before.items() if ".layer." in name and weight.ndim == 2}
    assert len(pruned) == 4 * 6
    for name in pruned:
        assert (student[name][before[name] == 0] == 0).all()
        assert not student[name].equal(before[name])
    dense = run("paradigm/prune_at_distilling")[1]
    assert dense["stages"]["pretraining"]["sparsity"] == 0
    assert dense["stages"]["head"]["path"] == result["stages"]["head"]["path"]


PHASES = ("pretraining", "finetuning", "distilling")


@pytest.mark.parametrize("phase", PHASES)
def test_one_phase_prunes_and_the_later_ones_keep_its_zeros(run, phase):
    stages = run(f"paradigm/prune_at_{phase}")[1]["stages"]
    found = [stages[name]["sparsity"] for name in (*PHASES[:2], "student")]
    first = PHASES.index(phase)
    expected = [0.0] * first + [0.95] * (3 - first)
    assert found == pytest.approx(expected, abs=1e-3)


def test_phases_differ_in_what_prunes_alone():
    GlobalHydra.instance().clear()
    found = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for phase in PHASES:
            config = compose("train", overrides=[f"experiment=paradigm/prune_at_{phase}"])
            plain = OmegaConf.to_container(config)
            for part in (plain, *plain["stages"].values()):
                part.pop("sparsity", None)
            found.append(plain)
    assert found[0] == found[1] == found[2]


def test_released_checkpoint_takes_the_place_of_the_general_stage(run, runs):
    """The masked-word model that another run left; nothing before it is fitted."""
    _, result = run("poster/distilbert6")
    path = result["stages"]["general"]["path"]
    out, given = run("poster/distilbert6", f"stages.general.path={path}", "seed=1")
    assert given["stages"].keys() == {"general", "teacher", "student"}
    assert AutoConfig.from_pretrained(out / "student").num_hidden_layers == 2


@pytest.mark.parametrize("row", ["poster/pkd6", "poster/tinybert4", "poster/minilm6"])
def test_row_suits_models_of_other_shapes(run, row):
    """Three layers, of which a half is no whole number."""
    out, _ = run(row, "model.path.layers=3")
    layers = AutoConfig.from_pretrained(out / "student").num_hidden_layers
    assert layers == (1 if row == "poster/tinybert4" else 2)


def test_rows_differ_in_nothing_but_their_method():
    """Equal terms: no row sets a learning rate, a number of steps or a seed of its own."""
    compared = ("trainer", "optimizer", "pretraining", "teacher", "task", "model", "seed")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = compose("train")
        for row in ALL:
            chosen = compose("train", overrides=[f"experiment={row}"])
            if row == "poster/sparsebert_augmented":  # further texts are its method
                assert chosen.task.augment is not None
                chosen.task.augment = None
            assert {key: chosen[key] for key in compared} == {key: plain[key] for key in compared}


def test_model_with_a_head_takes_the_place_of_the_stages_that_train_one(run):
    _, result = run("poster/distilbert6")
    path = result["stages"]["words"]["path"]
    _, given = run("poster/compressbert", f"pretraining.model={path}", "seed=1")
    assert given["stages"].keys() == {"words", "pruned", "teacher", "student"}
    assert given["stages"]["words"]["path"] == path
    assert given["stages"]["words"]["metrics"] == result["stages"]["words"]["metrics"]


def test_setting_of_a_stage_is_named_where_it_is_set(call, tmp_path):
    for row in ("poster/distilbert6", "poster/minilm6"):
        code, _, stderr = call(f"experiment={row}", *TINY, f"pretraining.task.path={tmp_path}/no")
        assert code == 1
        assert f"error: pretraining.task.path={tmp_path}/no: there is no such folder" in stderr


def test_glob_of_a_folder_lists_its_experiments():
    assert normalize_argv(["-m", "experiment=glob(paradigm/*)", "seed=1"]) == [
        "-m",
        "experiment=paradigm/prune_at_distilling,paradigm/prune_at_finetuning,"
        "paradigm/prune_at_pretraining",
        "seed=1",
    ]
    with pytest.raises(ConfigError, match=r"^experiment=glob\(later2/\*\): matches no option"):
        normalize_argv(["experiment=glob(later2/*)"])


def test_glob_finds_the_options_of_a_folder_of_ones_own(tmp_path):
    (tmp_path / "experiment" / "mine").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "experiment" / "mine" / f"{name}.yaml").write_text("# @package _global_")
    found = normalize_argv(["--config-dir", str(tmp_path), "experiment=glob(mine/*)"])
    assert found[-1] == "experiment=mine/a,mine/b"


def test_elmo_classifies_by_the_frozen_layers_of_its_language_model(run):
    out, result = run("poster/elmo")
    student = load_file(out / "student/model.safetensors")
    before = stage_weights(result, "language_model")
    for name, weight in before.items():
        assert name == "head.bias" or student[name].equal(weight), name
    assert result["stages"]["language_model"]["metrics"].keys() == {"accuracy", "perplexity"}


def test_elmo_is_pruned_by_the_same_callback(run):
    out, result = run("poster/elmo", "sparsity=sparsebert", "student.freeze=[embeddings]")
    assert result["stages"]["student"]["sparsity"] == pytest.approx(0.95, abs=1e-3)
    student = load_file(out / "student/model.safetensors")
    pruned = student["elmo.layers.0.forward_lstm.weight_hh_l0"]
    assert (pruned == 0).float().mean() == pytest.approx(0.95, abs=1e-3)
