"""accelerate(model, int8=True): whole models against a restatement, and against float32."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

pytest.importorskip("llvmlite", reason="pip install 'kd_prune[cpu]'")

from kd_prune.inference import SparseLinear, accelerate, crossover, report
from kd_prune.inference.crossover import Choice, Costs
from kd_prune.inference.jit.target import host
from kd_prune.inference.layout import GROUP
from kd_prune.inference.quantized import QuantizedMatrix, suits_int8
from kd_prune.inference.stack import FusedLayers
from tests.inference.models import (
    MODELS,
    SIZES,
    batch,
    blocked_linear,
    blocked_model,
    kept_blocks,
    kept_weights,
    pickled,
    sparse_linear,
    with_blocks,
)

pytestmark = pytest.mark.skipif(not host().int8, reason="the processor has no int8 instruction")

SHAPES = [(1, 1), (3, 20), (4, 33), (1, 150)]
LEVELS = {"VPDPBUSD": 254, "VPMADDUBSW": 126}.get(host().int8, 0)
TOLERANCE = {"VPDPBUSD": 0.015, "VPMADDUBSW": 0.025}.get(host().int8, 0)
"""Error of the last states over their size, of the models here."""


def fast(model, **options):
    return accelerate(model, minimum_sparsity=0.5, int8=True, **options)


def states(model, inputs, **options):
    with torch.inference_mode():
        return model.base_model(**inputs, **options).last_hidden_state


def error(found, expected, inputs):
    """Return the error over the size, of the tokens that are not masked."""
    real = inputs["attention_mask"].bool()
    found, expected = found[real], expected[real]
    return float((found - expected).norm() / expected.norm())


class Restated(nn.Module):
    """A linear layer with weights and inputs rounded as int8 layers round them, in torch."""

    def __init__(self, layer):
        super().__init__()
        self.bias = layer.bias
        self.scale = layer.weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        self.rounded = (layer.weight / self.scale).round()

    def forward(self, inputs):
        rounded = []
        for group in inputs.split(GROUP, -1):
            low = group.amin(-1, keepdim=True).clamp_max(0)
            spread = (group.amax(-1, keepdim=True).clamp_min(0) - low).clamp_min(1e-30)
            zero = (-low * (LEVELS / spread)).round()
            steps = (group * (LEVELS / spread) + zero).round() - zero
            rounded.append(steps * (spread / LEVELS))
        return F.linear(torch.cat(rounded, -1), self.rounded * self.scale, self.bias)


def restated(model):
    """Copy a model, with `Restated` layers in the place of those that suit int8."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.Linear) and suits_int8(child.weight):
                setattr(parent, name, Restated(child))
    return model


def wide_model(sparsity=0.9):
    """Build a block whose matrices have more inputs than are quantized together."""
    sizes = {"hidden_size": 880, "num_hidden_layers": 1, "intermediate_size": 1700}
    torch.manual_seed(0)
    return with_blocks(BertModel(BertConfig(**SIZES | sizes)).eval(), sparsity)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(accelerated, model):
    """Compare with the restatement: now and then, float32 rounds an input to another step."""
    expected, found = restated(model), []
    for size, length in SHAPES:
        inputs = batch(size, length)
        own = states(accelerated, inputs)
        found.append(error(own, states(expected, inputs), inputs))
        assert error(own, states(model, inputs), inputs) < TOLERANCE
    assert min(found) < 1e-6
    assert max(found) < 4e-3


@pytest.mark.parametrize("name", [*MODELS, "wide"])
def test_int8_model_computes_what_its_restatement_does(name, threads):
    model = wide_model() if name == "wide" else blocked_model(name)
    accelerated = fast(model)
    found = report(accelerated)
    assert found.blocks == (1 if name == "wide" else 2)
    assert found.int8 == found.sparse >= 6 * found.blocks
    check(accelerated, model)


PARTS = {
    "query_key_value": ("query", "key", "value"),
    "output": ("attention.output.dense",),
    "up": ("intermediate.dense",),
    "down": ("0.output.dense",),
}


@pytest.mark.parametrize(
    "others", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["not", "only"]
)
@pytest.mark.parametrize("part", PARTS)
def test_matrices_of_a_block_may_be_of_either_kind(part, others, threads):
    model = wide_model(sparsity=0.0)
    for name, layer in model.encoder.named_modules():
        if isinstance(layer, nn.Linear):
            prune = kept_blocks if name.endswith(PARTS[part]) != others else kept_weights
            layer.weight.data *= prune(layer.weight.shape, 0.7)
    accelerated = fast(model)
    count = len(PARTS[part])
    assert report(accelerated).int8 == (6 - count if others else count)
    check(accelerated, model)


def test_projections_are_int8_together_or_not_at_all():
    model = blocked_model("bert")
    key = model.bert.encoder.layer[0].attention.self.key
    key.weight.data = torch.randn_like(key.weight) * kept_weights(key.weight.shape, 0.4) / 8
    accelerated = accelerate(model, minimum_sparsity=0.3, int8=True)
    layers = accelerated.bert.encoder.layer[0].attention.self
    kinds = [
        type(layer.packed) is QuantizedMatrix for layer in (layers.query, layers.key, layers.value)
    ]
    assert kinds == [False] * 3
    inputs = batch(3, 20)
    fused = states(accelerated, inputs)
    apart = states(accelerated, inputs, output_hidden_states=True)
    assert error(apart, fused, inputs) < 4e-3


def test_hidden_states_are_those_of_the_fused_blocks():
    model = blocked_model("bert-eager")
    accelerated = fast(model)
    inputs = batch(3, 20)
    fused = states(accelerated, inputs)
    assert error(states(accelerated, inputs, output_hidden_states=True), fused, inputs) < 4e-3


def test_same_bits_for_any_threads_and_batch():
    accelerated = fast(blocked_model("distilbert"))
    inputs = batch(70, 40)
    before, results = torch.get_num_threads(), []
    rows = [{key: value[row : row + 1] for key, value in inputs.items()} for row in range(70)]
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(states(accelerated, inputs))
            results.append(torch.cat([states(accelerated, row) for row in rows]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


def test_same_bits_from_threads_of_python():
    accelerated = fast(blocked_model("bert"))
    results = {}

    def work(number):
        results[number] = [states(accelerated, batch(4, 30)) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    first = results[0][0]
    assert all(torch.equal(first, found) for many in results.values() for found in many)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_copy_of_an_int8_model_stands_alone(again):
    accelerated = fast(blocked_model("bert"))
    inputs = batch(2, 9)
    expected = states(accelerated, inputs)
    copied = again(accelerated)
    (stack,) = [part for part in accelerated.modules() if isinstance(part, FusedLayers)]
    for step in stack:
        for block in step.fused.blocks:
            block.up.scales.fill_(float("nan"))
    assert torch.equal(states(copied, inputs), expected)
    assert states(accelerated, inputs).isnan().all()


def test_nan_stays_in_its_sequence():
    model = blocked_model("bert-eager")
    accelerated = fast(model)
    hidden = torch.randn(3, 40, 64)
    clean = accelerated.encoder(hidden).last_hidden_state
    hidden[1, 7, 3] = float("nan")
    found = accelerated.encoder(hidden).last_hidden_state
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert found[1].isnan().all()


class Custom(nn.Module):
    """Layers with zeros in blocks, scattered, and without zeros."""

    def __init__(self):
        super().__init__()
        self.blocks = blocked_linear(32, 64, 0.7)
        self.scattered = sparse_linear(64, 64, 0.6)
        self.full = sparse_linear(64, 3, 0.0)

    def forward(self, inputs):
        return self.full(self.scattered(self.blocks(inputs)))


def test_only_layers_with_blocks_of_zeros_become_int8():
    model = Custom()
    accelerated = accelerate(model, minimum_sparsity=0, int8=True)
    kinds = [type(layer.packed) is QuantizedMatrix for layer in accelerated.children()]
    assert kinds == [True, False, False]
    found = report(accelerated)
    assert (found.int8, found.sparse) == (1, 3)
    assert str(found).startswith("3 of 3 linear layers are sparse")
    assert "1 of them in int8" in str(found)
    inputs = torch.randn(5, 32)
    torch.testing.assert_close(accelerated(inputs), model(inputs), rtol=0, atol=0.05)


def test_without_int8_nothing_is_rounded():
    accelerated = accelerate(blocked_model("bert"), minimum_sparsity=0.5)
    assert report(accelerated).int8 == 0
    assert "int8" not in str(report(accelerated))


def test_measured_decision_counts_blocks_where_int8_is_chosen(monkeypatch):
    seen = []

    def measure(outputs, inputs, threads, int8):
        seen.append((outputs, inputs, int8))
        return Costs(dense=100.0, fixed=10.0, per_step=1.0)

    monkeypatch.setattr(crossover, "measure", measure)
    layer = blocked_linear(64, 40, 0.0)
    layer.weight.zero_()
    layer.weight[:, :8] = 1.0  # 80 blocks, 320 weights
    assert Choice(int8=True).gains([[layer]])
    assert not Choice().gains([[layer]])
    assert not Choice(int8=True).gains([[layer], [layer, layer, sparse_linear(64, 40, 0.0)]])
    assert seen == [(40, 64, True), (40, 64, False), (40, 64, True), *[(40, 64, False)] * 3]


def test_model_without_int8_instructions_stays_in_float32(monkeypatch):
    monkeypatch.setattr("kd_prune.inference.quantized.BLOCK_COST", {})
    model = blocked_model("bert")
    accelerated = fast(model)
    assert (report(accelerated).int8, report(accelerated).blocks) == (0, 2)
    inputs = batch(3, 20)
    assert error(states(accelerated, inputs), states(model, inputs), inputs) < 1e-5
    assert all(type(part.packed) is not QuantizedMatrix for part in sparse_layers(accelerated))


def sparse_layers(model):
    return [part for part in model.modules() if isinstance(part, SparseLinear)]
