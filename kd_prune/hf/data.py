"""From a task's rows to batches of tokens: loading, checking, tokenising, grouping by length."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from datasets import ClassLabel, Dataset, load_dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from kd_prune import whole
from kd_prune.hf.models import SEGMENTS, unreachable
from kd_prune.hf.tasks import Task

log = logging.getLogger(__name__)

TEXT = ("string", "large_string", "string_view")
LABELS = (*TEXT, "int", "uint", "float", "decimal", "bool", "null")
NO_ROWS = (  # as datasets and pandas say it
    "corresponds to no data",
    "BatchSize must be greater than 0",
    "No columns to parse",
)
MANY_CLASSES = 100
A_WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)")
A_NUMBER = re.compile(A_WHOLE_NUMBER.pattern + r"(\.\d*)?([eE][+-]?\d+)?")
FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}


@dataclass(frozen=True)
class TaskData:
    """A task's splits, tokenised: columns ``input_ids``, ``attention_mask``, …, ``labels``."""

    splits: Mapping[str, Dataset]
    labels: tuple[str, ...]
    fingerprint: str
    """Hash of rows and of how they are read."""
    rows: str
    """Hash of the rows alone, the same for every model."""

    @property
    def num_labels(self) -> int:
        """Outputs of a model of this task: 1 for regression."""
        return len(self.labels) or 1


def load(
    task: Task, tokenizer: PreTrainedTokenizerBase, cache: Path, *, segments: bool = False
) -> TaskData:
    """Read, check and tokenise a task's splits. Tokens are kept in `cache` and found again.

    Args:
        task: The task.
        tokenizer: The tokenizer; what it gives depends on the model it is of.
        cache: Folder to keep tokens in.
        segments: Whether ``token_type_ids`` are wanted even if the tokenizer's model reads none.

    Raises:
        ValueError: The data cannot be reached, a split is empty, a column is missing or a label
            is missing, NaN or out of range; the message names the key, value and remedy.
    """
    rows = {
        split: read_split(task, split, cache)
        for split in dict.fromkeys((task.train, *task.validation))
    }
    for split, dataset in rows.items():
        check_columns(task, split, dataset)
    classes = None if task.regression else Classes.of(task, rows[task.train])
    labels = classes.names if classes else ()
    tokens = {}
    inputs = sorted({*tokenizer.model_input_names, *([SEGMENTS] if segments else [])})
    roles = repr((labels, task.train, list(task.validation))).encode()
    as_read, alone = hashlib.sha256(roles), hashlib.sha256(roles)
    for split, dataset in rows.items():
        targets = target_values(task, split, dataset, classes)
        columns = dataset.select_columns(list(task.text))
        tell_of_missing_texts(columns, split)
        own = rows_hash(columns, targets)
        key = content_hash(own, tokenizer, inputs, task.max_length)
        as_read.update(f"{split}:{key}".encode())
        alone.update(f"{split}:{own}".encode())
        tokens[split] = tokenise(columns, targets, task, tokenizer, inputs, cache / "tokens" / key)
    return TaskData(tokens, labels, as_read.hexdigest(), alone.hexdigest())


def read_split(task: Task, split: str, cache: Path) -> Dataset:
    """One split as it comes, from a local folder or the hub."""
    folder = Path(task.path).expanduser()
    file = split_file(task, folder, split) if folder.is_dir() else None
    source: dict[str, Any] = {"path": task.path, "name": task.subset}
    place = cache / "datasets"
    # What a parser raises it logs too, on lines of their own.
    packaged = FORMATS[file.suffix] if file else ""
    parser = logging.getLogger(f"datasets.packaged_modules.{packaged}")
    level = parser.level
    parser.setLevel(logging.CRITICAL if file else level)
    try:
        if packaged == "csv" and file:
            return read_csv(file, task)
        if file:  # datasets tells files by time; one that a copy replaced may have the same
            source = {"path": packaged, "data_files": {split: glob.escape(str(file))}}
            place /= file_hash(file)
        return load_dataset(**source, split=split, cache_dir=str(place))
    except Exception as error:  # the hub, the disk and every parser raise their own
        cause = error.__cause__  # datasets wraps what a parser said in what it did
        cause = cause if isinstance(cause, Exception) else error
        if isinstance(cause, StopIteration) or any(sign in str(cause) for sign in NO_ROWS):
            raise empty(task, split) from error
        if "Unknown split" in str(cause):
            key = "train" if split == task.train else "validation"
            known = str(cause).strip().splitlines()[0]
            raise ValueError(f"task.{key}={split}: not a split of {task.path} ({known})") from error
        if file is not None:
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise ValueError(
                f"task.path={task.path}: {file} cannot be read ({reason}); make it anew, or name "
                f"another: 'task.files={{{split}: <file>}}'"
            ) from error
        raise unreachable("task.path", task.path, cause) from error
    finally:
        parser.setLevel(level)


def read_csv(file: Path, task: Task) -> Dataset:
    """A CSV as it is written: text columns are text, and a class may be called None, NA or 01.

    Labels are numbers where all are written as such. (Readers that guess, datasets' among them,
    make nothing of a text that is "null", and 1 of a label that is "01".)
    """
    with warnings.catch_warnings():  # a row of more fields than there are columns is cut
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(
            file, dtype="string", keep_default_na=False, na_values=[""], index_col=False
        )
    rows = Dataset.from_pandas(table, preserve_index=False)
    if task.label not in rows.column_names:
        return rows
    labels = [label and label.strip() for label in column_values(rows, task.label)]
    for kind, written in ((int, A_WHOLE_NUMBER), (float, A_NUMBER)):
        if all(label is None or written.fullmatch(label) for label in labels):
            labels = [None if label is None else kind(label) for label in labels]
            break
    return rows.remove_columns(task.label).add_column(task.label, labels)


def file_hash(file: Path) -> str:
    """Short hash of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def split_file(task: Task, folder: Path, split: str) -> Path:
    """The file of a split: ``<split>.<format>`` in the folder or its subfolder `subset`."""
    files = task.files or {}
    folders = [folder / task.subset] if task.subset else []
    folders.append(folder)
    for place in folders:
        if split in files:
            candidates = [place / files[split]]
        else:
            candidates = [place / f"{split}{suffix}" for suffix in FORMATS]
        for file in candidates:
            if file.is_file():
                if file.suffix not in FORMATS:
                    raise ValueError(f"task.files.{split}={file.name}: expected {list(FORMATS)}")
                return file
    others = sorted(file.name for place in folders for file in place.glob(f"{split}.*"))
    wanted = files.get(split, f"{split}.parquet, .csv, .jsonl or .json")
    raise ValueError(
        f"task.path={task.path}: found no {wanted} in {' or '.join(map(str, folders))}; "
        + (
            f"{others[0]} is of none of these formats, so convert it"
            if others and split not in files
            else f"name the file: 'task.files={{{split}: <file>}}'"
        )
    )


def empty(task: Task, split: str) -> ValueError:
    """The refusal of a split without rows."""
    return ValueError(
        f"task.path={task.path}: the {split} split is empty; name another with task.train or "
        "task.validation, or another file with task.files"
    )


def check_columns(task: Task, split: str, dataset: Dataset) -> None:
    """Raise ValueError unless the split has rows and the task's columns."""
    if len(dataset) == 0:
        raise empty(task, split)
    for key, column in (*(("text", c) for c in task.text), ("label", task.label)):
        if column not in dataset.column_names:
            raise ValueError(
                f"task.{key}={column}: the {split} split has no such column; "
                f"it has {', '.join(dataset.column_names)}"
            )
    kind = str(getattr(dataset.features[task.label], "dtype", "lists or mixed values"))
    if not kind.startswith(LABELS):
        raise ValueError(
            f"task.label={task.label}: the {split} split holds {kind} there, not numbers or text; "
            "name another column"
        )
    for column in task.text:
        kind = str(getattr(dataset.features[column], "dtype", "lists or mixed values"))
        if kind not in TEXT:
            raise ValueError(
                f"task.text={column}: the {split} split holds {kind} there, not text; "
                "name another column, or write its values as strings"
            )


def class_names(task: Task, train: Dataset) -> tuple[str, ...]:
    """Names of the classes in the order of their indices."""
    if task.labels is not None:
        return tuple(task.labels)
    if names_of := declared(task, train):
        return names_of
    found = set(column_values(train, task.label))
    values = {value for value in found if value is not None and value == value}
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise ValueError(
            f"task.label={task.label}: the values are fractional numbers; "
            "set task.regression=true, or name another column"
        )
    if any(isinstance(value, str) for value in values):
        names = sorted(str(value) for value in values if value != "")
    elif values <= {False, True} and any(isinstance(value, bool) for value in values):
        names = [str(value) for value in sorted(values)]
    else:  # 1.0 is 1; a negative number says that there is no label
        names = [str(int(value)) for value in sorted(values) if value >= 0]
    if len(names) > max(MANY_CLASSES, len(train) // 2):
        raise ValueError(
            f"task.label={task.label}: {len(names)} classes in {len(train)} rows; name another "
            "column, or set task.regression=true"
        )
    if len(names) < 2:
        raise ValueError(
            f"task.label={task.label}: {len(names)} class in the {task.train} split; a "
            "classification needs two, so name them in task.labels, or set task.regression=true"
        )
    return tuple(names)


@dataclass(frozen=True)
class Classes:
    """The classes of a task, and how its data speak of them.

    Attributes:
        names: Names of the classes in the order of their indices.
        declared: What the data declare whole numbers to mean (`ClassLabel`); empty if they do not.
        by_name: Whether whole numbers are looked up by name (stars 1 … 5); else they are indices.
    """

    names: tuple[str, ...]
    declared: tuple[str, ...] = ()
    by_name: bool = False

    @cached_property
    def exact(self) -> dict[str, int]:
        """Index of each name."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def folded(self) -> dict[str, int]:
        """Index of each name in lower case; empty where two differ in case alone."""
        folded = {name.strip().casefold(): i for i, name in enumerate(self.names)}
        return folded if len(folded) == len(self.names) else {}

    def find(self, name: str | None) -> int | None:
        """The index of the class of that name, or None."""
        if name is None:
            return None
        return self.exact.get(name, self.folded.get(name.strip().casefold()))

    @classmethod
    def of(cls, task: Task, train: Dataset) -> Classes:
        """Those of a task, by the split that it learns from."""
        names = class_names(task, train)
        here = cls(names, declared(task, train))
        values = set(column_values(train, task.label))
        found = {here.name(value) for value in values if not isinstance(value, str)} - {None}
        if not found:  # text alone: whole numbers elsewhere are names if the names are such
            return replace(here, by_name=any(name.isdigit() for name in names))
        return replace(here, by_name=any(here.find(name) is not None for name in found))

    def name(self, value: Any, own: tuple[str, ...] = ()) -> str | None:
        """The name that the data have for a label, or None; `own`: what this split declares."""
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool) and self.find(str(value)) is not None:
            return str(value)
        if number(value) is None or value != int(value):
            return None
        meanings = own or self.declared
        if not meanings:
            return str(int(value))
        return meanings[int(value)] if value in range(len(meanings)) else None

    def index(self, value: Any, own: tuple[str, ...] = ()) -> int | None:
        """The index of the class that a label is of, or None."""
        if self.by_name or isinstance(value, str):
            return self.find(self.name(value, own))
        if value is None or value not in range(len(self.names)):  # NaN is in no range, 1.0 is
            return None
        return int(value)


def declared(task: Task, dataset: Dataset) -> tuple[str, ...]:
    """The names that a split declares for its labels; empty if it does not."""
    feature = dataset.features[task.label]
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def target_values(task: Task, split: str, dataset: Dataset, classes: Classes | None) -> list[Any]:
    """Labels as a model takes them: class indices, or floats for regression (no classes)."""
    values = column_values(dataset, task.label)
    own = declared(task, dataset)
    index: dict[Any, Any] = dict.fromkeys(values)  # one look at each value: rows are many
    for value in index:
        target = classes.index(value, own) if classes else number(value)
        if target is None:
            row = next(i for i, other in enumerate(values) if other is value or other == value)
            raise ValueError(
                f"task.label={task.label}: row {row} of the {split} split {refusal(value, classes)}"
            )
        index[value] = target
    return [index[value] for value in values]


def column_values(dataset: Dataset, name: str) -> list[Any]:
    """A column as plain values; through Arrow, a hundred times faster than row by row."""
    return list(dataset.with_format("arrow")[:][name].to_pylist())


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        target = float(value)
    except (TypeError, ValueError):
        return None
    return target if math.isfinite(target) else None


def refusal(value: Any, classes: Classes | None) -> str:
    """What is wrong with a label, and what to do."""
    if value is None or value != value or value == "":
        return "has no label; remove such rows, or pick a split that has labels"
    if classes is None:
        return f"is {value!r}: regression needs finite numbers; remove such rows"
    return (
        f"is {value!r}: not one of the {len(classes.names)} classes {list(classes.names)[:5]}; "
        "set task.labels, or pick a split that has labels"
    )


def rows_hash(columns: Dataset, targets: list[Any]) -> str:
    """Hash of texts and labels."""
    digest = hashlib.sha256()
    for name in columns.column_names:
        column = columns.with_format("arrow")[:][name].combine_chunks()
        digest.update(repr((name, str(column.type))).encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([(name, column.type)])) as writer:
            writer.write_batch(pa.record_batch([column], names=[name]))
        digest.update(sink.getvalue())
    digest.update(repr(targets).encode())
    return digest.hexdigest()


def content_hash(
    rows: str, tokenizer: PreTrainedTokenizerBase, inputs: list[str], max_length: int
) -> str:
    """Hash of everything that tokens depend on."""
    digest = hashlib.sha256(rows.encode())
    digest.update(tokenizer_state(tokenizer))
    # What is not in that state: BERT reads segments and DistilBERT does not, with the same words.
    sides = tokenizer.truncation_side, tokenizer.padding_side
    digest.update(repr((inputs, sides, tokenizer.split_special_tokens)).encode())
    digest.update(str(max_length).encode())
    return digest.hexdigest()


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """What a tokenizer is, but for the truncation and padding that its last use left in it."""
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        state = json.loads(backend.to_str())
        for set_by_use in ("truncation", "padding"):
            state.pop(set_by_use, None)
        return json.dumps(state, sort_keys=True).encode()
    with tempfile.TemporaryDirectory() as folder:  # written in Python: its files say what it is
        files = [Path(file) for file in sorted(tokenizer.save_pretrained(folder))]
        settings = Path(folder) / "tokenizer_config.json"
        kept = json.loads(settings.read_text())
        for of_the_loading in ("is_local", "local_files_only", "name_or_path"):
            kept.pop(of_the_loading, None)
        settings.write_text(json.dumps(kept, sort_keys=True))
        return b"".join(file.read_bytes() for file in files if file.is_file())


def tell_of_missing_texts(columns: Dataset, split: str) -> None:
    """Warn of rows without a text, which is read as an empty one."""
    table = columns.with_format("arrow")[:]
    for column in columns.column_names:
        if missing := table.column(column).null_count:
            log.warning(
                "task.text=%s: %d of %d rows of the %s split have none; it is read as empty",
                column,
                missing,
                len(columns),
                split,
            )


def tokenise(
    columns: Dataset,
    targets: list[Any],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    inputs: list[str],
    folder: Path,
) -> Dataset:
    """Token columns of a split, from `folder` if it is there, else made and put there."""
    if folder.is_dir():
        return Dataset.load_from_disk(str(folder))

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [[text or "" for text in batch[column]] for column in task.text]
        return dict(
            tokenizer(
                *texts,
                truncation=True,
                max_length=task.max_length,
                return_token_type_ids=SEGMENTS in inputs,
            )
        )

    tokens = columns.map(
        encode,
        batched=True,
        remove_columns=list(task.text),
        keep_in_memory=True,
        desc="tokenising",
    ).add_column("labels", targets)
    with whole.folder(folder) as scratch:
        tokens.save_to_disk(str(scratch))
    return Dataset.load_from_disk(str(folder))


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of rows of similar length, in an order that depends on seed and epoch alone.

    Rows are shuffled, cut into pools of `pool` batches, sorted by length within a pool and cut into
    batches, which are shuffled. Every row comes once per epoch; the last batch may be short. With
    several processes each takes every n-th batch; the last few come twice so that all take as many.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows per batch.
        seed: Seed of the order.
        pool: Batches per pool; more means less padding and less random batches.
    """

    def __init__(
        self, lengths: np.ndarray, *, batch_size: int, seed: int = 0, pool: int = 50
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.pool = pool
        self.epoch = 0
        self.done = 0

    @property
    def sampler(self) -> LengthGroupedBatches:
        """Itself: Lightning calls `set_epoch` of a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next, from its start unless it is under way."""
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        """Batches per epoch and process."""
        return math.ceil(math.ceil(len(self.lengths) / self.batch_size) / processes()[1])

    def __iter__(self) -> Iterator[list[int]]:
        """The epoch's batches from the first not yet done."""
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.lengths))
        size = self.pool * self.batch_size
        batches = []
        for start in range(0, len(rows), size):
            pool = rows[start : start + size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        order = generator.permutation(len(batches))
        rank, world = processes()
        mine = np.resize(order, len(self) * world)[rank::world]
        for i in mine[self.done :]:
            yield batches[i].tolist()


def processes() -> tuple[int, int]:
    """Rank and number of the training's processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """A loader over `LengthGroupedBatches` that goes on in the middle of an epoch.

    Its state is the epoch and the number of its batches that were handed out. Lightning asks a
    loader of known length for a batch when it is to be used, not before.
    """

    batch_sampler: LengthGroupedBatches
    _done = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """The rest of the epoch."""
        self._done = self.batch_sampler.done
        for batch in super().__iter__():
            self._done += 1
            yield batch
        self._done = self.batch_sampler.done = 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were used."""
        return {"epoch": self.batch_sampler.epoch, "done": self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Skip the batches used before, if that epoch goes on."""
        self.batch_sampler.epoch = state["epoch"]
        self.batch_sampler.done = self._done = state["done"]


@dataclass(frozen=True)
class Collate:
    """Rows to a padded batch; labels in the type a loss takes."""

    pad: DataCollatorWithPadding
    regression: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad to the longest row (or the task's `pad_to`)."""
        batch = dict(self.pad(rows))
        batch["labels"] = batch["labels"].to(torch.float32 if self.regression else torch.int64)
        return batch


def loaders(
    task: Task, data: TaskData, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> tuple[ResumableLoader, dict[str, DataLoader[dict[str, Tensor]]]]:
    """The training loader and one validation loader per split.

    Loaders get generators of their own: the default one would draw from the global generator
    whenever an epoch begins, and a resumed run would begin one more.
    """
    collate = Collate(
        DataCollatorWithPadding(
            tokenizer,
            padding="max_length" if task.pad_to else "longest",
            max_length=task.pad_to,
        ),
        task.regression,
    )
    train = data.splits[task.train]
    batches = LengthGroupedBatches(row_lengths(train), batch_size=task.batch_size, seed=seed)
    validation: dict[str, DataLoader[dict[str, Tensor]]] = {}
    for split in task.validation:
        rows = data.splits[split]
        validation[split] = DataLoader(
            rows,
            batch_sampler=validation_batches(row_lengths(rows), task.eval_batch_size),
            collate_fn=collate,
            generator=torch.Generator(),
        )
    loader = ResumableLoader(
        train, batch_sampler=batches, collate_fn=collate, generator=torch.Generator()
    )
    return loader, validation


def validation_batches(lengths: np.ndarray, batch_size: int) -> list[list[int]]:
    """Rows by length, cut into batches, in an order that depends on their number alone.

    So that the first few, which ``trainer.limit_val_batches`` takes, are not the shortest.
    """
    rows = np.argsort(lengths, kind="stable").tolist()
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]


def row_lengths(tokens: Dataset) -> np.ndarray:
    """Tokens of every row."""
    return np.asarray(pc.list_value_length(tokens.with_format("arrow")[:]["input_ids"]))
