"""Differences: the settings in which the configurations of some runs are not the same."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd_prune.sweep.run_id import CACHE_KEY, IGNORED_KEYS, normalized
from kd_prune.sweep.schema import Run

DISPLAY_KEYS = (
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "profiler",
)
"""Trainer settings that only change what is shown or logged. Settings of when to validate do
count: a user's callback may stop the training early by a validation metric."""
EXCLUDED_KEYS = (
    "seed",
    "task.name",
    "task.eval_batch_size",
    "task.metrics",
    "sparsity.final",
    "sparsity.verbose",
    "student.min_retained",
    "eval",
    *(f"trainer.{name}" for name in DISPLAY_KEYS),
    *IGNORED_KEYS,
)
"""Keys that are not part of a method: shown in separate columns, or without effect on the
student."""
GROUPS = ("sparsity", "distillation", "optimizer", "model", "trainer")
"""Groups of the configuration; the name of the chosen option stands for the group's keys."""
CLASS_KEY = "_target_"
"""Key by which a configuration names the class of a part."""


@dataclass(frozen=True)
class Difference:
    """A setting of one run that is not the same in all compared runs.

    Attributes:
        key: Dotted key.
        value: Value as the configuration writes it; a short name for a group of settings.
        kind: What the value is: ``value``, ``group``, ``class``, ``parts`` or ``option``; a text
            may read like the name of a class.
        whole: Value without abbreviation.
    """

    key: str
    value: str
    kind: str = "value"
    whole: str = ""

    def __str__(self) -> str:
        """Write ``key=value``."""
        return f"{self.key}={self.value}"


def differing_groups(runs: Sequence[Run]) -> list[str]:
    """List the groups of the configuration in which the runs chose different options."""
    known = [run for run in runs if run.config]
    return [g for g in GROUPS if len({run.choices.get(g) for run in known}) > 1]


def find_differences(runs: Sequence[Run]) -> list[list[Difference]]:
    """List for each run the settings that are not the same in all runs, in the order of their keys.

    Seed and target sparsity are left out. Settings are compared only among runs that have the same
    parent: the same option of a group, the same class (``_target_``), and the same part at all
    (``stages.base``). A part that other runs lack is one difference, ``stages=base``; a setting
    that a run lacks is no difference of that run.
    """
    known = [i for i, run in enumerate(runs) if run.config]
    search = _Search(runs, differing_groups(runs))
    search.compare("", {i: runs[i].config for i in known})
    return search.found


class _Search:
    def __init__(self, runs: Sequence[Run], groups: Sequence[str]) -> None:
        self.runs = runs
        self.groups = groups
        self.found: list[list[Difference]] = [[] for _ in runs]

    def compare(self, parent: str, nodes: Mapping[int, Mapping[str, Any]]) -> None:
        """Compare the settings below `parent`; `nodes`: number of the run → its settings there."""
        prefix = f"{parent}." if parent else ""
        names = sorted({name for node in nodes.values() for name in node}, key=str)
        keys = {name: f"{prefix}{name}" for name in names if name != CLASS_KEY}
        keys = {name: key for name, key in keys.items() if not is_excluded(key)}
        self._add_parts(parent, list(keys), nodes)
        for name, key in keys.items():
            for members in self._comparable(key, list(nodes)):
                present = {i: nodes[i][name] for i in members if name in nodes[i]}
                if not parent and any(map(_is_part, present.values())):
                    # At the top level, a group that is missing is the same as an empty one.
                    present = {i: nodes[i].get(name, {}) for i in members}
                self._compare_values(key, present, lacking=len(present) < len(members))

    def _comparable(self, key: str, members: Sequence[int]) -> Iterator[list[int]]:
        """Split the runs by the option of the group `key`, if they chose different ones."""
        if key not in self.groups:
            yield list(members)
            return
        yield from _split(members, lambda i: self.runs[i].choices.get(key))

    def _add_parts(
        self, parent: str, names: Sequence[str], nodes: Mapping[int, Mapping[str, Any]]
    ) -> None:
        """Add ``parent=part+part`` for the parts that some of the runs lack."""
        if not parent:
            return
        some = [n for n in names if len({_is_part(node.get(n)) for node in nodes.values()}) > 1]
        # A plain value in place of the part is a difference in that setting.
        some = [
            n for n in some if all(n not in node or _is_part(node[n]) for node in nodes.values())
        ]
        for i, node in nodes.items():
            if parts := [str(n) for n in some if n in node]:
                self.found[i].append(_difference(parent, "+".join(parts), "parts"))

    def _compare_values(self, key: str, present: Mapping[int, Any], *, lacking: bool) -> None:
        groups = {i: value for i, value in present.items() if isinstance(value, Mapping)}
        values = {i: value for i, value in present.items() if i not in groups}
        if values and (lacking or groups or self._differ(key, values)):
            # The same rows may have another path on another machine.
            data = {self.runs[i].data for i in values} - {None}
            if key != "task.path" or groups or len(data) > 1:
                for i, text in self._texts(key, values).items():
                    self.found[i].append(_difference(key, text, "value"))
        for members in (classes := list(_split(list(groups), lambda i: _class_of(groups[i])))):
            for i in members if values or len(classes) > 1 else ():
                self.found[i].append(_group_difference(key, groups[i]))
            self.compare(key, {i: groups[i] for i in members})

    def _texts(self, key: str, values: Mapping[int, Any]) -> dict[int, str]:
        """Return the values as text, one text for those that follow their run's seed or target."""
        plain = {i: setting_text(value) for i, value in values.items()}
        masked = self._with_placeholders(key, values)
        alike: dict[str, set[str]] = defaultdict(set)
        for i, text in masked.items():
            alike[text].add(plain[i])
        return {i: masked[i] if len(alike[masked[i]]) > 1 else plain[i] for i in values}

    def _differ(self, key: str, values: Mapping[int, Any]) -> bool:
        """Return whether values differ by more than the seeds and targets of their runs do."""
        plain = {repr(normalized(value)) for value in values.values()}
        return len(plain) > 1 and len(set(self._with_placeholders(key, values).values())) > 1

    def _with_placeholders(self, key: str, values: Mapping[int, Any]) -> dict[int, str]:
        """Return the values as text, with placeholders for the seed and target of their runs.

        A value that another run has too, whose seed and target are others, follows neither: in a
        grid of ``sparsity.updates=1,2`` and ``seed=1,2`` some updates only happen to be the seed.
        """
        plain = {i: normalized(value) for i, value in values.items()}
        masked = {i: mask_seed_and_target(self.runs[i], key, value) for i, value in plain.items()}
        texts = {i: setting_text(value) for i, value in plain.items()}
        independent = {texts[i] for i in texts if masked[i] == texts[i]}
        return {i: text if text in independent else masked[i] for i, text in texts.items()}


def _split(members: Sequence[int], by: Callable[[int], Hashable]) -> Iterator[list[int]]:
    found: dict[Hashable, list[int]] = defaultdict(list)
    for i in members:
        found[by(i)].append(i)
    yield from found.values()


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _class_of(group: Mapping[str, Any]) -> str:
    return str(group.get(CLASS_KEY) or "")


def _group_difference(key: str, group: Mapping[str, Any]) -> Difference:
    """Name a group of settings by its class, or else by the settings themselves."""
    if name := _class_of(group):
        return Difference(key, name.rpartition(".")[2], "class", name)
    return _difference(key, setting_text(group).replace('"', ""), "group")


def _difference(key: str, whole: str, kind: str) -> Difference:
    return Difference(key, shorten(whole), kind, whole)


def shorten(text: str, length: int = 40) -> str:
    """Leave out the middle of a long text.

    >>> shorten("a short one"), shorten("/home/somebody/models/bert", 15)
    ('a short one', '/home/s…ls/bert')
    """
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[-end:]}"


def mask_seed_and_target(run: Run, key: str, value: Any) -> str:
    """Replace the run's seed and target sparsity in a value by placeholders.

    Settings such as `initial: ${.final}` differ among runs only because the target does. Numbers
    are replaced among the settings of pruning, if equal; text is replaced where it contains them.

    >>> from pathlib import Path
    >>> from kd_prune.results import Status
    >>> status = Status(state="finished", seed=3, config={"sparsity": {"final": 0.9}})
    >>> run = Run(folder=Path(), state="finished", status=status)
    >>> mask_seed_and_target(run, "teacher.path", "seed3/at-0.9")
    'seed{seed}/at-{final}'
    >>> mask_seed_and_target(run, "sparsity.initial", 0.9)
    '{final}'
    >>> mask_seed_and_target(run, "optimizer.lr", 0.9)
    '0.9'
    """
    masked = setting_text(value)
    if not isinstance(value, str):
        names = {setting_text(run.target): "{final}", setting_text(run.seed): "{seed}"}
        return names.get(masked, masked) if key.startswith("sparsity.") else masked
    for name, known in (("final", run.target), ("seed", run.seed)):
        if known is not None:
            number = re.escape(setting_text(known))
            masked = re.sub(rf"(?<![\d.]){number}(?![\d.])", f"{{{name}}}", masked)
    return masked


def setting_text(value: Any) -> str:
    """Write a value as a configuration does.

    >>> [setting_text(value) for value in (None, True, 1e-3, "a", [0.5, "a"])]
    ['null', 'true', '0.001', 'a', '[0.5, "a"]']
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def is_excluded(key: str) -> bool:
    """Return whether a key is not part of a method."""
    under = any(key == parent or key.startswith(f"{parent}.") for parent in EXCLUDED_KEYS)
    return under or key.rpartition(".")[2] == CACHE_KEY
