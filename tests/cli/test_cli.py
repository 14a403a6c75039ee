"""``python train.py``: the smoke run, one line for whatever is wrong, interrupt and go on.

Importing takes longer than these runs, so the first two are processes of their own and the others
call the script in this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd_prune.lit import DistillModule

from .script import SCRIPT, SMALL, metrics_of, refusal, start


def result_of(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def smoke(cache, tmp_path_factory):
    """The documented smoke run, whole, in a process of its own."""
    out = tmp_path_factory.mktemp("smoke")
    process = start(out, cache, "experiment=smoke")
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    return out, stdout


def test_the_smoke_run_prints_what_it_reached(smoke):
    out, stdout = smoke
    result = result_of(out)
    assert "95.00 %" in stdout
    assert f"{100 * metrics_of(result)['accuracy']:.1f}" in stdout
    assert str(out) in stdout
    assert result["config"]["student"]["min_retained"] == 0.9
    assert result["stages"]["student"]["sparsity"] == pytest.approx(0.95, abs=1e-4)


def test_the_smoke_run_is_deterministic(smoke, call, tmp_path):
    """Another process, another cache, so another teacher: the same in every bit."""
    out, _ = smoke
    code, _, stderr = call("experiment=smoke", f"hydra.run.dir={tmp_path}", cache=tmp_path / "c")
    assert code == 0, stderr
    one, other = result_of(out), result_of(tmp_path)
    assert metrics_of(one) == metrics_of(other)
    assert metrics_of(one, "teacher") == metrics_of(other, "teacher")
    assert one["stages"]["teacher"]["path"] != other["stages"]["teacher"]["path"]
    for file in ("metrics.csv", "sparsity.csv", "student/model.safetensors"):
        assert (out / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_a_student_that_learnt_too_little_fails_but_is_reported(smoke, call, tmp_path):
    code, _, stderr = call("experiment=smoke", f"hydra.run.dir={tmp_path}", "optimizer.lr=1e-12")
    assert code == 1
    assert refusal(stderr).startswith("error: student.min_retained=0.9: ")
    assert refusal(stderr).endswith("did not learn enough")
    result = result_of(tmp_path)
    assert metrics_of(result)["accuracy"] < 0.9 * metrics_of(result, "teacher")["accuracy"]


@pytest.mark.slow
def test_two_processes_that_start_at_once_train_one_teacher(tmp_path):
    outs = [tmp_path / "a", tmp_path / "b"]
    processes = [start(out, tmp_path, *SMALL) for out in outs]
    said = "".join(process.communicate(timeout=200)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert said.count("Fitting the teacher") == 1
    one, other = map(result_of, outs)
    assert one["stages"]["teacher"]["path"] == other["stages"]["teacher"]["path"]
    assert metrics_of(one, "teacher") == metrics_of(other, "teacher")
    saved = [(out / "student" / "model.safetensors").read_bytes() for out in outs]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_interrupted_and_gone_on_with(smoke, call, cache, tmp_path, number):
    """Ctrl-C in the middle; the command it names ends as an undisturbed run does."""
    out, _ = smoke
    first = tmp_path / "first"
    process = start(first, cache, "experiment=smoke", "checkpoint_minutes=0")
    deadline = time.monotonic() + 120
    while not (first / "last.ckpt").is_file() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    saved = first / "last.ckpt"
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-2:] == [
        f"interrupted by {number.name}; saved {saved}",
        f"To resume, run the same command with ckpt_path={saved}",
    ]
    assert not (first / "result.json").exists()

    second = tmp_path / "second"
    code, _, stderr = call("experiment=smoke", f"hydra.run.dir={second}", f"ckpt_path={saved}")
    assert code == 0, stderr
    assert metrics_of(result_of(second)) == metrics_of(result_of(out))
    for file in ("metrics.csv", "sparsity.csv", "student/model.safetensors"):
        assert (out / file).read_bytes() == (second / file).read_bytes(), file


PRESS_AT_IMPORT = """
import runpy, signal, sys

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.meta_path.insert(0, Press())
module, script = sys.argv[1:3]
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(
    "module",
    ["torch", *(pytest.param(module, marks=pytest.mark.slow) for module in ("hydra", "datasets"))],
)
def test_interrupted_before_training(tmp_path, module):
    """Importing, composing, loading: one line, wherever it comes."""
    words = [module, str(SCRIPT), *SMALL, f"hydra.run.dir={tmp_path}", f"cache_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", PRESS_AT_IMPORT, *words],
        env=os.environ | {"PYTHONWARNINGS": "ignore"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "interrupted by SIGINT\n"


def test_interrupted_where_lightning_ends_it(call, tmp_path, monkeypatch):
    """The same line where Lightning would leave it at exit code 1, as in an evaluation."""
    # Lightning takes it away, and a background job ignores it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    validate = DistillModule.validation_step

    def press(module, *args):
        if module.trainer.state.fn == "validate":
            signal.raise_signal(signal.SIGINT)
        validate(module, *args)

    monkeypatch.setattr(DistillModule, "validation_step", press)
    try:
        code, _, stderr = call(*SMALL, f"hydra.run.dir={tmp_path}", "seed=9")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert code == 128 + signal.SIGINT
    assert stderr.splitlines()[-1] == "interrupted by SIGINT"
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"


def test_mixed_precision(call, tmp_path):
    code, _, stderr = call(
        *SMALL,
        f"hydra.run.dir={tmp_path}",
        "trainer.precision=bf16-mixed",
        "trainer.max_epochs=1",
        "sparsity.updates=2",
    )
    assert code == 0, stderr
    assert result_of(tmp_path)["stages"]["student"]["sparsity"] == pytest.approx(0.95, abs=1e-3)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows[-1].split(",")[0] == "2"


def test_a_layer_map_from_the_command_line(call, tmp_path):
    """A teacher of one layer, from another run, and a student of two."""
    maps = [
        f"distillation.terms.{term}.layer_map={{1:1,2:1}}"
        for term in ("hidden_states", "attention_scores")
    ]
    code, _, stderr = call(*SMALL, "model.path.layers=1", f"hydra.run.dir={tmp_path}/other")
    assert code == 0, stderr
    settings = (*SMALL, f"teacher.path={tmp_path}/other", f"hydra.run.dir={tmp_path}/mapped")
    code, _, stderr = call(*settings)
    assert code == 1
    assert "give a layer_map {student layer: teacher layer}" in refusal(stderr)
    code, _, stderr = call(*settings, *maps)
    assert code == 0, stderr
    terms = result_of(tmp_path / "mapped")["config"]["distillation"]["terms"]
    assert terms["hidden_states"]["layer_map"] == {"1": 1, "2": 1}
    code, _, stderr = call(*settings, *maps, f"ckpt_path={tmp_path}/mapped")
    assert code == 0, stderr


def test_a_regression_is_evaluated_by_its_own_metrics(call, tmp_path):
    for split in ("train", "validation"):
        rows = [f"the {word} fox,{i / 8}" for i, word in enumerate("abcdefgh")]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "out").mkdir()
    overrides = (
        "task=base",
        "task.name=scores",
        f"task.path={tmp_path}",
        "task.text=[text]",
        "task/kind=regression",
        "task.metrics=[pearson,spearman]",
        "task.monitor=pearson",
        "trainer.max_epochs=2",
        "teacher.max_epochs=1",
    )
    code, _, stderr = call(*overrides, f"hydra.run.dir={tmp_path}/out")
    assert code == 0, stderr
    code, _, stderr = call(f"eval={tmp_path}/out", f"hydra.run.dir={tmp_path}/judged")
    assert code == 0, stderr
    found = json.loads((tmp_path / "judged/evaluation.json").read_text())["metrics"]
    assert found == metrics_of(result_of(tmp_path / "out"))


def test_overrides_on_both_sides_of_m(call, tmp_path):
    """argparse alone would print its usage."""
    folder = f"hydra.sweep.dir={tmp_path}"
    _, stdout, stderr = call(*SMALL, folder, "-m", "seed=1,2", "trainer.max_epochs=0")
    assert "unrecognized" not in stderr
    assert (stdout + stderr).count("trainer.max_epochs=0: expected a number above 0") >= 2
    assert len(list(tmp_path.glob("*-seed*"))) == 2


def test_flags_between_overrides(call, tmp_path):
    """A folder of one's own may be named anywhere in the command."""
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "own.yaml").write_text("momentum: 0.125\n")
    mine = str(tmp_path / "mine")
    command = ["experiment=smoke", "--config-dir", mine, "optimizer=own", "--cfg", "job", "seed=3"]
    code, stdout, stderr = call(*command)
    assert code == 0, stderr
    assert "momentum: 0.125" in stdout
    assert "seed: 3" in stdout
