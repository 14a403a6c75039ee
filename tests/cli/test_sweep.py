"""``python train.py -m``: what is done is not done again, what is broken is named."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from kd_prune.cli import evaluate
from kd_prune.hf.tiny import make_task

from .script import SMALL, metrics_of


@pytest.fixture
def sweep(call, tmp_path):
    """Run a sweep in a folder of its own; returns exit code and output."""
    folder = tmp_path / "sweep"

    def run(*overrides: str):
        code, out, err = call("-m", *SMALL, f"hydra.sweep.dir={folder}", *overrides)
        return code, out + err

    run.folder = folder
    return run


def by_sparsity(folder):
    """Target → folder of the run."""
    found = {}
    for file in folder.glob("*/status.json"):
        found[json.loads(file.read_text())["config"]["sparsity"]["final"]] = file.parent
    return found


def states(folder):
    return {
        target: json.loads((run / "status.json").read_text())["state"]
        for target, run in by_sparsity(folder).items()
    }


def made_at(folder):
    return {f: f.stat().st_mtime_ns for f in folder.glob("*/student/model.safetensors")}


def test_a_failure_stays_alone_and_is_retried_if_asked(sweep):
    code, said = sweep("sparsity.final=0.5,95,0.9")
    assert code == 1
    assert states(sweep.folder) == {0.5: "finished", 95: "failed", 0.9: "finished"}
    assert "did you mean 0.95?" in said
    assert said.count("Fitting the teacher") <= 1
    with (sweep.folder / "summary.csv").open() as file:
        assert [row["target"] for row in csv.DictReader(file)] == ["0.5", "0.9"]
    before = made_at(sweep.folder)

    code, said = sweep("sparsity.final=0.5,95,0.9")
    assert code == 1
    assert said.count("finished before") == 2
    assert "failed before: sparsity.final=95" in said
    assert made_at(sweep.folder) == before

    failed = by_sparsity(sweep.folder)[95]
    status = json.loads((failed / "status.json").read_text())
    status["config"]["sparsity"]["final"] = 0.8  # as if what was wrong had been elsewhere
    (failed / "status.json").write_text(json.dumps(status))
    code, said = sweep("sparsity.final=0.5,95,0.9", "sweep.retry_failed=true")
    assert "failed: sparsity.final=95" in said
    assert made_at(sweep.folder) == before


@pytest.mark.parametrize(
    "content",
    [
        b"half",
        *(pytest.param(content, marks=pytest.mark.slow) for content in (b"", b"\x80\x02}q\x00.")),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_named_and_passed_over(sweep, content):
    sweep("sparsity.final=0.5")
    run = by_sparsity(sweep.folder)[0.5]
    first = (run / "student" / "model.safetensors").read_bytes()
    (run / "result.json").unlink()
    (run / "last.ckpt").write_bytes(content)
    status = json.loads((run / "status.json").read_text()) | {"state": "running"}
    (run / "status.json").write_text(json.dumps(status))  # as a kill leaves it
    code, said = sweep("sparsity.final=0.5")
    assert code == 0
    assert "last.ckpt: truncated or no checkpoint" in said
    assert "training starts from the beginning" in said
    assert (run / "student" / "model.safetensors").read_bytes() == first


@pytest.mark.slow
def test_killed_between_its_result_and_its_record(sweep):
    sweep("sparsity.final=0.5")
    run = by_sparsity(sweep.folder)[0.5]
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "running", "ended": None}))
    before = made_at(sweep.folder)
    code, said = sweep("sparsity.final=0.5")
    assert code == 0
    assert made_at(sweep.folder) == before
    again = json.loads((run / "status.json").read_text())
    assert again == status | {"ended": again["ended"]}
    assert "1 run: 1 finished" in said


def test_a_result_that_is_not_whole_is_made_again(sweep):
    sweep("sparsity.final=0.5")
    run = by_sparsity(sweep.folder)[0.5]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text('{"stages": {"student": 0.99')
    code, said = sweep("sparsity.final=0.5")
    assert code == 0
    assert "result.json: cannot be read" in said
    again = json.loads((run / "result.json").read_text())
    assert metrics_of(again) == metrics_of(result)


def test_a_teacher_checkpoint_that_cannot_be_read(call, tmp_path):
    cache = tmp_path / "cache"
    code, *_ = call(*SMALL, f"hydra.run.dir={tmp_path / 'a'}", cache=cache)
    assert code == 0
    (metrics,) = cache.glob("stages/*/stage.json")
    before = json.loads(metrics.read_text())
    metrics.unlink()
    metrics.parent.with_suffix(".ckpt").write_bytes(b"half")
    code, out, err = call(*SMALL, f"hydra.run.dir={tmp_path / 'b'}", cache=cache)
    assert code == 0
    assert ".ckpt: truncated or no checkpoint" in out + err
    found = json.loads(metrics.read_text())
    assert found | {"seconds": 0} == before | {"seconds": 0}


def test_eval_of_a_run_on_its_own_task_and_of_a_folder_on_another(call, tmp_path):
    out = tmp_path / "run"
    augmented = ["task/augment=tinybert", "task.augment.copies=1"]  # of no use to an evaluation
    code, *_ = call(*SMALL, *augmented, f"hydra.run.dir={out}")
    assert code == 0
    trained = json.loads((out / "result.json").read_text())

    code, said, err = call(f"eval={out}", f"hydra.run.dir={tmp_path / 'a'}")
    assert code == 0, err
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    student = trained["stages"]["student"]
    for key in ("metrics", "sparsity", "model_sparsity", "nonzero", "parameters"):
        assert found[key] == student[key]
    assert f"{100 * student['sparsity']:.2f} %" in said

    # What the command sets goes on top of the run's own task, which its model folder has too.
    code, *_ = call(
        f"eval={out / 'student'}",
        "task.validation=[validation, train]",
        "task.eval_batch_size=7",
        f"hydra.run.dir={tmp_path / 'd'}",
    )
    assert code == 0
    both = json.loads((tmp_path / "d" / "evaluation.json").read_text())
    assert both["metrics"].keys() == {"accuracy", "train/accuracy"}
    assert both["metrics"]["accuracy"] == metrics_of(trained)["accuracy"]

    code, *_ = call(
        f"eval={out / 'student'}",
        "task.path.train=128",
        "task.path.validation=64",
        f"hydra.run.dir={tmp_path / 'b'}",
    )
    assert code == 0
    other = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert other["sparsity"] == student["sparsity"]

    teacher = trained["stages"]["teacher"]["path"]
    code, said, err = call(
        "-m", f"eval={out},nowhere,{teacher}", f"hydra.sweep.dir={tmp_path / 'c'}", *SMALL
    )
    assert code == 1
    assert "failed: eval=nowhere: not a local folder" in said + err
    assert len(list((tmp_path / "c").glob("*/evaluation.json"))) == 2


def test_eval_finds_the_rows_that_a_run_named_from_another_folder(call, tmp_path, monkeypatch):
    """The path begins at that folder, whatever lies at the same path here."""
    project, elsewhere, out = tmp_path / "project", tmp_path / "elsewhere", tmp_path / "run"
    rows = Path(make_task(str(tmp_path / "made"), train=128, validation=32))
    project.mkdir()
    rows.rename(project / "rows")
    (elsewhere / "rows").mkdir(parents=True)
    monkeypatch.chdir(project)
    others = [override for override in SMALL if not override.startswith("task.path")]
    code, *_ = call(*others, "task.path=rows", f"hydra.run.dir={out}")
    assert code == 0
    monkeypatch.chdir(elsewhere)
    code, _, err = call(f"eval={out}", f"hydra.run.dir={tmp_path / 'a'}")
    assert code == 0, err
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    trained = json.loads((out / "result.json").read_text())
    assert found["metrics"] == metrics_of(trained)

    (project / "rows").rename(tmp_path / "moved")
    code, _, err = call(f"eval={out}", f"hydra.run.dir={tmp_path / 'b'}")
    assert code == 1
    assert re.match("error: task.path=rows: ", err)
    code, _, err = call(f"eval={out}", "task.path=../moved", f"hydra.run.dir={tmp_path / 'b'}")
    assert code == 0, err


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("nowhere", "eval=nowhere: not a local folder"),
        ("base", "eval=.*base: .*has no head for a task of kind classification"),
    ],
)
def test_eval_of_what_cannot_be_judged(call, tmp_path, folder, says):
    if folder == "base":
        from transformers import BertConfig, BertModel

        folder = tmp_path / "base"
        config = BertConfig(
            vocab_size=119, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        BertModel(config).save_pretrained(folder)
    code, _, err = call(f"eval={folder}", f"hydra.run.dir={tmp_path / 'x'}", *SMALL)
    assert code == 1
    assert re.match(f"error: {says}", err)


def test_eval_without_a_task_is_refused(call, tmp_path):
    """It would be that of the embedded task."""
    (tmp_path / "model").mkdir()
    for folder, says in (
        ("model", r"model: has no record of its task; name the task, as task=mrpc"),
        ("some/one", r"some/one: no such folder; with a hub id name the task"),
    ):
        code, _, err = call(f"eval={tmp_path / folder}", f"hydra.run.dir={tmp_path / 'x'}")
        assert code == 1
        assert re.match(f"error: eval=.*{says}", err)
    code, _, err = call(
        f"eval={tmp_path / 'model'}", "task/kind=regression", f"hydra.run.dir={tmp_path / 'x'}"
    )
    assert code == 1
    assert re.match(r"error: task/kind: changes a part of a task .*; name the task too", err)


@pytest.mark.parametrize("folder", ["", "  "])
def test_eval_of_an_empty_name_is_refused(folder):
    """A variable that is not set must not train a job."""
    with pytest.raises(SystemExit, match="name the model first"):
        evaluate.main([folder])


def test_eval_of_a_folder_with_an_equals_sign(tmp_path, monkeypatch):
    """Sweeps of other tools name folders after settings."""
    monkeypatch.chdir(tmp_path)
    assert evaluate.is_override("lr=0.1")
    (tmp_path / "lr=0.1").mkdir()
    assert not evaluate.is_override("lr=0.1")


def test_a_sweep_of_evaluations_fails_with_any_of_them(call, tmp_path):
    sweep = f"hydra.sweep.dir={tmp_path}/sweep"
    code, stdout, stderr = call("-m", *SMALL, f"eval={tmp_path}/a,{tmp_path}/b", sweep)
    assert code == 1
    assert "2 runs: 2 failed" in stdout
    assert f"eval={tmp_path}/a" in stdout + stderr


CALL = {"_target_": "os.mkdir", "_args_": ["<folder>"]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": CALL}, "its task.path is made by os.mkdir"),
        ({"text": [CALL]}, "its task.text.0 is made by os.mkdir"),
        ({"text": [[{"of": CALL}]]}, "its task.text.0.0.of is made by os.mkdir"),
        ({"_args_": [CALL]}, "its task contains _args_"),
        ({"_recursive_": True, "text": ["text"]}, "its task contains _recursive_"),
        ({"name": "${oc.env:HOME}"}, "its task.name contains an interpolation"),
        ({"text": ["${oc.env:HOME}"]}, "its task.text.0 contains an interpolation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_eval_takes_no_call_and_no_variable_from_a_folder(call, tmp_path, settings, said):
    """What a folder says of its task must choose neither what is called nor what is printed."""
    out = tmp_path / "run"
    (out / "student").mkdir(parents=True)
    config = {"task": {"_target_": "kd_prune.hf.Task", "name": "x", **settings}}
    record = json.dumps({"state": "finished", "config": config})
    victim = tmp_path / "victim"
    (out / "status.json").write_text(record.replace("<folder>", str(victim)))
    code, _, err = call(f"eval={out}", f"hydra.run.dir={tmp_path / 'x'}")
    assert code == 1
    assert said in err
    assert not victim.exists()
