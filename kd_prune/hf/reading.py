"""Reading of a task's rows from local files of several formats, or from the hub."""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, get_dataset_split_names, load_dataset, load_dataset_builder

from kd_prune.errors import ConfigError
from kd_prune.hf.columns import TEXT_TYPES, column_type, column_values
from kd_prune.hf.encoders import load_error
from kd_prune.hf.rows import FORMATS, format_of, parse_table
from kd_prune.hf.tasks import Task

INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)")
NUMBER = re.compile(INTEGER.pattern + r"(\.\d*)?([eE][+-]?\d+)?")
READERS = {"jsonl": "json", "txt": "text"}
"""Format → reader of datasets, where it has another name."""


class MissingSplitError(ConfigError):
    """A split that the data set does not have."""


def read_splits(task: Task, cache: Path) -> dict[str, Dataset]:
    """Read the rows of every split of a task.

    A validation split that the data set lacks is taken from the end of the training split, if
    `Task.holdout` is set.

    Raises:
        ConfigError: The data cannot be reached, a split is missing or empty, or a text column is
            missing or holds no text.
    """
    rows = {task.train: read_split(task, task.train, cache)}
    for split in task.validation:
        if split in rows:
            continue
        try:
            rows[split] = read_split(task, split, cache)
        except MissingSplitError:
            if task.holdout is None:
                raise
            if len(task.validation) > 1:
                raise ConfigError(
                    "holdout",
                    task.holdout,
                    f"there is no split {split}, and rows are held out for a single one",
                    f"name it alone: task.validation=[{split}]",
                ) from None
            rows[task.train], rows[split] = hold_out(rows[task.train], task.holdout)
    for split, dataset in rows.items():
        check_texts(task, split, dataset)
    return rows


def hold_out(train: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Return the training rows without the last `count`, and the last `count`.

    Raises:
        ConfigError: No rows would be left to train on.
    """
    first = len(train) - count
    if first < 1:
        raise ConfigError("holdout", count, f"the training split has only {len(train)} rows")
    return train.select(range(first)), train.select(range(first, len(train)))


def read_split(task: Task, split: str, cache: Path) -> Dataset:
    """Read the rows of one split, from a local folder or the hub."""
    folder = Path(task.path).expanduser()
    file = split_file(task, folder, split) if folder.is_dir() else None
    most = task.train_rows if split == task.train else None
    try:
        if file:
            label = None if task.label in task.text else task.label
            return read_file(file, split, cache, label=label, most=most)
        source = {"path": task.path, "name": task.subset}
        if most is not None:
            return first_rows(source, split, most, blank_lines=True)
        return load_dataset(**source, split=split, cache_dir=str(cache / "datasets"))
    except Exception as error:  # of any type, from the hub, the disk or a parser
        raise read_error(task, split, file, error) from error


def read_file(
    file: Path, split: str, cache: Path, *, label: str | None = None, most: int | None = None
) -> Dataset:
    """Read the rows of one file, whose format is known.

    Args:
        file: The file.
        split: Name of the split in progress bars.
        cache: Cache folder.
        label: Label column, if there is one.
        most: Number of rows; None: all.

    Raises:
        Exception: Of any type, from the disk or a parser.
    """
    file_format = format_of(file)
    if file_format in ("csv", "tsv"):
        return read_table(file, file_format, label, most)
    reader = READERS.get(str(file_format), file_format)
    split = re.sub(r"\W", "_", split)  # datasets takes no name such as dev-2020
    source: dict[str, Any] = {"path": reader, "data_files": {split: glob.escape(str(file))}}
    # A parser also logs the errors that it raises.
    parser = logging.getLogger(f"datasets.packaged_modules.{reader}")
    level = parser.level
    parser.setLevel(logging.CRITICAL)
    try:
        if most is not None:
            return first_rows(source, split, most, blank_lines=file_format != "txt")
        # datasets caches by modification time, which two files may share
        folder = cache / "datasets" / file_hash(file)
        rows = load_dataset(**source, split=split, cache_dir=str(folder))
    finally:
        parser.setLevel(level)
    return without_blank_lines(rows) if file_format == "txt" else rows


def first_rows(source: dict[str, Any], split: str, count: int, *, blank_lines: bool) -> Dataset:
    """Return the first `count` rows of a split, which is streamed and not downloaded whole.

    Args:
        source: Arguments of `load_dataset` that name the data set.
        split: The split.
        count: Number of rows.
        blank_lines: Whether blank texts are rows.
    """
    stream = load_dataset(**source, split=split, streaming=True)
    if not blank_lines:
        stream = stream.filter(lambda row: bool(row["text"].strip()))
    return Dataset.from_list(list(stream.take(count)), features=stream.features)


def read_error(task: Task, split: str, file: Path | None, error: Exception) -> ConfigError:
    """Return the one-line error for an exception raised while a split was read."""
    cause = error.__cause__  # datasets wraps a parser's error in its own type
    cause = cause if isinstance(cause, Exception) else error
    if isinstance(cause, StopIteration | pd.errors.EmptyDataError) or (file and has_no_rows(file)):
        return empty_split(task, split)
    if file is not None:
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        return ConfigError(
            "path",
            task.path,
            f"{file} cannot be read ({reason})",
            f"write it again, or name another: 'task.files={{{split}: <file>}}'",
        )
    rows = declared_rows(task)
    if rows and split not in rows:
        key = "train" if split == task.train else "validation"
        return MissingSplitError(
            key, split, f"not a split of {task.path} (there are {', '.join(rows)})"
        )
    if rows.get(split) == 0:
        return empty_split(task, split)
    return load_error("path", task.path, cause)


def has_no_rows(file: Path) -> bool:
    """Return whether a file that cannot be parsed has no rows."""
    if format_of(file) == "parquet":
        with suppress(pa.ArrowException, OSError):
            return bool(pq.read_metadata(file).num_rows == 0)
        return False
    with suppress(OSError, EOFError), open_text(file) as content:
        return not content.read(1 << 20).strip()
    return False


def open_text(file: Path) -> BinaryIO:
    """Open a file for reading, compressed or not."""
    return cast("BinaryIO", gzip.open(file) if file.suffix == ".gz" else file.open("rb"))


def declared_rows(task: Task) -> dict[str, int | None]:
    """Return the splits of a hub data set with their numbers of rows, None if it declares none.

    Empty if the data set cannot be found.
    """
    try:
        if splits := load_dataset_builder(task.path, task.subset).info.splits:
            return {name: int(info.num_examples) for name, info in splits.items()}
        return dict.fromkeys(get_dataset_split_names(task.path, task.subset))
    except Exception:  # of any type, from the hub or the data set's code
        return {}


def read_table(file: Path, file_format: str, label: str | None, most: int | None = None) -> Dataset:
    """Read a CSV or TSV file with text as text, so that a class may be called None, NA or 01.

    Labels become numbers if all of them are written as numbers. (Readers that guess types, such as
    that of datasets, turn the text "null" into a missing value, and the label "01" into 1.)

    Args:
        file: The file.
        file_format: ``csv`` or ``tsv``.
        label: Label column, if there is one.
        most: Number of rows; None: all.
    """
    table = parse_table(file.read_text(encoding="utf-8-sig"), file_format, most)
    rows = Dataset.from_pandas(table.replace("", pd.NA), preserve_index=False)
    if label is None or label not in rows.column_names:
        return rows
    labels: list[Any] = [text and text.strip() for text in column_values(rows, label)]
    for number_type, pattern in ((int, INTEGER), (float, NUMBER)):
        if all(value is None or pattern.fullmatch(value) for value in labels):
            labels = [None if value is None else number_type(value) for value in labels]
            break
    return rows.remove_columns(label).add_column(label, labels)


def without_blank_lines(rows: Dataset) -> Dataset:
    """Return the rows without blank lines."""
    return rows.filter(
        lambda batch: [bool(text.strip()) for text in batch["text"]], batched=True, desc="reading"
    )


def file_hash(file: Path) -> str:
    """Return a short hash of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def split_file(task: Task, folder: Path, split: str) -> Path:
    """Find the file of a split: ``<split>.<format>`` in the folder or its subfolder `subset`.

    If the folder contains a single readable file, that file is the training split, whatever its
    name.

    Raises:
        ConfigError: There is no such file, or its format is unknown.
    """
    files = task.files or {}
    folders = [folder]
    if task.subset and (folder / task.subset).is_dir():
        folders = [folder / task.subset]
    elif task.subset:
        subfolders = [place.name for place in folder.iterdir() if place.is_dir()]
        if meant := difflib.get_close_matches(task.subset, subfolders, n=1):
            raise ConfigError(
                "subset", task.subset, f"{folder} has no such folder", f"did you mean {meant[0]}?"
            )
    for place in folders:
        if split in files:
            candidates = [place / files[split]]
        else:
            found = list(place.glob(f"{glob.escape(split)}.*"))
            endings = {file.name.removeprefix(split).lower(): file for file in found}
            candidates = [endings[suffix] for suffix in FORMATS if suffix in endings]
            if len(candidates) > 1:
                raise ConfigError(
                    "path",
                    task.path,
                    f"has {' and '.join(file.name for file in candidates)}",
                    f"name one of them: 'task.files={{{split}: {candidates[-1].name}}}'",
                )
        for file in candidates:
            if file.is_file():
                if format_of(file) is None:
                    raise ConfigError(f"files.{split}", file.name, f"expected {list(FORMATS)}")
                return file
        if split == task.train and split not in files and place.is_dir():
            readable = [file for file in place.iterdir() if file.is_file() and format_of(file)]
            if len(readable) == 1 and not is_validation(task, readable[0]):
                return readable[0]
    others = sorted(file.name for place in folders for file in place.glob(f"{split}.*"))
    wanted = files.get(split, f"{split}.parquet, .csv, .tsv, .jsonl, .json or .txt")
    raise MissingSplitError(
        "path",
        task.path,
        f"found no {wanted} in {' or '.join(map(str, folders))}",
        f"{others[0]} is of none of these formats, so convert it"
        if others and split not in files
        else f"name the file: 'task.files={{{split}: <file>}}'"
        + ("" if split == task.train else ", or take rows of the training split: task.holdout=<n>"),
    )


def is_validation(task: Task, file: Path) -> bool:
    """Return whether a file belongs to one of the validation splits."""
    named = (task.files or {}).values()
    return file.name in named or file.name.partition(".")[0] in task.validation


def empty_split(task: Task, split: str) -> ConfigError:
    """Return the error for a split without rows."""
    return ConfigError(
        "path",
        task.path,
        f"the {split} split is empty",
        "name another with task.train or task.validation, or another file with task.files",
    )


def check_texts(task: Task, split: str, rows: Dataset) -> None:
    """Raise ConfigError unless the split has rows, and text in the task's text columns."""
    if len(rows) == 0:
        raise empty_split(task, split)
    for column in task.text:
        dtype = column_type(rows, split, "text", column)
        if dtype not in TEXT_TYPES:
            raise ConfigError(
                "text",
                column,
                f"the {split} split holds {dtype} there, not text",
                "name another column, or write its values as strings (in JSON lines, text that "
                "looks like dates is read as dates; in CSV it is not)"
                if dtype.startswith("timestamp")
                else "name another column, or write its values as strings",
            )
