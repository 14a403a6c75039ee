"""The sentences that ``kd-prune bench`` measures with: tokens, and where they come from."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kd_prune.cli.predict import choose_columns, texts_of
from kd_prune.errors import ConfigError
from kd_prune.export.source import Source
from kd_prune.hf import Task, max_positions
from kd_prune.hf.prediction import longest_input
from kd_prune.hf.reading import MissingSplitError, read_split
from kd_prune.hf.rows import read_rows
from kd_prune.hf.tiny import make_task
from kd_prune.inference import benchmark

DEFAULT = 128
CACHE = "~/.cache/kd_prune"


@dataclass(frozen=True)
class Sentences:
    """Tokens of every sentence, and where they come from."""

    tokens: list[list[int]]
    origin: str

    def __str__(self) -> str:
        """Format one line."""
        lengths = [len(row) for row in self.tokens]
        shortest, longest = min(lengths), max(lengths)
        span = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        return f"{len(self.tokens)} sentences {self.origin}, {span} tokens"


def choose_sentences(
    source: Source, model: PreTrainedModel, options: argparse.Namespace
) -> Sentences:
    """Return what the options ask for: a file's rows, the task's, or random ones of one length.

    Args:
        source: Where the model comes from; it may know its task.
        model: The model.
        options: The command's ``length``, ``file``, ``text`` and ``sentences``.

    Raises:
        ConfigError: The model does not read so many tokens, or the file cannot be used, or both a
            length and a file are given.
    """
    if options.length and options.file is not None:
        expected = "the sentences of a file have lengths of their own"
        raise ConfigError("--length", options.length, expected, "give --length or --file")
    if options.length or (options.file is None and not source.task.get("path")):
        return fixed(source, model, options)
    tokenizer = source.tokenizer()
    longest = longest_input(model, tokenizer)
    if options.file is not None:
        rows = read_rows(options.file)
        if rows.empty:
            raise ConfigError("file", str(options.file), "there are no rows")
        columns = [texts_of(rows, name) for name in choose_columns(rows, options.text, source)]
        origin = f"of {options.file}"
    else:
        try:
            cache = Path(os.environ.get("KD_PRUNE_CACHE", CACHE)).expanduser()
            columns = task_texts(source.task, cache)
        except (ConfigError, OSError, TypeError) as error:
            print(f"the rows of its task cannot be read, so sentences are of one length: {error}")
            return fixed(source, model, options)
        longest = min(longest, int(source.task.get("max_length") or longest))
        origin = f"of the task {source.task['name']}"
    some = [spread(texts, options.sentences) for texts in columns]
    ids = tokenizer(*some, truncation=True, max_length=longest)["input_ids"]
    return Sentences([list(row) for row in ids], origin)


def fixed(source: Source, model: PreTrainedModel, options: argparse.Namespace) -> Sentences:
    """Return random sentences of the given length, or of 128 tokens where a model reads so many.

    Raises:
        ConfigError: The model does not read so many tokens.
    """
    longest = max_positions(model)
    if options.length and options.length > longest:
        raise ConfigError("--length", options.length, f"{source.path} reads {longest:g} tokens")
    lengths = [options.length or int(min(DEFAULT, longest))] * options.sentences
    rows = benchmark.random_sentences(lengths, int(model.config.vocab_size))
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):  # BART's head reads the state at a sentence's end
        rows = [[*row[:-1], end] for row in rows]
    return Sentences(rows, "of random words")


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Return `count` of the texts, evenly spaced; all, if there are not so many.

    >>> spread("abcdefg", 3)
    ['a', 'c', 'e']
    """
    count = min(count, len(texts))
    return [texts[i * len(texts) // count] for i in range(count)]


def task_texts(recorded: Mapping[str, Any], cache: Path) -> list[list[str]]:
    """Read the text columns of a task's first validation split, or of its training split.

    Args:
        recorded: The task as a run recorded it. A folder may come from an untrusted source, so
            nothing that it names is called.
        cache: Cache folder of this machine, not the one that the run recorded.

    Raises:
        ConfigError: The rows cannot be read.
    """
    known = ("name", "subset", "text", "files", "train", "validation")
    path = recorded["path"]
    if isinstance(path, Mapping):  # the embedded task, which is written to the cache
        path = make_task(str(cache))
    task = Task(path=path, **{key: recorded[key] for key in known if recorded.get(key)})
    try:
        rows = read_split(task, task.validation[0], cache)
    except MissingSplitError:
        rows = read_split(task, task.train, cache)
    missing = [name for name in task.text if name not in rows.column_names]
    if missing or not len(rows):
        raise ConfigError("task.text", missing, f"not a column of {task.path}")
    return [[str(text or "") for text in rows[name]] for name in task.text]
