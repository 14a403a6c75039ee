"""SparseLinear, compared with torch's dense product."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kd_prune.inference import SparseLinear
from kd_prune.inference.packing import pack
from tests.inference.models import pickled, sparse_linear


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    tokens=st.integers(0, 200),
    in_features=st.integers(1, 500),
    out_features=st.integers(1, 300),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sparse_linear_of_any_shape_equals_dense(
    tokens, in_features, out_features, sparsity, bias, seed
):
    torch.manual_seed(seed)
    layer = sparse_linear(in_features, out_features, sparsity, bias)
    inputs = torch.randn(tokens, in_features)
    exact = F.linear(inputs.double(), layer.weight.double(), layer.bias.double() if bias else None)
    outputs = SparseLinear(layer)(inputs)
    assert outputs.shape == exact.shape
    torch.testing.assert_close(outputs.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 5, 7), (0, 7), (2, 0, 7), (2, 3, 4, 7)])
def test_sparse_linear_keeps_the_leading_dimensions(shape, threads):
    layer = sparse_linear(7, 9, 0.5)
    inputs = torch.randn(shape)
    torch.testing.assert_close(SparseLinear(layer)(inputs), layer(inputs))


def test_sparse_linear_with_empty_and_full_rows_equals_dense(threads):
    layer = sparse_linear(400, 40, 0.9)
    layer.weight[::3] = 0
    layer.weight[1::3] = torch.randn(400)
    inputs = torch.randn(65, 400)
    torch.testing.assert_close(SparseLinear(layer)(inputs), layer(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded"])
def test_sparse_linear_reads_inputs_that_are_not_contiguous(view):
    layer = sparse_linear(48, 20, 0.5)
    inputs = {
        "transposed": torch.randn(48, 30).T,
        "strided": torch.randn(60, 96)[::2, ::2],
        "expanded": torch.randn(1, 48).expand(30, 48),
    }[view]
    assert not inputs.is_contiguous()
    torch.testing.assert_close(SparseLinear(layer)(inputs), layer(inputs))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("token", [0, 17, 69])
def test_sparse_linear_passes_nonfinite_inputs_on_to_their_token_only(value, token):
    layer = sparse_linear(64, 32, 0.7)
    inputs = torch.randn(70, 64)
    clean = SparseLinear(layer)(inputs)
    inputs[token, 5] = value
    outputs = SparseLinear(layer)(inputs)
    others = torch.arange(70) != token
    assert torch.equal(outputs[others], clean[others])
    reached = layer.weight[:, 5] != 0
    assert 0 < reached.sum() < 32
    assert not outputs[token, reached].isfinite().any()
    assert torch.equal(outputs[token, ~reached], clean[token, ~reached])
    expected = layer.weight[reached, 5] * value
    assert torch.equal(outputs[token, reached].isnan(), expected.isnan())


def test_sparse_linear_gives_the_same_bits_for_any_threads_and_batch():
    layer = SparseLinear(sparse_linear(500, 70, 0.8))
    inputs = torch.randn(150, 500)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(layer(inputs))
            results.append(torch.cat([layer(part) for part in inputs.split(31)]))
            results.append(layer(inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_copy_of_a_sparse_linear_outlives_the_original(again):
    dense = sparse_linear(64, 64, 0.5)
    inputs = torch.randn(20, 64)
    layer = SparseLinear(dense)
    layer(inputs)  # addresses are known now
    copied = again(layer)
    layer.packed.values.fill_(float("nan"))
    torch.testing.assert_close(copied(inputs), dense(inputs))


def test_sparse_linear_is_called_from_many_threads_at_once():
    layer = SparseLinear(sparse_linear(200, 100, 0.8))
    inputs = [torch.randn(40 + number, 200) for number in range(8)]
    expected = [layer(part) for part in inputs]
    failures = []

    def work(number):
        outputs = [layer(inputs[number]) for _ in range(20)]
        failures.extend(number for found in outputs if not torch.equal(found, expected[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


@pytest.mark.parametrize("shape", [(5, 7), (40, 192), (3, 193), (10, 600)])
def test_packed_matrix_unpacks_to_the_same_weights(shape):
    layer = sparse_linear(shape[1], shape[0], 0.6)
    layer.weight[0, 0] = torch.finfo(torch.float32).tiny  # the smallest normal number is no zero
    packed = pack([layer])
    assert torch.equal(packed.dense(), layer.weight)
    assert packed.nonzeros == layer.weight.count_nonzero()
    assert torch.equal(SparseLinear(layer).weight, layer.weight)


def test_packed_layers_lie_one_after_the_other():
    layers = [sparse_linear(30, rows, 0.5) for rows in (4, 6, 5)]
    packed = pack(layers)
    assert torch.equal(packed.dense(), torch.cat([layer.weight for layer in layers]))
    assert torch.equal(packed.bias, torch.cat([layer.bias for layer in layers]))


def test_training_is_refused_in_one_line():
    model = nn.Sequential(SparseLinear(sparse_linear(4, 4)))
    with pytest.raises(RuntimeError, match=r"^an accelerated model is for inference only: [^\n]*$"):
        model.train()
    model.eval()
    with pytest.raises(RuntimeError, match="for inference only"):
        model(torch.randn(2, 4, requires_grad=True))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.float64), TypeError, "float32 on the CPU.*float64"),
        (torch.zeros(2, 4, dtype=torch.bfloat16), TypeError, "bfloat16"),
        (torch.zeros(2, 4, device="meta"), TypeError, "on meta"),
        (torch.zeros(2, 5), ValueError, r"expected 4 features, got \[2, 5\]"),
    ],
)
def test_inputs_that_the_kernel_cannot_read_are_refused(inputs, error, message):
    with pytest.raises(error, match=message):
        SparseLinear(sparse_linear(4, 4))(inputs)
