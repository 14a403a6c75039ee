"""Figures that are committed make tables, and hold no paths."""

from __future__ import annotations

import json
import re
from statistics import mean, stdev

import pytest

from kd_prune.results import RunResult, StageResult
from tests.benchmarks.arguments import FOLDER


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glue", "mrpc: 0.9 no dropout"),
        ("recipe", "2e-3, no dropout"),
        ("study", "sst2: taylor-3x"),
        ("poster", "mrpc: later/obert"),
    ],
)
def test_committed_figures_make_a_table(bench, tmp_path, monkeypatch, capsys, name, expected):
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").rglob("*.json")}
    monkeypatch.setenv("KD_PRUNE_RESULTS", str(FOLDER / "results"))
    monkeypatch.setenv("COLUMNS", "120")
    bench(name, "--table", "--work", tmp_path)
    assert expected in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_no_committed_figure_holds_a_path():
    for file in (FOLDER / "results").rglob("*.json"):
        assert not re.search(r'"[^"]*=?/(home|root|tmp|work|Users|mnt)/', file.read_text()), file


BEST = ("README.md", "(`experiment=best`) |")
AT_97 = ("docs/results.md", "| `best` at 97 %, three seeds ")


@pytest.mark.parametrize(
    ("runs", "metric", "place"),
    [
        ("mrpc-taylor-s*", "test/accuracy", BEST),
        ("stsb-taylor-s*", "pearson", BEST),
        ("sst2-taylor-3x-s*", "accuracy", BEST),
        ("qnli_style-taylor-2x-s*", "accuracy", BEST),
        ("mrpc-taylor_0.97-s*", "test/accuracy", AT_97),
        ("stsb-taylor_0.97-s*", "pearson", AT_97),
        ("sst2-taylor_0.97-3x-s*", "accuracy", AT_97),
    ],
)
def test_the_figures_of_best_in_the_docs_are_those_of_its_runs(runs, metric, place):
    found = [
        json.loads(file.read_text()) for file in (FOLDER / "results/study").glob(f"{runs}.json")
    ]
    assert len(found) == 3
    student = [100 * run["student"][metric] for run in found]
    apart = [100 * (run["student"][metric] - run["teacher"][metric]) for run in found]
    score, spread = f"{mean(student):.1f}", f" ± {stdev(student):.1f}"
    difference = f"({mean(apart):.1f} ± {stdev(apart):.1f})".replace("-", "−")
    page, words = place
    lines = (FOLDER.parent / page).read_text().splitlines()
    (row,) = (line for line in lines if words in line)
    assert f"{score} {difference}" in row or f"{score}{spread} {difference}" in row


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
