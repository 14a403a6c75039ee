"""Properties of all criteria, their formulas, and random scores."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning.criteria import (
    PLATON,
    Movement,
    Random,
    SoftMovement,
    StatefulCriterion,
    Taylor,
    Wanda,
    magnitude,
)
from kd_prune.pruning.criteria.fisher import BlockFisher, DiagonalFisher

from .steps import observe_all, run_of, score_of

CRITERIA = [
    Random(seed=3),
    Taylor(),
    Taylor(decay=0.0),
    Movement(rate=0.3),
    SoftMovement(rate=0.3, penalty=30.0),
    PLATON(),
    Wanda(),
    DiagonalFisher(),
    BlockFisher(block=4),
]


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def name_of(value):
    if isinstance(value, StatefulCriterion):
        return type(value).__name__
    return getattr(value, "__name__", str(value))  # the same in every process


def taylor_oracle(run, decay):
    """The moving average as a sum: every step's term with its weight."""
    last = len(run) - 1
    return sum((1 - decay) * decay ** (last - t) * abs(w * g) for t, (w, g) in enumerate(run))


def movement_oracle(run, rate):
    return -rate * sum(w * g for w, g in run)


def soft_movement_oracle(run, rate, penalty):
    """torch's Adam on loss plus penalty, with the gradient of the penalty from autograd."""
    score = torch.zeros(run[0][0].shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([score], lr=rate)
    for w, g in run:
        optimizer.zero_grad()
        through = (score * torch.from_numpy(w * g)).sum()
        (through + penalty * score.sigmoid().mean()).backward()
        optimizer.step()
    return score.detach().sigmoid().numpy()


def platon_oracle(run, beta1, beta2):
    worth = uncertainty = 0.0
    for w, g in run:
        now = np.abs(w * g)
        worth = beta1 * worth + (1 - beta1) * now
        uncertainty = beta2 * uncertainty + (1 - beta2) * np.abs(now - worth)
    return worth * uncertainty


def wanda_oracle(run):
    inputs = np.concatenate([x for _, x in run])
    return np.abs(run[-1][0]) * np.linalg.norm(inputs, axis=0) / math.sqrt(len(inputs))


def diagonal_oracle(run, damping):
    return 0.5 * run[-1][0] ** 2 * (damping + np.mean([g**2 for _, g in run], axis=0))


ORACLES = [
    (Taylor(decay=0.7), lambda run: taylor_oracle(run, 0.7)),
    (Taylor(decay=0.0), lambda run: abs(run[-1][0] * run[-1][1])),
    (Movement(rate=0.3), lambda run: movement_oracle(run, 0.3)),
    (SoftMovement(rate=0.3, penalty=30.0), lambda run: soft_movement_oracle(run, 0.3, 30.0)),
    (SoftMovement(penalty=0.0), lambda run: soft_movement_oracle(run, 0.01, 0.0)),
    (PLATON(), lambda run: platon_oracle(run, 0.85, 0.95)),
    (PLATON(beta1=0.0, beta2=0.3), lambda run: platon_oracle(run, 0.0, 0.3)),
    (Wanda(), wanda_oracle),
    (DiagonalFisher(damping=0.1, decay=1.0), lambda run: diagonal_oracle(run, 0.1)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("criterion", "oracle"), ORACLES, ids=name_of)
def test_criterion_scores_equal_the_formula(criterion, oracle, dtype):
    run = run_of((3, 4), 7, observes=criterion.observes, dtype=dtype)
    expected = oracle([(w.double().numpy(), e.double().numpy()) for w, e in run])
    score = score_of(criterion, run)
    assert score.dtype == torch.float32
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_magnitude_is_the_absolute_value():
    weight = torch.randn(4, 5)
    assert np.array_equal(magnitude(weight).numpy(), np.abs(weight.numpy()))


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 7),
    steps=st.integers(0, 4),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
)
def test_criterion_scores_are_finite_and_have_the_weights_shape(
    criterion, rows, columns, steps, scale
):
    run = run_of((rows, columns), steps + 1, observes=criterion.observes)
    run = [(weight, scale * grad_or_input) for weight, grad_or_input in run]
    state = observe_all(criterion, run[:steps], criterion.init_state(run[0][0]))
    score = criterion(run[-1][0], state)
    assert score.shape == (rows, columns)
    assert score.dtype == torch.float32
    assert score.isfinite().all()


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_observe_changes_only_the_state_in_place(criterion):
    run = run_of((3, 5), 3, observes=criterion.observes)
    before = [(weight.clone(), grad_or_input.clone()) for weight, grad_or_input in run]
    state = criterion.init_state(run[0][0])
    places = {key: value.data_ptr() for key, value in state.items()}
    observe_all(criterion, run, state)
    criterion(run[-1][0], state)
    criterion.after_update(state)
    for (weight, grad_or_input), (weight_before, evidence_before) in zip(run, before, strict=True):
        assert torch.equal(weight, weight_before)
        assert torch.equal(grad_or_input, evidence_before)
    assert {key: value.data_ptr() for key, value in state.items()} == places


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_state_saved_and_loaded_continues_bitwise(criterion):
    run = run_of((3, 5), 6, observes=criterion.observes)
    straight = observe_all(criterion, run)
    file = io.BytesIO()
    torch.save(observe_all(criterion, run[:3]), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(type(value) is torch.Tensor for value in loaded.values())
    # As in the Pruner: into a state initialized from other weights.
    resumed = criterion.init_state(run[3][0])
    for key, value in resumed.items():
        value.copy_(loaded[key])
    observe_all(criterion, run[3:], resumed)
    weight = run[-1][0]
    assert torch.equal(criterion(weight, resumed), criterion(weight, straight))
    for key, value in straight.items():
        assert torch.equal(value, resumed[key])


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_criterion_object_is_immutable(criterion):
    assert dataclasses.is_dataclass(criterion)
    before = dict(vars(criterion))
    score_of(criterion, run_of((2, 3), 3, observes=criterion.observes))
    assert vars(criterion) == before
    assert hash(criterion) == hash(dataclasses.replace(criterion))
    with pytest.raises(AttributeError):
        criterion.memory = {}
    with pytest.raises(TypeError):
        type(criterion)(0.5)


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_state_has_no_autograd_graph(criterion):
    weight = nn.Parameter(torch.randn(2, 3))
    grad_or_input = torch.randn(2, 3, requires_grad=True)
    state = criterion.init_state(weight)
    criterion.observe(weight, grad_or_input, state)
    assert not any(value.requires_grad for value in state.values())
    assert not criterion(weight, state).requires_grad


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_scores_do_not_depend_on_strides(criterion):
    run = run_of((3, 5), 3, observes=criterion.observes)
    turned = [
        (w.T.contiguous().T, e if criterion.observes == "input" else e.T.contiguous().T)
        for w, e in run
    ]
    assert not turned[0][0].is_contiguous()
    assert torch.equal(score_of(criterion, run), score_of(criterion, turned))


@pytest.mark.parametrize(
    ("criterion", "power"),
    [(Taylor(), 1), (Movement(), 1), (PLATON(), 2), (Wanda(), 1)],
    ids=name_of,
)
@given(scale=st.integers(-8, 8).map(lambda exponent: 2.0**exponent))
def test_scores_scale_with_a_power_of_the_gradient_or_input(criterion, power, scale):
    run = run_of((3, 4), 4, observes=criterion.observes)
    scaled = [(weight, scale * grad_or_input) for weight, grad_or_input in run]
    torch.testing.assert_close(score_of(criterion, scaled), scale**power * score_of(criterion, run))


def test_random_scores_are_drawn_once():
    weight = torch.randn(4, 5)
    criterion = Random(seed=1)
    state = criterion.init_state(weight)
    first = criterion(weight, state).clone()
    assert ((first >= 0) & (first < 1)).all()
    assert len(first.unique()) == first.numel()
    criterion.observe(weight, torch.randn(4, 5), state)
    criterion.after_update(state)
    assert torch.equal(criterion(2 * weight, state), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_scores_come_from_seed_and_weights(dtype):
    weight = torch.randn(4, 5).to(dtype)
    other = weight.clone()
    other[0, 0] += 1

    def scores(weight, seed=0):
        return Random(seed=seed).init_state(weight)["score"]

    assert torch.equal(scores(weight), scores(weight.clone()))
    assert torch.equal(scores(weight), scores(weight.T.contiguous().T))
    assert not torch.equal(scores(weight), scores(weight, seed=1))
    assert not torch.equal(scores(weight), scores(other))
    assert not torch.equal(scores(weight).flatten(), scores(weight.view(5, 4)).flatten())


def test_random_does_not_change_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Random().init_state(torch.ones(2, 2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Taylor, {"decay": 1.0}, r"decay=1.0: expected a fraction in \[0, 1\)"),
        (Taylor, {"decay": -0.1}, r"decay=-0.1"),
        (Taylor, {"decay": math.nan}, r"decay=nan"),
        (Movement, {"rate": 0.0}, r"rate=0.0: expected a number > 0"),
        (Movement, {"rate": math.inf}, r"rate=inf"),
        (SoftMovement, {"rate": -1.0, "penalty": 1.0}, r"rate=-1.0"),
        (SoftMovement, {"penalty": -1.0}, r"penalty=-1.0: expected a number ≥ 0"),
        (PLATON, {"beta1": 1.0}, r"beta1=1.0"),
        (PLATON, {"beta2": 2.0}, r"beta2=2.0"),
        (DiagonalFisher, {"damping": 0.0}, r"damping=0.0: expected a number > 0.*try 1e-7"),
        (DiagonalFisher, {"decay": 1.1}, r"decay=1.1: expected a fraction in \[0, 1\]"),
        (BlockFisher, {"block": 0}, r"block=0: .*try 50"),
        (BlockFisher, {"damping": math.nan}, r"damping=nan"),
        (BlockFisher, {"gradients": 0}, r"gradients=0: .*try 1024"),
    ],
)
def test_criterion_argument_out_of_range_raises(kind, arguments, message):
    with pytest.raises(ConfigError, match=message):
        kind(**arguments)


def test_own_criterion_needs_init_state_and_call():
    class Half(StatefulCriterion):
        def init_state(self, weight):
            return {}

    with pytest.raises(TypeError, match="__call__"):
        Half()

    class Whole(Half):
        def __call__(self, weight, state):
            return weight.abs()

    criterion, weight = Whole(), torch.ones(2)
    state = criterion.init_state(weight)
    criterion.observe(weight, weight, state)
    criterion.compensate(weight, weight > 0, state)
    criterion.after_update(state)
    assert torch.equal(criterion(weight, state), torch.ones(2))
    assert criterion.observes == "gradient"


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_state_is_float32_whatever_the_default_type(criterion, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        weight = torch.ones(4, 3, dtype=torch.float32)
        state = criterion.init_state(weight)
        shape = (2, 3) if criterion.observes == "input" else (4, 3)
        criterion.observe(weight, torch.full(shape, 0.5, dtype=torch.float32), state)
        assert criterion(weight, state).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
