"""The study of `experiment=best` runs with the tiny model, each row as its name says."""

from __future__ import annotations

import doctest
import importlib
import json
import shutil

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kd_prune.config_utils import flatten
from kd_prune.hf.tiny import sentences
from tests.benchmarks.arguments import CONF, FOLDER, real

# Rows that need more than one setting for what their name says.
SEVERAL = {
    "initial_0.3_end_0.5": {"sparsity.initial", "sparsity.end"},
    "rewinds": {"optimizer.rewinds", "optimizer.floor"},
    "teachers_embeddings": {"student.init", "student.freeze"},
    "last_layer": {
        "distillation.terms.embeddings.weight",
        "distillation.terms.hidden_states.layer_map",
        "distillation.terms.hidden_states.layer_map.6",
        "distillation.terms.attention_scores.layer_map",
        "distillation.terms.attention_scores.layer_map.6",
    },
    "no_soft_targets": {
        "distillation.terms.soft_targets.weight",
        "distillation.terms.hard_labels.weight",
    },
}


def test_every_row_of_the_study_changes_one_setting(monkeypatch):
    """A setting or one part of the method, such as a criterion or a term, with its settings."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from study import CHANGES, FURTHER, ON_TEXT, RANKING, ROWS

    def settings(*overrides):
        config = compose("train", overrides=["experiment=recovery_global", *overrides])
        return flatten(OmegaConf.to_container(config))

    assert len(ROWS) == len(RANKING) + len(CHANGES) + len(ON_TEXT) + len(FURTHER)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain, best = settings(), settings("sparsity/criterion=taylor")
        for row, overrides in ROWS.items():
            if row in ON_TEXT or row in FURTHER:
                continue  # stages and rows of their own, in the tests below
            before = best if row.startswith("taylor_") else plain
            changed = settings(*overrides)
            keys = before.keys() | changed.keys()
            differing = {key for key in keys if before.get(key, "–") != changed.get(key, "–")}
            name = row.removeprefix("taylor_")
            if name in SEVERAL:
                assert differing == SEVERAL[name]
                continue
            given = {override.partition("=")[0].lstrip("+").replace("/", ".")
                     for override in overrides[row.startswith("taylor_"):]}  # fmt: skip
            assert all(any(f"{key}.".startswith(f"{one}.") for one in given) for key in differing)
            assert bool(differing) == (row != "recovery_global"), row


@pytest.mark.slow
@pytest.mark.parametrize(("row", "of_base"), [("sparse_base", 0.95), ("sparse_base_0.8", 0.8)])
def test_a_student_that_begins_sparse(row, of_base, bench, data, model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import common
    import study

    (tmp_path / "text").mkdir()
    lines = [line["things"] for line in sentences(500, seed=1)]
    (tmp_path / "text" / "train.txt").write_text("\n".join(lines))
    short = [override.replace("max_steps: 500", "max_steps: 4") for override in study.ROWS[row]]
    stages = {}
    run_job = common.run_job

    def run_and_note(overrides, out):
        result = run_job([*overrides, "stages.base.task.holdout=8"], out)
        stages.update(result.stages)
        return result

    monkeypatch.setattr(common, "run_job", run_and_note)
    given = [*real(data, model, tmp_path), "--tasks", "mrpc", "--rows", row, "--seeds", 1]
    results = bench("study", *given, "--text", tmp_path / "text", ROWS={row: short})
    (file,) = (results / "study").glob("*.json")
    assert stages["base"].sparsity == pytest.approx(of_base, abs=1e-3)
    assert json.loads(file.read_text())["sparsity"] == pytest.approx(0.95, abs=1e-3)
    assert str(tmp_path) not in file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("row", ["taylor_rows_of_other", "taylor_rows_of_text"])
def test_a_student_with_texts_of_elsewhere(row, bench, data, model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import common

    added = []
    run_job = common.run_job

    def run_and_note(overrides, out):
        added.extend(one for one in overrides if one.startswith("task.unlabelled="))
        return run_job(overrides, out)

    monkeypatch.setattr(common, "run_job", run_and_note)
    glue = shutil.copytree(data, tmp_path / "glue")
    shutil.copytree(glue / "mrpc", glue / "stsb")
    (tmp_path / "text").mkdir()
    lines = ["One is too short. This one has five words. These are six words or more. Five."] * 9
    (tmp_path / "text" / "train.txt").write_text("\n".join(lines))
    given = [*real(glue, model, tmp_path), "--tasks", "mrpc", "sst2", "--rows", row, "--seeds", 1]
    given += ["--text", tmp_path / "text", "--held-out"]
    results = bench("study", *given, BATCHES={"mrpc": 2, "sst2": 2}) / "study"
    found = [json.loads(file.read_text()) for file in results.rglob("*.json")]
    of_text = row == "taylor_rows_of_text"
    assert {run["task"] for run in found} == ({"mrpc", "sst2"} if of_text else {"mrpc"})
    made = {file.stem: pq.read_table(file) for file in tmp_path.rglob("further_texts/*.parquet")}
    texts = tmp_path / "jobs" / "further_texts"
    files = [texts / f"{task}.parquet" for task in ("mrpc", "sst2")]
    files = files if of_text else [glue / "stsb" / "train.parquet"]
    assert added == [f"task.unlabelled=[{file}]" for file in files]
    if of_text:
        sentences = ("This one has five words.", "These are six words or more.")
        pairs = [dict(zip(("sentence1", "sentence2"), sentences, strict=True))] * 9
        assert made["mrpc"].to_pylist() == pairs
        assert made["sst2"]["sentence"].to_pylist() == [*sentences] * 9
    assert all(str(tmp_path) not in json.dumps(run) for run in found)


def test_a_row_of_the_study_on_held_out_rows(bench, data, model, tmp_path):
    """As many steps as an epoch of all rows would have, and no row of validation."""
    given = [*real(data, model, tmp_path), "--tasks", "mrpc", "--rows", "taylor", "--seeds", 1]
    results = bench("study", *given, "--held-out", BATCHES={"mrpc": 1}) / "study"
    (file,) = results.rglob("*.json")
    assert file.parent.name == "held_out"
    found = json.loads(file.read_text())
    assert "trainer.max_steps=4" in found["overrides"]
    assert found["student"].keys() == {"accuracy", "f1"}
    folder = tmp_path / "jobs" / "held_out" / "mrpc"
    parts = {file.stem: len(pq.read_table(file)) for file in folder.iterdir()}
    assert parts == {"train": 42, "validation": 22}


@pytest.mark.parametrize("module", ["further_texts", "held_out"])
def test_the_examples_in_docstrings(module, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed
