"""Metrics by name, with GLUE's meaning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)


class MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    """Matthews correlation; 0 for constant predictions or labels, as scikit-learn has it.

    torchmetrics gives other values there, and pruned students do collapse to one class.
    """

    def compute(self) -> Tensor:
        """The coefficient in [-1, 1]."""
        confusion = self.confmat
        if (confusion.sum(0) > 0).sum() < 2 or (confusion.sum(1) > 0).sum() < 2:
            return torch.zeros((), device=confusion.device)
        return super().compute()


NAMES = ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman")


def metric_collection(names: Sequence[str], num_labels: int) -> MetricCollection:
    """Metrics that take predictions (class indices, or values) and labels.

    Args:
        names: Some of `accuracy` (share of rows that are right), `f1` (of class 1 of two),
            `macro_f1` (mean over classes), `matthews`, `pearson`, `spearman`.
        num_labels: Outputs of the model; 1 is a regression.

    Raises:
        ValueError: An unknown name, or one that does not suit the task.
    """
    regression = num_labels == 1
    makers = {
        "accuracy": lambda: MulticlassAccuracy(num_labels, average="micro"),
        "f1": BinaryF1Score,
        "macro_f1": lambda: MulticlassF1Score(num_labels, average="macro"),
        "matthews": lambda: MatthewsCorrCoef(num_labels),
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    for name in names:
        if name not in makers:
            raise ValueError(f"task.metrics={name}: unknown; there are {', '.join(makers)}")
        if (name in ("pearson", "spearman")) != regression:
            kind = "regression" if regression else f"{num_labels} classes"
            raise ValueError(f"task.metrics={name} does not suit a task of {kind}")
        if name == "f1" and num_labels != 2:
            raise ValueError("task.metrics=f1 is for two classes; take macro_f1")
    return MetricCollection({name: makers[name]() for name in names}, compute_groups=False)
