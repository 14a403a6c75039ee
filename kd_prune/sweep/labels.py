"""Labels: a run's method in a few words, and the title of a sweep."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kd_prune.config_utils import flatten
from kd_prune.sweep.differences import (
    Difference,
    differing_groups,
    find_differences,
    setting_text,
)
from kd_prune.sweep.schema import Run

MANY = 4
"""Tasks that a title lists."""
SHOWN = 3
"""Differences that a label shows, and settings that a title lists."""


def method_labels(runs: Sequence[Run]) -> list[str]:
    """Label every run by its distillation and by the settings that differ among runs of its task.

    ``sparsebert``, ``none``, ``sparsebert, sparsity=oneshot``, ``sparsebert, optimizer.lr=0.001``.
    A label shows at most three differences, the rarest ones, and ``+2 more`` for the others.
    Where two methods would get the same label, a short hash is added. Runs of several experiments
    are labelled by the experiment, and by what differs among its own runs: ``poster/pkd6``.

    Refused runs are labelled by themselves: their settings make no others differ.
    """
    by_task: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        by_task[run.task, run.refused].append(i)
    labels = [""] * len(runs)
    for indices in by_task.values():
        by_experiment: dict[str | None, list[int]] = defaultdict(list)
        for i in indices:
            by_experiment[runs[i].choices.get("experiment")].append(i)
        for experiment, members in by_experiment.items():
            chosen = [runs[i] for i in members]
            found = _labels(chosen)
            if experiment and len(by_experiment) > 1:
                found = _of_experiment(experiment, chosen, found)
            for i, label in zip(members, found, strict=True):
                labels[i] = label
    return labels


def _of_experiment(experiment: str, runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """Put an experiment's name before its runs' labels, or in the place of a common first part."""
    names = {distillation_name(run) for run in runs}
    if len(names) > 1:
        return [f"{experiment}, {label}" for label in labels]
    (common,) = names
    return [experiment + label.removeprefix(common) for label in labels]


def _labels(runs: Sequence[Run]) -> list[str]:
    """Label the runs of one task."""
    names = [distillation_name(run) for run in runs]
    methods = differing_settings(runs)
    counts = Counter(part for parts in methods for part in parts)
    labels = [
        ", ".join([name, *_shown(parts, counts)])
        for name, parts in zip(names, methods, strict=True)
    ]
    identities = [repr((name, parts)) for name, parts in zip(names, methods, strict=True)]
    known: dict[str, set[str]] = defaultdict(set)
    for label, identity in zip(labels, identities, strict=True):
        known[label].add(identity)
    return [
        label if len(known[label]) == 1 else f"{label} #{_digest(identity, known[label])}"
        for label, identity in zip(labels, identities, strict=True)
    ]


def _shown(parts: Sequence[Difference], counts: Mapping[Difference, int]) -> list[str]:
    """Choose the differences that a label shows: those that the fewest runs have."""
    if len(parts) <= SHOWN:
        return [str(part) for part in parts]
    rarest = sorted(range(len(parts)), key=lambda k: counts[parts[k]])[:SHOWN]
    shown = [str(parts[k]) for k in sorted(rarest)]
    shown[-1] += f" +{len(parts) - SHOWN} more"
    return shown


def _digest(text: str, others: Iterable[str]) -> str:
    """Hash a text, with as few digits as tell it from the others; four at least."""
    digests = {other: hashlib.sha256(other.encode()).hexdigest() for other in others}
    length = 4
    while len({digest[:length] for digest in digests.values()}) < len(digests):
        length += 1
    return digests[text][:length]


def distillation_name(run: Run) -> str:
    """Return the chosen option of the group `distillation`, or the names of the loss terms."""
    if name := run.choices.get("distillation"):
        return str(name)
    config = run.config.get("distillation")
    terms = config.get("terms") if isinstance(config, Mapping) else None
    return "+".join(map(str, terms)) if terms else "?"


def differing_settings(runs: Sequence[Run]) -> list[list[Difference]]:
    """List for each run the groups and settings that are not the same in all runs.

    Seed and target sparsity are left out. If runs chose different options of a group, a key of that
    group is listed only where it differs among runs of one option.
    """
    parts: list[list[Difference]] = [[] for _ in runs]
    for group in differing_groups(runs):
        for run, known in zip(runs, parts, strict=True):
            if run.config and group != "distillation":
                known.append(Difference(group, str(run.choices.get(group) or "?"), "option"))
    for known, found in zip(parts, find_differences(runs), strict=True):
        known += found
    # Students at 50 % from runs to 90 % and to 95 % have had different ramps.
    flat = [flatten(run.config) for run in runs]
    with_milestones = [i for i, values in enumerate(flat) if values.get("sparsity.milestones")]
    if len({flat[i].get("sparsity.final") for i in with_milestones}) > 1:
        for i in with_milestones:
            text = setting_text(flat[i].get("sparsity.final"))
            parts[i].append(Difference("sparsity.final", text))
    return parts


def sweep_title(runs: Sequence[Run]) -> str:
    """Return the title of a sweep: its name, or its tasks and the settings it varies.

    ``mrpc, stsb: sparsity 0.8–0.95, distillation, 3 seeds``. Failed runs do not count, unless
    there are no others.
    """
    runs = [run for run in runs if run.state != "failed"] or runs
    known = [run for run in runs if run.config]
    names = {
        sweep.get("name") for run in known if isinstance(sweep := run.config.get("sweep"), dict)
    }
    if len(names) == 1 and (name := names.pop()):
        return str(name)
    tasks = sorted({run.task for run in runs})
    keys = _differing_keys(known)
    settings = ", ".join(keys[:SHOWN])
    if (more := len(keys) - SHOWN) > 0:
        settings += f" and {more} more setting{'' if more == 1 else 's'}"
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    seed = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else ""
    swept = ", ".join(filter(None, [_range(run.target for run in runs), settings, seed]))
    listed = ", ".join(tasks) if len(tasks) <= MANY else f"{len(tasks)} tasks"
    return f"{listed}: {swept}" if swept else listed


def _differing_keys(runs: Sequence[Run]) -> list[str]:
    """List the groups and keys that differ among the runs, without seed and target sparsity."""
    groups = differing_groups(runs)
    # Another task brings other settings of the task along.
    inside = [*groups, "task"] if len({run.task for run in runs}) > 1 else groups
    keys = sorted({part.key for parts in find_differences(runs) for part in parts})
    outside = [k for k in keys if k.partition(".")[0] not in inside and k != "task.path"]
    return groups + outside


def _range(targets: Iterable[float | None]) -> str:
    known = sorted({t for t in targets if t is not None and 0 <= t <= 1})
    if not known:
        return ""
    return f"sparsity {known[0]:g}" + (f"–{known[-1]:g}" if len(known) > 1 else "")
