"""Prediction: the answers of a fine-tuned model for texts without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.errors import ConfigError
from kd_prune.hf.forward_pass import SEGMENTS, accepts_token_type_ids
from kd_prune.hf.layers import max_positions


@dataclass(frozen=True)
class Prediction:
    """The answer for one row.

    Attributes:
        label: Name of the class; None for a regression.
        score: Probability of that class, or the predicted number.
        probabilities: Probability of every class in the order of the model's; empty for a
            regression.
    """

    label: str | None
    score: float
    probabilities: tuple[float, ...] = ()


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the longest input in tokens that both model and tokenizer allow, 512 at most."""
    return int(min(max_positions(model), tokenizer.model_max_length, 512))


def class_names(model: PreTrainedModel) -> list[str]:
    """Return the class names of a model; empty for a regression.

    Raises:
        ConfigError: The model does not classify texts.
    """
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise ConfigError(
            "folder", type(model).__name__, "has no head that classifies texts or rates them"
        )
    config: Any = model.config
    if config.num_labels == 1:
        return []
    if config.problem_type == "multi_label_classification":
        raise ConfigError("folder", type(model).__name__, "gives several labels to a text")
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[Sequence[str]],
    *,
    max_length: int,
    batch_size: int = 32,
    forward: nn.Module | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Prediction]:
    """Predict every row, in its order; rows of similar length share a batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        columns: One column of texts, or two that are read as pairs.
        max_length: Longest sequence in tokens; the rest is cut off.
        batch_size: Rows per batch.
        forward: The module to run instead of the model, such as a faster form of it.
        progress: Called with the number of rows after every batch.

    Raises:
        ConfigError: The model does not classify texts.
    """
    names, run = class_names(model), forward or model
    # As in training: a tokenizer may leave out segments that the model would accept.
    segments = accepts_token_type_ids(model) and SEGMENTS in tokenizer.model_input_names
    rows = list(zip(*columns, strict=True))
    # The number of characters stands for that of tokens; the order is the same in every run.
    order = sorted(range(len(rows)), key=lambda i: (-sum(map(len, rows[i])), i))
    found: dict[int, Prediction] = {}
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer(
                *(list(texts) for texts in zip(*(rows[i] for i in chosen), strict=True)),
                truncation=True,
                max_length=max_length,
                padding=True,
                return_token_type_ids=segments,
                return_tensors="pt",
            ).to(model.device)
            logits = run(**batch).logits.float().cpu()
            found.update(zip(chosen, answers(logits, names), strict=True))
            progress(len(chosen))
    return [found[i] for i in range(len(rows))]


def answers(logits: torch.Tensor, names: Sequence[str]) -> list[Prediction]:
    """Turn logits, rows × outputs, into predictions; without class names they are numbers."""
    if not names:
        return [Prediction(None, float(value)) for value in logits[:, 0]]
    return [
        Prediction(names[max(range(len(row)), key=row.__getitem__)], max(row), tuple(row))
        for row in logits.softmax(-1).tolist()
    ]
