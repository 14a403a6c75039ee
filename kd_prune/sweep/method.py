"""Method: what tells a run apart from the others on its task, in few words."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kd_prune.dotted import flatten
from kd_prune.sweep.names import ANYWHERE, PLACES, plain_setting
from kd_prune.sweep.records import Run

# Settings of Lightning's that say what is shown or recorded on the way. (When is validated is none:
# a user's callback may stop early by it.)
OF_THE_SHOW = (
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "profiler",
)
# Shown in columns of their own, or without a say in what the student becomes.
ELSEWHERE = (
    "seed",
    "task.name",
    "task.eval_batch_size",
    "task.metrics",
    "sparsity.final",
    "sparsity.verbose",
    "student.min_retained",
    "eval",
    *(f"trainer.{name}" for name in OF_THE_SHOW),
    *PLACES,
)
# Hydra's groups whose option says what its keys are, unless a command changed them.
GROUPS = ("sparsity", "distillation", "optimizer", "model", "trainer")


def methods(runs: Sequence[Run]) -> list[str]:
    """A label for every run: its distillation, then whatever differs among runs of its task.

    ``sparsebert``, ``none``, ``sparsebert, sparsity=oneshot``, ``sparsebert, optimizer.lr=0.001``.
    """
    by_task: dict[str, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        by_task[run.task].append(i)
    labels = [""] * len(runs)
    for places in by_task.values():
        parts = differences([runs[i] for i in places])
        for i, part in zip(places, parts, strict=True):
            labels[i] = ", ".join([distillation(runs[i]), *part])
    return labels


def distillation(run: Run) -> str:
    """Name of what the student learns from."""
    if name := run.choices.get("distillation"):
        return str(name)
    config = run.config.get("distillation")
    terms = config.get("terms") if isinstance(config, Mapping) else None
    return "+".join(map(str, terms)) if terms else "?"


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """For each run ``key=value`` of what is not the same in all, but for seed and target.

    A key of a group whose option differs is shown where it differs among runs of one option.
    """
    known = [i for i, run in enumerate(runs) if run.config]
    flat = [flatten(run.config) for run in runs]
    parts: list[list[str]] = [[] for _ in runs]
    differ = [g for g in GROUPS if len({runs[i].choices.get(g) for i in known}) > 1]
    for group in differ:
        for i in known if group != "distillation" else ():
            parts[i].append(f"{group}={runs[i].choices.get(group, '?')}")
    for key in sorted({key for values in flat for key in values if not _is_under(key, ELSEWHERE)}):
        alike: dict[str | None, list[int]] = defaultdict(list)
        group = key.partition(".")[0]
        for i in known:
            alike[runs[i].choices.get(group) if group in differ else None].append(i)
        for members in alike.values():
            # The same rows may lie elsewhere, on another machine.
            if key == "task.path" and len({runs[i].data for i in members} - {None}) < 2:
                continue
            values = {i: plain_setting(flat[i].get(key)) for i in members}
            own = {followed(runs[i], key, value) for i, value in values.items()}
            if len({repr(value) for value in values.values()}) > 1 and len(own) > 1:
                for i in members:
                    parts[i].append(f"{key}={text(flat[i].get(key))}")
    # Students at 50 % on the way to 90 % and on the way to 95 % had other ramps before them.
    on_the_way = [i for i in known if flat[i].get("sparsity.milestones")]
    if len({flat[i].get("sparsity.final") for i in on_the_way}) > 1:
        for i in on_the_way:
            parts[i].append(f"sparsity.final={flat[i].get('sparsity.final')}")
    return parts


def followed(run: Run, key: str, value: Any) -> str:
    """A value, with the run's seed and target where it says them: `initial: ${.final}` does.

    Numbers are these where pruning is set, and as a whole; text may hold them.

    >>> from pathlib import Path
    >>> run = Run(folder=Path(), state="finished", seed=3, config={"sparsity": {"final": 0.9}})
    >>> followed(run, "teacher.path", "seed3/at-0.9"), followed(run, "sparsity.initial", 0.9)
    ('seed{seed}/at-{final}', '{final}')
    >>> followed(run, "optimizer.lr", 0.9), followed(run, "sparsity.begin", 3e-1)
    ('0.9', '0.3')
    """
    said = text(value)
    if not isinstance(value, str):
        names = {text(run.target): "{final}", text(run.seed): "{seed}"}
        return names.get(said, said) if key.startswith("sparsity.") else said
    for name, known in (("final", run.target), ("seed", run.seed)):
        if known is not None:
            said = re.sub(rf"(?<![\d.]){re.escape(text(known))}(?![\d.])", f"{{{name}}}", said)
    return said


def text(value: Any) -> str:
    """A value as a configuration has it, not as Python does.

    >>> text(None), text(True), text(1e-3), text("a"), text([0.5, "a"])
    ('null', 'true', '0.001', 'a', '[0.5, "a"]')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _is_under(key: str, parents: Sequence[str]) -> bool:
    parts = key.split(".")
    return any(key == p or key.startswith(f"{p}.") for p in parents) or parts[-1] == ANYWHERE
