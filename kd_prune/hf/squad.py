"""Exact match and F1 of answers, with the definitions of SQuAD's official scripts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
METRICS = ("exact_match", "f1")


def normalized_words(text: str) -> list[str]:
    """Split a text into lower-case words, without ASCII punctuation and articles.

    >>> normalized_words("The  Denver Broncos' defense, a 3-4")
    ['denver', 'broncos', 'defense', '34']
    """
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def word_f1(prediction: Sequence[str], answer: Sequence[str], *, empty_matches: bool) -> float:
    """Compute the F1 of two bags of words, in [0, 1].

    ``2 · precision · recall / (precision + recall)`` over the words that both have, each counted as
    often as it occurs in both.

    Args:
        prediction: Normalized words of the prediction.
        answer: Normalized words of an answer.
        empty_matches: Whether two empty bags give 1, as in the script of SQuAD 2.0, or 0, as in
            that of SQuAD 1.1.
    """
    shared = sum((Counter(prediction) & Counter(answer)).values())
    if not shared:
        return float(empty_matches and not prediction and not answer)
    precision, recall = shared / len(prediction), shared / len(answer)
    return 2 * precision * recall / (precision + recall)


def answer_scores(
    prediction: str, answers: Sequence[str], *, no_answers: bool
) -> tuple[float, float]:
    """Compute exact match and F1 of one prediction, each the best over the answers.

    Source: the official ``evaluate-v1.1.py`` and ``evaluate-v2.0.py``; they print percent.

    Args:
        prediction: The predicted text; empty for "no answer".
        answers: The texts that people gave.
        no_answers: Whether questions without an answer exist, as in SQuAD 2.0: an answer that is
            empty when normalized does not count, and the empty text is right where none is left.

    >>> answer_scores("the cat sat", ["Cat!", "a dog"], no_answers=False)
    (0.0, 0.6666666666666666)
    """
    words = normalized_words(prediction)
    golds = [normalized_words(answer) for answer in answers]
    if no_answers:
        golds = [gold for gold in golds if gold] or [[]]
    exact = max((float(words == gold) for gold in golds), default=0.0)
    f1 = max((word_f1(words, gold, empty_matches=no_answers) for gold in golds), default=0.0)
    return exact, f1


class AnswerMetric(Metric):
    """Mean exact match or F1 over questions, each of one or several windows, in [0, 1].

    The answer to a question is the span with the highest score in any of its windows, on a tie that
    of the first of them. With a
    `null_threshold` it is the empty text where the lowest null score of the windows exceeds the
    span's score by more than the threshold.

    Args:
        name: ``exact_match`` or ``f1``.
        null_threshold: The threshold; None: every question has an answer (SQuAD 1.1).
    """

    full_state_update = False
    questions: list[Tensor]
    values: list[Tensor]

    def __init__(self, name: str, null_threshold: float | None) -> None:
        super().__init__()
        self.column = METRICS.index(name)
        self.null_threshold = null_threshold
        self.add_state("questions", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Mapping[str, Tensor]) -> None:
        """Score the best span of each window.

        Args:
            predictions: (windows, 4): score of the best span, its first and its last character + 1
                in the window's text, null score.
            targets: ``question``, the question's index, (windows,); ``context``, code points of the
                window's text, (windows, characters); ``answers``, code points of its answers,
                (windows, answers, characters). Both are filled up with -1.
        """
        no_answers = self.null_threshold is not None
        rows = []
        contexts, answers = targets["context"].cpu(), targets["answers"].cpu()
        for window, context, golds in zip(predictions.tolist(), contexts, answers, strict=True):
            score, first, last, null = window
            texts = list(filter(None, map(text_of, golds)))
            span = text_of(context)[int(first) : int(last)]
            scores = [
                answer_scores(prediction, texts, no_answers=no_answers)[self.column]
                for prediction in (span, "")
            ]
            rows.append([score, null, *scores])
        self.questions.append(targets["question"])
        self.values.append(torch.tensor(rows, device=predictions.device).reshape(-1, 4))

    def compute(self) -> Tensor:
        """Compute the mean over all questions."""
        best: dict[int, tuple[float, float]] = {}
        null: dict[int, tuple[float, float]] = {}
        questions = dim_zero_cat(self.questions)
        rows = zip(questions.tolist(), dim_zero_cat(self.values).tolist(), strict=True)
        for question, (score, null_score, value, null_value) in rows:
            # By score alone: which window answers must not depend on what is right.
            if question not in best or score > best[question][0]:
                best[question] = score, value
            if question not in null or null_score < null[question][0]:
                null[question] = null_score, null_value
        values = [
            null[question][1]
            if self.null_threshold is not None and null[question][0] - score > self.null_threshold
            else value
            for question, (score, value) in best.items()
        ]
        return torch.tensor(values, device=questions.device).mean()


def code_points(text: str) -> list[int]:
    """Return the code points of a text, with which a batch carries it as a tensor."""
    return list(map(ord, text))


def text_of(points: Tensor) -> str:
    """Return the text of code points; negative numbers are padding.

    >>> text_of(torch.tensor([104, 105, -1]))
    'hi'
    """
    return "".join(chr(point) for point in points.tolist() if point >= 0)
