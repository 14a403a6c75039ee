"""``python train.py`` with something wrong: one line that names the setting, before any work."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .script import SCRIPT, SMALL, refusal


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
        (["sparsity=[1,2]"], ["sparsity=[1,2]: expected the name of an option"]),
        (["+trainr=1"], ["error: trainr: there is no such setting; did you mean trainer?"]),
        (["+trainer.max_time=5"], ["error: trainer.max_time=5: "]),
        (["lr=1e-3"], ["lr: there is no such key; did you mean optimizer.lr?"]),
        (["budget=large"], ["error: budget=large: there is no such option; there are tiny"]),
        (["epochs=3"], ["did you mean trainer.max_epochs or teacher.max_epochs?"]),
        (["trainer.epochs=3"], ["did you mean trainer.max_epochs?"]),
        (["batch_size=3"], ["did you mean task.batch_size or teacher.batch_size?"]),
        (["trainer.limit_val_batches=3"], ["add it with a plus: +trainer.limit_val_batches=…"]),
        (["seeds=3"], ["did you mean seed?"]),
        (
            ["sparsity=none", "sparsity.final=0.9"],
            ["sparsity.final: there is no such key: sparsity=none prunes nothing; choose another"],
        ),
        (["sparsity=rpp"], ["sparsity=rpp: needs the proximal step", "add callbacks=rpp"]),
        (["eval="], ['eval="": names no model']),
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


@pytest.mark.parametrize("many", [False, True])
def test_a_run_folder_that_cannot_be_made(call, tmp_path, many):
    (tmp_path / "file").touch()
    key = "hydra.sweep.dir" if many else "hydra.run.dir"
    code, _, stderr = call(*(["-m"] if many else []), *SMALL, f"{key}={tmp_path}/file/x")
    assert code == 1
    assert refusal(stderr) == stderr.strip()
    assert stderr.startswith(f"error: {key}: {tmp_path}/file")
    assert f"name another: {key}=<folder>" in stderr


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
