"""Reporting: curves, table and lines of progress of a run."""

from __future__ import annotations

import csv
import logging
import sys

import pytest
import torch
from matplotlib.figure import Figure

from kd_prune import hf
from kd_prune.hf import encoder_scope
from kd_prune.hf.tiny import make_model
from kd_prune.pipeline import Stage, run
from kd_prune.pipeline.reporting import draw_curves
from kd_prune.pruning import SparsityReport

from .jobs import EPOCHS, LABELS, STEPS


def test_metrics_csv_ends_with_the_results(done):
    out, _, result = done
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert float(rows[-1]["val/accuracy"]) == pytest.approx(result.student.metrics["accuracy"])
    assert float(rows[-1]["sparsity/counted"]) == pytest.approx(result.student.sparsity)
    terms = {"loss", "embeddings", "hidden_states", "attention_scores", "soft_targets"}
    assert {f"train/{name}" for name in terms} <= rows[0].keys()


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every picture: the points of its lines by label, and the axes themselves."""
    pictures = []

    def keep(figure, path, **options):
        pictures.append(
            [
                ({line.get_label(): line.get_xydata().tolist() for line in axes.lines}, axes)
                for axes in figure.axes
            ]
        )

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.setattr(sys.modules["kd_prune.pipeline.run"], "draw_curves", draw_curves)
    return pictures


@pytest.mark.filterwarnings("ignore:.*weights that are zero at the start:UserWarning")
def test_curve_of_sparsity_begins_with_the_zeros_before_the_first_step(
    make_job, tmp_path, cache, drawn
):
    pretrained = hf.PretrainedEncoder(
        path=make_model(str(cache), layers=2, hidden_size=16, heads=2)
    )
    kind = hf.Classification()
    model = pretrained.load(kind=kind, num_outputs=8)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight[:8] = 0.0
    hf.save(model, pretrained.tokenizer(), tmp_path / "model", kind=kind, labels=LABELS)
    begun = SparsityReport.count(model, encoder_scope(model).select(model).keys()).sparsity
    run(make_job(tmp_path / "out", model=hf.PretrainedEncoder(path=str(tmp_path / "model"))))
    ((curves, _), *_) = drawn[0]
    assert curves["counted"][0] == [0, begun]
    assert curves["counted"][1][0] > 0
    assert begun > 0.01


@pytest.mark.parametrize(
    ("values", "teacher"),
    [([0.5, 0.9], 0.8), ([0.8, 0.801], 0.802), ([0.99, 1.0], 1.0), ([1.0], 1.0), ([-0.1, 0.0], 0)],
)
def test_axis_of_the_metric_ends_at_one_and_magnifies_no_noise(tmp_path, drawn, values, teacher):
    rows = [{"step": i, "train/loss": 1.0, "val/accuracy": v} for i, v in enumerate(values, 1)]
    draw_curves(rows, tmp_path / "curves.png", monitor="accuracy", teacher=teacher)
    low, high = drawn[0][2][1].get_ylim()
    assert high <= 1.0
    assert high - low >= 0.05 - 1e-9
    assert all(low <= value <= high for value in (*values, teacher))
    assert high - low <= max(0.06, 1.2 * (max(*values, teacher) - min(*values, teacher)))


def test_loss_that_is_zero_from_the_first_step_is_drawn(tmp_path):
    """As of a student that begins as its teacher; a logarithmic axis has no place for it."""
    rows = [{"step": 1, "train/loss": 0.0, "val/accuracy": 0.5}]
    draw_curves(rows, tmp_path / "curves.png", monitor="accuracy", teacher=0.5)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_table_counts_the_zeros_of_a_given_teacher(done, make_job, tmp_path, capsys):
    sparse = Stage(path=str(done.out / "student"))
    result = run(make_job(tmp_path, final=0.5, teacher=sparse))
    table = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│ ").split("│")]) == 3
    }
    assert table["sparsity in scope"] == ["89.97 %", "50.00 %"]
    assert table["non-zero weights"][1] == f"{result.student.nonzero:,}"
    assert table["non-zero weights"][0] == f"{result.teacher.nonzero:,}"
    assert table["non-zero weights"][0] != f"{result.student.parameters:,}"


def test_progress_of_every_fit_is_logged_at_least_once_per_epoch(make_job, tmp_path, caplog):
    job = make_job(tmp_path, cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO, logger="kd_prune.progress"):
        run(job)
    lines = [r.getMessage() for r in caplog.records if r.name == "kd_prune.progress"]
    assert sum(line.startswith("teacher: step ") for line in lines) >= job.teacher.max_epochs
    of_student = [line for line in lines if line.startswith("student: step ")]
    assert len(of_student) >= EPOCHS
    assert of_student[-1].startswith(f"student: step {STEPS}/{STEPS} (100 %), loss ")
    assert "sparsity 0.9" in of_student[-1]
    assert "val/accuracy" in of_student[-1]
