"""Python scripts in processes of their own, without seconds of imports in each.

A server process imports the large libraries once, but nothing of kd_prune. Every script then runs
in a fork of it: with its own arguments, environment, folder and outputs, and it can be sent
signals. Libraries that read the environment when they are imported see the server's; the number of
threads and the hub's being offline are the same in all tests, and `_run` sets Lightning's rank.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",
        "transformers.models.bert.modeling_bert",
        "transformers.models.auto.tokenization_auto",
        "lightning.pytorch",
        "lightning.pytorch.loggers",
        "torchmetrics.classification",
        "datasets",
        "pandas",
        "hydra._internal.utils",
        "matplotlib.pyplot",
        "plotly.graph_objects",
        "scipy.stats",
    ]
)


class ForkedProcess:
    """A script that runs in a fork, with the part of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        command: list[str],
        *,
        environment: Mapping[str, str],
        folder: str | Path | None = None,
        start_new_session: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start ``python <command>``.

        Args:
            command: A script and its arguments.
            environment: All of its environment.
            folder: Its current folder; None: this process's.
            start_new_session: Whether it leads a session and a process group of its own.
            before: Called in the new process before the script.
        """
        outputs = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, outputs, ignore_errors=True)
        self._files = [Path(outputs, name) for name in ("stdout", "stderr")]
        self._process = SERVER.Process(
            target=_run,
            args=(
                command,
                dict(environment),
                str(folder or Path.cwd()),
                list(map(str, self._files)),
                start_new_session,
                before,
            ),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code; None while the script runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the script has ended."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the script at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the script to end."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until the script ends; return what it wrote to stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: It runs longer than `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.is_alive():
            assert timeout is not None
            raise subprocess.TimeoutExpired("script", timeout)
        stdout, stderr = (file.read_text(errors="replace") for file in self._files)
        return stdout, stderr

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join()


def run_code(code: str, *arguments: str, **environment: str) -> tuple[int | None, str, str]:
    """Run code in a fork, with further variables of the environment.

    Returns:
        Exit code, stdout and stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(textwrap.dedent(code))
        command = [str(script), *arguments]
        process = ForkedProcess(command, environment={**os.environ, **environment})
        stdout, stderr = process.communicate(timeout=200)
    return process.returncode, stdout, stderr


def _run(
    command: list[str],
    environment: dict[str, str],
    folder: str,
    outputs: list[str],
    start_new_session: bool,
    before: Callable[[], None] | None,
) -> None:
    """Make this fork what a new interpreter would be, and run the script."""
    if start_new_session:
        os.setsid()
    sys.stdout.flush()
    for number, output in enumerate(outputs, start=1):
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    warnings.resetwarnings()
    warnings.simplefilter(environment.get("PYTHONWARNINGS", "default"))  # type: ignore[arg-type]
    _set_rank()
    if before is not None:
        before()
    runpy.run_path(command[0], run_name="__main__")


def _set_rank() -> None:
    """Set the rank that Lightning read from the server's environment when it was imported."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0
