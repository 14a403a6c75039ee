"""``python train.py``: the smoke run, one line for whatever is wrong, interrupt and go on.

Importing takes longer than these runs, so the first two are processes of their own and the others
call the script in this one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd_prune.lit import DistillModule

from .script import SCRIPT, SMALL, metrics_of, start


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


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sparsity.final=95"], ["sparsity.final=95", "did you mean 0.95?"]),
        (
            ["sparsity.begin=0.8", "sparsity.end=0.5"],
            ["sparsity.begin=0.8: is not before end=0.5", "sparsity/ramp=one_shot"],
        ),
        (["sparsity.begin=0.01", "sparsity.end=0.02"], ["sparsity.begin=0.01", "more steps"]),
        (["sparsity.finl=0.9"], ["sparsity.finl", "no such key", "did you mean sparsity.final?"]),
        (["sparsity.final=most"], ["sparsity.final=most", "expected a number"]),
        (["sparsity=null"], ["sparsity=null", "name of an option", "sparsity.final=0"]),
        (["~sparsity", "experiment=smoke"], ["sparsity={'end': 0.5}", "choose one: sparsity="]),
        (["seed=-1"], ["seed=-1", "from 0 to 4294967295"]),
        (["teacher.max_epochs=0"], ["teacher.max_epochs=0", "above 0"]),
        (["student.min_retained=2"], ["student.min_retained=2", "0 to 1"]),
        (["checkpoint_minutes=-1"], ["error: checkpoint_minutes=-1", "from 0"]),
        (["trainer.max_epochs=0"], ["error: trainer.max_epochs=0", "above 0"]),
        (["trainer.max_steps=0"], ["error: trainer.max_steps=0", "above 0"]),
        (["trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches=0", "above 0"]),
        (["trainer.check_val_every_n_epoch=0"], ["check_val_every_n_epoch=0", "above 0"]),
        (
            ["trainer.devices=-7", "trainer.accelerator=cpu"],
            ["error: trainer.devices=-7: ", "`devices`", "> 0"],
        ),
        (
            ["+trainer.val_check_interval=50"],
            ["error: trainer.val_check_interval=50: an epoch of the teacher has 2 batches; lower"],
        ),
        (
            ["+trainer.val_check_interval=2", "teacher.batch_size=128"],
            ["error: trainer.val_check_interval=2: an epoch of the teacher has 1 batches"],
        ),
        (["trainer.max_epochs=-3"], ["error: trainer.max_epochs=-3: `max_epochs`"]),
        (
            ["sparsity.target=0.9"],
            [
                "sparsity.target: there is no such key in sparsity=sparsebert; there are ",
                "final, initial, begin, end",
            ],
        ),
        (
            ["sparsity.granularity.size=4"],
            ["there is no such key in sparsity/granularity=unstructured; there are path"],
        ),
        (["lr=1e-3"], ["lr: there is no such key; did you mean optimizer.lr?"]),
        (["budget=large"], ["error: budget=large: there is no such option; there are tiny"]),
        (["epochs=3"], ["did you mean trainer.max_epochs or teacher.max_epochs?"]),
        (["trainer.epochs=3"], ["did you mean trainer.max_epochs?"]),
        (["batch_size=3"], ["did you mean task.batch_size or teacher.batch_size?"]),
        (["trainer.limit_val_batches=3"], ["add it with a plus: +trainer.limit_val_batches=…"]),
        (["seeds=3"], ["did you mean seed?"]),
        (["nonsense=3"], ["there are eval, seed, ckpt_path"]),
        (["sparsity/critreion=magnitude"], ["did you mean sparsity/criterion?"]),
        (["trainer.precision=fp16"], ["error: trainer.precision=fp16: ", "bf16-mixed"]),
        (
            ["task=imdb"],
            [
                "error: task=imdb: ",
                "there are base, cola, corpus, corpus_words, mnli, ",
                "write conf/task/imdb.yaml",
            ],
        ),
        (["experiment=mine"], ["conf/experiment/mine.yaml, first line # @package _global_"]),
        (["task=mprc"], ["task=mprc: there is no such option; did you mean task=mrpc?"]),
        (["sparsity=0.9"], ["a level is sparsity.final=0.9"]),
        (["sparsity/criterion=foo"], ["sparsity/criterion=foo: ", "block_fisher, fisher"]),
        (
            ["optimizer@teacher.optimizer=foo"],
            ["optimizer=foo: there is no such option; there are adamw, constant"],
        ),
        (["model=/tmp/minilm"], ["or hub id is model=pretrained model.path=/tmp/minilm"]),
        (["model=owner/name"], ["or hub id is model=pretrained model.path=owner/name"]),
        (["task.label=nope"], ["task.label=nope", "no such column", "things, which, label"]),
        (
            ["task.path=/nowhere"],
            ["task.path=/nowhere: there is no such folder; pass the path of a folder"],
        ),
        (
            ["model=tiny", "model.path=/nowhere"],
            [
                "error: model.path=/nowhere: replaces model=tiny",
                "write model=pretrained model.path=",
            ],
        ),
        (["optimizer.lr=0"], ["optimizer.lr=0", "above 0"]),
        (["teacher.optimizer.lr=0"], ["error: teacher.optimizer.lr=0", "above 0"]),
        (["optimizer.schedule=wavy"], ["optimizer.schedule=wavy", "one of linear, cosine"]),
        (
            ["distillation.terms.soft_targets.weight=-1"],
            ["error: distillation.terms.soft_targets.weight=-1", "finite"],
        ),
        (
            ["distillation.terms.soft_targets.temperature=0"],
            ["error: distillation.terms.soft_targets.temperature=0", "above 0"],
        ),
        (
            ["distillation.terms.hidden_states.layer_map={1: 7}"],
            ["error: distillation.terms.hidden_states.layer_map={1: 7}", "correct the map"],
        ),
        (
            ["model.scope={_target_: kd_prune.pruning.Scope, include: [nope]}"],
            ["error: model.scope", "'nope'", "matches no parameter"],
        ),
        (
            ["sparsity.criterion=taylor"],
            ["sparsity.criterion=taylor: ", "sparsity/criterion=taylor"],
        ),
        (
            ["sparsity.criterion=mine.score"],
            ["of a module of yours it is {_target_: hydra.utils.get_method, path: mine.score}"],
        ),
        (["sparsity.ramp=fast"], ["sparsity.ramp=fast: ", " sparsity/ramp=fast"]),
        (["task.labels=[0,1]"], ["task.labels=[0, 1]: ", """'task.labels=["0","1"]'"""]),
        (["task.labels=[no,true]"], ["""'task.labels=["no","true"]'"""]),
        (
            ["task/kind=regression"],
            ["task.metrics=accuracy: does not suit", "[pearson,spearman] and task.monitor=pearson"],
        ),
        (["task.metrics=[f1]"], ["task.monitor=accuracy: not among", "set it to f1"]),
        (
            ["student.init=nothing"],
            ["error: student.init=nothing: not a local folder", "the stages are pretrained, teach"],
        ),
        (
            ["student.init=techer"],
            ["=techer: there is no such stage, folder or hub id", "did you mean teacher?"],
        ),
        (["sparsity.allocation.path=foo"], ["error: sparsity.allocation: ", "'foo'", "installed?"]),
        (["cache_dir=/dev/null/x"], ["error: cache_dir=/dev/null/x: no folder", "KD_PRUNE_CACHE"]),
        (["ckpt_path=/nowhere.ckpt"], ["ckpt_path=/nowhere.ckpt", "no such file"]),
        (
            ["sparsity/granularity=nm", "sparsity.final=0.9"],
            ["sparsity.granularity=NM(n=2, m=4): cannot prune"],
        ),
        (
            ["sparsity/allocation=global", "sparsity.allocation.ceiling=0.5"],
            ["sparsity.allocation.ceiling=0.5: ", "raise it"],
        ),
        (["+trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0", "above 0"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_before_any_work(call, tmp_path, overrides, says):
    code, stdout, stderr = call(
        *SMALL, f"hydra.run.dir={tmp_path / 'out'}", *overrides, cache=tmp_path / "cache"
    )
    assert code == 1
    assert refusal(stderr) == stderr.strip()
    assert all(part in refusal(stderr) for part in says), stderr
    assert stdout == ""
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model=pretrained"],
            "error: model.path: has no default value; add model.path=…",
        ),
        (
            ["model=pretrained", "model.path=/nowhere"],
            "error: model.path=/nowhere: there is no such folder; pass the path of a folder",
        ),
        (  # alone it means the same
            ["model.path=/nowhere"],
            "error: model.path=/nowhere: there is no such folder; pass the path of a folder",
        ),
    ],
    ids=["missing", "nowhere", "alone"],
)
def test_a_pretrained_model_is_named_by_its_path(call, tmp_path, overrides, says):
    code, _, stderr = call(f"hydra.run.dir={tmp_path}", *overrides)
    assert code == 1
    assert stderr.strip() == says


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optimizer.lr=1e30"], ["error: the student: ", "nothing was saved", " optimizer.lr"]),
        (
            ["optimizer.lr=1e30", "checkpoint_minutes=0"],
            ["error: the student: ", "out/last.ckpt, is from before", " optimizer.lr"],
        ),
        (
            ["teacher.optimizer.lr=1e30"],
            ["error: the teacher: ", "nothing was saved", " teacher.op"],
        ),
    ],
)
def test_a_loss_that_is_not_finite_is_one_line(call, tmp_path, overrides, says):
    out = tmp_path / "out"
    wild = ["trainer.gradient_clip_val=null", "task.path.train=256", *overrides]
    code, _, stderr = call(*SMALL, f"hydra.run.dir={out}", *wild)
    assert code == 1
    assert refusal(stderr) == stderr.strip()
    assert all(part in stderr for part in ("not finite", *says)), stderr
    assert (out / "last.ckpt").exists() == ("checkpoint_minutes=0" in overrides)
    assert not (out / "result.json").exists()


def refusal(stderr):
    """The last line, which says what was wrong."""
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), stderr
    return last


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


@pytest.mark.parametrize("many", [False, True])
def test_a_run_folder_that_cannot_be_made(call, tmp_path, many):
    (tmp_path / "file").touch()
    key = "hydra.sweep.dir" if many else "hydra.run.dir"
    code, _, stderr = call(*(["-m"] if many else []), *SMALL, f"{key}={tmp_path}/file/x")
    assert code == 1
    assert refusal(stderr) == stderr.strip()
    assert stderr.startswith(f"error: {key}: {tmp_path}/file")
    assert f"name another: {key}=<folder>" in stderr


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


def test_an_experiment_whose_file_does_not_say_that_it_is_global(call, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("optimizer: {lr: 1e-3}\n")
    code, _, stderr = call(
        "experiment=mine",
        f"hydra.searchpath=[file://{tmp_path}]",
        f"hydra.run.dir={tmp_path / 'out'}",
    )
    assert code == 1
    assert stderr.strip() == (
        "error: experiment=mine: its settings are not at the top level; let "
        "experiment/mine.yaml begin with the line # @package _global_"
    )


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (
            "defaults: [base]\nname: mine\npath: [unclosed\n",
            r"mine.yaml, line \d: no YAML",
        ),
        ("name: mine\npath: here\n", r"task=\{.*choose one: task=.*begin with defaults: \[base\]"),
        (
            "defaults: [base]\npath: here\ntext: [text]\n",
            r"task.name: has no default value",
        ),
    ],
)
def test_a_task_file_that_cannot_be(call, tmp_path, task, says):
    (tmp_path / "task").mkdir()
    (tmp_path / "task/mine.yaml").write_text(task)
    code, _, stderr = call("--config-dir", str(tmp_path), "task=mine")
    assert code == 1
    assert re.search(says, refusal(stderr)), stderr


@pytest.mark.parametrize(("kind", "given"), [("plain", "0.5"), ("many", "torch.ones(3)")])
def test_a_loss_of_ones_own_that_is_no_number(call, tmp_path, monkeypatch, kind, given):
    (tmp_path / f"no_number_{kind}.py").write_text(
        f"import torch\ndef loss(student, teacher, batch):\n    return {given}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    term = (
        "+distillation.terms.own={_target_: kd_prune.distillation.Custom, requires: [], "
        "weight: 1.0, "
        f"function: {{_target_: hydra.utils.get_method, path: no_number_{kind}.loss}}}}"
    )
    code, _, stderr = call(*SMALL, term, f"hydra.run.dir={tmp_path}/out")
    assert code == 1
    assert refusal(stderr).startswith("error: distillation.terms.own: gives "), stderr
    assert refusal(stderr).endswith("; expected a tensor of one number")


def test_a_python_without_the_packages_is_one_line():
    """With -S it sees none that are installed."""
    found = subprocess.run(
        [sys.executable, "-S", str(SCRIPT)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr == (
        f"error: {sys.executable} has no package hydra; "
        "run `make install`, then `. .venv/bin/activate`\n"
    )


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


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--final", "settings have no dashes, did you mean sparsity.final=…?"),
        ("--seed=3", "settings have no dashes, did you mean seed=…?"),
        ("--multi-run", "did you mean --multirun?"),
        ("--nonsense", "settings have no dashes: key=value"),
    ],
)
def test_unknown_flag_is_one_line(call, flag, hint):
    code, _, stderr = call("experiment=smoke", flag, "0.9")
    assert code == 1
    assert stderr == f"error: {flag.partition('=')[0]}: there is no such flag; {hint}\n"
