"""Benchmarks of accuracy run with the tiny model, and nothing is made twice."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kd_prune.hf.tiny import make_model
from tests.benchmarks.arguments import CONF, FOLDER, real


@pytest.mark.slow
def test_the_ablation(bench, capsys, tmp_path, monkeypatch):
    """Without --keep the tracked figures stay unchanged."""
    monkeypatch.chdir(tmp_path)
    small = ["task.path.train=64", "task.path.validation=32", "trainer.max_epochs=1"]
    small = [*small, "teacher.max_epochs=1", "sparsity.updates=1", "--seeds", 3]
    results = bench("ablation", *small)
    found = json.loads(Path("outputs/ablation.json").read_text())
    assert len(found["scores"]) == 5
    assert all(len(scores) == 1 for scores in found["scores"].values())
    said = capsys.readouterr().out
    assert "accuracy after seed 3" in said
    assert said.endswith("Figures of every seed: outputs/ablation.json\n")
    assert not results.exists()
    bench("ablation", *small, "--keep", ROWS={"SparseBERT": []})
    kept = json.loads((results / "ablation.json").read_text())
    assert kept["scores"] == {
        name: found["scores"][name] for name in ("teacher (dense)", "SparseBERT")
    }


def test_the_table_on_real_tasks_and_that_it_is_not_made_twice(bench, data, model, tmp_path):
    given = [*real(data, model, tmp_path), "--tasks", "mrpc", "--rows", "0.95", "--seeds", 1]
    (file,) = (bench("glue", *given) / "glue").iterdir()
    found = json.loads(file.read_text())
    assert found["sparsity"] == pytest.approx(0.95, abs=1e-3)
    assert found["student"].keys() == {"accuracy", "f1", "test/accuracy", "test/f1"}
    assert str(tmp_path) not in file.read_text()
    before = file.stat().st_mtime_ns
    bench("glue", *given)
    assert file.stat().st_mtime_ns == before


def test_the_recipe(bench, data, model, tmp_path, capsys):
    results = bench("recipe", *real(data, model, tmp_path), "--rows", "base", "2e-3, constant rate")
    assert {json.loads(file.read_text())["row"] for file in (results / "recipe").iterdir()} == {
        "base",
        "2e-3, constant rate",
    }
    assert "teacher" in capsys.readouterr().out


@pytest.mark.slow
def test_the_mean_of_two_students_with_one_mask(bench, data, model, tmp_path, capsys):
    kept = tmp_path / "kept"
    files = SimpleNamespace(copytree=shutil.copytree, rmtree=lambda folder: folder.rename(kept))
    given = [*real(data, model, tmp_path), "--tasks", "sst2"]
    results = bench("soup", *given, BATCHES={"sst2": 8}, shutil=files)
    (file,) = (results / "study" / "soup").iterdir()
    found = json.loads(file.read_text())
    assert found["students"].keys() == {"first", "a", "b", "longer", "soup"}
    names = ("first", "a", "b", "soup")
    folders = [kept / name / ("" if name == "soup" else "student") for name in names]
    first, a, b, soup = (load_file(folder / "model.safetensors") for folder in folders)
    for name, weight in soup.items():
        assert torch.equal(weight, (a[name] + b[name]) / 2)
    matrix = "bert.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(a[matrix], b[matrix])
    for further in (a, b, soup):
        assert torch.equal(further[matrix] == 0, first[matrix] == 0)
    assert found["sparsity"] == pytest.approx(0.95, abs=1e-3)
    assert "sst2, seed 1: soup" in capsys.readouterr().out


@pytest.mark.slow
def test_the_sweep(bench, data, model, tmp_path):
    results = bench(
        "sweep",
        *real(data, model, tmp_path),
        COMMON=["model=minilm", "sparsity.updates=2", "seed=1,2"],
        TASKS={"mrpc": ["teacher.max_epochs=1", "trainer.max_epochs=1"]},
        METHODS={"none": ["distillation=none"]},
    )
    lines = (results / "sweep" / "runs.csv").read_text().splitlines()
    assert len(lines) == 3
    assert str(tmp_path) not in "".join(lines)


@pytest.mark.slow
def test_the_posters_table(bench, data, tmp_path, capsys, monkeypatch):
    """A smaller student, as it is and pruned further; the page has both."""
    monkeypatch.setenv("COLUMNS", "160")
    model = make_model(str(tmp_path / "model"), layers=2, hidden_size=24, heads=2)
    given = [*real(data, model, tmp_path), "--tasks", "mrpc", "--seeds", 1]
    given += ["--rows", "poster/theseus6", "poster/rpp"]
    settings = ["teacher.max_epochs=1", "trainer.max_steps=2"]
    given += ["--settings", *settings]
    results = bench("poster", *given) / "poster"
    runs = [json.loads(file.read_text()) for file in results.glob("*.json")]
    found = {(run["row"], run["kept_in_table"]): run for run in runs}
    assert found.keys() == {("poster/theseus6", 0.5), ("poster/theseus6", 0.05)}
    for (_, kept), run in found.items():
        assert run["kept"] == pytest.approx(kept, abs=2e-3)
        assert run["teacher"]["test/accuracy"] == runs[0]["teacher"]["test/accuracy"]
    trials = [json.loads(file.read_text()) for file in (results / "rates").glob("*.json")]
    assert len(trials) == 4
    assert all(trial["student"].keys() == {"accuracy", "f1"} for trial in trials)
    module = sys.modules["bench_poster"]
    held_out = pq.read_table(tmp_path / "jobs/held_out/mrpc/validation.parquet")["label"]
    positives = held_out.to_pylist().count(1) / len(held_out)
    best = {}
    for trial in trials:
        rate = dict(given.split("=", 1) for given in trial["overrides"])["optimizer.lr"]
        of_row = best.setdefault((trial["row"], trial["kept_in_table"]), {})
        of_row[rate] = module.value_of(trial, positives)
    for key, run in found.items():
        assert best[key][run["rate"]] == max(best[key].values())
    said = capsys.readouterr().out
    assert "poster/rpp: left out, as there is no --text" in said
    assert "mrpc: poster/theseus6" in said
    page = (tmp_path / "jobs" / "poster.html").read_text()
    assert '"method":"poster/theseus6"' in page
    assert '"kept":0.5' in page


def test_rates_of_mrpc_are_compared_by_matthews_correlation(bench, tmp_path):
    bench("poster", "--table", "--work", tmp_path)
    module = sys.modules["bench_poster"]
    generator = np.random.default_rng(0)
    labels = np.array([1] * 69 + [0] * 31)
    answers = [generator.integers(0, 2, 100) for _ in range(20)] + [labels, 1 - labels]
    for given in answers:
        counted = [accuracy_score(labels, given), f1_score(labels, given), 0.69]
        assert module.matthews(*counted) == pytest.approx(matthews_corrcoef(labels, given))
    one_class = {"accuracy": float(np.float32(0.69)), "f1": float(np.float32(2 * 0.69 / 1.69))}
    assert module.value_of({"student": one_class}, 0.69) == pytest.approx(0.0, abs=1e-3)
    assert module.value_of({"student": {}}, 0.69) == -1.0
    assert module.value_of({"student": {"pearson": 0.4}}, 0.69) == 0.4


def test_held_out_rows_are_a_third_of_the_training_rows(bench, data, tmp_path):
    bench("poster", "--table", "--work", tmp_path / "jobs")
    module = sys.modules["bench_poster"]
    arguments = argparse.Namespace(data=data, work=tmp_path / "jobs")
    given = module.held_out("mrpc", arguments)
    assert given == ["task=mrpc", "task.subset=null", f"task.path={tmp_path}/jobs/held_out/mrpc"]
    folder = tmp_path / "jobs" / "held_out" / "mrpc"
    parts = {
        split: pq.read_table(folder / f"{split}.parquet")["idx"].to_pylist()
        for split in ("train", "validation")
    }
    assert sorted(parts["train"] + parts["validation"]) == list(range(64))
    assert parts["validation"] == list(range(0, 64, 3))


def test_held_out_rows_share_no_text_with_the_others(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from held_out import parts_of

    sentences = [f"{word} is one fine film" for word in "abcdefg"]
    phrases = [f"{word} is" for word in "abcdefg"]
    rows = pa.table({"sentence": [*phrases, *sentences, "a is one"]})
    parts = parts_of("sst2", rows)
    assert parts["validation"] == [7, 10, 13]  # whole sentences: a, d, g
    assert parts["train"] == [1, 2, 4, 5, 8, 9, 11, 12]  # and none of their phrases
    titles = pa.table({"title": ["one", "two", "one", "three", "four", "four"]})
    assert parts_of("qnli_style", titles) == {"train": [1, 3], "validation": [0, 2, 4, 5]}


def test_every_row_of_the_posters_table_composes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from poster_rows import LABELS_RATE, ROWS, at_rate, overrides, shares

    experiments = {str(f.relative_to(CONF / "experiment").with_suffix("")) for f in
                   (CONF / "experiment").glob("*/*.yaml")}  # fmt: skip
    assert ROWS.keys() <= experiments
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        runs = [(row, kept) for row in ROWS for kept in shares(row, "mrpc")]
        for (row, kept), rate in [(run, rate) for run in runs for rate in ROWS[run[0]].rates]:
            given = [*overrides(row, "mrpc", kept, 40, 100), *at_rate(row, rate)]
            config = compose("train", overrides=[*given, "task=mrpc", "model=minilm"])
            final, of_dense = ROWS[row].final, 1 if ROWS[row].final else ROWS[row].own("mrpc")
            if final or kept < of_dense:
                sparsity = OmegaConf.select(config, final or "sparsity.final")
                assert sparsity == pytest.approx(1 - kept / of_dense, abs=1e-4)
            assert config.optimizer.lr == float(rate)
            budget = ROWS[row].halved
            if budget:
                assert config.stages[budget].optimizer.lr == {
                    "intermediate": 5 * float(rate) if rate == "1e-4" else 4 * float(rate),
                    "finetuning": float(LABELS_RATE),
                }.get(budget)
            before = OmegaConf.select(config, f"stages.{budget}.max_steps") if budget else 0
            assert before + config.trainer.max_steps == 40
            for stage in ROWS[row].text:
                assert config.stages[stage].max_steps == 100
