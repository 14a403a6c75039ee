"""Models and data by hub id: the hub's own client libraries, against a hub on this machine."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd_prune.cli.quiet import HubRetryFilter
from kd_prune.hf.tiny import make_model

from .hub import serving
from .script import SCRIPT, metrics_of

CARD = """---
configs:
- config_name: mrpc
  data_files: [{split: train, path: mrpc/train-*}, {split: validation, path: mrpc/validation-*}]
- config_name: stsb
  data_files: [{split: train, path: stsb/train-*}, {split: validation, path: stsb/validation-*}]
dataset_info:
- config_name: mrpc
  features:
  - {name: sentence1, dtype: string}
  - {name: sentence2, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': not_equivalent, '1': equivalent}}}
---
"""
README = (SCRIPT.parent / "README.md").read_text()
ON_REAL_TASKS = re.findall(r"^kd-prune train (.*task=mrpc.*)$", README, flags=re.MULTILINE)
SMALL = ("task.batch_size=16", "trainer.max_epochs=1", "teacher.max_epochs=1", "sparsity.updates=2")


def test_that_the_hub_does_not_answer_is_said_once(caplog):
    there = logging.getLogger("hub")
    there.addFilter(HubRetryFilter())
    for wait in (1, 2):
        there.warning(f"'[Errno -2] no name' thrown while requesting HEAD {wait}")
        there.warning(f"Retrying in {wait}s [Retry {wait}/5].")
    there.warning("Something else")
    assert caplog.messages == [
        "The hub does not answer; trying again for up to a minute", "Something else",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with a tiny model under MiniLM's id, and GLUE's layout with rows of our own."""
    root = tmp_path_factory.mktemp("hub")
    model = make_model(str(root / "made"), layers=2, hidden_size=16, heads=2)
    shutil.copytree(model, root / "models/sentence-transformers/all-MiniLM-L6-v2")
    glue = root / "datasets/nyu-mll/glue"
    for task in ("mrpc", "stsb"):
        (glue / task).mkdir(parents=True)
    (glue / "README.md").write_text(CARD)
    draw = random.Random(0)  # noqa: S311
    for split, count in (("train", 64), ("validation", 16)):
        first, second = (
            [" ".join(draw.choices("abcdefgh", k=5)) for _ in range(count)] for _ in "12"
        )
        rows = {"sentence1": first, "sentence2": second}
        for task, kind in (("mrpc", pa.int64()), ("stsb", pa.float32())):
            table = pa.table(rows | {"label": pa.array([i % 2 for i in range(count)], kind)})
            pq.write_table(table, glue / task / f"{split}-00000-of-00001.parquet")
    with serving(root) as (address, asked):
        yield address, asked


@pytest.fixture(scope="module")
def call(hub, tmp_path_factory):
    """``train.py`` on a machine that has never asked this hub for anything."""
    home = tmp_path_factory.mktemp("home")

    def run(*words, offline="0"):
        # A cache or a token of whoever runs the tests has no business here.
        theirs = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "HUB_")
        clean = {name: v for name, v in os.environ.items() if not name.startswith(theirs)}
        environment = clean | {
            "HF_ENDPOINT": hub[0],
            "HF_HUB_OFFLINE": offline,
            "HF_HOME": str(home),
            "KD_PRUNE_CACHE": str(home / "cache"),
            "PYTHONWARNINGS": "ignore",
            "no_proxy": "127.0.0.1",
        }
        accelerator = f"trainer.accelerator={os.environ['KD_PRUNE_TEST_ACCELERATOR']}"
        command = [sys.executable, str(SCRIPT), *words, *SMALL, accelerator]
        return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)

    return run


MRPC = ("task=mrpc", "model=minilm")


@pytest.mark.slow
def test_by_id_and_then_without_the_hub(call, hub, tmp_path):
    """What the README says first of real tasks."""
    (command,) = [command for command in ON_REAL_TASKS if not command.startswith("-m ")]
    assert set(MRPC) < set(command.split())
    online = call(*command.split(), f"hydra.run.dir={tmp_path}/online")
    assert online.returncode == 0, online.stderr
    asked = " ".join(hub[1])
    assert "all-MiniLM-L6-v2" in asked
    assert "mrpc/train-00000-of-00001.parquet" in asked
    before = len(hub[1])
    offline = call(*command.split(), f"hydra.run.dir={tmp_path}/offline", offline="1")
    assert offline.returncode == 0, offline.stderr
    assert len(hub[1]) == before
    results = [
        json.loads((tmp_path / n / "result.json").read_text()) for n in ("online", "offline")
    ]
    assert metrics_of(results[0]) == metrics_of(results[1])
    assert results[0]["config"]["task"]["path"] == "nyu-mll/glue"


@pytest.mark.slow
def test_the_sweep_of_the_readme(call, tmp_path):
    (command,) = [command for command in ON_REAL_TASKS if command.startswith("-m ")]
    found = call(*command.split(), f"hydra.sweep.dir={tmp_path}/out")
    assert found.returncode == 0, found.stderr
    results = [json.loads(file.read_text()) for file in tmp_path.glob("out/*/result.json")]
    assert len(results) == math.prod(word.count(",") + 1 for word in command.split())
    for result in results:
        asked = result["config"]["sparsity"]["final"]
        assert result["stages"]["student"]["sparsity"] == pytest.approx(asked, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model.path", "task.path"])
def test_what_the_hub_does_not_have_is_one_line(call, tmp_path, key):
    found = call(*MRPC, f"{key}=nobody/nothing", f"hydra.run.dir={tmp_path}")
    assert found.returncode == 1
    line = found.stderr.strip().splitlines()[-1]
    assert f"error: {key}=nobody/nothing" in line
    assert "pass the path of a folder" in line
