"""Benchmarks run with the tiny task and model, and the committed figures can be read."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from transformers import BertConfig

from kd_prune.hf.tiny import make_model, sentences
from kd_prune.inference import rivals
from kd_prune.results import RunResult, StageResult

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
CONF = FOLDER.parent / "conf"
COLUMNS = {"mrpc": ("sentence1", "sentence2"), "sst2": ("sentence",)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(str(tmp_path_factory.mktemp("model")), layers=1, hidden_size=16, heads=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows shaped like MRPC and SST-2: two classes, the columns of GLUE."""
    folder = tmp_path_factory.mktemp("glue")
    for task, columns in COLUMNS.items():
        (folder / task).mkdir()
        for split, count in (("train", 64), ("validation", 32), ("test", 32)):
            rows = [
                dict(zip(columns, (row["things"], row["which"]), strict=False))
                | {"label": int(row["label"] < "j"), "idx": i}
                for i, row in enumerate(sentences(count, seed=len(split)))
            ]
            pq.write_table(pa.Table.from_pylist(rows), folder / task / f"{split}.parquet")
    return folder


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Run a benchmark's `main`; its figures are written to `results` in the test's folder."""
    monkeypatch.setenv("KD_PRUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KD_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "common", raising=False)

    def run(name, *arguments, **patches):
        spec = importlib.util.spec_from_file_location(f"bench_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        for what, value in patches.items():
            monkeypatch.setattr(module, what, value)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module.main()
        return tmp_path / "results"

    yield run
    sys.modules.pop("common", None)


def real(data, model, tmp_path):
    given = {"--data": data, "--model": model, "--work": tmp_path / "jobs"}
    return [word for pair in given.items() for word in pair] + ["--precision", "32-true"]


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
    best = {}
    for trial in trials:
        rate = dict(given.split("=", 1) for given in trial["overrides"])["optimizer.lr"]
        of_row = best.setdefault((trial["row"], trial["kept_in_table"]), {})
        of_row[rate] = trial["student"]["accuracy"]
    for key, run in found.items():
        assert best[key][run["rate"]] == max(best[key].values())
    said = capsys.readouterr().out
    assert "poster/rpp: left out, as there is no --text" in said
    assert "mrpc: poster/theseus6" in said
    page = (tmp_path / "jobs" / "poster.html").read_text()
    assert '"method":"poster/theseus6"' in page
    assert '"kept":0.5' in page


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


def test_every_row_of_the_posters_table_composes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from poster_rows import ROWS, overrides, shares

    experiments = {str(f.relative_to(CONF / "experiment").with_suffix("")) for f in
                   (CONF / "experiment").glob("*/*.yaml")}  # fmt: skip
    assert ROWS.keys() <= experiments
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for row in ROWS:
            kept = shares(row, "mrpc")[-1]
            given = [*overrides(row, "mrpc", kept, 40, 100), "task=mrpc", "model=minilm"]
            config = compose("train", overrides=given)
            final = ROWS[row].final
            if final:
                assert OmegaConf.select(config, final) == pytest.approx(1 - kept)
            budget = ROWS[row].halved
            before = OmegaConf.select(config, f"stages.{budget}.max_steps") if budget else 0
            assert before + config.trainer.max_steps == 40
            for stage in ROWS[row].text:
                assert config.stages[stage].max_steps == 100


def test_padding(bench, data, model):
    results = bench("padding", "--data", data, "--model", model)
    found = json.loads((results / "padding.json").read_text())
    assert found.keys() == COLUMNS.keys()
    assert all(1 <= row["grouped"] <= row["random batches"] for row in found.values())


def test_the_time_of_a_step(bench, model):
    results = bench("step_time", "--model", model, "--rounds", 2, "--batch-size", 2)
    ratios = json.loads((results / "step_time.json").read_text())["ratios"]
    assert ratios["plain fine-tuning"] == 1
    assert len(ratios) == 8


@pytest.mark.parametrize(("threads", "options"), [(2, ["--skip-ramp"]), (1, [])])
def test_the_time_of_an_update(bench, capsys, tmp_path, threads, options):
    out = tmp_path / "mask_update.json"
    settings = {"SHAPES": [(64, 64), (128, 64)]}
    bench("mask_update", "--out", out, "--repeats", 1, "--threads", threads, *options, **settings)
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert "update 20, turn 1 of 1: uniform " in printed
    assert ("a ramp's updates, 50 of 100: " in printed) == (not options)
    assert found["weights"] == 64 * 64 + 128 * 64
    assert found["machine"]["threads"] == threads


def test_storage(bench, tmp_path):
    tiny = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    words = {"BertConfig": lambda: tiny}
    results = bench("storage", "--rounds", 1, **words)
    found = json.loads((results / "storage.json").read_text())
    assert found["packed"]["encoder"] < 0.2 * found["dense"]["encoder"]
    assert found["packed, fp16 values"]["whole"] < found["packed"]["whole"]
    assert all(row["seconds to load"] > 0 for row in found.values())


@pytest.mark.slow
def test_storage_of_a_run(bench, tmp_path):
    """The metric of every form of a student, on its own task."""
    run = tmp_path / "run"
    settings = ["experiment=smoke", f"hydra.run.dir={run}", f"cache_dir={tmp_path / 'cache'}"]
    subprocess.run(
        [sys.executable, FOLDER.parent / "train.py", *settings], check=True, cwd=tmp_path
    )
    found = json.loads(
        (bench("storage", "--run", run, "--rounds", 0) / "storage_run.json").read_text()
    )
    expected = RunResult.read(run).student.metrics["accuracy"]
    assert len(found) == 6
    assert all(row["metric"] == pytest.approx(expected, abs=0.01) for row in found.values())
    assert found["packed"]["whole"] < found["dense"]["whole"]


def test_the_memory_of_a_sharded_update(bench, monkeypatch):
    """In one process; `bench` finds what benchmarks share."""
    spec = importlib.util.spec_from_file_location("sharded", FOLDER / "sharded.py")
    sharded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sharded)
    monkeypatch.setattr(sharded, "LAYERS", 1)
    found = sharded.measure("magnitude, Global", processes=1)
    assert found["held_mb"] == round(5 * (4 * 768**2 + 2 * 768 * 3072) / 1e6)  # weights, masks
    assert found["peak_mb"] < 200
    committed = json.loads((FOLDER / "results" / "sharded.json").read_text())
    assert {row["method"] for row in committed["rows"]} == sharded.METHODS.keys()


@pytest.mark.slow
def test_the_comparison_with_peers(bench, capsys):
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96}
    tiny = {"title": "tiny", "config": sizes, "batch": (2, 8), "rounds": 2}
    results = bench("peers", SHAPES={"bert": tiny})
    found = json.loads((results / "peers.json").read_text())
    assert found.keys() == {"versions", "machine", "behaviour", "cost"}
    assert "| " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"), [("glue", "mrpc: 0.9 no dropout"), ("recipe", "2e-3, no dropout")]
)
def test_committed_figures_make_a_table(bench, monkeypatch, capsys, name, expected):
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").rglob("*.json")}
    monkeypatch.setenv("KD_PRUNE_RESULTS", str(FOLDER / "results"))
    monkeypatch.setenv("COLUMNS", "120")
    bench(name, "--table")
    assert expected in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_committed_comparison_with_peers_makes_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from peers_tables import markdown

    result = json.loads((FOLDER / "results" / "peers.json").read_text())
    titles = {shape: f"title of {shape}" for shape in result["cost"]}
    tables = markdown(result, titles)
    assert "### Cost, title of bert; plain step" in tables
    assert "| Asked for 95 %, counted at the end |" in tables


def test_figures_of_a_result_hold_no_paths(bench):
    import common

    stage = {"sparsity": 0.9, "model_sparsity": 0.5, "path": "somewhere"}
    result = RunResult(
        task="mrpc",
        seed=1,
        data="",
        monitor="f1",
        stages={
            "teacher": StageResult(metrics={"f1": 0.9}, seconds=3.0, path="somewhere"),
            "student": StageResult(metrics={"f1": 0.8}, seconds=5.0, **stage),
        },
        seconds={"data": 1.0},
    )
    found = common.figures(result, ["seed=1", "task.path=somewhere", "cache_dir=somewhere"])
    assert "somewhere" not in json.dumps(found)
    assert (found["teacher"], found["student"]) == ({"f1": 0.9}, {"f1": 0.8})
    assert found["seconds"] == {"data": 1.0, "teacher": 3.0, "student": 5.0}
    assert (found["sparsity"], found["overrides"]) == (0.9, ["seed=1"])


@pytest.mark.skipif(
    importlib.util.find_spec("llvmlite") is None, reason="pip install 'kd_prune[cpu]'"
)
def test_the_hardware(bench, monkeypatch):
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 32}
    case = {"base 1": ("base", 0.95, 1, 8, 1)}
    small = {"SHAPES": {"base": sizes}, "CASES": case, "MRPC": (4, 6)}
    built = []

    class Rival:
        def __init__(self, name, reads_zeros):
            self.name, self.reads_zeros, self.packages = name, reads_zeros, ()

        def engines(self, model, work, threads):
            built.append(self.name)
            yield self.name, model

    monkeypatch.setattr(rivals, "RIVALS", (Rival("dense", False), Rival("sparse", True)))
    given = ("--cases", "base 1", "--curve", 2, "--compressions", 2, 4, "--threads", 1)
    results = bench("hardware", *given, **small)
    rows = json.loads((results / "hardware.json").read_text())
    assert [row["case"] for row in rows] == ["base 1", "curve 2 2×", "curve 2 4×"]
    assert all(row["difference"] < 1e-4 for row in rows)
    assert [{"dense", "sparse"} <= set(row["milliseconds"]) for row in rows] == [False, True, True]
    assert built == ["dense", "sparse", "sparse"]  # zeros do not matter to the first
    assert (results / "speed.png").exists()


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llvmlite", "onnxruntime")),
    reason="pip install 'kd_prune[cpu,onnx]'",
)
@pytest.mark.slow
def test_the_hardware_with_two_patterns_of_zeros(bench):
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 32}
    case = {"base 2, two patterns": ("base", 0.95, 2, 8, 2)}
    small = {"SHAPES": {"base": sizes}, "CASES": {}, "PATTERN_CASES": case}
    results = bench("hardware", "--threads", 1, **small)
    (row,) = json.loads((results / "hardware.json").read_text())
    engines = list(row["milliseconds"])
    assert engines[:4] == [
        *("torch fp32 (BLAS)", "torch fp32 (oneDNN)"),
        *("torch bf16", "torch bf16 (oneDNN)"),
    ]
    assert [name for name in engines if "int8" in name] == [
        *("kd_prune int8, single weights", "kd_prune int8, 1×4 blocks"),
        "ONNX Runtime int8",
    ]
    assert set(row["blocks_over"]) == set(engines)
    assert row["blocks_over"]["kd_prune int8, 1×4 blocks"] == 1
    assert row["difference"] < 0.1
    assert row["processor"]
