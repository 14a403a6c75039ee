"""Model cards of the students in a run folder, and what they need to know while it is made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_prune import atomic_io
from kd_prune.export.card import FILE, model_card
from kd_prune.export.card_facts import Facts
from kd_prune.results import RunResult

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


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


def hub_ids(config: Mapping[str, Any]) -> dict[str, str]:
    """Return ``model.path`` and ``task.path`` of a configuration where they are ids of the Hub.

    Which is which can only be told in the folder where the run's paths are valid.
    """
    found = {}
    for group in ("model", "task"):
        settings = config.get(group)
        if isinstance(settings, Mapping) and (known := hub_id(settings.get("path"))):
            found[f"{group}.path"] = known
    return found


def hub_id(path: Any) -> str | None:
    """Return a path if it is an id of the Hub and no folder.

    >>> hub_id("google-bert/bert-base-uncased"), hub_id("/data/mrpc"), hub_id({"_target_": "f"})
    ('google-bert/bert-base-uncased', None, None)
    """
    if not isinstance(path, str) or not HUB_ID.fullmatch(path) or Path(path).exists():
        return None
    return path
