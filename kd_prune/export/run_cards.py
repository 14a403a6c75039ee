"""Model cards of the students in a run folder."""

from __future__ import annotations

import json
from pathlib import Path

from kd_prune import atomic_io
from kd_prune.export.card import FILE, model_card
from kd_prune.export.card_facts import Facts
from kd_prune.results import RunResult


def write_cards(result: RunResult, run: Path) -> None:
    """Write README.md to the folder of a run's student and of every student at a milestone.

    Args:
        result: Result of the run.
        run: The run folder.

    Raises:
        OSError: A folder cannot be written to.
    """
    for student in (*result.milestones, result.student):
        folder = run / student.path
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        facts = Facts(
            form="student",
            architecture=config["architectures"][0],
            name=str(folder),
            results=[result],
            students=[student],
            counted=student,
            bytes=student.bytes or 0,
        )
        atomic_io.write(folder / FILE, model_card(facts))
