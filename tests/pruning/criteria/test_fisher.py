import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kd_prune.pruning.criteria.fisher
from kd_prune.pruning.criteria.fisher import BlockFisher, DiagonalFisher

from .fisher_oracles import (
    compensation_oracle,
    dense_fisher,
    observe_all,
    score_oracle,
    seeded,
    tensors,
)


@pytest.mark.parametrize("shape", [(4, 6), (5, 5), (1, 3), (7,), (2, 3, 2, 2)])
@pytest.mark.parametrize("block", [1, 4, 6, 50])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_block_fisher_scores_equal_dense_inverse(shape, block, scale):
    (weight,) = tensors(shape, 1, seed=1)
    gradients = tensors(shape, 120, scale=scale)
    criterion = BlockFisher(block=block)
    score = criterion(weight, observe_all(criterion, weight, gradients))
    expected = score_oracle(weight, dense_fisher(weight, gradients, block, 1e-7))
    assert score.shape == weight.shape
    assert score.dtype == torch.float32
    np.testing.assert_allclose(score.numpy(), expected, rtol=2e-4)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_block_fisher_few_gradients_are_damped(count):
    """F is singular; directions without gradients are given by the damping."""
    (weight,) = tensors((4, 6), 1, seed=1)
    gradients = tensors((4, 6), count, scale=1e-2)
    criterion = BlockFisher(block=12, damping=1e-5)
    score = criterion(weight, observe_all(criterion, weight, gradients))
    expected = score_oracle(weight, dense_fisher(weight, gradients, 12, 1e-5))
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("block", [4, 50])
@pytest.mark.parametrize("count", [1, 10, 60, 3000])
def test_block_fisher_damping_below_float32_resolution_is_raised(count, block):
    """Gradients of one direction: F has rank one, and rounding would make it indefinite."""
    (direction,) = tensors((100,), 1)
    gradients = [direction * size for size in torch.randn(count, generator=seeded(2))]
    (weight,) = tensors((100,), 1, seed=1)
    criterion = BlockFisher(block=block, damping=1e-30, gradients=1000)
    state = observe_all(criterion, weight, gradients)
    fisher = dense_fisher(weight, gradients, block, 0.0)
    for i in range(0, 100, block):
        some = np.arange(i, i + block)
        fisher[some, some] += 4e-6 * np.linalg.norm(fisher[np.ix_(some, some)])
    expected = score_oracle(weight, fisher)
    ratio = criterion(weight, state).numpy() / expected
    assert 0.5 < ratio.min() <= ratio.max() < 2.0, "where it is raised, rounding has its share"
    criterion.compensate(weight, torch.arange(100) < 20, state)
    assert weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fisher_other_dtypes_are_summed_in_float32(dtype):
    (weight,) = tensors((4, 6), 1, seed=1, dtype=dtype)
    gradients = tensors((4, 6), 40, dtype=dtype)
    criterion = BlockFisher(block=6)
    state = observe_all(criterion, weight, gradients)
    assert state["sum"].dtype == torch.float32
    fisher = dense_fisher(weight, gradients, 6, 1e-7)
    np.testing.assert_allclose(criterion(weight, state), score_oracle(weight, fisher), rtol=1e-4)
    dropped = torch.rand(4, 6, generator=seeded(2)) < 0.4
    expected = weight + torch.from_numpy(compensation_oracle(weight, dropped, fisher)).to(dtype)
    before = weight.clone()
    criterion.compensate(weight, dropped, state)
    assert weight.dtype == dtype
    assert torch.equal(weight[dropped], before[dropped])
    close = torch.finfo(dtype).eps * 8 + 1e-5
    torch.testing.assert_close(weight[~dropped], expected[~dropped], rtol=close, atol=close)


def test_block_fisher_block_of_one_equals_diagonal():
    (weight,) = tensors((5, 7), 1, seed=1)
    gradients = tensors((5, 7), 30)
    block, diagonal = BlockFisher(block=1), DiagonalFisher(decay=1.0)
    scores = [c(weight, observe_all(c, weight, gradients)) for c in (block, diagonal)]
    torch.testing.assert_close(*scores, rtol=1e-5, atol=0.0)
    assert torch.equal(*(score.flatten().argsort() for score in scores))


def test_block_fisher_block_of_one_compensates_nothing():
    (weight,) = tensors((5, 7), 1, seed=1)
    before = weight.clone()
    criterion = BlockFisher(block=1)
    criterion.compensate(weight, weight > 0, observe_all(criterion, weight, tensors((5, 7), 30)))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("criterion", [DiagonalFisher(), BlockFisher(block=3)])
def test_fisher_without_gradient_ranks_by_magnitude(criterion):
    (weight,) = tensors((4, 5), 1)
    state = criterion.init_state(weight)
    score = criterion(weight, state)
    torch.testing.assert_close(score, 0.5e-7 * weight.square())
    before = weight.clone()
    criterion.compensate(weight, weight > 0, state)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
def test_diagonal_fisher_mean_becomes_moving_average(decay):
    (weight,) = tensors((3, 4), 1, seed=1)
    gradients = tensors((3, 4), 25)
    criterion = DiagonalFisher(damping=0.01, decay=decay)
    mean = np.zeros((3, 4))
    for t, gradient in enumerate(gradients, 1):
        rate = max(1 / t, 1 - decay)
        mean = (1 - rate) * mean + rate * gradient.double().numpy() ** 2
    score = criterion(weight, observe_all(criterion, weight, gradients))
    expected = 0.5 * weight.double().numpy() ** 2 * (mean + 0.01)
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_block_fisher_old_gradients_are_halved():
    (weight,) = tensors((12,), 1, seed=1)
    gradients = tensors((12,), 65)
    share = np.array([1 / 4] * 40 + [1 / 2] * 20 + [1] * 5)  # halved at 40, and at 40 again
    rows = np.stack([g.double().numpy() for g in gradients])
    fisher = rows.T @ (share[:, None] * rows) / share.sum()
    criterion = BlockFisher(block=12, gradients=20)
    score = criterion(weight, observe_all(criterion, weight, gradients))
    expected = score_oracle(weight, fisher + 1e-7 * np.eye(12))
    np.testing.assert_allclose(score, expected, rtol=1e-3)


@given(seed=st.integers(0, 1000), index=st.integers(0, 11))
def test_block_fisher_score_equals_loss_after_compensation(seed, index):
    (weight,) = tensors((12,), 1, seed=seed)
    gradients = tensors((12,), 40, seed=seed + 1)
    criterion = BlockFisher(block=6)
    state = observe_all(criterion, weight, gradients)
    score = criterion(weight, state)[index].item()
    after = weight.clone()
    dropped = torch.arange(12) == index
    criterion.compensate(after, dropped, state)
    after[dropped] = 0.0
    fisher = dense_fisher(weight, gradients, 6, 1e-7)

    def cost(change):
        return 0.5 * change @ fisher @ change

    change = (after - weight).double().numpy()
    assert cost(change) == pytest.approx(score, rel=1e-3)
    assert cost(change) <= cost(-(weight * dropped).double().numpy()) * (1 + 1e-5)


def test_block_fisher_inverse_is_of_remaining_weights():
    (weight,) = tensors((12,), 1, seed=1)
    weight[[1, 4, 5]] = 0.0
    gradients = tensors((12,), 60)
    criterion = BlockFisher(block=12)
    score = criterion(weight, observe_all(criterion, weight, gradients))
    live = weight != 0
    alone = dense_fisher(weight[live], [g[live] for g in gradients], 12, 1e-7)
    np.testing.assert_allclose(score[live], score_oracle(weight[live], alone), rtol=1e-4)
    assert (score[~live] == 0).all()


def test_block_fisher_moved_pruned_weights_are_ignored():
    """Before `project` momentum may have moved them; they had no gradient and count as zero."""
    (weight,) = tensors((12,), 1, seed=1)
    weight[[1, 4]] = 0.0
    criterion = BlockFisher(block=12)
    state = observe_all(criterion, weight, tensors((12,), 60))
    moved, dropped = weight.clone(), torch.arange(12) == 7
    moved[[1, 4]] = 0.3
    criterion.compensate(weight, dropped, state)
    criterion.compensate(moved, dropped, state)
    live = torch.ones(12, dtype=torch.bool)
    live[[1, 4]] = False
    torch.testing.assert_close(moved[live], weight[live])
    assert (moved[~live] == 0.3).all()


@pytest.mark.parametrize("at_a_time", [1, 40])
def test_block_fisher_batches_equal_one_solution(monkeypatch, at_a_time):
    (weight,) = tensors((7, 9), 1, seed=1)
    criterion = BlockFisher(block=4)
    state = observe_all(criterion, weight, tensors((7, 9), 30))
    other, dropped = weight.clone(), weight > 0.5
    fresh = {key: value.clone() for key, value in state.items()}
    score = criterion(weight, state)
    criterion.compensate(weight, dropped, state)
    monkeypatch.setattr(kd_prune.pruning.criteria.fisher, "_BATCH_ENTRIES", at_a_time)
    torch.testing.assert_close(criterion(other, fresh), score)
    criterion.compensate(other, dropped, fresh)
    torch.testing.assert_close(other, weight)


def test_block_fisher_after_update_resets_the_estimate():
    (weight,) = tensors((4, 5), 1, seed=1)
    criterion = BlockFisher(block=4)
    gradients = tensors((4, 5), 20)
    state = observe_all(criterion, weight, gradients)
    first = criterion(weight, state)
    criterion.after_update(state)
    for key, value in criterion.init_state(weight).items():
        assert torch.equal(value, state[key])
    for gradient in gradients:
        criterion.observe(weight, gradient, state)
    assert torch.equal(criterion(weight, state), first)


def test_block_fisher_scores_follow_weight_and_next_gradient():
    """The inverse's diagonal is cached between calls, until the next gradient."""
    (weight,) = tensors((4, 5), 1, seed=1)
    criterion = BlockFisher(block=4)
    gradients = tensors((4, 5), 20)
    state = observe_all(criterion, weight, gradients[:19])
    score = criterion(weight, state)
    assert torch.equal(criterion(weight, state), score)
    assert torch.equal(criterion(2 * weight, state), 4 * score)
    criterion.observe(weight, gradients[19], state)
    expected = criterion(weight, observe_all(criterion, weight, gradients))
    assert torch.equal(criterion(weight, state), expected)
    assert not torch.equal(expected, score)


@pytest.mark.parametrize("block", [2, 5])
def test_block_fisher_constant_gradients_give_finite_scores(block):
    """Their rounding errors add up, and the undamped sum has no Cholesky factor."""
    weight, gradient = tensors((2, 200), 1, seed=1)[0]
    criterion = BlockFisher(block=block, gradients=2000)
    state = observe_all(criterion, weight, [gradient] * 3000)
    summed = state["sum"].double() / 3000
    norm = torch.linalg.matrix_norm(summed)
    assert (torch.linalg.eigvalsh(summed).amin(1) / norm).min() < -4e-6, "or this tests nothing"
    score = criterion(weight, state)
    assert score.isfinite().all()
    assert (score >= 0).all()
    criterion.compensate(weight, weight > 0, state)
    assert weight.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_block_fisher_nonfinite_gradient_raises(value):
    weight = torch.ones(6)
    criterion = BlockFisher(block=3)
    state = observe_all(criterion, weight, [torch.tensor([1.0, 2.0, value, 1.0, 2.0, 3.0])])
    with pytest.raises(
        ValueError, match=r"a gradient contained NaN or infinity.*clip the gradients"
    ):
        criterion(weight, state)
