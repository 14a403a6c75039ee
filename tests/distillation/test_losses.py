"""Every loss against a restatement of its formula in numpy, one position at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.distillation.losses import (
    attention_score_mse,
    hard_label_loss,
    hidden_state_mse,
    soft_cross_entropy,
)

from .toy import random

LENGTHS = (4, 1, 3)
TEMPERATURES = (0.5, 1.0, 2.0, 10.0)


def padding_mask(lengths=LENGTHS, width=4):
    return torch.tensor([[int(i < length) for i in range(width)] for length in lengths])


def logits(classes=3):
    return random(5, classes, seed=1) * 3, random(5, classes, seed=2) * 3


def hidden():
    return random(3, 4, 6, seed=3), random(3, 4, 6, seed=4)


def scores():
    return random(3, 2, 4, 4, seed=5), random(3, 2, 4, 4, seed=6)


def token_losses():
    """The masked losses with a pair of inputs each."""
    return [
        pytest.param(hidden_state_mse, hidden(), id="hidden_states"),
        pytest.param(attention_score_mse, scores(), id="attention_scores"),
    ]


def soft_by_hand(student, teacher, temperature):
    total = 0.0
    for s, t in zip(student.numpy() / temperature, teacher.numpy() / temperature, strict=True):
        p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
        for p_c, q_c in zip(p, q, strict=True):
            total += p_c * (np.log(p_c) - np.log(q_c))
    return temperature**2 * total / len(student)


def hidden_by_hand(student, teacher, mask):
    total = count = 0.0
    for b, t in np.ndindex(*mask.shape):
        if mask[b, t]:
            total += float(((student[b, t] - teacher[b, t]) ** 2).sum())
            count += student.shape[-1]
    return total / count


def scores_by_hand(student, teacher, mask):
    total = count = 0.0
    for b, h, q, k in np.ndindex(*student.shape):
        if mask[b, q] and mask[b, k]:
            total += float((student[b, h, q, k] - teacher[b, h, q, k]) ** 2)
            count += 1
    return total / count


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", [2, 3])
def test_soft_cross_entropy_is_its_formula(temperature, classes):
    student, teacher = logits(classes)
    actual = soft_cross_entropy(student, teacher, temperature).item()
    assert actual == pytest.approx(soft_by_hand(student, teacher, temperature), rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_cross_entropy_is_torchs_kl_div(temperature):
    student, teacher = logits()
    expected = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).softmax(-1),
        reduction="batchmean",
    )
    actual = soft_cross_entropy(student, teacher, temperature)
    torch.testing.assert_close(actual, temperature**2 * expected)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_cross_entropy_has_the_gradient_of_cross_entropy(temperature):
    student, teacher = logits()
    student.requires_grad_()
    expected = temperature**2 * F.cross_entropy(
        student / temperature, (teacher / temperature).softmax(-1)
    )
    actual = soft_cross_entropy(student, teacher, temperature)
    assert actual.item() < expected.item()  # by the teacher's entropy
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (actual, expected)))


def test_the_gradients_size_hardly_depends_on_the_temperature():
    student, teacher = (x / 3 for x in logits())
    student.requires_grad_()
    norms = [
        torch.autograd.grad(soft_cross_entropy(student, teacher, t), student)[0].norm().item()
        for t in (1.0, 4.0, 16.0, 64.0)
    ]
    assert max(norms) < 2 * min(norms)  # without T² they differ by a factor of 64
    assert norms[-1] == pytest.approx(norms[-2], rel=0.05)


def test_hidden_state_mse_is_its_formula():
    expected = hidden_by_hand(*hidden(), padding_mask())
    actual = hidden_state_mse(*hidden(), padding_mask())
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_attention_score_mse_is_its_formula():
    expected = scores_by_hand(*scores(), padding_mask())
    actual = attention_score_mse(*scores(), padding_mask())
    assert actual.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("loss", "pair"), token_losses())
def test_without_padding_a_masked_mean_is_a_mean(loss, pair):
    mask = torch.ones(3, 4, dtype=torch.long)
    torch.testing.assert_close(loss(*pair, mask), F.mse_loss(*pair))


def test_hard_labels_are_torchs_cross_entropy():
    student, _ = logits()
    labels = torch.tensor([0, 2, 1, 1, 0])
    p = np.exp(student.numpy()) / np.exp(student.numpy()).sum(-1, keepdims=True)
    expected = -np.log(p[np.arange(5), labels.numpy()]).mean()
    assert hard_label_loss(student, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_labels_of_a_regression_are_squared_errors(dtype):
    student, values = random(5, 1, seed=7), random(5, seed=8).to(dtype)
    expected = np.mean(
        [(s[0] - v) ** 2 for s, v in zip(student.numpy(), values.numpy(), strict=True)]
    )
    assert hard_label_loss(student, values).item() == pytest.approx(expected, rel=1e-6)


def test_loss_is_zero_only_where_student_and_teacher_agree():
    mask = padding_mask()
    for temperature in TEMPERATURES:
        student, teacher = logits()
        assert soft_cross_entropy(teacher, teacher, temperature).item() == 0.0
        assert soft_cross_entropy(student, teacher, temperature).item() > 0.0
    assert hidden_state_mse(hidden()[0], hidden()[0], mask).item() == 0.0
    assert attention_score_mse(scores()[0], scores()[0], mask).item() == 0.0


@pytest.mark.parametrize(
    ("loss", "student"),
    [
        pytest.param(lambda s: soft_cross_entropy(s, logits()[1], 2.0), logits()[0], id="soft"),
        pytest.param(
            lambda s: hard_label_loss(s, torch.tensor([0, 2, 1, 1, 0])), logits()[0], id="hard"
        ),
        pytest.param(
            lambda s: hard_label_loss(s, random(5, seed=8)), random(5, 1, seed=7), id="regression"
        ),
        pytest.param(
            lambda s: hidden_state_mse(s, hidden()[1], padding_mask()), hidden()[0], id="hidden"
        ),
        pytest.param(
            lambda s: attention_score_mse(s, scores()[1], padding_mask()), scores()[0], id="scores"
        ),
    ],
)
def test_gradients(loss, student):
    assert loss(student).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, student.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    def both(pair):
        half = [x.to(dtype) for x in pair]
        return half, [x.float() for x in half]

    mask = padding_mask()
    for loss, pair in (
        (lambda s, t: soft_cross_entropy(s, t, 2.0), logits()),
        (lambda s, t: hidden_state_mse(s, t, mask), hidden()),
        (lambda s, t: attention_score_mse(s, t, mask), scores()),
        (lambda s, t: hard_label_loss(s, torch.tensor([0, 2, 1, 1, 0])), logits()),
        (lambda s, t: hard_label_loss(s[:, :1], t[:, 0]), logits()),
    ):
        half, single = both(pair)
        assert loss(*half).dtype == torch.float32
        assert torch.equal(loss(*half), loss(*single))


@given(order=st.permutations(range(3)))
@pytest.mark.parametrize(("loss", "pair"), token_losses())
def test_the_order_of_the_batch_does_not_matter_to_token_losses(loss, pair, order):
    moved = [x[list(order)] for x in (*pair, padding_mask())]
    torch.testing.assert_close(loss(*moved), loss(*pair, padding_mask()))


@given(order=st.permutations(range(5)))
def test_the_order_of_the_batch_does_not_matter_to_logit_losses(order):
    student, teacher = logits()
    labels = torch.tensor([0, 2, 1, 1, 0])
    order = list(order)
    torch.testing.assert_close(
        soft_cross_entropy(student[order], teacher[order], 2.0),
        soft_cross_entropy(student, teacher, 2.0),
    )
    torch.testing.assert_close(
        hard_label_loss(student[order], labels[order]), hard_label_loss(student, labels)
    )


def pad(tensor, extra, garbage):
    """Lengthen the length dimensions, those after the batch (and heads) of size 4."""
    width = (0, extra, 0, extra) if tensor.ndim == 4 else (0, 0, 0, extra)
    return F.pad(tensor, width, value=garbage)


@pytest.mark.parametrize("garbage", [1e30, -7.5, float("inf"), float("nan")])
@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize(("loss", "pair"), token_losses())
def test_padding_never_changes_a_loss_nor_its_gradient(loss, pair, extra, garbage):
    mask = padding_mask()
    real = mask.bool()
    seen = real[:, None, :, None] & real[:, None, None, :] if pair[0].ndim == 4 else real[..., None]
    student, teacher = (x.clone() for x in pair)
    student.requires_grad_()
    expected = loss(student, teacher, mask)
    (gradient,) = torch.autograd.grad(expected, student)

    dirty = pad(student.detach().masked_fill(~seen, garbage), extra, garbage).requires_grad_()
    taught = pad(teacher.masked_fill(~seen, -garbage), extra, -garbage)
    actual = loss(dirty, taught, F.pad(mask, (0, extra)))
    (dirty_gradient,) = torch.autograd.grad(actual, dirty)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(dirty_gradient, pad(gradient, extra, 0.0))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize(("loss", "pair"), token_losses())
def test_masks_of_any_type_mean_the_same(loss, pair, dtype):
    expected = loss(*pair, padding_mask())
    assert torch.equal(loss(*pair, padding_mask().to(dtype)), expected)


@pytest.mark.parametrize(("loss", "pair"), token_losses())
def test_inputs_are_left_as_they_were(loss, pair):
    copies = [x.clone() for x in pair]
    loss(*copies, padding_mask())
    for copy, original in zip(copies, pair, strict=True):
        assert torch.equal(copy, original)


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_padding_of_answer_positions_changes_no_soft_targets(reduction):
    """Logits of start and end, (batch, 2, length); 5 and 3 tokens are real."""
    torch.manual_seed(0)
    pair = torch.randn(2, 2, 2, 5)
    pair[:, 1, :, 3:] = torch.finfo(torch.float32).min
    student, teacher = pair
    loss = soft_cross_entropy(student, teacher, 2.0, reduction)
    longer = [F.pad(x, (0, 9), value=torch.finfo(torch.float32).min) for x in pair]
    torch.testing.assert_close(soft_cross_entropy(*longer, 2.0, reduction), loss)
    each = [
        soft_cross_entropy(student[row, None, side, :n], teacher[row, None, side, :n], 2.0)
        / (n if reduction == "mean" else 1)
        for row, n in ((0, 5), (1, 3))
        for side in (0, 1)
    ]
    torch.testing.assert_close(loss, sum(each) / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_soft_targets_of_padding_are_finite(temperature):
    """Question answering gives padding the least finite logit; divided by T < 1 it was -inf."""
    least = torch.finfo(torch.float32).min
    student = torch.tensor([[1.0, 2.0, least]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, least]])
    loss = soft_cross_entropy(student, teacher, temperature=temperature)
    without = soft_cross_entropy(student[:, :2], teacher[:, :2], temperature=temperature)
    torch.testing.assert_close(loss, without)
    loss.backward()
    assert student.grad.isfinite().all()
