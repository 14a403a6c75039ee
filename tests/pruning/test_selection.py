from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.utils import prune

from kd_prune.pruning.selection import brackets, num_pruned, unstructured

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
# Few distinct values, so that most examples tie.
TIED = hnp.arrays(np.float32, SHAPES, elements=st.integers(-2, 2).map(float), fill=st.nothing())


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64]

# The path of other devices, which also runs on the CPU.
WAYS = pytest.mark.parametrize("on_cpu", [True, False], ids=["numpy", "torch"])


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("sparsity", "size", "count"),
    [(0.95, 384 * 384, 140_083), (0.29, 100, 29), (0.0, 7, 0), (1.0, 7, 7)],
)
def test_num_pruned_is_rounded(sparsity, size, count):
    assert num_pruned(sparsity, size) == count


def exact_oracle(scores, count, kept):
    """Prune in the order: pruned already, then lower score, then lower index."""
    order = np.lexsort((np.arange(scores.size), scores.ravel(), kept.ravel()))
    mask = np.ones(scores.size, dtype=bool)
    mask[order[: max(count, int((~kept).sum()))]] = False
    return mask.reshape(scores.shape)


@st.composite
def problems(draw):
    scores = draw(TIED)
    kept = draw(hnp.arrays(np.bool_, scores.shape, fill=st.nothing()))
    return scores, draw(st.integers(0, scores.size)), kept


@WAYS
@given(problems(), st.sampled_from(DTYPES))
def test_unstructured_against_lexsort(on_cpu, problem, dtype):
    scores, count, kept = problem
    with patch("kd_prune.pruning.selection.on_cpu", return_value=on_cpu):
        mask = unstructured(torch.from_numpy(scores).to(dtype), count, torch.from_numpy(kept))
    np.testing.assert_array_equal(mask.numpy(), exact_oracle(scores, count, kept))


def misleading(by):
    """Every 61st score is different, so that the sample misleads."""

    def draw(rng, size):
        scores = rng.standard_normal(size)
        scores[::61] += by
        return scores

    return draw


@WAYS
@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(np.random.Generator.standard_normal, id="distinct"),
        pytest.param(lambda rng, size: rng.integers(0, 50, size), id="tied"),
        pytest.param(misleading(10), id="misleading, high"),
        pytest.param(misleading(-10), id="misleading, low"),
        pytest.param(lambda rng, size: np.sort(rng.standard_normal(size)), id="sorted"),
        pytest.param(lambda rng, size: rng.choice([-np.inf, 0, np.inf], size), id="infinite"),
    ],
)
def test_unstructured_many_weights_against_lexsort(draw, fraction, on_cpu):
    rng = np.random.default_rng(0)
    scores = draw(rng, 61 * 300).astype(np.float32).reshape(61, 300)
    kept = rng.random(scores.shape) < 0.8
    count = int((~kept).sum() + fraction * kept.sum())
    with patch("kd_prune.pruning.selection.on_cpu", return_value=on_cpu):
        mask = unstructured(torch.from_numpy(scores), count, torch.from_numpy(kept))
    np.testing.assert_array_equal(mask.numpy(), exact_oracle(scores, count, kept))


def test_brackets_contain_the_threshold():
    scores = torch.randn(500, 500, generator=torch.Generator().manual_seed(0))
    for n in (1, 1000, 125_000, 249_000, 250_000):
        low, high = next(brackets(lambda: [(scores, ones(500, 500))], n, scores.numel()))
        assert low <= float(scores.flatten().kthvalue(n).values) <= high
        between = ((scores >= low) & (scores <= high)).sum()
        assert between < 0.1 * scores.numel()


@given(problems())
def test_unstructured_does_not_change_arguments(problem):
    scores, count, kept = problem
    given_scores, given_kept = torch.from_numpy(scores.copy()), torch.from_numpy(kept.copy())
    unstructured(given_scores, count, given_kept)
    np.testing.assert_array_equal(given_scores.numpy(), scores)
    np.testing.assert_array_equal(given_kept.numpy(), kept)


@pytest.mark.parametrize("count", [0, 1, 5, 11, 12])
def test_unstructured_ties_prune_lower_index(count):
    mask = unstructured(torch.full((3, 4), 0.5), count, ones(3, 4))
    assert mask.flatten().tolist() == [False] * count + [True] * (12 - count)


@pytest.mark.parametrize("count", [0, 1])
def test_unstructured_single_weight(count):
    assert unstructured(torch.tensor([0.0]), count, ones(1)).tolist() == [count == 0]


def test_unstructured_differences_below_float32_count():
    scores = torch.tensor([1.0 + 2e-12, 1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert unstructured(scores, 2, ones(3)).tolist() == [True, False, False]


def test_unstructured_ties_do_not_depend_on_strides():
    scores = torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last)
    mask = unstructured(scores, 5, ones(2, 3, 2, 2))
    assert mask.flatten().tolist() == [False] * 5 + [True] * 19


@given(TIED, st.data())
def test_unstructured_two_steps_are_nested_and_equal_one(scores, data):
    few = data.draw(st.integers(0, scores.size))
    many = data.draw(st.integers(few, scores.size))
    tensor, start = torch.from_numpy(scores), ones(*scores.shape)
    first = unstructured(tensor, few, start)
    second = unstructured(tensor, many, first)
    assert not (second & ~first).any()
    assert torch.equal(second, unstructured(tensor, many, start))


@given(st.integers(1, 40), st.data())
def test_unstructured_is_permutation_equivariant(size, data):
    scores = torch.arange(size, dtype=torch.float32)
    scores = scores[data.draw(st.permutations(range(size)))]
    permutation = data.draw(st.permutations(range(size)))
    count = data.draw(st.integers(0, size))
    assert torch.equal(
        unstructured(scores[permutation], count, ones(size)),
        unstructured(scores, count, ones(size))[permutation],
    )


@given(problems(), st.integers(-20, 20))
def test_unstructured_is_invariant_to_positive_scale(problem, exponent):
    scores, count, kept = (torch.as_tensor(part) for part in problem)
    scaled = unstructured(scores * 2.0**exponent, int(count), kept)
    assert torch.equal(scaled, unstructured(scores, int(count), kept))


@pytest.mark.parametrize("count", [1, 100, 599])
def test_unstructured_against_torch_without_ties(count):
    layer = nn.Linear(20, 30)
    with torch.no_grad():
        shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0)).view(30, 20)
        layer.weight.copy_((shuffled + 1) * (1 - 2 * (shuffled % 2)))  # 1, -2, 3 …, shuffled
    mask = unstructured(layer.weight.detach().abs(), count, ones(30, 20))
    prune.l1_unstructured(layer, "weight", amount=count)
    assert torch.equal(mask, layer.weight_mask.bool())
