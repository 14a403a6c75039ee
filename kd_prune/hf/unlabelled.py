"""Rows without labels that are added to a task's training rows: files, and augmented copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Features, Value, concatenate_datasets

from kd_prune.errors import ConfigError, key_prefix
from kd_prune.hf.augmentation import augmented_rows
from kd_prune.hf.encoders import PretrainedEncoder
from kd_prune.hf.reading import check_texts, read_file
from kd_prune.hf.rows import FORMATS, format_of
from kd_prune.hf.tasks import Task


def unlabelled_rows(
    task: Task, texts: Dataset, encoder: PretrainedEncoder, cache: Path
) -> Dataset | None:
    """Return the texts without labels that a task adds to its training rows; None if it adds none.

    Args:
        task: The task.
        texts: Text columns of the labelled training rows.
        encoder: The task's own encoder.
        cache: Cache folder.

    Raises:
        ConfigError: A file, a model or word vectors cannot be read.
    """
    parts = []
    if task.augment:
        with key_prefix("augment"):
            parts.append(
                augmented_rows(task.augment, texts, task=task.name, encoder=encoder, cache=cache)
            )
    for i, path in enumerate(task.unlabelled):
        with key_prefix("unlabelled"):
            parts.append(read_texts(task, path, str(i), cache))
    return joined(parts, task.text) if parts else None


def read_texts(task: Task, path: str, key: str, cache: Path) -> Dataset:
    """Read the text columns of a file without labels.

    Args:
        task: The task.
        path: The file, in the working folder or in the task's; the lines of a text file are the
            text of a task with one text column.
        key: Key of the path, for errors.
        cache: Cache folder.

    Raises:
        ConfigError: There is no such file, or it has no such columns.
    """
    places = [Path(path).expanduser(), Path(task.path).expanduser() / path]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ConfigError(key, path, f"no file, nor one in {task.path}")
    if format_of(file) is None:
        raise ConfigError(key, path, f"expected a file of {', '.join(FORMATS)}")
    try:
        rows = read_file(file, "unlabelled", cache)
    except Exception as error:  # of any type, from the disk or a parser
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(key, path, f"the file cannot be read ({reason})") from error
    if format_of(file) == "txt" and len(task.text) == 1:
        rows = rows.rename_columns({"text": task.text[0]}) if task.text[0] != "text" else rows
    try:
        check_texts(task, path, rows)
    except ConfigError as error:
        reason = f"{error.key}={error.value}: {error.expected}"
        raise ConfigError(key, path, reason, error.hint) from error
    return rows.select_columns(list(task.text))


def joined(parts: Sequence[Dataset], columns: Sequence[str]) -> Dataset:
    """Join rows whose text columns may be of different string types."""
    features = Features(dict.fromkeys(columns, Value("string")))
    return concatenate_datasets([part.cast(features) for part in parts])
