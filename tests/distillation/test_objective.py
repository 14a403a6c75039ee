import dataclasses
import re

import pytest
import torch

from kd_prune.distillation import (
    AttentionScores,
    Custom,
    Embeddings,
    HardLabels,
    HiddenStates,
    Objective,
    SoftTargets,
)

from .toy import activations, batch

NAMED = {
    "embeddings": Embeddings,
    "hidden_states": HiddenStates,
    "attention_scores": AttentionScores,
    "soft_targets": SoftTargets,
    "hard_labels": HardLabels,
}


def all_terms(**weights):
    return {name: term(weight=weights.get(name, 1.0)) for name, term in NAMED.items()}


def student_leaves(student):
    return [student.logits, *student.hidden_states, *student.attention_scores]


def gradient(terms):
    """Gradient of the total with respect to everything the student gives, as one vector."""
    student = activations(seed=1)
    total, _ = Objective(terms)(student, activations(seed=2), batch())
    leaves = student_leaves(student)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def test_the_total_is_the_weighted_sum_of_unweighted_terms():
    weights = {"embeddings": 0.25, "attention_scores": 3.0, "hard_labels": 0.5}
    pair = activations(seed=1), activations(seed=2)
    total, losses = Objective(all_terms(**weights))(*pair, batch())
    assert list(losses) == list(NAMED)
    for name, loss in losses.items():
        assert torch.equal(loss, NAMED[name]()(*pair, batch()))
    expected = sum(weights.get(name, 1.0) * loss for name, loss in losses.items())
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("name", NAMED)
def test_doubling_a_weight_doubles_its_share_of_the_gradient(name):
    alone = gradient({name: NAMED[name]()})
    assert alone.norm() > 0
    torch.testing.assert_close(gradient(all_terms(**{name: 2.0})), gradient(all_terms()) + alone)


@pytest.mark.parametrize("name", NAMED)
def test_weight_zero_removes_a_term(name):
    rest = {other: term for other, term in all_terms().items() if other != name}
    torch.testing.assert_close(gradient(all_terms(**{name: 0.0})), gradient(rest))
    objective = Objective(all_terms(**{name: 0.0}))
    assert list(objective.terms) == list(rest)


def test_a_term_of_weight_zero_is_not_even_called():
    def never(student, teacher, batch):
        raise AssertionError("called")

    term = Custom(function=never, requires={"attention_scores"}, weight=0.0)
    objective = Objective({"never": term, "hard_labels": HardLabels()})
    _, losses = objective(activations(seed=1), None, batch())
    assert set(losses) == {"hard_labels"}
    assert objective.requires == {"logits"}


@pytest.mark.parametrize(
    ("off", "requires"),
    [
        (["embeddings"], {"logits", "hidden_states", "attention_scores"}),
        (["embeddings", "hidden_states"], {"logits", "attention_scores"}),
        (["attention_scores"], {"logits", "hidden_states"}),
        (["attention_scores", "embeddings", "hidden_states"], {"logits"}),
    ],
)
def test_it_requires_what_its_terms_require(off, requires):
    assert Objective(all_terms(**dict.fromkeys(off, 0.0))).requires == requires


def test_it_needs_a_teacher_where_a_term_reads_one():
    assert Objective({"soft_targets": SoftTargets()}).needs_teacher
    assert not Objective({"hard_labels": HardLabels()}).needs_teacher
    assert not Objective(
        {"hard_labels": HardLabels(), "soft_targets": SoftTargets(weight=0.0)}
    ).needs_teacher


def test_a_term_of_ones_own_takes_part():
    def norm(student, teacher, batch):
        return student.logits.square().mean()

    terms = {"norm": Custom(function=norm, of_teacher=False, weight=0.5)}
    student = activations(seed=1)
    total, losses = Objective(terms)(student, None, batch())
    torch.testing.assert_close(total, 0.5 * student.logits.square().mean())
    assert losses["norm"].item() == pytest.approx(2 * total.item())


@pytest.mark.parametrize("weight", [-1.0, -1e-9, float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_none_raises(weight):
    with pytest.raises(ValueError, match=rf"^terms.soft_targets.weight={weight}: expected a "):
        Objective({"hard_labels": HardLabels(), "soft_targets": SoftTargets(weight=weight)})


@pytest.mark.parametrize("terms", [{}, {"hard_labels": HardLabels(weight=0.0)}])
def test_nothing_to_learn_from_raises(terms):
    with pytest.raises(ValueError, match="no term has a weight above 0"):
        Objective(terms)


def test_an_unknown_kind_raises():
    term = Custom(function=lambda *_: torch.zeros(()), requires=["logits", "gradients"])
    with pytest.raises(ValueError, match=r"^terms.mine.requires=\['gradients'\].*hidden_states"):
        Objective({"mine": term})


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize(
    ("kind", "first", "others"),
    [
        ("attention_scores", "attention_scores", "embeddings, hidden_states, soft_targets"),
        ("hidden_states", "embeddings", "attention_scores, soft_targets"),
    ],
)
def test_activations_that_are_not_given_raise(who, kind, first, others):
    """An empty tuple is what transformers gives for attentions under SDPA."""
    pair = {"student": activations(seed=1), "teacher": activations(seed=2)}
    pair[who] = dataclasses.replace(pair[who], **{kind: ()})
    message = (
        f"terms.{first} requires {kind}, which the {who} does not give; "
        f"set terms.{first}.weight to 0 "
        f"({others}, hard_labels still work)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Objective(all_terms())(pair["student"], pair["teacher"], batch())


def test_no_teacher_raises_where_a_term_reads_one():
    message = (
        r"terms.soft_targets requires logits, which the teacher does not .*\(hard_labels still"
    )
    with pytest.raises(ValueError, match=message):
        Objective({"soft_targets": SoftTargets(), "hard_labels": HardLabels()})(
            activations(seed=1), None, batch()
        )


@pytest.mark.parametrize(
    ("name", "term", "teacher", "message"),
    [
        ("embeddings", Embeddings(), {"width": 6}, "student is 4 wide, the teacher 6; .*weight"),
        (
            "hidden_states",
            HiddenStates(),
            {"width": 6},
            "6; set terms.hidden_states.weight to 0",
        ),
        ("attention_scores", AttentionScores(), {"heads": 1}, "2 heads, the teacher 1; .*weight"),
        ("soft_targets", SoftTargets(), {"outputs": 2}, "3 outputs, the teacher 2; .*weight to 0"),
        ("hidden_states", HiddenStates(), {"layers": 3}, "3 teacher layers .*give a layer_map"),
        ("attention_scores", AttentionScores(), {"layers": 3}, "3 teacher.*give a layer_map"),
        ("hidden_states", HiddenStates(layer_map={1: 9}), {}, "teacher has layers 1 … 2.*correct"),
        ("hidden_states", HiddenStates(layer_map={3: 1}), {}, "student has layers 1 … 2.*correct"),
        ("attention_scores", AttentionScores(layer_map={1: 3}), {}, "the teacher has.*correct"),
        (
            "attention_scores",
            AttentionScores(layer_map={0: 0}),
            {},
            "embeddings, has no.*from 1 on",
        ),
        ("hidden_states", HiddenStates(layer_map={}), {}, "compares no layers; .*weight to 0"),
    ],
)
def test_models_that_do_not_fit_together_raise(name, term, teacher, message):
    objective = Objective({"hard_labels": HardLabels(), name: term})
    with pytest.raises(ValueError, match=rf"^terms\.{name}(: |\.layer_map=).*{message}"):
        objective(activations(seed=1), activations(seed=2, **teacher), batch())
