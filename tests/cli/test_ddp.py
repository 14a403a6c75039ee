"""A sweep whose jobs take two processes each: the trap is what one job leaves to the next."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from contextlib import nullcontext

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from transformers import AutoModelForSequenceClassification

from kd_prune import pipeline
from kd_prune.cli import train
from kd_prune.cli.locations import CONF

from .script import SMALL, start

DDP = (*SMALL, "trainer=ddp", "trainer.devices=2")


def states(sweep):
    found = [json.loads(file.read_text()) for file in sweep.glob("*/status.json")]
    return sorted((status["state"], status["config"]["optimizer"]["lr"]) for status in found)


@pytest.mark.slow
def test_a_sweep_of_jobs_with_two_processes_each(cache, tmp_path):
    """The second job diverges; the third goes its way, with processes of its own."""
    sweep = tmp_path / "sweep"
    command = ("-m", *DDP, "optimizer.lr=1e-3,1e30,2e-3", f"hydra.sweep.dir={sweep}")
    process = start(tmp_path / "unused", cache, *command)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr  # one failed
    assert states(sweep) == [("failed", 1e30), ("finished", 1e-3), ("finished", 2e-3)]
    for folder in sweep.glob("*/"):
        if not (folder / "result.json").is_file():
            continue
        result = json.loads((folder / "result.json").read_text())
        assert result["stages"]["student"]["sparsity"] == pytest.approx(0.95, abs=1e-3)
        AutoModelForSequenceClassification.from_pretrained(folder / "student")
        with (folder / "metrics.csv").open() as file:
            steps = [int(row["step"]) for row in csv.DictReader(file)]
        # 128 rows in batches of 32, five epochs: two batches an epoch for each of two processes.
        batch, epochs = (
            result["config"][k][n] for k, n in (("task", "batch_size"), ("trainer", "max_epochs"))
        )
        assert steps[-1] == epochs * 128 // batch // 2
        assert (folder / "train_ddp_process_1.log").is_file()  # the second process was in here too
    assert not (tmp_path / "unused").exists()
    with (sweep / "summary.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the first process", "the group"])
def test_interrupted_in_two_processes(cache, tmp_path, whom):
    """Both stop at the same step, whoever got the signal, and the same command goes on."""
    sweep = tmp_path / "sweep"
    command = ("-m", *DDP, "trainer.max_epochs=60", f"hydra.sweep.dir={sweep}")
    process = start(tmp_path / "unused", cache, *command, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(sweep.glob("*/last.ckpt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if whom == "the group":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM), stderr
    assert "run the same command again" in stderr
    assert [state for state, _ in states(sweep)] == ["interrupted"]

    process = start(tmp_path / "unused", cache, *command)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert stdout.count("Resuming after step") == 1  # of two processes, one speaks
    assert [state for state, _ in states(sweep)] == ["finished"]


def test_checkpoint_of_a_sweeps_job_is_quoted_for_the_other_processes(monkeypatch, tmp_path):
    repeated = []
    monkeypatch.setattr(pipeline, "run", lambda job: None)
    monkeypatch.setattr(train, "check_command", lambda config: None)
    monkeypatch.setattr(
        train.launch,
        "repeatable_command",
        lambda out, overrides: repeated.extend(overrides) or nullcontext(),
    )
    checkpoint = str(tmp_path / "seed=1, (b)" / "last.ckpt")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train.run_job(compose("train"), tmp_path, checkpoint)
    (override,) = OverridesParser.create().parse_overrides(repeated)
    assert override.value() == checkpoint
