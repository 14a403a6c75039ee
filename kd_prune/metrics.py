"""Metrics by name, as GLUE's official script computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)
from torchmetrics.utilities import dim_zero_cat

from kd_prune.errors import ConfigError


class MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    """Matthews correlation; 0 for constant predictions or labels, as in scikit-learn.

    torchmetrics gives other values there, and pruned students do collapse to one class.
    """

    def compute(self) -> Tensor:
        """Compute the coefficient, in [-1, 1]."""
        confusion = self.confmat
        if (confusion.sum(0) > 0).sum() < 2 or (confusion.sum(1) > 0).sum() < 2:
            return torch.zeros((), device=confusion.device)
        return super().compute()


class PearsonCorrCoef(Metric):
    """Pearson correlation over all rows; 0 for constant predictions or labels.

    torchmetrics gives NaN there, and pruned students do collapse to one value.
    """

    full_state_update = False
    predictions: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Keep predictions and labels, (rows,) each."""
        self.predictions.append(predictions)
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """Compute the coefficient, in [-1, 1]."""
        columns = (dim_zero_cat(self.predictions), dim_zero_cat(self.labels))
        device = columns[0].device
        x, y = (self.transform(column.cpu()).double() for column in columns)  # MPS has no float64
        if (x == x[0]).all() or (y == y[0]).all():
            return torch.zeros((), device=device)
        return torch.corrcoef(torch.stack([x, y]))[0, 1].float().to(device)

    @staticmethod
    def transform(column: Tensor) -> Tensor:
        """Return the values that are correlated: unchanged."""
        return column


class SpearmanCorrCoef(PearsonCorrCoef):
    """Spearman correlation: Pearson's of the ranks; 0 for constant predictions or labels."""

    @staticmethod
    def transform(column: Tensor) -> Tensor:
        """Return the ranks; ties share their mean rank."""
        _, index, counts = torch.unique(column, return_inverse=True, return_counts=True)
        ranks: Tensor = counts.cumsum(0) - (counts.double() - 1) / 2
        return ranks[index]


def metric_collection(names: Sequence[str], num_labels: int) -> MetricCollection:
    """Make metrics that take predictions (class indices, or values) and labels.

    Args:
        names: Some of `accuracy` (share of rows that are right), `f1` (of class 1 of two),
            `macro_f1` (mean over classes), `matthews`, `pearson`, `spearman`.
        num_labels: Outputs of the model; 1 is a regression.

    Raises:
        ConfigError: A name is unknown, or does not suit the number of outputs.
    """
    regression = num_labels == 1
    makers: dict[str, Callable[[], Metric]] = {
        "accuracy": lambda: MulticlassAccuracy(num_labels, average="micro"),
        "f1": BinaryF1Score,
        "macro_f1": lambda: MulticlassF1Score(num_labels, average="macro"),
        "matthews": lambda: MatthewsCorrCoef(num_labels),
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    suitable = [name for name in makers if (name in ("pearson", "spearman")) == regression]
    if num_labels > 2:
        suitable.remove("f1")
    for name in names:
        if name not in makers:
            raise ConfigError("metrics", name, "unknown metric", f"known: {', '.join(makers)}")
        if name not in suitable:
            kind = "a regression" if regression else f"{num_labels} classes"
            raise ConfigError(
                "metrics", name, f"does not suit {kind}", f"take some of {', '.join(suitable)}"
            )
    return MetricCollection({name: makers[name]() for name in names}, compute_groups=False)


class TokenAccuracy(Metric):
    """Share of tokens whose largest logit is right."""

    full_state_update = False
    right: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count tokens.

        Args:
            logits: (tokens, vocabulary).
            targets: (tokens,).
        """
        self.right += (logits.argmax(-1) == targets).sum()
        self.tokens += len(targets)

    def compute(self) -> Tensor:
        """Compute the share, in [0, 1]."""
        return self.right / self.tokens


class Perplexity(Metric):
    """Exponential of the mean cross-entropy over all tokens: ``exp(-1/n Σ log p(target))``.

    Computed from log-probabilities: torchmetrics' takes the logarithm of a float32 softmax, which
    is infinite for an improbable token.
    """

    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add the cross-entropy of tokens.

        Args:
            logits: (tokens, vocabulary).
            targets: (tokens,).
        """
        self.total += cross_entropy(logits.float(), targets, reduction="sum")
        self.tokens += len(targets)

    def compute(self) -> Tensor:
        """Compute the perplexity, from 1."""
        return (self.total / self.tokens).exp()


def masked_word_metrics(names: Sequence[str]) -> MetricCollection:
    """Make metrics that take the logits of masked tokens and these tokens.

    Args:
        names: Some of `accuracy` and `perplexity`.
    """
    makers: dict[str, Callable[[], Metric]] = {"accuracy": TokenAccuracy, "perplexity": Perplexity}
    return MetricCollection({name: makers[name]() for name in names}, compute_groups=False)
