"""What a rival is, and how the engines of several rivals are built for one model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kd_prune.inference.benchmark import Batch, Engine

INPUTS = ("input_ids", "attention_mask")
"""Inputs of a `Batch`, and so of every engine."""
MOST_LETTERS = 200


class Rival(Protocol):
    """A package that runs models, in one or several ways.

    Attributes:
        name: Name on the command line.
        packages: The modules that it cannot do without.
        install: What ``pip install`` is given for it, as typed in a shell.
        reads_zeros: Whether its speed depends on the zeros of a model.
    """

    name: str
    packages: tuple[str, ...]
    install: str
    reads_zeros: bool

    def engines(
        self, model: Any, work: Sequence[Batch], threads: int
    ) -> Iterator[tuple[str, Engine]]:
        """Build its engines, one after the other.

        Args:
            model: A transformers model in float32 and in eval mode; it does not change.
            work: Batches as they will be measured.
            threads: Threads of an engine.

        Yields:
            The name in tables, and a function of `INPUTS` whose result begins with the model's
            first output.

        Raises:
            Exception: Of any type; the engines so far are used.
        """


@dataclass(frozen=True)
class Failure:
    """An engine, or the rest of a rival's engines, that does not run a model.

    Attributes:
        name: The engine, or the rival.
        reason: Why, in one line.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        """Format one line."""
        return f"{self.name} is left out: {self.reason}"


def missing(rival: Rival) -> list[str]:
    """Return the modules that a rival needs and that cannot be imported."""
    return [name for name in rival.packages if importlib.util.find_spec(name) is None]


def installed(rivals: Iterable[Rival]) -> list[Rival]:
    """Return the rivals whose packages are all there."""
    return [rival for rival in rivals if not missing(rival)]


def build(
    rivals: Iterable[Rival],
    model: Any,
    work: Sequence[Batch],
    threads: int,
    started: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Engine], list[Failure]]:
    """Build the engines of some rivals and run each on the shortest and the longest batch.

    Args:
        rivals: The rivals, all installed.
        model: A transformers model in float32 and in eval mode; it does not change.
        work: Batches as they will be measured.
        threads: Threads of every engine.
        started: Called with a rival's name before its engines are built.

    Returns:
        Name → engine, and what failed.
    """
    engines: dict[str, Engine] = {}
    failures: list[Failure] = []
    for rival in rivals:
        started(rival.name)
        try:
            for name, engine in rival.engines(model, work, threads):
                reason = try_out(engine, work)
                if reason is None:
                    engines[name] = engine
                else:
                    failures.append(Failure(name, reason))
        except Exception as error:  # of any type: it is another project's code
            failures.append(Failure(rival.name, one_line(error)))
    return engines, failures


def try_out(engine: Engine, work: Sequence[Batch]) -> str | None:
    """Run an engine on the shortest and the longest batch; return why it fails, or None."""
    by_size = sorted(work, key=lambda batch: batch["input_ids"].numel())
    try:
        with torch.inference_mode():
            for batch in (by_size[0], by_size[-1]):
                output = engine(**batch)[0]
                if len(output) != len(batch["input_ids"]):
                    return f"it returns {len(output)} rows for {len(batch['input_ids'])}"
    except Exception as error:  # of any type: it is another project's code
        return one_line(error)
    return None


def one_line(error: Exception) -> str:
    """Describe an exception in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} …"
