"""Definitions of SQuAD's official scripts, restated from their publication."""

from __future__ import annotations

import re
import string
from collections import Counter


def normalize(text):
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_of_version_1(prediction, truth):
    ours, theirs = normalize(prediction).split(), normalize(truth).split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return (2 * precision * recall) / (precision + recall)


def f1_of_version_2(truth, prediction):
    golds, found = normalize(truth).split(), normalize(prediction).split()
    same = sum((Counter(golds) & Counter(found)).values())
    if len(golds) == 0 or len(found) == 0:
        return float(golds == found)
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(golds)
    return (2 * precision * recall) / (precision + recall)


def official(prediction, answers, no_answers):
    if not no_answers:
        exact = max(float(normalize(prediction) == normalize(answer)) for answer in answers)
        return exact, max(f1_of_version_1(prediction, answer) for answer in answers)
    golds = [answer for answer in answers if normalize(answer)] or [""]
    exact = max(float(normalize(gold) == normalize(prediction)) for gold in golds)
    return exact, max(f1_of_version_2(gold, prediction) for gold in golds)
