"""A job on two machines, both of them here: every process is started as on its own machine."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.processes import LAUNCHERS, finish, start

from .script import SCRIPT, SMALL


def job_on(launcher, nodes, per_node, cache, out, *overrides):
    """The processes of a job, in the order of their ranks."""
    environments = LAUNCHERS[launcher](nodes, per_node)
    command = (
        SCRIPT, *SMALL, "trainer=nodes", f"trainer.num_nodes={nodes}",
        f"trainer.devices={per_node}", f"cache_dir={cache}", f"hydra.run.dir={out}", *overrides,
    )  # fmt: skip
    # Sessions of their own, to end a process together with those that it starts.
    return start(environments, *command, folder=cache, start_new_session=True)


@pytest.mark.parametrize(
    ("launcher", "per_node"),
    [
        ("torchrun", 1),
        *(pytest.param(launcher, 2, marks=pytest.mark.slow) for launcher in LAUNCHERS),
    ],
)
def test_job_on_two_machines(tmp_path, launcher, per_node):
    """The first process fits the teacher and reports; all of them fit the student."""
    cache, out = tmp_path / "cache", tmp_path / "run"
    cache.mkdir()
    first, *others = finish(job_on(launcher, 2, per_node, cache, out))
    assert first.count("Fitting the teacher on tiny") == 1
    assert "Results: " in first
    assert [output for output in others if output.strip()] == []
    result = json.loads((out / "result.json").read_text())
    assert result["stages"]["student"]["sparsity"] == pytest.approx(0.95, abs=1e-3)
    assert len(list((cache / "stages").glob("*/stage.json"))) == 1
    AutoModelForSequenceClassification.from_pretrained(out / "student")
    with (out / "metrics.csv").open() as file:
        steps = int(list(csv.DictReader(file))[-1]["step"])
    batches = math.ceil(128 / result["config"]["task"]["batch_size"])
    assert steps == 5 * math.ceil(batches / (2 * per_node))  # of five epochs


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("per_node", [1, 2])
def test_killed_machine_and_the_same_command_again_is_as_undisturbed(tmp_path, per_node):
    """Bit by bit with two processes; sums of more depend on DDP's buckets, which it makes anew."""
    cache = tmp_path / "cache"
    cache.mkdir()
    job = ("torchrun", 2, per_node, cache)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(job_on(*job, undisturbed, "trainer.max_epochs=40"))

    processes = job_on(*job, killed, "trainer.max_epochs=40")
    deadline = time.monotonic() + 240
    while not (killed / "last.ckpt").is_file():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for process in processes[per_node:]:
        os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=120)  # the other machine notices
        assert process.returncode != 0
    assert not (killed / "result.json").exists()

    first, *_ = finish(job_on(*job, killed, "trainer.max_epochs=40"))
    assert "Resuming after step" in first
    found, expected = (
        load_file(out / "student" / "model.safetensors") for out in (killed, undisturbed)
    )
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name] == 0, weight == 0), name
        close = torch.equal if per_node == 1 else partial(torch.allclose, rtol=1e-3, atol=1e-5)
        assert close(found[name], weight), name


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["hydra.run.dir={out}"], "trainer.num_nodes=2: nothing says which machine this is"),
        ([], "hydra.run.dir: each process would make a folder of its own"),
        (["-m", "seed=1,2"], "trainer.num_nodes=2: each job of a sweep takes one machine"),
    ],
)
def test_job_on_machines_that_cannot_work_is_refused(call, tmp_path, monkeypatch, overrides, says):
    monkeypatch.chdir(tmp_path)  # where folders named by the time go
    overrides = [override.format(out=tmp_path / "run") for override in overrides]
    code, stdout, stderr = call(*SMALL, "trainer=nodes", "trainer.devices=1", *overrides)
    assert code == 1
    assert says in stdout + stderr  # a sweep logs it, job by job
