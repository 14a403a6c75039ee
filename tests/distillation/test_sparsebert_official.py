"""The reference code's loss, restated in numpy from what it computes."""

import dataclasses

import numpy as np
import pytest

from kd_prune.distillation import Custom, Objective
from kd_prune.distillation import sparsebert_official as official

from .toy import activations, batch

MASK = batch()["attention_mask"].numpy()


def pair(**settings):
    return activations(seed=1, **settings), activations(seed=2, **settings)


def arrays(tensors):
    return [tensor.detach().numpy() for tensor in tensors]


def test_hidden_states_are_plain_means_summed_from_the_embeddings_on():
    student, teacher = pair()
    expected = 0.0
    for s, t in zip(arrays(student.hidden_states), arrays(teacher.hidden_states), strict=True):
        expected += np.mean((s - t) ** 2)
    actual = official.hidden_states(student, teacher, batch())
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def reference_scores(scores):
    """What the reference code compares: scores + mask · -10000, entries ≤ -100 set to 0."""
    masked = scores + (1.0 - MASK[:, None, None, :]) * -10000.0
    return np.where(masked <= -1e2, 0.0, masked)


def test_attention_scores_of_masked_keys_are_zero():
    student, teacher = pair()
    expected = 0.0
    pairs = zip(arrays(student.attention_scores), arrays(teacher.attention_scores), strict=True)
    for s, t in pairs:
        expected += np.mean((reference_scores(s) - reference_scores(t)) ** 2)
    actual = official.attention_scores(student, teacher, batch())
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_attention_scores_of_padded_queries_count():
    student, teacher = pair()
    padded = student.attention_scores[0].detach().clone()
    padded[1, :, 3, 0] += 1.0  # row 1 is one token long; key 0 is real, query 3 is not
    changed = dataclasses.replace(student, attention_scores=(padded, *student.attention_scores[1:]))
    before, after = (official.attention_scores(s, teacher, batch()) for s in (student, changed))
    assert before.item() != after.item()


@pytest.mark.parametrize("outputs", [2, 3])
def test_soft_targets_are_a_mean_over_rows_and_classes_too(outputs):
    student, teacher = pair(outputs=outputs)
    s, t = arrays([student.logits, teacher.logits])
    p = np.exp(t) / np.exp(t).sum(-1, keepdims=True)
    log_q = s - np.log(np.exp(s).sum(-1, keepdims=True))
    expected = -(p * log_q).sum() / (len(s) * outputs)
    actual = official.soft_cross_entropy(student, teacher, batch())
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_a_regression_learns_from_the_labels_not_the_teacher():
    student, teacher = pair(outputs=1)
    data = batch(regression=True)
    (s,) = arrays([student.logits])
    expected = np.mean((s[:, 0] - data["labels"].numpy()) ** 2)
    for teacher_logits in (teacher.logits, teacher.logits * 100):
        taught = dataclasses.replace(teacher, logits=teacher_logits)
        actual = official.soft_cross_entropy(student, taught, data)
        assert actual.item() == pytest.approx(expected, rel=1e-12)
    actual.backward()  # labels are float32, the logits here float64
    assert student.logits.grad.norm() > 0


@pytest.mark.parametrize(
    ("other", "what"),
    [({"layers": 3}, "depth"), ({"width": 6}, "width"), ({"heads": 3}, "number of heads")],
)
def test_models_of_different_shape_raise_with_the_terms_name(other, what):
    terms = {
        "hidden_states": Custom(function=official.hidden_states, requires=["hidden_states"]),
        "attention_scores": Custom(
            function=official.attention_scores, requires=["attention_scores"]
        ),
    }
    if what == "width":
        del terms["attention_scores"]
    if what == "number of heads":
        del terms["hidden_states"]
    for name, term in terms.items():
        with pytest.raises(
            ValueError, match=rf"^terms\.{name}\.weight: the student's {what} is .*; set the weight"
        ):
            Objective({name: term})(activations(seed=1), activations(seed=2, **other), batch())
