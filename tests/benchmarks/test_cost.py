"""Benchmarks of time, memory and storage run with the tiny model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from transformers import BertConfig

from kd_prune.hf.tiny import sentences
from kd_prune.inference import rivals
from kd_prune.results import RunResult
from tests.benchmarks.arguments import FOLDER


def test_padding(bench, data, model):
    results = bench("padding", "--data", data, "--model", model)
    found = json.loads((results / "padding.json").read_text())
    assert found.keys() == {"mrpc", "sst2"}
    assert all(1 <= row["grouped"] <= row["random batches"] for row in found.values())


def test_the_time_of_a_step(bench, model):
    results = bench("step_time", "--model", model, "--rounds", 2, "--batch-size", 2)
    ratios = json.loads((results / "step_time.json").read_text())["ratios"]
    assert ratios["plain fine-tuning"] == 1
    assert len(ratios) == 9


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
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text for row in sentences(50, seed=0) for text in row.values()))
    given = ["--run", run, "--rounds", 0, "--trim-vocabulary", texts]
    found = json.loads((bench("storage", *given) / "storage_run.json").read_text())
    expected = RunResult.read(run).student.metrics["accuracy"]
    assert len(found) == 7
    *whole_vocabulary, _ = found.values()
    assert all(row["metric"] == pytest.approx(expected, abs=0.01) for row in whole_vocabulary)
    sizes = [row["whole"] for row in found.values()]
    assert sizes[2:] == sorted(sizes[2:], reverse=True)
    assert sizes[-1] < sizes[-2] < sizes[2] < sizes[0]


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
