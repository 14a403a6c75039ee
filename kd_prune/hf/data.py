"""Data of a task: read, check and tokenise its rows and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from kd_prune.hf.encoders import PretrainedEncoder
from kd_prune.hf.forward_pass import SEGMENTS
from kd_prune.hf.reading import read_splits
from kd_prune.hf.tasks import Task
from kd_prune.hf.tokens import data_hash, rows_hash, tokenise, warn_of_missing_texts
from kd_prune.hf.unlabelled import joined, unlabelled_rows
from kd_prune.source_hash import source_hash


@dataclass(frozen=True)
class TaskData:
    """A task's splits as tokens.

    Attributes:
        splits: Split → rows with the columns ``input_ids``, ``attention_mask``, …, and ``labels``
            if the task's kind has labels.
        labels: Class names in the order of their indices; empty for tasks without classes.
        num_outputs: Outputs of the model's head; 0 where the task does not set them.
        fingerprint: Hash of the rows and of everything that their tokens depend on.
        rows: Hash of the labelled rows alone, the same for every model.
    """

    splits: Mapping[str, Dataset]
    labels: tuple[str, ...]
    num_outputs: int
    fingerprint: str
    rows: str


def load_data(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    *,
    segments: bool = False,
    encoder: PretrainedEncoder | None = None,
) -> TaskData:
    """Read, check and tokenise a task's splits; tokens are cached in `cache`.

    Rows without labels (`Task.augment`, `Task.unlabelled`) follow the training rows; their target
    is the kind's `missing_label`.

    Args:
        task: The task.
        tokenizer: The tokenizer; the token columns are those that its model reads.
        cache: Folder to keep tokens in.
        segments: Whether to make ``token_type_ids`` even if the tokenizer's model reads none.
        encoder: The encoder that the tokenizer comes with; None: read from the tokenizer's folder.

    Raises:
        ConfigError: The data cannot be reached, a split is empty, a column is missing or a label
            is missing, NaN or out of range.
    """
    splits = read_splits(task, cache)
    labels = task.kind.read_labels(task, splits)
    inputs = sorted({*tokenizer.model_input_names, *([SEGMENTS] if segments else [])})
    texts = {split: rows.select_columns(list(task.text)) for split, rows in splits.items()}
    digest = hashlib.sha256(repr((labels.names, task.train, list(task.validation))).encode())
    for split, columns in texts.items():
        warn_of_missing_texts(columns, split)
        digest.update(f"{split}:{rows_hash(columns, labels.targets[split])}".encode())
    rows = digest.hexdigest()
    targets = dict(labels.targets)
    content = rows
    own = encoder or PretrainedEncoder(path=tokenizer.name_or_path)
    if (added := unlabelled_rows(task, texts[task.train], own, cache)) is not None:
        content = hashlib.sha256(f"{rows}:{rows_hash(added, None)}".encode()).hexdigest()
        texts[task.train] = joined([texts[task.train], added], task.text)
        if (given := targets[task.train]) is not None:
            targets[task.train] = [*given, *[task.kind.missing_label] * len(added)]
    fingerprint = data_hash(content, tokenizer, inputs, task)
    folder = cache / "tokens" / f"{fingerprint[:32]}-{source_hash('hf')}"
    tokens = {
        split: tokenise(
            columns,
            targets[split],
            task,
            tokenizer,
            segments=SEGMENTS in inputs,
            folder=folder / split,
        )
        for split, columns in texts.items()
    }
    num_outputs = task.kind.num_outputs(labels.names)
    return TaskData(tokens, labels.names, num_outputs, fingerprint, rows)
