import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_prune.distillation import (
    AttentionScores,
    Custom,
    Embeddings,
    HardLabels,
    HiddenStates,
    SoftTargets,
    attention_score_mse,
    hard_label_loss,
    hidden_state_mse,
    soft_cross_entropy,
)

from .toy import activations, batch

MASK = batch()["attention_mask"]


def test_soft_targets_of_classes():
    s, t = activations(seed=1), activations(seed=2)
    expected = soft_cross_entropy(s.logits, t.logits, 3.0)
    assert torch.equal(SoftTargets(temperature=3.0)(s, t, batch()), expected)
    assert not torch.equal(SoftTargets()(s, t, batch()), expected)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_soft_targets_of_a_regression_are_the_teachers_values(temperature):
    s, t = activations(seed=1, outputs=1), activations(seed=2, outputs=1)
    loss = SoftTargets(temperature=temperature)(s, t, batch(regression=True))
    torch.testing.assert_close(loss, F.mse_loss(s.logits, t.logits))


@pytest.mark.parametrize("outputs", [(3, 2), (1, 3), (3, 1)])
def test_soft_targets_of_other_outputs_raise(outputs):
    s, t = (activations(seed=i, outputs=count) for i, count in enumerate(outputs))
    with pytest.raises(ValueError, match=f"student has {outputs[0]} outputs, the teacher"):
        SoftTargets()(s, t, batch())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_out_of_range_raises(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}: expected a finite number"):
        SoftTargets(temperature=temperature)


@pytest.mark.parametrize("regression", [False, True])
def test_hard_labels_never_look_at_the_teacher(regression):
    s, data = activations(seed=1, outputs=1 if regression else 3), batch(regression=regression)
    expected = hard_label_loss(s.logits, data["labels"])
    assert torch.equal(HardLabels()(s, None, data), expected)


def test_embeddings_are_hidden_state_zero():
    s, t = activations(seed=1), activations(seed=2)
    expected = hidden_state_mse(s.hidden_states[0], t.hidden_states[0], MASK)
    assert torch.equal(Embeddings()(s, t, batch()), expected)


@pytest.mark.parametrize(
    ("layer_map", "pairs"),
    [
        (None, [(1, 2), (2, 4)]),
        ({1: 3}, [(1, 3)]),
        ({2: 1, 1: 4}, [(2, 1), (1, 4)]),
        ({0: 0, 2: 4}, [(0, 0), (2, 4)]),
    ],
)
def test_hidden_states_are_summed_over_the_layer_map(layer_map, pairs):
    s, t = activations(seed=1, layers=2), activations(seed=2, layers=4)
    expected = sum(hidden_state_mse(s.hidden_states[i], t.hidden_states[j], MASK) for i, j in pairs)
    torch.testing.assert_close(HiddenStates(layer_map=layer_map)(s, t, batch()), expected)


@pytest.mark.parametrize(
    ("layer_map", "pairs"),
    [(None, [(1, 2), (2, 4)]), ({1: 3}, [(1, 3)]), ({2: 1, 1: 4}, [(2, 1), (1, 4)])],
)
def test_attention_scores_are_summed_over_the_layer_map(layer_map, pairs):
    s, t = activations(seed=1, layers=2), activations(seed=2, layers=4)
    expected = sum(
        attention_score_mse(s.attention_scores[i - 1], t.attention_scores[j - 1], MASK)
        for i, j in pairs
    )
    torch.testing.assert_close(AttentionScores(layer_map=layer_map)(s, t, batch()), expected)


@pytest.mark.parametrize("layer_map", [{0: 1}, {1: 0}])
def test_layer_zero_has_no_attention(layer_map):
    s, t = activations(seed=1), activations(seed=2)
    with pytest.raises(ValueError, match="0, the embeddings, has no attention"):
        AttentionScores(layer_map=layer_map)(s, t, batch())


def test_custom_term_calls_its_function():
    def first_token_cosine(student, teacher, batch):
        pair = (x.hidden_states[-1][:, 0] for x in (student, teacher))
        return 1 - F.cosine_similarity(*pair).mean()

    s, t = activations(seed=1), activations(seed=2)
    term = Custom(function=first_token_cosine, requires=["hidden_states"], weight=2.0)
    assert torch.equal(term(s, t, batch()), first_token_cosine(s, t, batch()))
    assert term(s, s, batch()).item() == pytest.approx(0.0, abs=1e-12)
    assert (term.requires, term.needs_teacher, term.weight) == (["hidden_states"], True, 2.0)


@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK)])
def test_projected_hidden_states_are_compared_in_the_teachers_width(mask):
    """TinyBERT's equation 8, one position at a time: one projection for all layers."""
    s, t = activations(seed=1, width=4), activations(seed=2, width=6)
    projection = nn.Linear(4, 6, bias=False, dtype=torch.float64)
    data = {"attention_mask": mask}
    expected = 0.0
    for layer in (1, 2):
        errors = [
            (projection.weight @ s.hidden_states[layer][row, token])
            - t.hidden_states[layer][row, token]
            for row, token in mask.nonzero().tolist()
        ]
        expected += torch.stack(errors).square().mean()
    actual = HiddenStates(projection=projection)(s, t, data)
    torch.testing.assert_close(actual, expected)
    embeddings = Embeddings(projection=projection)(s, t, data)
    by_hand = hidden_state_mse(s.hidden_states[0] @ projection.weight.T, t.hidden_states[0], mask)
    torch.testing.assert_close(embeddings, by_hand)


def test_projection_to_another_width_than_the_teachers_raises():
    s, t = activations(seed=1, width=4), activations(seed=2, width=6)
    term = Embeddings(projection=nn.Linear(4, 5, bias=False, dtype=torch.float64))
    with pytest.raises(ValueError, match="the projected student is 5 wide, the teacher 6; give a"):
        term(s, t, batch())


def test_hard_labels_take_a_loss_of_the_task():
    s = activations(seed=1)
    term = HardLabels(loss=lambda student, data: student.logits.mean() * data["scale"])
    assert torch.equal(term(s, None, {"scale": 3.0}), s.logits.mean() * 3.0)
