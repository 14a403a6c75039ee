"""Int8 layers, compared with integers, with a restatement in numpy, and with float32."""

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("llvmlite", reason="pip install 'kd_prune[cpu]'")

from kd_prune.errors import ConfigError
from kd_prune.inference import SparseLinear, kernels, library
from kd_prune.inference.jit import objects
from kd_prune.inference.jit.target import host
from kd_prune.inference.layout import GROUP
from kd_prune.inference.quantized import QuantizedMatrix, quantize, suits_int8
from tests.forked import run_code
from tests.inference.models import blocked_linear, pickled, sparse_linear

LEVELS = {"VPDPBUSD": 254, "VPMADDUBSW": 126}
INSTRUCTIONS = [host().int8] if host().int8 else []
if host().int8 == "VPDPBUSD":
    INSTRUCTIONS.append("VPMADDUBSW")  # every processor with the one has the other
needs_int8 = pytest.mark.skipif(not INSTRUCTIONS, reason="the processor has no int8 instruction")


@pytest.fixture(params=INSTRUCTIONS)
def levels(request, monkeypatch):
    """Compile for an instruction that this processor has; returns the levels of its inputs."""
    use(monkeypatch, request.param)
    return LEVELS[request.param]


def use(monkeypatch, instruction):
    target = dataclasses.replace(host(), int8=instruction)
    compiled = objects.load(kernels.write, library_sources(), target)
    monkeypatch.setattr(library, "kernels", lambda: compiled)


def library_sources():
    from pathlib import Path

    return Path(kernels.__file__).parents[1]


def integer_layer(in_features, out_features, sparsity, generator):
    """Draw weights that are their own int8: integers, ±127 among them in every row with weights."""
    blocks = -(-in_features // 4)
    kept = torch.rand(out_features, blocks, generator=generator) >= sparsity
    kept = kept.repeat_interleave(4, 1)[:, :in_features]
    weight = torch.randint(-127, 128, (out_features, in_features), generator=generator) * kept
    for row, mask in zip(weight, kept, strict=True):
        row[mask.nonzero()[:1]] = 127
    layer = nn.Linear(in_features, out_features).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(torch.randint(-99, 99, (out_features,), generator=generator))
    return layer


def integer_inputs(tokens, features, levels, generator):
    """Draw inputs whose step is 1: integers with `levels` between least and largest per group."""
    low = -torch.randint(0, levels + 1, (tokens, 1), generator=generator)
    inputs = low + torch.randint(0, levels + 1, (tokens, features), generator=generator)
    for first in range(0, features, GROUP):
        group = inputs[:, first : first + GROUP]
        if group.shape[1] == 1:
            group[:] = levels
        else:
            group[:, :1], group[:, -1:] = low, low + levels
    return inputs


@needs_int8
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    tokens=st.integers(0, 150),
    in_features=st.one_of(st.integers(1, 70), st.integers(700, 1700)),
    out_features=st.integers(1, 90),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_sums_of_integers_are_exact(tokens, in_features, out_features, sparsity, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = integer_layer(in_features, out_features, sparsity, generator)
    inputs = integer_inputs(tokens, in_features, LEVELS[INSTRUCTIONS[0]], generator)
    found = SparseLinear(layer, int8=True)(inputs.float())
    expected = inputs.numpy() @ layer.weight.long().numpy().T + layer.bias.long().numpy()
    assert np.abs(expected).max(initial=0) < 2**24  # floats hold them
    assert np.array_equal(found.numpy(), expected)


@needs_int8
@pytest.mark.parametrize("shape", [(70, 40, 30), (16, 770, 5), (3, 1540, 20), (129, 768, 33)])
def test_sums_of_integers_are_exact_with_every_instruction(shape, levels):
    generator = torch.Generator().manual_seed(0)
    tokens, in_features, out_features = shape
    layer = integer_layer(in_features, out_features, 0.8, generator)
    inputs = integer_inputs(tokens, in_features, levels, generator)
    found = SparseLinear(layer, int8=True)(inputs.float())
    expected = inputs.numpy() @ layer.weight.long().numpy().T + layer.bias.long().numpy()
    assert np.array_equal(found.numpy(), expected)


@needs_int8
def test_largest_products_do_not_saturate(levels):
    layer = nn.Linear(64, 2).requires_grad_(False)
    layer.weight[0], layer.weight[1] = 127, -127
    layer.bias.zero_()
    found = SparseLinear(layer, int8=True)(torch.full((20, 64), float(levels)))
    assert torch.equal(found, torch.tensor([[1.0, -1.0]]).expand(20, 2) * 64 * 127 * levels)


def restated(layer, inputs, levels):
    """Compute what an int8 layer does in numpy: float32 where it counts, else float64."""
    weight = layer.weight.numpy()
    scale = np.maximum(np.abs(weight).max(1) / np.float32(127), np.finfo(np.float32).tiny)
    rounded = np.rint(weight / scale[:, None])
    output = np.zeros((len(inputs), len(weight)))
    for first in range(0, weight.shape[1], GROUP):
        x, w = inputs.numpy()[:, first : first + GROUP], rounded[:, first : first + GROUP]
        low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
        spread = np.maximum(high - low, np.float32(1e-30))
        inverse = (np.float32(levels) / spread)[:, None].astype(np.float64)
        zero = np.rint(-low[:, None] * inverse)
        q = np.rint(x * inverse + zero)
        assert q.min() >= 0
        assert q.max() <= levels + 1
        output += (spread / np.float32(levels))[:, None] * ((q - zero) @ w.T)
    return output * scale + layer.bias.numpy()


@needs_int8
@pytest.mark.parametrize("shape", [(1, 7, 9), (50, 768, 40), (65, 1000, 30), (20, 1541, 50)])
@pytest.mark.parametrize("shift", [0.0, 3.0, -0.2])
def test_layer_equals_its_restatement(shape, shift, levels):
    torch.manual_seed(0)
    tokens, in_features, out_features = shape
    layer = blocked_linear(in_features, out_features, 0.8)
    inputs = torch.randn(tokens, in_features) * torch.logspace(-6, 6, tokens)[:, None] + shift
    found = SparseLinear(layer, int8=True)(inputs).numpy()
    expected = restated(layer, inputs, levels)
    size = np.abs(inputs.numpy()).max(1, keepdims=True) * np.abs(layer.weight.numpy()).sum(1)
    assert (np.abs(found - expected) <= 1e-6 * (size + np.abs(layer.bias.numpy()))).all()


@needs_int8
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    tokens=st.integers(1, 100),
    in_features=st.integers(1, 1600),
    out_features=st.integers(1, 60),
    sparsity=st.sampled_from([0.0, 0.8, 0.95]),
    shift=st.sampled_from([-1.0, 0.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_error_is_at_most_half_a_step_of_every_input_and_weight(
    tokens, in_features, out_features, sparsity, shift, seed
):
    torch.manual_seed(seed)
    layer = sparse_linear(in_features, out_features, sparsity)
    inputs = torch.randn(tokens, in_features) + shift
    found = SparseLinear(layer, int8=True)(inputs).double()
    x, w = inputs.double(), layer.weight.double()
    input_step = (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)) / LEVELS[INSTRUCTIONS[0]]
    weight_step = w.abs().amax(1) / 127
    bound = (input_step[:, None] * w.abs().sum(1) + x.abs().sum(1)[:, None] * weight_step) / 2
    bound += input_step[:, None] * weight_step * in_features / 4
    error = (found - (x @ w.T + layer.bias.double())).abs()
    assert (error <= bound * 1.001 + 1e-5).all()


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("token", [0, 17, 69])
def test_token_with_a_nonfinite_input_becomes_nan_and_the_others_stay(value, token, levels):
    layer = blocked_linear(1000, 40, 0.9)
    layer.weight[7] = 0
    inputs = torch.randn(70, 1000)
    clean = SparseLinear(layer, int8=True)(inputs)
    inputs[token, 5] = value
    outputs = SparseLinear(layer, int8=True)(inputs)
    others = torch.arange(70) != token
    assert torch.equal(outputs[others], clean[others])
    assert outputs[token].isnan().all()


@needs_int8
def test_inputs_of_any_size_are_read(levels):
    layer = blocked_linear(40, 30, 0.5)
    plain = torch.randn(1, 40)
    sizes = torch.tensor([[0.0], [1e-38], [1e-25], [1e25]])
    found = SparseLinear(layer, int8=True)(plain * sizes) - layer.bias
    assert torch.equal(found[:2], torch.zeros(2, 30))  # below 1e-30 all is zero
    once = SparseLinear(layer, int8=True)(plain) - layer.bias
    torch.testing.assert_close(found[3] / 1e25, once[0], rtol=1e-3, atol=1e-4)
    assert found.isfinite().all()


@needs_int8
def test_same_bits_for_any_threads_and_batch(levels):
    layer = SparseLinear(blocked_linear(1700, 70, 0.8), int8=True)
    inputs = torch.randn(150, 1700)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(layer(inputs))
            results.append(torch.cat([layer(part) for part in inputs.split(31)]))
            results.append(torch.cat([layer(part) for part in inputs.split(1)]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


@needs_int8
@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_copy_stands_alone(again):
    layer = SparseLinear(blocked_linear(100, 30, 0.8), int8=True)
    inputs = torch.randn(9, 100)
    expected = layer(inputs)
    copied = again(layer)
    for tensor in (layer.packed.values, layer.packed.scales, layer.packed.sums):
        tensor.fill_(1)
    assert torch.equal(copied(inputs), expected)
    assert not torch.equal(layer(inputs), expected)


@needs_int8
@pytest.mark.parametrize("shape", [(5, 7), (40, 768), (3, 769), (10, 1600), (4, 1)])
def test_matrix_is_rounded_to_127_steps_of_each_rows_largest(shape):
    layer = blocked_linear(shape[1], shape[0], 0.6)
    layer.weight[1] = 0
    layer.weight[2, -1] = 5
    packed = quantize([layer])
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    integers = packed.integers()
    assert integers.abs().amax(1).tolist() == [127 if row.any() else 0 for row in layer.weight]
    assert ((packed.dense() - layer.weight).abs() <= step / 2 * 1.0001).all()
    assert torch.equal(SparseLinear(layer, int8=True).weight, packed.dense())
    assert packed.nonzeros == integers.count_nonzero()
    sums = [group.sum(1).float() for group in integers.split(GROUP, 1)]
    assert torch.equal(packed.sums, torch.cat(sums))


@needs_int8
def test_layers_of_one_matrix_lie_one_after_the_other():
    layers = [blocked_linear(30, rows, 0.5) for rows in (4, 6, 5)]
    packed = quantize(layers)
    assert torch.equal(packed.dense(), torch.cat([quantize([layer]).dense() for layer in layers]))
    assert torch.equal(packed.bias, torch.cat([layer.bias for layer in layers]))


@needs_int8
def test_int8_suits_blocks_and_no_full_or_nonfinite_matrix(monkeypatch):
    half = blocked_linear(64, 64, 0.7).weight
    scattered = sparse_linear(64, 64, 0.9).weight
    for instruction in INSTRUCTIONS:
        use(monkeypatch, instruction)
        assert suits_int8(half)
        assert suits_int8(half.T.contiguous().T)
        assert not suits_int8(sparse_linear(64, 64, 0.0).weight)
        assert not suits_int8(blocked_linear(64, 64, 0.2).weight)
        assert suits_int8(scattered) == (instruction == "VPDPBUSD")
        assert suits_int8(torch.zeros(8, 9))
    half[0, 0] = float("nan")
    assert not suits_int8(half)


def test_processor_without_an_int8_instruction_is_refused_in_one_line(monkeypatch):
    layer = blocked_linear(16, 16, 0.7)
    saved = pickle.dumps(SparseLinear(layer, int8=True)) if INSTRUCTIONS else None
    use(monkeypatch, "")
    assert not suits_int8(layer.weight)
    with pytest.raises(ConfigError, match=r"^int8=true: there is no kernel for this processor \("):
        SparseLinear(layer, int8=True)
    if saved:  # on another machine
        moved = pickle.loads(saved)  # noqa: S301
        with pytest.raises(ConfigError, match="no kernel for this processor"):
            moved(torch.randn(2, 16))


IN_A_SMALLER_TEAM = """
import torch
from kd_prune.inference import SparseLinear
from tests.inference.models import blocked_linear
layer = SparseLinear(blocked_linear(1700, 70, 0.8), int8=True)
equal = []
for tokens in (16, 100):
    inputs = torch.randn(tokens, 1700)
    torch.set_num_threads(1)
    alone = layer(inputs)
    for planned in (3, 4):
        torch.set_num_threads(planned)
        equal.append(torch.equal(layer(inputs), alone))
print(equal)
"""


@needs_int8
def test_team_that_is_smaller_than_planned_neither_waits_for_ever_nor_reads_too_early():
    environment = {"OMP_THREAD_LIMIT": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    code, stdout, stderr = run_code(IN_A_SMALLER_TEAM, **environment)
    assert code == 0, stderr
    assert stdout.strip() == str([True] * 4)


ON_A_RESTRICTED_PROCESSOR = """
import torch
from kd_prune.inference import SparseLinear
from kd_prune.inference.jit.target import host
from tests.inference.test_int8 import LEVELS, integer_inputs, integer_layer
generator = torch.Generator().manual_seed(0)
layer = integer_layer(900, 30, 0.7, generator)
inputs = integer_inputs(70, 900, LEVELS[host().int8], generator)
expected = inputs @ layer.weight.long().T + layer.bias.long()
found = SparseLinear(layer, int8=True)(inputs.float())
print(host().vectors, host().int8, torch.equal(found, expected.float()))
"""


@pytest.mark.skipif(host().vectors not in ("AVX-512", "AVX2"), reason="the processor has no AVX2")
@pytest.mark.parametrize(
    ("restriction", "instruction"),
    [("avx2", "VPMADDUBSW"), pytest.param("avxvnni", "VPDPBUSD", marks=pytest.mark.slow)],
)
def test_restricted_processor_computes_the_same_integers(restriction, instruction):
    if f"+{restriction}," not in host().features:
        pytest.skip(f"the processor has no {restriction}")
    environment = {"KD_PRUNE_CPU": restriction, "PYTHONPATH": str(Path(__file__).parents[2])}
    code, stdout, stderr = run_code(ON_A_RESTRICTED_PROCESSOR, **environment)
    assert code == 0, stderr
    assert stdout.split() == ["AVX2", instruction, "True"]


@needs_int8
def test_quantized_matrix_takes_six_bytes_a_block():
    packed = quantize([blocked_linear(64, 64, 0.75)])
    assert isinstance(packed, QuantizedMatrix)
    assert packed.values.numel() == packed.columns.numel() == packed.steps
    assert packed.values.element_size() + packed.columns.element_size() == 6
