"""Question answering: the span of a context that answers a question, as in SQuAD."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.errors import ConfigError
from kd_prune.hf.columns import column_type, column_values
from kd_prune.hf.kinds.base import PREDICTIONS_ONLY, Collator, Labels, TaskFields
from kd_prune.hf.squad import METRICS, AnswerMetric
from kd_prune.hf.windows import (
    WindowCollator,
    best_spans,
    check_offsets,
    first_tokens,
    window_rows,
)

log = logging.getLogger(__name__)

SPECIAL_TOKENS = 4
"""Most special tokens that a tokenizer adds to a pair of texts (RoBERTa)."""


@dataclass(frozen=True)
class QuestionAnswering:
    """Extraction of an answer from a context, which is read in overlapping windows.

    The task's texts are the question and the context. The label column holds, per row, the answers
    as SQuAD has them: ``text`` and ``answer_start``, of which the first is learnt. An answer is
    predicted as in SQuAD's baselines: the span with the highest sum of start and end logit, over
    all windows of the question.

    Args:
        doc_stride: Tokens that successive windows share (transformers' ``doc_stride``; in BERT's
            own script it is the distance of two windows instead).
        max_question_length: Longest question in tokens; the rest is cut off.
        max_answer_length: Longest answer in tokens.
        n_best: Starts, and ends, with the highest logits that are paired to answers.
        null_threshold: None: every question has an answer (SQuAD 1.1). A number: some have none
            (SQuAD 2.0); "no answer" is predicted where its score, that of the CLS token, exceeds
            the best span's by more than this.

    Raises:
        ConfigError: A number is out of its range.
    """

    doc_stride: int = 128
    max_question_length: int = 64
    max_answer_length: int = field(default=30, metadata=PREDICTIONS_ONLY)
    n_best: int = field(default=20, metadata=PREDICTIONS_ONLY)
    null_threshold: float | None = field(default=None, metadata=PREDICTIONS_ONLY)

    auto_model: ClassVar[Any] = AutoModelForQuestionAnswering
    uses_num_labels: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = METRICS
    missing_label: ClassVar[Any] = None

    def __post_init__(self) -> None:
        if self.doc_stride < 0:
            raise ConfigError("doc_stride", self.doc_stride, "expected at least 0")
        for key in ("max_question_length", "max_answer_length", "n_best"):
            if (value := getattr(self, key)) < 1:
                raise ConfigError(key, value, "expected at least 1")

    def check(self, task: TaskFields) -> None:
        """Raise ConfigError unless there are two texts, and windows advance by a token or more."""
        if len(task.text) != 2:
            raise ConfigError(
                "text", list(task.text), "expected two columns, the question and the context"
            )
        room = task.max_length - self.max_question_length - SPECIAL_TOKENS
        if room <= self.doc_stride:
            raise ConfigError(
                "max_length",
                task.max_length,
                f"leaves {max(room, 0)} tokens of context beside a question of kind."
                f"max_question_length={self.max_question_length}, not more than "
                f"kind.doc_stride={self.doc_stride}",
                "raise it, or lower one of these",
            )

    def read_labels(self, task: TaskFields, splits: Mapping[str, Dataset]) -> Labels:
        """Read the answers; there are no classes."""
        targets: dict[str, list[Any] | None] = {}
        for split, rows in splits.items():
            answers = read_answers(rows, split, task.label)
            check_answers(answers, split, task.label, no_answers=self.null_threshold is not None)
            warn_of_wrong_starts(answers, column_values(rows, task.text[1]), split, task)
            targets[split] = [
                {
                    **answer_span(texts),
                    "question": i,
                    "answers": [text for text, _ in texts] if split in task.validation else None,
                }
                for i, texts in enumerate(answers)
            ]
        return Labels((), targets)

    def num_outputs(self, names: Sequence[str]) -> int:
        """Return 2, for the start and the end of the answer."""
        return 2

    def encode(
        self,
        task: TaskFields,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[str, list[Any]],
        segments: bool,
    ) -> dict[str, list[Any]]:
        """Return one row per window; see `kd_prune.hf.windows.window_rows`."""
        check_offsets(tokenizer)
        questions, contexts = ([text or "" for text in rows[column]] for column in task.text)
        return window_rows(
            first_tokens(questions, tokenizer, self.max_question_length),
            contexts,
            rows["labels"],
            tokenizer,
            max_length=task.max_length,
            doc_stride=self.doc_stride,
            segments=segments,
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase, pad_to: int | None) -> Collator:
        """Return a collator that pads windows."""
        return WindowCollator(tokenizer, pad_to)

    def predict(self, outputs: Activations, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Predict the best span of every window; see `kd_prune.hf.squad.AnswerMetric`."""
        scores, spans = best_spans(
            outputs.logits,
            batch["offsets"],
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
        )
        null = batch["null_position"][:, None, None].expand(-1, 2, 1)
        null_scores = outputs.logits.float().gather(-1, null).sum((1, 2))
        predictions = torch.stack([scores, *spans.float().unbind(-1), null_scores], -1)
        return predictions, {name: batch[name] for name in ("question", "context", "answers")}

    def hard_label_loss(self, outputs: Activations, batch: Batch) -> Tensor:
        """Compute cross-entropy over the window's tokens, the mean of start and end."""
        return F.cross_entropy(outputs.logits.float().flatten(0, 1), batch["labels"].flatten())

    def metric_collection(self, names: Sequence[str], num_outputs: int) -> MetricCollection:
        """Make metrics of answers, `kd_prune.hf.squad.AnswerMetric`.

        Raises:
            ConfigError: A name is unknown.
        """
        for name in names:
            if name not in METRICS:
                raise ConfigError("metrics", name, "unknown metric", f"known: {', '.join(METRICS)}")
        made: dict[str, Metric | MetricCollection]
        made = {name: AnswerMetric(name, self.null_threshold) for name in names}
        return MetricCollection(made, compute_groups=False)

    def model_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Return no entries."""
        return {}


def read_answers(rows: Dataset, split: str, column: str) -> list[list[tuple[str, int]]]:
    """Return the answers of every row as pairs of text and start, from either form of SQuAD's.

    A row holds a mapping of two lists (the hub's form) or a list of mappings (the JSON's form).

    Raises:
        ConfigError: The column is missing, or holds something else.
    """
    column_type(rows, split, "label", column)
    found = []
    for i, value in enumerate(column_values(rows, column)):
        try:
            if isinstance(value, Mapping):
                pairs = list(zip(value["text"], value["answer_start"], strict=True))
            else:
                pairs = [(one["text"], one["answer_start"]) for one in value or []]
            found.append([(str(text), int(start)) for text, start in pairs])
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(
                "label",
                column,
                f"row {i} of the {split} split has no answers as SQuAD has them",
                "expected {text: [...], answer_start: [...]}",
            ) from error
    return found


def answer_span(answers: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Return the character offsets of the first answer, without blanks at its ends.

    The end is exclusive; both are -1 where there is no answer.

    >>> answer_span([(" movie ", 4), ("film", 20)]), answer_span([])
    ({'start': 5, 'end': 10}, {'start': -1, 'end': -1})
    """
    if not answers:
        return {"start": -1, "end": -1}
    text, start = answers[0]
    start += len(text) - len(text.lstrip())
    return {"start": start, "end": start + len(text.strip())}


def check_answers(
    answers: Sequence[Sequence[tuple[str, int]]], split: str, column: str, *, no_answers: bool
) -> None:
    """Raise ConfigError for a question without an answer, unless there may be some."""
    if no_answers:
        return
    for i, texts in enumerate(answers):
        if not texts:
            raise ConfigError(
                "label",
                column,
                f"row {i} of the {split} split has no answer",
                "set task.kind.null_threshold=0 if questions may have none",
            )


def warn_of_wrong_starts(
    answers: Sequence[Sequence[tuple[str, int]]],
    contexts: Sequence[str | None],
    split: str,
    task: TaskFields,
) -> None:
    """Warn of answers that do not lie at their ``answer_start``.

    Raises:
        ConfigError: None does, so the column has another meaning.
    """
    firsts = [(i, *texts[0]) for i, texts in enumerate(answers) if texts]
    wrong = [
        i for i, text, start in firsts if (contexts[i] or "")[start : start + len(text)] != text
    ]
    if not wrong:
        return
    if len(wrong) == len(firsts):
        raise ConfigError(
            "label",
            task.label,
            f"no answer of the {split} split lies at its answer_start",
            "count characters of the context, from 0",
        )
    log.warning(
        "task.label=%s: %d of %d answers of the %s split do not lie at their answer_start "
        "(row %d is the first)",
        task.label,
        len(wrong),
        len(firsts),
        split,
        wrong[0],
    )
