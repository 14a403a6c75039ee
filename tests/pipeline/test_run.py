"""Run: what it leaves in its folder, and that the same job leaves the same bytes."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kd_prune.distillation import HardLabels, Objective
from kd_prune.lit.signals import Interrupted
from kd_prune.pipeline import run
from kd_prune.pruning import SparsityReport
from kd_prune.results import RunResult

from .jobs import EPOCHS, LABELS, STEPS, InterruptAt, scoped_rows, timeless, weights


def test_result_json_holds_the_result(done):
    out, _, result = done
    assert RunResult.read(out) == dataclasses.replace(result, milestones=())
    stored = json.loads((out / "result.json").read_text())
    assert (stored["task"], stored["seed"], stored["config"]) == ("tiny", 0, {"seed": 0})
    assert stored["monitor"] == "accuracy"
    assert list(stored["stages"]) == ["teacher", "student"]
    for stage in stored["stages"].values():
        assert stage["metrics"].keys() == {"accuracy"}
        assert 0 <= stage["metrics"]["accuracy"] <= 1
        assert stage["seconds"] > 0
        assert stage["task"] == "tiny"
    assert {"sparsity", "model_sparsity", "parameters", "nonzero"} <= stored["stages"][
        "student"
    ].keys()
    assert stored["seconds"].keys() == {"data", "evaluation"}
    assert stored["versions"]["torch"] == torch.__version__


def test_sparsity_csv_adds_up(done):
    out, _, result = done
    student = result.student
    model = AutoModelForSequenceClassification.from_pretrained(out / "student")
    with (out / "sparsity.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert int(rows[name]["size"]) == parameter.numel()
        assert int(rows[name]["zeros"]) == int((parameter == 0).sum())
    scoped = scoped_rows(out)
    assert len(scoped) == 2 * 6
    for row in scoped:
        assert int(row["zeros"]) == round(0.9 * int(row["size"]))

    def total(rows, column):
        return sum(int(row[column]) for row in rows)

    size, zeros = (total(rows.values(), column) for column in ("size", "zeros"))
    assert student.sparsity == total(scoped, "zeros") / total(scoped, "size")
    assert student.model_sparsity == zeros / size
    assert (student.parameters, student.nonzero) == (size, size - zeros)


def test_student_is_read_where_kd_prune_is_not_installed(done, tmp_path):
    """Another process, another folder, kd_prune barred: the same logits to the bit."""
    out = done.out
    script = textwrap.dedent(
        """
        import sys

        class Bar:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "kd_prune":
                    raise ImportError("barred")

        sys.meta_path.insert(0, Bar())
        try:
            import kd_prune
        except ImportError:
            pass
        else:
            raise SystemExit("kd_prune was imported")
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder, target = sys.argv[1:]
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer("the fox , pear and old hammer", "second", return_tensors="pt")
        with torch.no_grad():
            torch.save(model(**batch).logits, target)
        """
    )
    subprocess.run(
        [sys.executable, "-I", "-c", script, str(out / "student"), str(tmp_path / "logits")],
        cwd=tmp_path,
        check=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(out / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "student")
    batch = tokenizer("the fox , pear and old hammer", "second", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, torch.load(tmp_path / "logits"))
    assert list(model.config.label2id) == LABELS


def test_teacher_stays_dense(done):
    teacher = AutoModelForSequenceClassification.from_pretrained(done.result.teacher.path)
    report = SparsityReport.count(teacher, ())
    assert report.model_sparsity < 0.01  # the padding token's embedding


def test_run_does_not_depend_on_what_ran_before(done, make_job, tmp_path):
    """Bit by bit, though the global generators are elsewhere by then."""
    out, _, first = done
    run(make_job(tmp_path / "a", final=0.3, seed=5))
    torch.rand(7)
    second = run(make_job(tmp_path / "b"))
    assert weights(tmp_path / "b" / "student") == weights(out / "student")
    assert timeless(second.student) == timeless(first.student)
    assert (tmp_path / "b" / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()


def test_job_that_runs_twice_leaves_the_same_bytes(done, tmp_path):
    """Its parts, such as the callback that prunes, keep nothing of the first run."""
    run(dataclasses.replace(done.job, out=tmp_path, callbacks={}))
    assert weights(tmp_path / "student") == weights(done.out / "student")


def test_interrupted_run_is_resumed_to_the_same_bytes(done, make_job, tmp_path):
    out, _, first = done
    with pytest.raises(Interrupted):
        run(make_job(tmp_path, callbacks={"interrupt": InterruptAt(STEPS - 1)}))
    assert not (tmp_path / "result.json").exists()
    last = tmp_path / "last.ckpt"
    state = torch.load(last, weights_only=True)
    state["callbacks"]["ResumePoint"]["seconds"] += 1000
    torch.save(state, last)
    second = run(make_job(tmp_path, ckpt_path=str(tmp_path)))  # a run folder
    assert weights(tmp_path / "student") == weights(out / "student")
    assert timeless(second.student) == timeless(first.student)
    assert 1000 < second.student.seconds < 1100  # of both parts
    assert (tmp_path / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()


def test_run_that_accumulates_gradients_counts_optimizer_steps(make_job, tmp_path):
    result = run(make_job(tmp_path, trainer_settings={"accumulate_grad_batches": 4}))
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert int(rows[-1].split(",")[0]) == EPOCHS * 2
    assert result.student.sparsity == pytest.approx(0.9, abs=1e-3)


def test_dense_student_that_learns_from_labels_alone_has_no_zeros(make_job, tmp_path):
    job = make_job(tmp_path, sparsity=None, distillation=Objective({"hard_labels": HardLabels()}))
    result = run(job)
    assert result.student.sparsity == 0
    assert result.student.model_sparsity < 0.01


def test_every_saved_student_has_a_model_card_with_its_figures(done, curve):
    for finished in (done, curve):
        for student in (finished.result.student, *finished.result.milestones):
            text = (finished.out / student.path / "README.md").read_text()
            assert f"{student.nonzero:,} of {student.parameters:,}" in text
            assert f"| {100 * student.metrics['accuracy']:.1f} |" in text
            assert finished.result.data in text
            assert str(finished.out) not in text
