"""Data of a task: read, check and tokenise its rows and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from kd_prune.hf.forward_pass import SEGMENTS
from kd_prune.hf.reading import read_splits
from kd_prune.hf.tasks import Task
from kd_prune.hf.tokens import data_hash, rows_hash, tokenise, warn_of_missing_texts


@dataclass(frozen=True)
class TaskData:
    """A task's splits as tokens.

    Attributes:
        splits: Split → rows with the columns ``input_ids``, ``attention_mask``, …, and ``labels``
            if the task's kind has labels.
        labels: Class names in the order of their indices; empty for tasks without classes.
        num_outputs: Outputs of the model's head; 0 where the task does not set them.
        fingerprint: Hash of the rows and of everything that their tokens depend on.
        rows: Hash of the rows alone, the same for every model.
    """

    splits: Mapping[str, Dataset]
    labels: tuple[str, ...]
    num_outputs: int
    fingerprint: str
    rows: str


def load_data(
    task: Task, tokenizer: PreTrainedTokenizerBase, cache: Path, *, segments: bool = False
) -> TaskData:
    """Read, check and tokenise a task's splits; tokens are cached in `cache`.

    Args:
        task: The task.
        tokenizer: The tokenizer; the token columns are those that its model reads.
        cache: Folder to keep tokens in.
        segments: Whether to make ``token_type_ids`` even if the tokenizer's model reads none.

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
    fingerprint = data_hash(rows, tokenizer, inputs, task)
    tokens = {
        split: tokenise(
            columns,
            labels.targets[split],
            task,
            tokenizer,
            segments=SEGMENTS in inputs,
            folder=cache / "tokens" / fingerprint / split,
        )
        for split, columns in texts.items()
    }
    num_outputs = task.kind.num_outputs(labels.names)
    return TaskData(tokens, labels.names, num_outputs, fingerprint, rows)
