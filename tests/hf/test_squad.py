"""Exact match and F1 against the definitions of SQuAD's official scripts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from squad_official import normalize, official

from kd_prune.hf.squad import AnswerMetric, answer_scores, code_points, normalized_words
from kd_prune.hf.windows import padded

ANSWERS = ["Denver Broncos", "The Denver Broncos", "Broncos"]


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("the Denver Broncos!", ANSWERS, 1.0, 1.0),
        ("Denver", ANSWERS, 0.0, 2 / 3),
        ("Carolina Panthers", ANSWERS, 0.0, 0.0),
        ("Broncos of Denver, Broncos", ["Denver Broncos"], 0.0, 2 / 3),
        ("Levi's Stadium in Santa Clara", ["Levi's Stadium", "Santa Clara"], 0.0, 4 / 7),
        ("theatre", ["atre"], 0.0, 0.0),  # articles are whole words
        ("3–4", ["34"], 0.0, 0.0),  # only ASCII punctuation goes
        ("3-4", ["34"], 1.0, 1.0),
    ],
)
def test_scores_of_known_examples(prediction, answers, exact, f1):
    assert answer_scores(prediction, answers, no_answers=False) == (exact, pytest.approx(f1))
    assert official(prediction, answers, False) == (exact, pytest.approx(f1))


def test_empty_texts_follow_the_version_of_the_script():
    assert answer_scores("a", ["the"], no_answers=False) == (1.0, 0.0)
    assert answer_scores("", [], no_answers=True) == (1.0, 1.0)
    assert answer_scores("", ["the"], no_answers=True) == (1.0, 1.0)
    assert answer_scores("", ["the cat"], no_answers=True) == (0.0, 0.0)
    assert answer_scores("cat", [], no_answers=True) == (0.0, 0.0)


WORDS = st.lists(
    st.sampled_from(["The", "a", "an", "cat", "Cat's", "dog", "-", "3.5", "é", "\u00a0"]),
    max_size=5,
).map(" ".join)


@given(prediction=WORDS, answers=st.lists(WORDS, min_size=1, max_size=3), no_answers=st.booleans())
def test_scores_equal_the_official_definition(prediction, answers, no_answers):
    assert answer_scores(prediction, answers, no_answers=no_answers) == official(
        prediction, answers, no_answers
    )


@given(st.text())
def test_normalized_words_equal_the_official_definition(text):
    assert " ".join(normalized_words(text)) == normalize(text)


def updated(metric, windows):
    """Windows as ``(question, context, (score, first, last, null), answers)``, in two batches."""
    for batch in (windows[:1], windows[1:]):
        most = max(len(answers) for *_, answers in batch)
        texts = [[*answers, *[""] * (most - len(answers))] for *_, answers in batch]
        points = padded([code_points(text) for one in texts for text in one])
        metric.update(
            torch.tensor([prediction for _, _, prediction, _ in batch]),
            {
                "question": torch.tensor([question for question, *_ in batch]),
                "context": padded([code_points(context) for _, context, *_ in batch]),
                "answers": points.reshape(len(batch), most, -1),
            },
        )
    return float(metric.compute())


WINDOWS = [
    (7, "the old cat", (1.0, 4, 7, 0.5), ["old cat"]),  # "old"
    (3, "a dög ran", (0.0, 2, 5, 2.0), ["dög"]),  # "dög"
    (7, "cat sat", (3.0, 0, 3, 4.5), ["old cat"]),  # "cat", the better window of question 7
    (7, "on mats", (2.0, 0, 7, 9.0), ["old cat"]),
]


def test_metric_takes_the_best_window_of_each_question():
    assert updated(AnswerMetric("f1", None), WINDOWS) == pytest.approx((2 / 3 + 1) / 2)
    assert updated(AnswerMetric("exact_match", None), WINDOWS) == pytest.approx(1 / 2)


@pytest.mark.parametrize(("threshold", "scores"), [(0.0, [2 / 3, 0, 1]), (2.0, [2 / 3, 1, 1])])
def test_metric_answers_nothing_where_the_null_score_exceeds_the_threshold(threshold, scores):
    """Question 7: lowest null score 0.5, best span 3.0; question 3: 2.0 and 0.0."""
    windows = [*WINDOWS, (5, "no one", (0.5, 0, 2, 4.5), [""])]
    found = updated(AnswerMetric("f1", threshold), windows)
    assert found == pytest.approx(sum(scores) / 3)


def test_metric_gives_the_same_whatever_the_order_of_windows():
    orders = (WINDOWS, WINDOWS[::-1], [WINDOWS[i] for i in (2, 0, 3, 1)])
    assert len({updated(AnswerMetric("f1", 0.0), windows) for windows in orders}) == 1


def test_on_a_tie_the_first_window_answers_whatever_is_right():
    """A model that gives all spans one score would else answer with the one that is right."""
    right = ("the old cat", (1.0, 4, 11, 0.0), ["old cat"])
    wrong = ("a dog ran", (1.0, 2, 5, 0.0), ["old cat"])
    assert updated(AnswerMetric("f1", None), [(0, *right), (0, *wrong)]) == 1.0
    assert updated(AnswerMetric("f1", None), [(0, *wrong), (0, *right)]) == 0.0
