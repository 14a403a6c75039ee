"""Classification: one class per row, of a text or a pair of texts."""

from __future__ import annotations

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
from kd_prune.errors import ConfigError
from kd_prune.hf.kinds.base import (
    Collator,
    Labels,
    PaddingCollator,
    TaskFields,
    encode_texts,
    mean_over_labelled,
)
from kd_prune.hf.labels import Classes, check_label_column, class_targets
from kd_prune.metrics import metric_collection


@dataclass(frozen=True)
class Classification:
    """Classification of a text or a pair of texts; the label column holds names or indices."""

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    uses_num_labels: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "macro_f1", "matthews")
    missing_label: ClassVar[Any] = -100

    def check(self, task: TaskFields) -> None:
        """Raise ConfigError unless the class names, if set, are two or more different ones."""
        names = task.labels
        if names and (len(names) < 2 or len(set(names)) < len(names)):
            raise ConfigError("labels", list(names), "expected two names or more, each once")

    def read_labels(self, task: TaskFields, splits: Mapping[str, Dataset]) -> Labels:
        """Find the classes in the training split; look up every label."""
        for split, rows in splits.items():
            check_label_column(rows, split, task.label)
        classes = Classes.find_in(splits[task.train], task.train, task.label, task.labels)
        targets = {
            split: class_targets(rows, split, task.label, classes) for split, rows in splits.items()
        }
        return Labels(classes.names, targets)

    def num_outputs(self, names: Sequence[str]) -> int:
        """Return one output per class."""
        return len(names)

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
        """Return a collator that pads; labels are int64 class indices."""
        return PaddingCollator.of(tokenizer, pad_to, torch.int64)

    def predict(self, outputs: Activations, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predict the class of the largest logit."""
        return outputs.logits.float().argmax(-1), batch["labels"]

    def hard_label_loss(self, outputs: Activations, batch: Batch) -> Tensor:
        """Compute cross-entropy (`kd_prune.distillation.losses.hard_label_loss`).

        Rows without label are skipped.
        """
        labels = batch["labels"]
        labelled = labels != self.missing_label
        return mean_over_labelled(hard_label_loss, outputs.logits, labels, labelled)

    def metric_collection(self, names: Sequence[str], num_outputs: int) -> MetricCollection:
        """Make metrics with `kd_prune.metrics.metric_collection`."""
        return metric_collection(names, num_outputs)

    def model_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Return problem type and class names, which a ``pipeline`` of transformers prints."""
        config: dict[str, Any] = {"problem_type": "single_label_classification"}
        if names:
            config["id2label"] = dict(enumerate(names))
            config["label2id"] = {name: i for i, name in enumerate(names)}
        return config
