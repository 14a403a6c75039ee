"""The interface of a task kind, and the helpers that several kinds share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.plain_settings import plain_settings

Collator = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


class TaskFields(Protocol):
    """The fields of `kd_prune.hf.Task` that a kind may read."""

    @property
    def text(self) -> Sequence[str]:
        """Text columns."""
        ...

    @property
    def label(self) -> str:
        """Label column."""
        ...

    @property
    def labels(self) -> Sequence[str] | None:
        """Class names in the order of their indices, if the task sets them."""
        ...

    @property
    def train(self) -> str:
        """Name of the training split."""
        ...

    @property
    def validation(self) -> Sequence[str]:
        """Names of the splits to evaluate on."""
        ...

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        ...


@dataclass(frozen=True)
class Labels:
    """The labels of a task's splits.

    Attributes:
        names: Class names in the order of their indices; empty for tasks without classes.
        targets: Split → one target per row; None where the rows have no labels.
    """

    names: tuple[str, ...] = ()
    targets: Mapping[str, list[Any] | None] = field(default_factory=dict)


class TaskKind(Protocol):
    """The parts of a task that differ between kinds of task.

    A kind is a frozen dataclass: its fields are its options, which are part of the hashes under
    which tokens and fine-tuned models are cached (see `encoding_settings`). Batches contain
    targets, of any shape, under the key ``labels``; a kind without labels leaves the key out.
    """

    @property
    def auto_model(self) -> Any:
        """The transformers class that loads a model of this kind, ``AutoModelFor…``."""
        ...

    @property
    def uses_num_labels(self) -> bool:
        """Whether ``config.num_labels`` sets the width of the model's head."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that suit the kind; empty if the rows have no labels."""
        ...

    @property
    def missing_label(self) -> Any:
        """The target of a row without label, which the loss on hard labels skips.

        None: the kind takes no such rows.
        """
        ...

    def check(self, task: TaskFields) -> None:
        """Raise ConfigError where the fields of `task` do not suit this kind."""
        ...

    def read_labels(self, task: TaskFields, splits: Mapping[str, Dataset]) -> Labels:
        """Read and check the labels of all splits.

        Raises:
            ConfigError: The label column is missing or of an unsuitable type, or a label is
                missing or out of range.
        """
        ...

    def num_outputs(self, names: Sequence[str]) -> int:
        """Return the outputs of the head for these class names; 0 if the kind does not set them."""
        ...

    def encode(
        self,
        task: TaskFields,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[str, list[Any]],
        segments: bool,
    ) -> dict[str, list[Any]]:
        """Return the token columns of some rows.

        Args:
            task: The task.
            tokenizer: The model's tokenizer.
            rows: The text columns, and ``labels`` with the targets if the kind has labels.
            segments: Whether to return ``token_type_ids``.
        """
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase, pad_to: int | None) -> Collator:
        """Return a function from encoded rows to a batch, padded to `pad_to` or the longest row.

        A function whose batches are random has a method `reseed(seed, epoch)`, called at the start
        of every training epoch, and draws from nothing else: then a fit resumes exactly.
        """
        ...

    def predict(self, outputs: Activations, batch: Batch) -> tuple[Tensor, Any]:
        """Return predictions and targets, the arguments of the metrics."""
        ...

    def hard_label_loss(self, outputs: Activations, batch: Batch) -> Tensor:
        """Compute the loss against the batch's own labels, a scalar.

        Raises:
            ConfigError: The rows have no labels.
        """
        ...

    def metric_collection(self, names: Sequence[str], num_outputs: int) -> MetricCollection:
        """Return the metrics of these names.

        Raises:
            ConfigError: A name is unknown or does not suit the task.
        """
        ...

    def model_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the entries of ``config.json`` that describe a finished model of this task."""
        ...


PREDICTIONS_ONLY = {"predictions_only": True}
"""Metadata of a kind's field that no token depends on."""


def encoding_settings(kind: TaskKind) -> Any:
    """Describe a kind and its options as plain data, without those that only predictions need."""
    described: Any = plain_settings(kind)
    options: Any = fields(kind)  # type: ignore[arg-type]  # a kind is a dataclass
    for option in options:
        if option.metadata == PREDICTIONS_ONLY:
            del described[option.name]
    return described


def kind_name(kind: TaskKind) -> str:
    """Return the name of a kind as an option of `task/kind`: ``masked_words``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(kind).__name__).lower()


def mean_over_labelled(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, labelled: Tensor
) -> Tensor:
    """Compute a mean loss over the rows that have a label; 0 if none has.

    Args:
        loss: ``(logits, labels) → scalar``, a mean over rows.
        logits: (rows, outputs).
        labels: (rows,).
        labelled: Whether a row has a label, (rows,).
    """
    if labelled.all():
        return loss(logits, labels)
    if not labelled.any():
        return logits.sum() * 0.0
    return loss(logits[labelled], labels[labelled])


def encode_texts(
    task: TaskFields,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, list[Any]],
    segments: bool,
) -> dict[str, list[Any]]:
    """Tokenise one text or a pair, cut off at `max_length`; labels are unchanged."""
    texts = [[text or "" for text in rows[column]] for column in task.text]
    encoded = dict(
        tokenizer(
            *texts, truncation=True, max_length=task.max_length, return_token_type_ids=segments
        )
    )
    return encoded | {"labels": rows["labels"]} if "labels" in rows else encoded


@dataclass(frozen=True)
class PaddingCollator:
    """Pads encoded rows to a batch and converts their labels, one number per row.

    Args:
        pad: Pads the token columns.
        label_dtype: Type of the labels; None: the rows have none.
    """

    pad: DataCollatorWithPadding
    label_dtype: torch.dtype | None

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        pad_to: int | None,
        label_dtype: torch.dtype | None = None,
    ) -> PaddingCollator:
        """Make a collator that pads to `pad_to` tokens, or to the longest row of the batch."""
        padding = "max_length" if pad_to else "longest"
        pad = DataCollatorWithPadding(tokenizer, padding=padding, max_length=pad_to)
        return cls(pad, label_dtype)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch."""
        batch = dict(self.pad(rows))
        if self.label_dtype is not None:
            batch["labels"] = batch["labels"].to(self.label_dtype)
        return batch
