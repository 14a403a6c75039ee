import copy
import dataclasses
import pickle
import re

import pytest
import torch
from torch import nn

from kd_prune.distillation import (
    Activations,
    AttentionScores,
    Custom,
    Embeddings,
    HardLabels,
    HiddenStates,
    Objective,
    SoftTargets,
)
from kd_prune.errors import ConfigError
from kd_prune.hf.forward_pass import LOGIT_POSITIONS
from kd_prune.hf.kinds import MaskedWords

from .toy import activations, batch

MASK = batch()["attention_mask"]
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


def test_objective_without_a_term_that_reads_logits_does_not_require_them():
    assert Objective({"hidden_states": HiddenStates()}).requires == {"hidden_states"}
    term = Custom(function=lambda s, *_: s.hidden_states[0].sum(), requires=["hidden_states"])
    student = Activations(hidden_states=activations(seed=1).hidden_states)
    total, _ = Objective({"mine": term})(student, activations(seed=2), batch())
    assert total.item() == pytest.approx(student.hidden_states[0].sum().item())


@pytest.mark.parametrize(
    ("off", "requires"),
    [
        (["embeddings"], {"logits", "hidden_states", "attention_scores"}),
        (["embeddings", "hidden_states"], {"logits", "attention_scores"}),
        (["attention_scores"], {"logits", "hidden_states"}),
        (["attention_scores", "embeddings", "hidden_states"], {"logits"}),
    ],
)
def test_objective_requires_the_kinds_of_its_terms(off, requires):
    assert Objective(all_terms(**dict.fromkeys(off, 0.0))).requires == requires


def test_objective_needs_a_teacher_if_a_term_does():
    assert Objective({"soft_targets": SoftTargets()}).needs_teacher
    assert not Objective({"hard_labels": HardLabels()}).needs_teacher
    assert not Objective(
        {"hard_labels": HardLabels(), "soft_targets": SoftTargets(weight=0.0)}
    ).needs_teacher


def test_custom_term_is_part_of_the_sum():
    def norm(student, teacher, batch):
        return student.logits.square().mean()

    terms = {"norm": Custom(function=norm, needs_teacher=False, weight=0.5)}
    student = activations(seed=1)
    total, losses = Objective(terms)(student, None, batch())
    torch.testing.assert_close(total, 0.5 * student.logits.square().mean())
    assert losses["norm"].item() == pytest.approx(2 * total.item())


@pytest.mark.parametrize("weight", [-1.0, -1e-9, float("nan"), float("inf"), float("-inf")])
def test_weight_out_of_range_raises(weight):
    with pytest.raises(ValueError, match=rf"^terms.soft_targets.weight={weight}: expected a "):
        Objective({"hard_labels": HardLabels(), "soft_targets": SoftTargets(weight=weight)})


@pytest.mark.parametrize("terms", [{}, {"hard_labels": HardLabels(weight=0.0)}])
def test_objective_without_an_active_term_raises(terms):
    with pytest.raises(ValueError, match="no term has a weight above 0"):
        Objective(terms)


def test_unknown_kind_of_activation_raises():
    term = Custom(function=lambda *_: torch.zeros(()), requires=["logits", "gradients"])
    with pytest.raises(ValueError, match=r"^terms.mine.requires=\[gradients\].*hidden_states"):
        Objective({"mine": term})


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize(
    ("kind", "first", "others"),
    [
        ("attention_scores", "attention_scores", "embeddings, hidden_states, soft_targets"),
        ("hidden_states", "embeddings", "attention_scores, soft_targets"),
    ],
)
def test_missing_activations_raise(who, kind, first, others):
    """An empty tuple is what transformers gives for attentions under SDPA."""
    pair = {"student": activations(seed=1), "teacher": activations(seed=2)}
    pair[who] = dataclasses.replace(pair[who], **{kind: ()})
    message = (
        f"terms.{first}: requires {kind}, which the {who} does not give; set its weight to 0 "
        f"({others}, hard_labels still work)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Objective(all_terms())(pair["student"], pair["teacher"], batch())


def test_missing_teacher_raises_if_a_term_reads_it():
    message = (
        r"terms.soft_targets: requires logits, which the teacher does not .*\(hard_labels still"
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
            "give a projection from 4 to 6 features, or set the term's weight to 0",
        ),
        (
            "attention_scores",
            AttentionScores(),
            {"heads": 1},
            "2 heads, the teacher 1, .*weight to 0",
        ),
        ("soft_targets", SoftTargets(), {"outputs": 2}, "3 outputs, the teacher 2; .*weight to 0"),
        ("hidden_states", HiddenStates(), {"layers": 1}, "1 teacher layers .*give a layer_map"),
        ("attention_scores", AttentionScores(), {"layers": 1}, "1 teacher.*give a layer_map"),
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
    with pytest.raises(
        ConfigError, match=rf"^terms\.{name}\.(weight|projection|layer_map)=.*{message}"
    ):
        objective(activations(seed=1), activations(seed=2, **teacher), batch())


def test_value_error_of_a_custom_term_names_the_term():
    def refuse(student, teacher, batch):
        raise ValueError("weight=heavy")

    objective = Objective({"mine": Custom(function=refuse)})
    with pytest.raises(ConfigError, match=r"^terms\.mine: weight=heavy$"):
        objective(activations(seed=1), activations(seed=2), batch())


def test_term_that_gives_no_scalar_raises():
    objective = Objective({"mine": Custom(function=lambda s, *_: s.logits)})
    with pytest.raises(ConfigError, match=r"^terms\.mine: gives torch\.Size\(\[3, 3\]\); expected"):
        objective(activations(seed=1), activations(seed=2), batch())


class Cosine(nn.Module):
    """A term with a parameter, as a user writes it."""

    weight = 2.0
    requires = ("hidden_states",)
    needs_teacher = True

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 6, bias=False, dtype=torch.float64)

    def forward(self, student, teacher, batch):
        pair = self.map(student.hidden_states[-1]), teacher.hidden_states[-1]
        return 1 - torch.cosine_similarity(*pair, dim=-1).mean()


def test_parameters_of_a_term_are_registered_and_get_gradients():
    term = Cosine()
    objective = Objective({"cosine": term, "hard_labels": HardLabels()})
    assert objective.has_parameters
    assert [p is term.map.weight for p in objective.parameters()] == [True]
    assert list(objective.state_dict()) == ["term_modules.cosine.map.weight"]
    total, losses = objective(activations(seed=1), activations(seed=2, width=6), batch())
    total.backward()
    assert term.map.weight.grad.norm() > 0
    assert losses["cosine"].shape == ()
    assert objective.never_pruned


def test_term_of_weight_zero_leaves_its_parameters_out():
    term = Cosine()
    term.weight = 0.0
    objective = Objective({"cosine": term, "hard_labels": HardLabels()})
    assert not objective.has_parameters
    assert not objective.state_dict()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
def test_copy_of_an_objective_trains_parameters_of_its_own(copied):
    objective = Objective({"cosine": Cosine(), "hard_labels": HardLabels()})
    other = copied(objective)
    (ours,), (theirs,) = objective.parameters(), other.parameters()
    assert torch.equal(ours, theirs)
    assert ours is not theirs
    assert other.terms["cosine"].map.weight is theirs
    pair = activations(seed=1), activations(seed=2, width=6)
    assert torch.equal(other(*pair, batch())[0], objective(*pair, batch())[0])
    assert (other.requires, other.needs_teacher) == (objective.requires, objective.needs_teacher)


def test_module_whose_name_cannot_be_registered_is_refused():
    with pytest.raises(ConfigError, match=r"^terms\.a\.b: no valid module name; rename the term"):
        Objective({"a.b": Cosine()})


def test_match_widths_makes_one_projection_per_term_where_widths_differ():
    objective = Objective(all_terms(attention_scores=0.0))
    objective.match_widths(4, 4)
    assert not objective.has_parameters
    objective.match_widths(4, 6)
    shapes = {name: tuple(p.shape) for name, p in objective.named_parameters()}
    assert shapes == {
        "term_modules.embeddings.projection.weight": (6, 4),
        "term_modules.hidden_states.projection.weight": (6, 4),
    }
    before = dict(objective.named_parameters())
    objective.match_widths(4, 6)
    assert all(before[name] is p for name, p in objective.named_parameters())
    objective.double()
    total, losses = objective(activations(seed=1), activations(seed=2, width=6), batch())
    assert set(losses) == set(NAMED) - {"attention_scores"}
    total.backward()
    assert all(p.grad.norm() > 0 for p in objective.parameters())


def test_match_widths_keeps_a_projection_that_was_given():
    mine = nn.Linear(4, 6)
    objective = Objective({"embeddings": Embeddings(projection=mine)})
    objective.match_widths(4, 6)
    assert objective.terms["embeddings"].projection is mine


def test_hard_label_loss_of_the_task_is_used_where_a_term_has_none():
    def doubled(student, batch):
        return 2 * student.logits.sum()

    def own(student, batch):
        return student.logits.mean()

    cosine = Cosine()
    objective = Objective(
        {"hard_labels": HardLabels(weight=0.5), "own": HardLabels(loss=own), "cosine": cosine}
    )
    pair = activations(seed=1), activations(seed=2, width=6)
    _, losses = objective.with_hard_label_loss(doubled)(*pair, {"attention_mask": MASK})
    assert losses["hard_labels"].item() == pytest.approx(2 * pair[0].logits.sum().item())
    assert torch.equal(losses["own"], pair[0].logits.mean())
    assert objective.with_hard_label_loss(doubled).terms["hard_labels"].weight == 0.5
    assert objective.with_hard_label_loss(doubled).terms["cosine"] is cosine
    assert objective.terms["hard_labels"].loss is None


def test_term_without_attributes_is_refused_by_its_name():
    says = "terms.own: a term needs weight, requires and needs_teacher"
    with pytest.raises(ConfigError, match=says):
        Objective({"own": lambda student, teacher, batch: 0})


@pytest.mark.parametrize("terms", [{"soft_targets": SoftTargets()}, {"hard_labels": HardLabels()}])
def test_batch_without_a_row_to_predict_has_a_loss_of_zero(terms):
    """As a batch of masked words in which no word is masked."""
    logits = torch.zeros(0, 3, requires_grad=True)
    empty = [dataclasses.replace(activations(seed=seed), logits=logits) for seed in (1, 2)]
    no_word = {"labels": torch.full((3, 4), -100), LOGIT_POSITIONS: torch.zeros(3, 4)}
    objective = Objective(terms).with_hard_label_loss(MaskedWords().hard_label_loss)
    total, _ = objective(*empty, batch() | no_word)
    total.backward()
    assert float(total.detach()) == 0.0
