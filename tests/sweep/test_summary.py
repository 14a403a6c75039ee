"""Summary: mean and spread over seeds, against an independent restatement."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kd_prune.errors import ConfigError
from kd_prune.sweep import collect, summarize_folders, summarize_runs
from kd_prune.sweep.labels import sweep_title
from kd_prune.sweep.summary import print_summary, runs_csv, summary_csv

from .runs import write_run

SEEDS = (1, 2, 3)


@pytest.fixture
def sweep(tmp_path):
    """Two tasks, two methods, two sparsities, three seeds; figures that are all different."""
    rng = np.random.default_rng(0)
    figures = {}
    for task in ("mrpc", "rte"):
        for distillation in ("sparsebert", "none"):
            for final in (0.5, 0.9):
                for seed in SEEDS:
                    student, teacher = rng.uniform(0.5, 1.0, 2)
                    figures[task, distillation, final, seed] = (student, teacher)
                    write_run(
                        tmp_path / f"{task}-{distillation}-{final}-{seed}",
                        task__name=task,
                        choices={"distillation": distillation},
                        sparsity__final=final,
                        seed=seed,
                        accuracy=student,
                        teacher=teacher,
                        seconds=10.0 * seed,
                    )
    return tmp_path, figures


def printed(folder):
    collection = collect([folder])
    file = io.StringIO()
    console = Console(file=file, width=80)
    print_summary(collection, summarize_runs(collection.runs), console)
    return file.getvalue()


def test_mean_and_spread_over_seeds(sweep):
    folder, figures = sweep
    rows = list(
        csv.DictReader(io.StringIO(summary_csv(summarize_runs(collect([folder]).runs).rows)))
    )
    assert len(rows) == 8
    for row in rows:
        values = np.array(
            [figures[row["task"], row["method"], float(row["target"]), seed] for seed in SEEDS]
        )
        delta = values[:, 0] - values[:, 1]
        for name, column in (
            ("student", values[:, 0]),
            ("teacher", values[:, 1]),
            ("delta", delta),
        ):
            assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(column), rel=1e-12)
            assert float(row[f"{name}_std"]) == pytest.approx(np.std(column, ddof=1), rel=1e-9)
        assert row["seeds"] == "3"
        assert float(row["sparsity"]) == float(row["target"])
        assert (float(row["student/seconds"]), float(row["teacher/seconds"])) == (20.0, 2.0)
    order = [(row["task"], row["method"], float(row["target"])) for row in rows]
    assert order == sorted(order)


def test_one_seed_has_no_spread(tmp_path):
    write_run(tmp_path / "a")
    (row,) = summarize_runs(collect([tmp_path]).runs).rows
    assert row.student.std is None
    assert "±" not in printed(tmp_path).partition("mean ± std")[0]


def test_a_run_made_again_counts_once_the_later_one(tmp_path):
    write_run(tmp_path / "first", accuracy=0.1, ended="2026-01-02T00:00:00+00:00")
    write_run(tmp_path / "again", accuracy=0.7, ended="2026-01-03T00:00:00+00:00")
    summary = summarize_runs(collect([tmp_path]).runs)
    assert [(row.student.mean, row.seeds) for row in summary.rows] == [(0.7, 1)]
    assert [run.folder.name for run in summary.repeats] == ["first"]
    assert "first: a later run repeats it" in printed(tmp_path)


def test_milestones_have_rows_of_their_own(tmp_path):
    for seed in SEEDS:
        write_run(tmp_path / str(seed), seed=seed, milestones={0.5: 0.8 + seed / 100})
    rows = summarize_runs(collect([tmp_path]).runs).rows
    assert [(row.target, row.milestone, row.seeds) for row in rows] == [
        (0.5, True, 3),
        (0.9, False, 3),
    ]
    assert rows[0].student.mean == pytest.approx(0.82)
    assert "50.0%*" in printed(tmp_path)


def test_dense_students_come_first(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", sparsity__final=None)
    rows = summarize_runs(collect([tmp_path]).runs).rows
    assert [row.target for row in rows] == [None, 0.9]


def test_the_table_fits_a_terminal_and_names_what_is_missing(sweep):
    folder, _ = sweep
    write_run(folder / "bad", state="failed", reason="sparsity.final=[95]: expected a fraction")
    write_run(folder / "cut", state="running")
    (folder / "rte-none-0.9-3" / "result.json").write_text("{")
    text = printed(folder)
    table, _, rest = text.rpartition("that are not zero")
    assert max(map(len, table.splitlines())) <= 80
    assert "bad: sparsity.final=[95]: expected a fraction" in rest  # brackets are no markup
    assert "cut: killed" in rest
    assert "rte-none-0.9-3/result.json: half-written" in rest
    assert "26 runs: 2 failed, 23 finished, 1 interrupted" in rest


def test_a_terminal_gets_no_five_hundred_lines(tmp_path):
    for i in range(25):
        write_run(tmp_path / str(i), state="failed", reason="the disk is full", seed=i)
    text = printed(tmp_path)
    assert text.count("the disk is full") == 20
    assert "… and 5 more failed: see runs.csv" in text


def test_a_line_per_student_in_runs_csv(tmp_path):
    write_run(tmp_path / "a", milestones={0.5: 0.85})
    write_run(tmp_path / "b", state="failed", reason='commas, "quotes"\nand lines', seed=2)
    rows = list(csv.DictReader(io.StringIO(runs_csv(collect([tmp_path]).runs))))
    assert [(r["seed"], r["target"], r["milestone"], r["student/accuracy"]) for r in rows] == [
        ("1", "0.5", "True", "0.85"),
        ("1", "0.9", "False", "0.8"),
        ("2", "0.9", "", ""),
    ]
    assert rows[2]["reason"] == 'commas, "quotes"\nand lines'
    assert {row["teacher/accuracy"] for row in rows} == {"0.9", ""}


def test_summarize_folders_writes_where_it_is_told(sweep, tmp_path, capsys):
    folder, _ = sweep
    summarize_folders([folder])
    assert {"summary.csv", "runs.csv", "report.html"} <= {file.name for file in folder.iterdir()}
    with pytest.raises(ConfigError, match="--out: there are several folders; name one"):
        summarize_folders([folder, folder])
    out = tmp_path / "out" / "deep"
    summarize_folders([folder / "rte-none-0.9-3", folder / "rte-none-0.9-2"], out)
    assert len((out / "summary.csv").read_text().splitlines()) == 2
    with pytest.raises(ConfigError, match=r"^nowhere: no such folder"):
        summarize_folders([Path("nowhere")])


def test_summarize_folders_loads_no_torch(tmp_path):
    write_run(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from kd_prune.sweep import summarize_folders;"
        "summarize_folders([Path(sys.argv[1])]);"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)  # raises if the assert there fails


PRETRAINED = {"text": {"metrics": {"perplexity": 12.5}, "seconds": 30.0, "task": "corpus"}}


def test_every_stage_has_its_metrics_and_seconds(tmp_path):
    write_run(tmp_path / "a", seconds=40, stages=PRETRAINED)
    write_run(tmp_path / "b", seconds=60, seed=2)
    rows = list(csv.DictReader(io.StringIO(runs_csv(collect([tmp_path]).runs))))
    stages = [(r["text/perplexity"], r["text/seconds"], r["student/seconds"]) for r in rows]
    assert stages == [("12.5", "30.0", "40"), ("", "", "60")]
    assert {r["teacher/seconds"] for r in rows} == {"2.0"}
    assert "seconds per stage: teacher 2, text 30, student 50" in printed(tmp_path)


def test_seconds_of_a_stage_are_means_over_the_runs_that_trained_it(tmp_path):
    for seed, seconds, reused in ((1, 30.0, False), (2, 30.0, True), (3, 60.0, False)):
        stages = {"text": {"metrics": {}, "seconds": seconds, "reused": reused}}
        write_run(tmp_path / str(seed), seed=seed, stages=stages)
    (row,) = summarize_runs(collect([tmp_path]).runs).rows
    assert row.seconds == {"teacher": 2.0, "text": 45.0, "student": 60.0}


def title(folder):
    return sweep_title(collect([folder]).runs)


def test_the_title_is_what_the_runs_differ_in(tmp_path):
    write_run(tmp_path / "a")
    assert title(tmp_path) == "mrpc: sparsity 0.9, seed 1"
    write_run(tmp_path / "b", task__name="stsb", sparsity__final=0.95, seed=2)
    assert title(tmp_path) == "mrpc, stsb: sparsity 0.9–0.95, 2 seeds"
    write_run(tmp_path / "c", optimizer__lr=0.1, choices={"distillation": "none"}, seed=2)
    assert title(tmp_path) == "mrpc, stsb: sparsity 0.9–0.95, distillation, optimizer.lr, 2 seeds"


def test_the_title_is_the_name_of_the_sweep_where_it_has_one(tmp_path):
    write_run(tmp_path / "a", sweep={"name": "recovery"})
    write_run(tmp_path / "b", sweep={"name": "recovery"}, seed=2)
    assert title(tmp_path) == "recovery"
    write_run(tmp_path / "c", sweep={"name": "another"}, seed=3)
    assert title(tmp_path) == "mrpc: sparsity 0.9, 3 seeds"


def test_title_does_not_count_what_equals_the_seed_by_chance(tmp_path):
    for seed in (1, 2):
        for final in (0.8, 0.95):
            folder = tmp_path / f"{seed}-{final}"
            write_run(folder, seed=seed, sparsity__final=final, sparsity__end=1.0)
    assert title(tmp_path) == "mrpc: sparsity 0.8–0.95, 2 seeds"


def test_title_does_not_count_failed_runs(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", optimizer__lr="fast", state="failed", refused=True)
    write_run(tmp_path / "c", sparsity__final=1.0, seed=7, state="failed")
    assert title(tmp_path) == "mrpc: sparsity 0.9, seed 1"


def test_title_lists_three_settings_and_counts_the_others(tmp_path):
    base = {"_target_": "kd_prune.pipeline.Stage", "max_epochs": 1, "sparsity": {"final": 0.5}}
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", part={"base": base})
    assert title(tmp_path) == "mrpc: sparsity 0.9, part, seed 1"
    write_run(tmp_path / "c", model={str(k): k for k in range(4)})
    assert title(tmp_path) == (
        "mrpc: sparsity 0.9, model.0, model.1, model.2 and 2 more settings, seed 1"
    )


def test_refused_runs_are_counted_in_one_line(tmp_path):
    write_run(tmp_path / "good")
    for i in range(7):
        reason = f"optimizer.lr=fast{i}: expected a number"
        write_run(tmp_path / f"refused{i}", state="failed", reason=reason, refused=True)
    write_run(tmp_path / "crash", state="failed", reason="CUDA out of memory")
    text = printed(tmp_path)
    assert text.count("expected a number") == 3
    assert "… and 4 more refused before training" in text
    assert "crash: CUDA out of memory" in text
    assert "9 runs: 8 failed, 1 finished" in text
    rows = list(csv.DictReader(io.StringIO(runs_csv(collect([tmp_path]).runs))))
    assert sum("expected a number" in row["reason"] for row in rows) == 7
