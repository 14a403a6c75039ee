"""``train.py`` as a person would start it, and a task that takes a second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.forked import ForkedProcess

SCRIPT = Path(__file__).parents[2] / "train.py"
SMALL = (
    "experiment=smoke",
    "task.path.train=128",
    "task.path.validation=32",
    "model.path.hidden_size=16",
    "model.path.heads=2",
    "student.min_retained=0",
    f"trainer.accelerator={os.environ['KD_PRUNE_TEST_ACCELERATOR']}",
)


def metrics_of(result: dict, stage: str = "student") -> dict[str, float]:
    """The metrics of one stage in the content of a ``result.json``."""
    return result["stages"][stage]["metrics"]


def start(out: Path, cache: Path, *overrides: str, **options) -> ForkedProcess:
    """A process in a folder of its own, as a person would start it, with the imports made."""
    command = [str(SCRIPT), *overrides, f"hydra.run.dir={out}"]
    return ForkedProcess(command, environment=environment(cache), folder=cache, **options)


def start_interpreter(out: Path, cache: Path, *overrides: str) -> subprocess.Popen[str]:
    """The same in a new interpreter: launchers' workers are started from one."""
    command = [sys.executable, str(SCRIPT), *overrides, f"hydra.run.dir={out}"]
    return subprocess.Popen(
        command,
        cwd=cache,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(cache: Path) -> dict[str, str]:
    """What the script finds in its environment."""
    return os.environ | {
        "KD_PRUNE_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def refusal(stderr: str) -> str:
    """The last line, which says what was wrong."""
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), stderr
    return last
