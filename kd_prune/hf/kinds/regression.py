"""Regression: one number per row, of a text or a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.distillation.losses import hard_label_loss
from kd_prune.hf.kinds.base import (
    Collator,
    Labels,
    PaddingCollator,
    TaskFields,
    encode_texts,
    mean_over_labelled,
)
from kd_prune.hf.labels import check_label_column, number_targets
from kd_prune.metrics import metric_collection


@dataclass(frozen=True)
class Regression:
    """Prediction of a number for a text or a pair of texts."""

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    uses_num_labels: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")
    missing_label: ClassVar[Any] = math.nan

    def check(self, task: TaskFields) -> None:
        """Accept every task."""

    def read_labels(self, task: TaskFields, splits: Mapping[str, Dataset]) -> Labels:
        """Read finite numbers; there are no classes."""
        for split, rows in splits.items():
            check_label_column(rows, split, task.label)
        targets = {split: number_targets(rows, split, task.label) for split, rows in splits.items()}
        return Labels((), targets)

    def num_outputs(self, names: Sequence[str]) -> int:
        """Return 1, for the predicted value."""
        return 1

    def encode(
        self,
        task: TaskFields,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[str, list[Any]],
        segments: bool,
    ) -> dict[str, list[Any]]:
        """Tokenise with `encode_texts`."""
        return encode_texts(task, tokenizer, rows, segments)

    def collator(self, tokenizer: PreTrainedTokenizerBase, pad_to: int | None) -> Collator:
        """Return a collator that pads; labels are float32."""
        return PaddingCollator.of(tokenizer, pad_to, torch.float32)

    def predict(self, outputs: Activations, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predict the only output."""
        return outputs.logits.float().squeeze(-1), batch["labels"]

    def hard_label_loss(self, outputs: Activations, batch: Batch) -> Tensor:
        """Compute squared error (`kd_prune.distillation.losses.hard_label_loss`).

        Rows without label are skipped.
        """
        labels = batch["labels"]
        labelled = ~labels.isnan()
        return mean_over_labelled(hard_label_loss, outputs.logits, labels, labelled)

    def metric_collection(self, names: Sequence[str], num_outputs: int) -> MetricCollection:
        """Make metrics with `kd_prune.metrics.metric_collection`."""
        return metric_collection(names, num_outputs)

    def model_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the problem type."""
        return {"problem_type": "regression"}
