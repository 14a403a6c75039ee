"""The page: what runs say stays in the data block, nothing is fetched, nothing is slow."""

from __future__ import annotations

import json
import re
import time

from hypothesis import given
from hypothesis import strategies as st

from kd_prune.sweep.page import as_script, write_page
from kd_prune.sweep.page_data import downsample, page_data

from .runs import collected, write_run

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def written(folder, **settings):
    write_page(*collected(folder), folder / "report.html", **settings)
    return (folder / "report.html").read_text()


@given(st.text())
def test_no_text_ends_the_data_block_early(text):
    script = as_script({"reason": text, text: 1})
    assert "<" not in script
    assert json.loads(script) == {"reason": text, text: 1}


def test_what_runs_say_is_data_not_markup(tmp_path):
    evil = "</script><script>alert(1)</script><!--PLOTLY--><!--JS-->&quot;'"
    write_run(tmp_path / "a", state="failed", reason=evil, optimizer__lr=evil, task__name=evil)
    page = written(tmp_path, title=evil)
    assert "alert(1)</script>" not in page
    (block,) = DATA.findall(page)
    assert json.loads(block)["runs"][0]["reason"] == evil


def test_nothing_is_asked_of_a_network(tmp_path):
    write_run(tmp_path / "a")
    page = written(tmp_path)
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", page)
    assert "default-src 'none'" in page


def test_row_of_one_seed_is_compared_with_the_other_rows_students_of_that_seed(tmp_path):
    """A filter on the seed shows them instead of the row of two seeds."""
    write_run(tmp_path / "a1", accuracy=0.9, optimizer__lr=1e-3)
    write_run(tmp_path / "a2", accuracy=0.5, seed=2, optimizer__lr=1e-3)
    write_run(tmp_path / "b1", accuracy=0.8, optimizer__lr=2e-3)
    rows = page_data(*collected(tmp_path))["rows"]
    found = {(row["seeds"], row.get("seed")): i for i, row in enumerate(rows)}
    alone, first = rows[found[1, None]], found[1, 1]
    assert alone["metrics"]["accuracy"]["nonzero"] == [first]
    assert rows[first]["metrics"]["accuracy"]["nonzero"] == []


def test_the_page_holds_what_was_collected(tmp_path):
    write_run(tmp_path / "a", milestones={0.5: 0.85}, optimizer__lr=1e-3)
    write_run(tmp_path / "b", seed=2, optimizer__lr=2e-3)
    (tmp_path / "b" / "sparsity.csv").write_text("x\ny\n")
    found = page_data(*collected(tmp_path))
    a, b = found["runs"]
    assert a["targets"] == [0.5, 0.9]
    assert (a["config"]["optimizer.lr"], b["config"]["optimizer.lr"]) == ("0.001", "0.002")
    assert found["common"]["sparsity.criterion"] == "magnitude"
    assert a["zeros"] == [900] * 3
    assert found["tensors"][a["table"]][0] == ["bert.encoder.layer.0.output.dense.weight", 1000]
    assert b["table"] is None
    assert found["broken"][0][0].endswith("sparsity.csv")
    assert a["curves"]["train/loss"][0] == list(range(1, 11))


def test_a_target_that_is_no_number_costs_nobody_the_page(tmp_path):
    write_run(tmp_path / "a", sparsity__final=float("nan"), state="failed", reason="no number")
    write_run(tmp_path / "b")
    assert [run["target"] for run in page_data(*collected(tmp_path))["runs"]] == [None, 0.9]
    write_page(*collected(tmp_path), tmp_path / "report.html", title="t")


def test_values_are_written_as_a_configuration_has_them(tmp_path):
    write_run(tmp_path / "a", student={"dropout": None}, model={"path": None, "tied": True})
    write_run(tmp_path / "b", student={"dropout": 0.1}, model={"path": None, "tied": True}, seed=2)
    found = page_data(*collected(tmp_path))
    assert [run["config"]["student.dropout"] for run in found["runs"]] == ["null", "0.1"]
    assert (found["common"]["model.path"], found["common"]["model.tied"]) == ("null", "true")


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=500),
    st.integers(4, 50),
)
def test_a_downsampled_curve_keeps_its_ends_and_its_extremes(values, points):
    series = list(enumerate(values))
    steps, kept = downsample(series, points)
    assert len(steps) == len(kept) <= max(points, 4)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, len(values) - 1)
    for extreme in (min(values), max(values)):
        assert any(abs(value - extreme) <= 1e-4 * abs(extreme) for value in kept)


def test_five_hundred_runs_in_seconds(tmp_path):
    for i in range(500):
        write_run(tmp_path / f"run-{i}", seed=i, steps=100, tensors=72)
    start = time.perf_counter()
    page = written(tmp_path)
    assert time.perf_counter() - start < 10
    assert len(page) < 15e6


def test_less_of_a_loss_is_better(tmp_path):
    for name, loss, final in (("good", 0.5, 0.8), ("bad", 0.7, 0.5), ("small", 0.6, 0.9)):
        folder = write_run(tmp_path / name, task__monitor="loss", sparsity__final=final)
        text = (folder / "result.json").read_text()
        (folder / "result.json").write_text(re.sub(r'"accuracy": [\d.]+', f'"loss": {loss}', text))
    found = page_data(*collected(tmp_path))
    by_target = {row["target"]: row for row in found["rows"]}
    ids = {target: found["rows"].index(row) for target, row in by_target.items()}
    assert found["losses"] == ["loss"]
    assert by_target[0.8]["metrics"]["loss"]["nonzero"] == []
    assert by_target[0.9]["metrics"]["loss"]["nonzero"] == []
    assert set(by_target[0.5]["metrics"]["loss"]["nonzero"]) == {ids[0.8], ids[0.9]}
