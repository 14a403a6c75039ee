"""Relations within heads (MiniLM): formula, hand-computed case, any width and number of heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kd_prune.distillation import Activations, HeadRelations, Objective, relation_kl
from kd_prune.distillation.relations import divided
from kd_prune.errors import ConfigError

from .toy import random

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def heads(*, seed, layers=2, number=2, width=3):
    """Activations with queries, keys and values."""
    names = ("queries", "keys", "values")
    return Activations(
        **{
            name: tuple(random(3, number, 4, width, seed=seed + 10 * i + j) for j in range(layers))
            for i, name in enumerate(names)
        }
    )


def kl_by_hand(student, teacher, mask):
    total = count = 0.0
    for b, h, q in np.ndindex(*student.shape[:3]):
        if not mask[b, q]:
            continue
        real = [k for k in range(student.shape[3]) if mask[b, k]]
        t, s = (np.exp([float(one[b, h, q, k]) for k in real]) for one in (teacher, student))
        p, r = t / t.sum(), s / s.sum()
        total += sum(p_k * (math.log(p_k) - math.log(r_k)) for p_k, r_k in zip(p, r, strict=True))
        count += 1
    return total / count


def test_relation_kl_is_its_formula():
    student, teacher = random(3, 2, 4, 4, seed=1), random(3, 2, 4, 4, seed=2)
    actual = relation_kl(student, teacher, MASK).item()
    assert actual == pytest.approx(kl_by_hand(student, teacher, MASK), rel=1e-12)
    assert relation_kl(teacher, teacher, MASK).item() == pytest.approx(0.0, abs=1e-15)


def test_relation_kl_of_two_tokens_by_hand():
    """MiniLM: the teacher attends 3/4 and 1/4, the student evenly: ln 2 - H(1/4) twice."""
    scores = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])[None, None]
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert expected == pytest.approx(0.130812, abs=1e-6)
    actual = relation_kl(torch.zeros(1, 1, 2, 2), scores, torch.ones(1, 2))
    assert actual.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
def test_padding_changes_neither_relation_kl_nor_its_gradient(filler):
    results = []
    for value in (0.5, filler):
        student, teacher = random(3, 2, 4, 4, seed=1), random(3, 2, 4, 4, seed=2)
        pairs = (MASK[:, :, None] & MASK[:, None, :]).bool()[:, None].expand_as(student)
        student = student.where(pairs, torch.tensor(value, dtype=torch.float64)).requires_grad_()
        loss = relation_kl(student, teacher.where(pairs, torch.tensor(value).double()), MASK)
        loss.backward()
        results.append((loss.item(), student.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1])
    assert results[1][1].isfinite().all()


def test_queries_and_keys_of_equal_heads_are_the_attention_distributions():
    student, teacher = heads(seed=1), heads(seed=5)
    scores = [
        model.queries[-1] @ model.keys[-1].transpose(2, 3) / math.sqrt(3)
        for model in (student, teacher)
    ]
    actual = HeadRelations()(student, teacher, {"attention_mask": MASK})
    torch.testing.assert_close(actual, relation_kl(*scores, MASK))


def test_value_relations_by_hand():
    """One head, two tokens with values 0 and 1 of width 1: VVᵀ = [[0, 0], [0, 1]]."""
    student = Activations(values=(torch.zeros(1, 1, 2, 1),))
    teacher = Activations(values=(torch.tensor([[[[0.0], [1.0]]]]),))
    p = math.e / (1 + math.e)
    expected = (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))) / 2  # the first row agrees
    term = HeadRelations(left="values", right="values")
    assert term.requires == {"values"}
    actual = term(student, teacher, {"attention_mask": torch.ones(1, 2)})
    assert actual.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [((2, 3), (2, 6), 2), ((4, 3), (2, 3), 2), ((2, 6), (4, 3), 4), ((1, 6), (4, 5), 2)],
)
def test_any_width_and_number_of_heads_is_compared(ours, theirs, expected):
    """(heads, width of a head): as many relation heads as the teacher has, if the width allows."""
    student = heads(seed=1, number=ours[0], width=ours[1])
    teacher = heads(seed=2, number=theirs[0], width=theirs[1], layers=4)
    term = HeadRelations(left="values", right="values")
    actual = term(student, teacher, {"attention_mask": MASK})
    relations = []
    for model in (student, teacher):
        flat = model.values[-1].transpose(1, 2).flatten(2)  # (batch, length, all features)
        parts = torch.stack(flat.chunk(expected, dim=-1), dim=1)
        relations.append(parts @ parts.transpose(2, 3) / math.sqrt(parts.shape[-1]))
    torch.testing.assert_close(actual, relation_kl(*relations, MASK))
    assert actual > 0


def test_dividing_heads_keeps_features_in_their_order():
    features = torch.arange(8.0).reshape(1, 2, 1, 4)
    assert divided(features, 4)[0, :, 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert torch.equal(divided(features, 2), features)


def test_layers_of_a_map_are_added():
    student, teacher = heads(seed=1), heads(seed=2, layers=4)
    batch = {"attention_mask": MASK}
    single = [HeadRelations(layer_map={i: j})(student, teacher, batch) for i, j in ((1, 2), (2, 4))]
    both = HeadRelations(layer_map={1: 2, 2: 4})(student, teacher, batch)
    torch.testing.assert_close(both, sum(single))
    torch.testing.assert_close(HeadRelations()(student, teacher, batch), single[1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"left": "logits"}, "left=logits: expected one of keys, queries, values"),
        ({"heads": 0}, "heads=0: expected at least 1"),
        ({"heads": 4}, "heads=4: does not divide 6 features; take a common divisor"),
        ({"layer_map": {0: 1}}, "layer_map={0: 1}: 0, the embeddings, has no heads"),
        ({"layer_map": {3: 1}}, "layer_map={3: 1}: the student has layers"),
    ],
)
def test_relations_that_cannot_be_compared_are_refused(settings, says):
    with pytest.raises(ConfigError, match=f"^(terms.relations.)?{says}"):
        Objective({"relations": HeadRelations(**settings)})(
            heads(seed=1), heads(seed=2), {"attention_mask": MASK}
        )
