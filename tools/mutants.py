"""Run mutation tests, which show whether the tests notice faults in the code: ``make mutants``.

Each mutant is a copy of the project with one fault in one function, and the tests that must fail.
The command fails if a mutant survives, or if its place in the code is not found.

    python tools/mutants.py [words of names …]     run the mutants whose name contains a word
    python tools/mutants.py --check                only look every place up
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from mutant_list import MUTANTS
from mutation import Mutant, check_places

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300
"""Seconds for the tests of a mutant; the slowest need a third of it on one idle core."""


def tests_pass(folder: Path, tests: str) -> bool:
    """Run tests on a copy of the project; end with an error if they take longer than `TIMEOUT`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", *tests.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        sys.exit(f"{tests}: not finished after {TIMEOUT} s; try again on an idle machine")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that the tests started too
        process.wait()
    if process.returncode not in (0, 1):  # 1: tests ran, and some failed
        sys.exit(f"{tests}: pytest could not run\n{printed[-2000:]}")
    return process.returncode == 0


def is_killed(mutant: Mutant, folder: Path) -> bool:
    """Return whether the tests fail on a copy of the project with this fault."""
    path, source = mutant.mutate(folder / "kd_prune")
    before = path.read_text()
    path.write_text(source)
    try:
        return not tests_pass(folder, mutant.tests)
    finally:
        path.write_text(before)


def main() -> None:
    """Run the mutants, all or those whose name contains one of the words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run mutants whose name contains one of these")
    parser.add_argument("--check", action="store_true", help="only look every place up")
    given = parser.parse_args()
    wanted = [m for m in MUTANTS if not given.words or any(w in m.name for w in given.words)]
    if problems := check_places(wanted, ROOT):
        sys.exit("\n".join(problems))
    if given.check:
        return
    survivors = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("kd_prune", "hydra_plugins", "tests", "conf"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("pyproject.toml", "train.py", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        # Tests that fail without a fault cannot detect one.
        for tests in dict.fromkeys(mutant.tests for mutant in wanted):
            if not tests_pass(folder, tests):
                sys.exit(f"{tests}: fails without any fault")
        for number, mutant in enumerate(wanted, 1):
            killed = is_killed(mutant, folder)
            survivors += [] if killed else [mutant.name]
            verdict = "killed" if killed else "SURVIVED"
            print(f"{number:2}/{len(wanted)} {verdict:8} {mutant.name}", flush=True)
    if survivors:
        sys.exit(f"the tests did not notice: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
