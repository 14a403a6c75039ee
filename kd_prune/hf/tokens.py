"""Tokens of a split, cached under a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from kd_prune.errors import ConfigError
from kd_prune.hf.fingerprint import tokenizer_state
from kd_prune.hf.kinds.base import encoding_settings
from kd_prune.hf.row_cache import cached_rows
from kd_prune.hf.tasks import Task

log = logging.getLogger(__name__)

MOST_BYTES = 2**31
"""What Arrow's type of strings can hold in one piece."""


def rows_hash(texts: Dataset, targets: list[Any] | None) -> str:
    """Hash texts and labels."""
    digest = hashlib.sha256()
    for name in texts.column_names:
        column = texts.with_format("arrow")[:][name]
        if pa.types.is_string(column.type) and column.nbytes >= MOST_BYTES:
            column = column.cast(pa.large_string())
        column = column.combine_chunks()
        digest.update(repr((name, str(column.type))).encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([(name, column.type)])) as writer:
            writer.write_batch(pa.record_batch([column], names=[name]))
        digest.update(sink.getvalue())
    digest.update(repr(targets).encode())
    return digest.hexdigest()


def data_hash(rows: str, tokenizer: PreTrainedTokenizerBase, inputs: list[str], task: Task) -> str:
    """Hash everything that a task's tokens depend on.

    Args:
        rows: Hash of the rows of all splits.
        tokenizer: The tokenizer.
        inputs: Names of the token columns.
        task: The task; its `kind` and `max_length` are part of the hash.
    """
    digest = hashlib.sha256(rows.encode())
    digest.update(tokenizer_state(tokenizer))
    # The state lacks these: BERT reads segments and DistilBERT does not, with equal vocabularies.
    sides = tokenizer.truncation_side, tokenizer.padding_side
    settings = (inputs, sides, tokenizer.split_special_tokens, task.max_length)
    digest.update(repr((*settings, encoding_settings(task.kind))).encode())
    return digest.hexdigest()


def warn_of_missing_texts(texts: Dataset, split: str) -> None:
    """Warn of rows without a text, which are read as empty texts."""
    table = texts.with_format("arrow")[:]
    for column in texts.column_names:
        if missing := table.column(column).null_count:
            log.warning(
                "task.text=%s: %d of %d rows of the %s split have none; it is read as empty",
                column,
                missing,
                len(texts),
                split,
            )


def tokenise(
    texts: Dataset,
    targets: list[Any] | None,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    segments: bool,
    folder: Path,
) -> Dataset:
    """Return the token columns of a split, read from `folder` or computed and saved there.

    Args:
        texts: The text columns.
        targets: One label per row, or None.
        task: The task.
        tokenizer: The tokenizer.
        segments: Whether ``token_type_ids`` are among the columns.
        folder: Cache folder of these tokens, named like the split.

    Raises:
        ConfigError: All texts are empty, and the kind joins them (masked words).
    """

    def make() -> Dataset:
        rows = texts if targets is None else texts.add_column("labels", targets)
        tokens = rows.map(
            lambda batch: task.kind.encode(task, tokenizer, batch, segments),
            batched=True,
            remove_columns=rows.column_names,
            keep_in_memory=True,
            desc="tokenising",
        )
        if not len(tokens):
            raise ConfigError(
                "path",
                task.path,
                f"the texts of the {folder.name} split have no tokens",
                "are they in the columns that task.text names?",
            )
        return tokens

    return cached_rows(folder, make)
