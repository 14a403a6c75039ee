"""Distillation losses: pure functions of tensors, each a scalar mean.

Token-level losses are masked means: padding changes neither them nor their gradients, whatever
values it holds. Half precision is computed in float32; float64 stays float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: str = "batchmean"
) -> Tensor:
    """Compute the divergence of the student's distribution from the teacher's soft targets.

    ``T² · mean_batch Σ_c p_c (log p_c - log q_c)`` with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``. Its gradient equals that of soft cross-entropy; unlike soft
    cross-entropy it is 0 where both distributions agree. ``T²`` keeps the gradient's size
    independent of ``T``.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.

    Args:
        student: Logits, (batch, classes), or (batch, 2, length) for start and end of an answer,
            whose padding has the least finite number; both sums are added.
        teacher: Logits, of the same shape.
        temperature: T > 0.
        reduction: ``batchmean``, the formula above; ``mean`` divides it by the number of classes
            too, as the code of PKD (arXiv 1908.09355) does; padding is no class.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(soft_cross_entropy(logits, logits, temperature=2.0))
    0.0
    """
    if not len(student):  # a batch without a token to predict
        return _at_least_float32(student).sum()
    scale = temperature**2
    log_q = F.log_softmax(_over_temperature(student, temperature), dim=-1)
    log_p = F.log_softmax(_over_temperature(teacher, temperature), dim=-1)
    if reduction == "mean" and student.dim() > 2:
        classes = (teacher > torch.finfo(teacher.dtype).min).sum(-1)
        each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) / classes
        return each.sum() / len(student) * scale
    loss = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * scale
    return loss / student.shape[-1] if reduction == "mean" else loss


def _over_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by a temperature; the least finite number, of padding, does not become -inf."""
    logits = _at_least_float32(logits)
    return (logits / temperature).clamp(min=torch.finfo(logits.dtype).min)


def hidden_state_mse(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute the mean squared difference over real tokens and features.

    ``Σ_t m_t ‖s_t - t_t‖² / (d · Σ_t m_t)``. Source: SparseBERT's L_rep, masked.

    Args:
        student: Hidden states, (batch, length, d).
        teacher: Hidden states, (batch, length, d).
        attention_mask: 1 for real tokens, 0 for padding, (batch, length).
    """
    real = attention_mask.bool()
    return _masked_mse(student, teacher, real[:, :, None])


def attention_score_mse(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute the mean squared difference of attention scores over heads and real token pairs.

    ``Σ_{h,q,k} m_q m_k (s_hqk - t_hqk)² / (H · Σ_{q,k} m_q m_k)`` on scores ``QKᵀ/√d`` before the
    softmax. Source: TinyBERT (arXiv 1909.10351) eq. 7, as SparseBERT's L_att, masked.

    Args:
        student: Scores, (batch, heads, length, length).
        teacher: Scores, of the same shape.
        attention_mask: 1 for real tokens, 0 for padding, (batch, length).
    """
    real = attention_mask.bool()
    return _masked_mse(student, teacher, real[:, None, :, None] & real[:, None, None, :])


def cosine_distance(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute one minus the cosine of the angle between hidden states, a mean over real tokens.

    ``Σ_t m_t (1 - s_t·t_t / (‖s_t‖ ‖t_t‖)) / Σ_t m_t``. Source: DistilBERT (arXiv 1910.01108),
    L_cos.

    Args:
        student: Hidden states, (batch, length, d).
        teacher: Hidden states, (batch, length, d).
        attention_mask: 1 for real tokens, 0 for padding, (batch, length).
    """
    real = attention_mask.bool()
    ours, theirs = (_at_least_float32(states[real]) for states in (student, teacher))
    return (1.0 - F.cosine_similarity(ours, theirs, dim=-1)).mean()


def patient_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of states that are scaled to length 1.

    ``mean_{b,l,i} (s_bli / ‖s_bl‖ - t_bli / ‖t_bl‖)²``. Source: PKD (arXiv 1908.09355) eq. 7,
    divided by batch, layers and width as its code does.

    Args:
        student: States of the first token, (batch, layers, d).
        teacher: States, of the same shape.
    """
    ours, theirs = (F.normalize(_at_least_float32(one), dim=-1) for one in (student, teacher))
    return F.mse_loss(ours, theirs)


def relation_kl(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute the divergence of relations between tokens, a mean over heads and real tokens.

    ``Σ_{h,q} m_q Σ_k m_k p_hqk (log p_hqk - log q_hqk) / (H · Σ_q m_q)`` with
    ``p_hq = softmax_k(teacher_hq)`` and ``q_hq = softmax_k(student_hq)`` over the real tokens k.

    Source: MiniLM (arXiv 2002.10957) eq. 7 and 8: attention distributions where the scores are
    ``QKᵀ/√d``, value relations where they are ``VVᵀ/√d``.

    Args:
        student: Scores, (batch, heads, length, length).
        teacher: Scores, of the same shape.
        attention_mask: 1 for real tokens, 0 for padding, (batch, length).
    """
    real = attention_mask.bool()
    padding = ~(real[:, None, :, None] & real[:, None, None, :])
    log_q, log_p = (
        # The lowest finite number: the difference of two infinities is NaN.
        (wide := _at_least_float32(one))
        .masked_fill(padding, torch.finfo(wide.dtype).min)
        .log_softmax(dim=-1)
        .masked_fill(padding, 0.0)
        for one in (student, teacher)
    )
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    divergence = divergence.masked_fill(~real[:, None, :], 0.0)
    return divergence.sum() / (real.sum() * student.shape[1])


def hard_label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Compute cross-entropy against the labels, or squared error where there is one output.

    Args:
        student: Logits, (batch, classes); (batch, 1) is a regression.
        labels: Class indices (long) or values (float), (batch,).
    """
    if student.shape[-1] == 1:
        values = _at_least_float32(student).squeeze(-1)
        return F.mse_loss(values, labels.to(values.dtype))
    return F.cross_entropy(_at_least_float32(student), labels)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _masked_mse(student: Tensor, teacher: Tensor, keep: Tensor) -> Tensor:
    """Compute the mean squared difference where `keep` (broadcastable) is true."""
    difference = _at_least_float32(student) - _at_least_float32(teacher)
    # Filled, not multiplied by 0, and before squaring: NaN · 0 is NaN, in the gradient too.
    squares = difference.masked_fill_(~keep, 0.0).square()
    return squares.sum() / (keep.sum() * (difference.numel() // keep.numel()))
