"""Stand-ins for Slurm's commands, ``slurm.py <command> …``: jobs run here, as on one node.

Only what submitit asks for: job arrays, the state of a job, and another turn for one that is
requeued. A job's state and process lie in ``$FAKE_SLURM/<job>_<task>``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HOME = Path(os.environ.get("FAKE_SLURM", "."))
NODE = {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
RANK = {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def sbatch(*arguments: str) -> None:
    """Start an array in the background and say its number."""
    job = str(os.getpid())
    command = [sys.executable, __file__, "array", job, arguments[-1]]
    nowhere = subprocess.DEVNULL  # who called waits until nobody can write to it any more
    subprocess.Popen(command, start_new_session=True, stdout=nowhere, stderr=nowhere)
    print("Submitted batch job", job)


def array(job: str, script: str) -> None:
    """All tasks of an array, as many at a time as it says."""
    (HOME / f"array-{job}").write_text(str(os.getpid()))  # a session of its own: to end them all by
    found = re.search(r"--array=(\d+)-(\d+)%(\d+)", Path(script).read_text())
    assert found, "not an array"
    first, last, at_once = map(int, found.groups())
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda task: run(job, task, script), range(first, last + 1)))


def run(job: str, task: int, script: str) -> None:
    """One task, again as long as it is requeued."""
    folder = HOME / f"{job}_{task}"
    folder.mkdir()
    numbers = {"SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)}
    (folder / "requeue").touch()
    while (folder / "requeue").exists():
        (folder / "requeue").unlink()
        (folder / "state").write_text("RUNNING")
        done = subprocess.run(["bash", script], env=os.environ | NODE | RANK | numbers)
    (folder / "state").write_text("FAILED" if done.returncode else "COMPLETED")


def srun(*arguments: str) -> None:
    """The command in this process, its output where the options before it say."""
    job, task = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    (HOME / f"{job}_{task}" / "pid").write_text(str(os.getpid()))
    parser = argparse.ArgumentParser()
    parser.add_argument("--unbuffered", action="store_true")
    parser.add_argument("--output")
    parser.add_argument("--error")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    for path, stream in ((asked.output, 1), (asked.error, 2)):
        path = path.replace("%A", job).replace("%a", task).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    command = [part.replace("%j", f"{job}_{task}") for part in asked.command]
    os.execvp(command[0], command)  # noqa: S606


def sacct(*arguments: str) -> None:
    """State of every job."""
    print("JobID|State|NodeList")
    for state in sorted(HOME.glob("*/state")):
        print(f"{state.parent.name}|{state.read_text()}|localhost")


def scontrol(*arguments: str) -> None:
    """Another turn for a job; names of nodes."""
    if arguments[0] == "requeue":
        (HOME / arguments[1] / "requeue").touch()
    else:
        print("localhost")


if __name__ == "__main__":
    COMMANDS = {f.__name__: f for f in (sbatch, array, srun, sacct, scontrol)}
    COMMANDS[sys.argv[1]](*sys.argv[2:])
