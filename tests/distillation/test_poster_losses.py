"""Losses of PKD and DistilBERT against numpy and by hand; TinyBERT's, which are shared, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from kd_prune.distillation import (
    Activations,
    AttentionScores,
    Embeddings,
    HiddenStates,
    LastHiddenStateCosine,
    Objective,
    PatientStates,
    SoftTargets,
    cosine_distance,
    patient_mse,
    soft_cross_entropy,
)
from kd_prune.errors import ConfigError

from .toy import activations, batch, random

MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])


# DistilBERT


def test_cosine_distance_is_its_formula():
    student, teacher = random(3, 4, 6, seed=1), random(3, 4, 6, seed=2)
    found = []
    for b, t in np.ndindex(3, 4):
        if MASK[b, t]:
            s, r = student[b, t].numpy(), teacher[b, t].numpy()
            found.append(1 - (s * r).sum() / math.sqrt((s**2).sum() * (r**2).sum()))
    actual = cosine_distance(student, teacher, MASK).item()
    assert actual == pytest.approx(np.mean(found), rel=1e-12)
    assert cosine_distance(3 * teacher, teacher, MASK).item() == pytest.approx(0.0, abs=1e-12)


def test_padding_does_not_change_cosine_distance():
    student, teacher = random(3, 4, 6, seed=1), random(3, 4, 6, seed=2)
    before = cosine_distance(student, teacher, MASK)
    student[~MASK.bool()] = float("nan")
    assert torch.equal(cosine_distance(student, teacher, MASK), before)


def test_cosine_term_reads_the_last_layer_through_a_projection():
    student, teacher = activations(seed=1), activations(seed=2, width=6)
    term = LastHiddenStateCosine()
    with pytest.raises(ConfigError, match="student is 4 wide, the teacher 6"):
        term(student, teacher, batch())
    term.match_widths(4, 6)
    term.double()
    expected = cosine_distance(
        student.hidden_states[-1] @ term.projection.weight.T,
        teacher.hidden_states[-1],
        batch()["attention_mask"],
    )
    torch.testing.assert_close(term(student, teacher, batch()), expected)


# PKD


def test_patient_mse_is_its_formula():
    student, teacher = random(3, 2, 5, seed=3), random(3, 2, 5, seed=4)
    total = 0.0
    for b, layer in np.ndindex(3, 2):
        s, t = student[b, layer].numpy(), teacher[b, layer].numpy()
        total += ((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).sum()
    assert patient_mse(student, teacher).item() == pytest.approx(total / (3 * 2 * 5), rel=1e-12)


def test_patient_mse_by_hand():
    """(3, 4) is (0.6, 0.8), and (0, 2) is (0, 1): (0.36 + 0.04) / 2."""
    student, teacher = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])
    assert patient_mse(student, teacher).item() == pytest.approx(0.2, rel=1e-6)


def test_patient_term_reads_the_first_token_of_all_layers_but_the_last():
    student, teacher = activations(seed=1, layers=3), activations(seed=2, layers=6)
    s, t = (
        [states[:, 0].detach().numpy() for states in model.hidden_states]
        for model in (student, teacher)
    )

    def squares(i, j):
        ours, theirs = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (s[i], t[j]))
        return ((ours - theirs) ** 2).mean()

    skip = PatientStates()(student, teacher, batch()).item()
    assert skip == pytest.approx((squares(1, 2) + squares(2, 4)) / 2, rel=1e-12)
    last = PatientStates(strategy="last")(student, teacher, batch()).item()
    assert last == pytest.approx((squares(1, 4) + squares(2, 5)) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("strategy", "student", "teacher", "expected"),
    [
        ("skip", 6, 12, {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}),
        ("last", 6, 12, {1: 7, 2: 8, 3: 9, 4: 10, 5: 11}),
        ("skip", 3, 12, {1: 4, 2: 8}),
        ("skip", 2, 3, {1: 2}),
        ("skip", 1, 2, {1: 2}),
        ("last", 1, 4, {1: 4}),
    ],
)
def test_layers_of_the_patient_term(strategy, student, teacher, expected):
    """The layers of the paper for 6 of 12; a student of one layer compares its only one."""
    assert dict(PatientStates(strategy=strategy).pairs(student, teacher)) == expected


def test_unknown_strategy_is_refused():
    with pytest.raises(ConfigError, match=r"^strategy=first: expected skip or last"):
        PatientStates(strategy="first")


def test_soft_targets_reduced_by_mean_are_divided_by_the_classes():
    """As torch's KLDivLoss(reduction="mean") of today, which PKD's code uses."""
    student, teacher = random(5, 3, seed=1), random(5, 3, seed=2)
    log_q, p = (student / 10).log_softmax(-1), (teacher / 10).softmax(-1)
    reference = nn.KLDivLoss(reduction="none")(log_q, p).mean()
    actual = soft_cross_entropy(student, teacher, 10.0, "mean")
    torch.testing.assert_close(actual, 100 * reference)
    torch.testing.assert_close(3 * actual, soft_cross_entropy(student, teacher, 10.0))
    term = SoftTargets(temperature=10.0, reduction="mean")
    models = [Activations(logits=logits) for logits in (student, teacher)]
    torch.testing.assert_close(term(*models, {}), actual)
    with pytest.raises(ConfigError, match=r"^reduction=sum: expected batchmean or mean"):
        SoftTargets(reduction="sum")


def test_soft_targets_of_a_batch_without_tokens_are_zero():
    nothing = torch.empty(0, 5, requires_grad=True)
    loss = soft_cross_entropy(nothing, torch.empty(0, 5), 2.0)
    loss.backward()
    assert loss.item() == 0.0


# TinyBERT


def test_tinyberts_layers_by_hand():
    """One layer of two: W doubles the student's only feature, one head, two tokens.

    Embeddings: (2·1 - 1)² and 0, mean 0.5. Hidden: student 1, 1 against the teacher's layer 2 with
    0, 4: (2 - 0)² and (2 - 4)², mean 4. Scores: 1 against 3 at one of four pairs, mean 1.
    """

    def projection():
        doubled = nn.Linear(1, 1, bias=False)
        nn.init.constant_(doubled.weight, 2.0)
        return doubled

    def states(*rows):
        return tuple(torch.tensor(row)[None, :, None] for row in rows)

    def scores(*values):
        return tuple(torch.full((1, 1, 2, 2), value) for value in values)

    teacher_scores = scores(9.0, 1.0)
    teacher_scores[1][0, 0, 0, 1] = 3.0
    student = Activations(
        hidden_states=states([1.0, 0.0], [1.0, 1.0]), attention_scores=scores(1.0)
    )
    teacher = Activations(
        hidden_states=states([1.0, 0.0], [7.0, 7.0], [0.0, 4.0]), attention_scores=teacher_scores
    )
    objective = Objective(
        {
            "embeddings": Embeddings(projection=projection()),
            "hidden_states": HiddenStates(projection=projection()),
            "attention_scores": AttentionScores(),
        }
    )
    total, losses = objective(student, teacher, {"attention_mask": torch.ones(1, 2)})
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == {"embeddings": 0.5, "hidden_states": 4.0, "attention_scores": 1.0}
    assert total.item() == 5.5
