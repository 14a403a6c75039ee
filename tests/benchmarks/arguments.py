"""Where the benchmarks lie, and the arguments of those on real data."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
CONF = FOLDER.parent / "conf"


def real(data, model, tmp_path):
    given = {"--data": data, "--model": model, "--work": tmp_path / "jobs"}
    return [word for pair in given.items() for word in pair] + ["--precision", "32-true"]
