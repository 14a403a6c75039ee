import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_prune.pruning.criterion import (
    Movement,
    Platon,
    Random,
    SoftMovement,
    StatefulCriterion,
    Taylor,
    Wanda,
    magnitude,
)
from kd_prune.pruning.fisher import BlockFisher, DiagonalFisher

CRITERIA = [
    Random(seed=3),
    Taylor(),
    Taylor(decay=0.0),
    Movement(rate=0.3),
    SoftMovement(rate=0.3, penalty=30.0),
    Platon(),
    Wanda(),
    DiagonalFisher(),
    BlockFisher(block=4),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def name_of(value):
    if isinstance(value, StatefulCriterion):
        return type(value).__name__
    return getattr(value, "__name__", str(value))  # the same in every process


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def run_of(shape, steps, *, observes="gradient", seed=0, dtype=torch.float32):
    """Weights and evidence of some steps, as a training would bring them."""
    generator = seeded(seed)
    rows = (5, shape[1]) if observes == "input" else shape
    return [
        tuple(torch.randn(*size, generator=generator).to(dtype) for size in (shape, rows))
        for _ in range(steps)
    ]


def observe_all(criterion, run, state=None):
    state = criterion.start(run[0][0]) if state is None else state
    for weight, evidence in run:
        criterion.observe(weight, evidence, state)
    return state


def score_of(criterion, run):
    return criterion(run[-1][0], observe_all(criterion, run))


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def taylor_oracle(run, decay):
    """The mean written out: every step's term with its share."""
    last = len(run) - 1
    return sum((1 - decay) * decay ** (last - t) * abs(w * g) for t, (w, g) in enumerate(run))


def movement_oracle(run, rate):
    return -rate * sum(w * g for w, g in run)


def soft_movement_oracle(run, rate, penalty):
    """torch's Adam on the loss as the scores see it: autograd finds the slope of the pull."""
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
    (Platon(), lambda run: platon_oracle(run, 0.85, 0.95)),
    (Platon(beta1=0.0, beta2=0.3), lambda run: platon_oracle(run, 0.0, 0.3)),
    (Wanda(), wanda_oracle),
    (DiagonalFisher(damping=0.1, decay=1.0), lambda run: diagonal_oracle(run, 0.1)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("criterion", "oracle"), ORACLES, ids=name_of)
def test_scores_are_those_of_the_formula(criterion, oracle, dtype):
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
def test_scores_are_finite_and_of_the_weights_shape(criterion, rows, columns, steps, scale):
    run = run_of((rows, columns), steps + 1, observes=criterion.observes)
    run = [(weight, scale * evidence) for weight, evidence in run]
    state = observe_all(criterion, run[:steps], criterion.start(run[0][0]))
    score = criterion(run[-1][0], state)
    assert score.shape == (rows, columns)
    assert score.dtype == torch.float32
    assert score.isfinite().all()


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_observing_changes_the_memory_alone_and_in_place(criterion):
    run = run_of((3, 5), 3, observes=criterion.observes)
    before = [(weight.clone(), evidence.clone()) for weight, evidence in run]
    state = criterion.start(run[0][0])
    places = {key: value.data_ptr() for key, value in state.items()}
    observe_all(criterion, run, state)
    criterion(run[-1][0], state)
    criterion.after_update(state)
    for (weight, evidence), (weight_before, evidence_before) in zip(run, before, strict=True):
        assert torch.equal(weight, weight_before)
        assert torch.equal(evidence, evidence_before)
    assert {key: value.data_ptr() for key, value in state.items()} == places


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_a_memory_saved_and_loaded_goes_on_bitwise(criterion):
    run = run_of((3, 5), 6, observes=criterion.observes)
    straight = observe_all(criterion, run)
    file = io.BytesIO()
    torch.save(observe_all(criterion, run[:3]), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(type(value) is torch.Tensor for value in loaded.values())
    # As the Pruner does it: into a memory that was begun with other weights.
    resumed = criterion.start(run[3][0])
    for key, value in resumed.items():
        value.copy_(loaded[key])
    observe_all(criterion, run[3:], resumed)
    weight = run[-1][0]
    assert torch.equal(criterion(weight, resumed), criterion(weight, straight))
    for key, value in straight.items():
        assert torch.equal(value, resumed[key])


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_the_object_keeps_nothing(criterion):
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
def test_a_memory_holds_no_graph(criterion):
    weight = nn.Parameter(torch.randn(2, 3))
    evidence = torch.randn(2, 3, requires_grad=True)
    state = criterion.start(weight)
    criterion.observe(weight, evidence, state)
    assert not any(value.requires_grad for value in state.values())
    assert not criterion(weight, state).requires_grad


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_scores_go_with_the_place_whatever_the_strides(criterion):
    run = run_of((3, 5), 3, observes=criterion.observes)
    turned = [
        (w.T.contiguous().T, e if criterion.observes == "input" else e.T.contiguous().T)
        for w, e in run
    ]
    assert not turned[0][0].is_contiguous()
    assert torch.equal(score_of(criterion, run), score_of(criterion, turned))


@given(rate=st.floats(1e-3, 1e3), steps=st.integers(1, 5))
def test_movement_is_linear_in_its_rate(rate, steps):
    run = run_of((3, 4), steps)
    score = score_of(Movement(rate=rate), run)
    torch.testing.assert_close(score, rate * score_of(Movement(), run), rtol=1e-5, atol=1e-6 * rate)


@pytest.mark.parametrize(
    ("criterion", "power"),
    [(Taylor(), 1), (Movement(), 1), (Platon(), 2), (Wanda(), 1)],
    ids=name_of,
)
@given(scale=st.integers(-8, 8).map(lambda exponent: 2.0**exponent))
def test_scores_scale_with_a_power_of_the_evidence(criterion, power, scale):
    run = run_of((3, 4), 4, observes=criterion.observes)
    scaled = [(weight, scale * evidence) for weight, evidence in run]
    torch.testing.assert_close(score_of(criterion, scaled), scale**power * score_of(criterion, run))


def test_the_order_of_two_criteria_that_agree_after_one_step():
    run = run_of((3, 4), 1)
    taylor = score_of(Taylor(), run).flatten().argsort()
    assert torch.equal(taylor, score_of(Platon(), run).flatten().argsort())


def test_movement_keeps_what_moves_away_from_zero():
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    target = torch.tensor([2.0, -2.0, 0.0, 0.0])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    criterion = Movement()
    state = criterion.start(weight)
    for _ in range(3):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        criterion.observe(weight, weight.grad, state)
        optimizer.step()
    assert (criterion(weight, state) > 0).tolist() == [True, True, False, False]


def test_a_pruned_weight_keeps_its_movement():
    criterion = Movement()
    state = observe_all(criterion, run_of((2, 3), 3))
    before = criterion(torch.zeros(2, 3), state).clone()
    criterion.observe(torch.zeros(2, 3), torch.randn(2, 3), state)
    assert torch.equal(criterion(torch.zeros(2, 3), state), before)


@pytest.mark.parametrize("size", [20, 2000])
def test_the_pull_takes_the_steps_it_is_said_to(size):
    """Whatever the size of the tensor and the penalty, as that of Adam does not matter."""
    criterion = SoftMovement(penalty=size * 1e-3)
    weight, still = torch.ones(size), torch.zeros(size)
    state, steps = criterion.start(weight), 0
    while criterion(weight, state).max() > 0.1:
        criterion.observe(weight, still, state)
        steps += 1
    assert steps == 276
    assert len(state["movement"].unique()) == 1


def test_random_scores_are_drawn_once():
    weight = torch.randn(4, 5)
    criterion = Random(seed=1)
    state = criterion.start(weight)
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
        return Random(seed=seed).start(weight)["score"]

    assert torch.equal(scores(weight), scores(weight.clone()))
    assert torch.equal(scores(weight), scores(weight.T.contiguous().T))
    assert not torch.equal(scores(weight), scores(weight, seed=1))
    assert not torch.equal(scores(weight), scores(other))
    assert not torch.equal(scores(weight).flatten(), scores(weight.view(5, 4)).flatten())


def test_random_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Random().start(torch.ones(2, 2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3), (7, 4)),
        (nn.Linear(4, 3), (2, 5, 4)),
        (nn.Conv1d(4, 3, 2), (2, 4, 9)),
        (nn.Conv2d(4, 3, (2, 3)), (2, 4, 5, 6)),
        (nn.Conv3d(4, 3, 2), (2, 4, 3, 4, 5)),
    ],
    ids=str,
)
def test_wanda_takes_the_norm_of_every_input_feature(layer, size):
    batch = torch.randn(*size, generator=seeded(0))
    weight = layer.weight.detach()
    expected = torch.empty_like(weight)
    for feature in range(4):
        values = batch[..., feature] if weight.ndim == 2 else batch[:, feature]
        size_of = math.sqrt(sum(value**2 for value in values.flatten().tolist()) / values.numel())
        expected[:, feature] = weight[:, feature].abs() * size_of
    torch.testing.assert_close(score_of(Wanda(), [(weight, batch)]), expected)


def test_wanda_does_not_mind_how_rows_are_batched():
    weight, rows = torch.randn(3, 4), torch.randn(12, 4)
    parts = [(weight, part) for part in (rows[:1], rows[1:1], rows[1:9].view(2, 4, 4), rows[9:])]
    torch.testing.assert_close(score_of(Wanda(), parts), score_of(Wanda(), [(weight, rows)]))


def test_wanda_is_magnitude_until_an_input_is_seen_and_after_every_update():
    criterion, weight = Wanda(), torch.randn(3, 4)
    state = criterion.start(weight)
    assert torch.equal(criterion(weight, state), weight.abs())
    criterion.observe(weight, torch.randn(5, 4), state)
    assert not torch.equal(criterion(weight, state), weight.abs())
    criterion.after_update(state)
    assert torch.equal(criterion(weight, state), weight.abs())


def test_wanda_refuses_what_it_cannot_read():
    criterion = Wanda()
    with pytest.raises(ValueError, match=r"weight of shape=\(3,\): expected \(out, in\)"):
        criterion.start(torch.ones(3))
    grouped = nn.Conv2d(4, 4, 3, groups=2).weight
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 5\): expected 2 features on axis 1"):
        criterion.observe(grouped, torch.ones(2, 4, 5, 5), criterion.start(grouped))
    conv = torch.ones(3, 4, 2)
    with pytest.raises(ValueError, match=r"\(4,\): expected 4 features on axis 1"):
        criterion.observe(conv, torch.ones(4), criterion.start(conv))


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
        (Platon, {"beta1": 1.0}, r"beta1=1.0"),
        (Platon, {"beta2": 2.0}, r"beta2=2.0"),
        (DiagonalFisher, {"damping": 0.0}, r"damping=0.0: expected a number > 0.*try 1e-7"),
        (DiagonalFisher, {"decay": 1.1}, r"decay=1.1: expected a fraction in \[0, 1\]"),
        (BlockFisher, {"block": 0}, r"block=0: .*try 50"),
        (BlockFisher, {"damping": math.nan}, r"damping=nan"),
        (BlockFisher, {"gradients": 0}, r"gradients=0: .*try 1024"),
    ],
)
def test_arguments_out_of_range_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_a_criterion_of_ones_own_needs_a_start_and_a_score():
    class Half(StatefulCriterion):
        def start(self, weight):
            return {}

    with pytest.raises(TypeError, match="__call__"):
        Half()

    class Whole(Half):
        def __call__(self, weight, state):
            return weight.abs()

    criterion, weight = Whole(), torch.ones(2)
    state = criterion.start(weight)
    criterion.observe(weight, weight, state)
    criterion.compensate(weight, weight > 0, state)
    criterion.after_update(state)
    assert torch.equal(criterion(weight, state), torch.ones(2))
    assert criterion.observes == "gradient"
