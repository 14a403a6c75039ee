"""accelerate: whole models against themselves."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from kd_prune.errors import ConfigError
from kd_prune.inference import SparseLinear, accelerate, crossover, library, report
from kd_prune.inference.stack import FusedBlocks, FusedLayers
from tests.inference.models import MODELS, batch, pickled, sparse_linear, sparse_model

SHAPES = [(1, 1), (3, 20), (4, 33), (1, 150)]


def assert_same(accelerated, model, **inputs):
    with torch.inference_mode():
        expected, found = model(**inputs), accelerated(**inputs)
    assert expected.keys() == found.keys()
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_accelerated_model_computes_the_same(name, threads):
    model = sparse_model(name)
    accelerated = accelerate(model, minimum_sparsity=0.5)
    assert report(accelerated).blocks == 2
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size, length in SHAPES:
            assert_same(accelerated, model, **batch(size, length, masked=False))
            assert_same(accelerated, model, **batch(size, length))
            assert_same(accelerated, model, input_ids=batch(size, length)["input_ids"])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_attentions_are_those_of_the_model(name):
    model = sparse_model(name)
    accelerated = accelerate(model, minimum_sparsity=0.5)
    inputs = batch(3, 20)
    for one in (model, accelerated):
        one.set_attn_implementation("eager")
    assert_same(accelerated, model, **inputs)
    assert_same(accelerated, model, **inputs, output_hidden_states=True, output_attentions=True)
    assert_same(accelerated, model, **inputs)


def test_mask_that_differs_between_queries_is_followed():
    model = sparse_model("bert-eager")
    accelerated = accelerate(model, minimum_sparsity=0.5)
    causal = torch.ones(12, 12).tril().expand(2, 1, 12, 12)
    assert_same(accelerated, model, input_ids=batch(2, 12)["input_ids"], attention_mask=causal)


@pytest.mark.parametrize("shape", [(1, 1, 1, 12), (1, 1, 12, 12), (3, 1, 1, 1)], ids=str)
def test_mask_of_four_dimensions_is_broadcast(shape):
    """transformers passes such a mask on as it is, and torch broadcasts it."""
    model = sparse_model("bert")
    accelerated = accelerate(model, minimum_sparsity=0.5)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 7:] = shape[-1] == 1
    assert_same(accelerated, model, input_ids=batch(3, 12)["input_ids"], attention_mask=mask)


@pytest.mark.parametrize("name", ["relu6", "gelu_10", "quick_gelu", "mish"])
def test_block_with_another_activation_stays_with_torch(name):
    """Some differ from one of the kernels' only far from zero."""
    model = sparse_model("bert")
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = ACT2FN[name]
        with torch.no_grad():
            layer.intermediate.dense.bias.add_(15.0)
    accelerated = accelerate(model, minimum_sparsity=0.5)
    assert report(accelerated).blocks == 0
    assert_same(accelerated, model, **batch(2, 12))


def test_layer_with_a_hook_stays_with_torch():
    model = nn.Sequential(sparse_linear(16, 16), sparse_linear(16, 16))
    model[0].register_forward_hook(lambda layer, args, output: output + 1)
    accelerated = accelerate(model, minimum_sparsity=0.5)
    assert report(accelerated).sparse == 1
    inputs = torch.randn(3, 16)
    with torch.inference_mode():
        torch.testing.assert_close(accelerated(inputs), model(inputs))


def test_team_that_is_smaller_than_planned_computes_everything():
    """A limit of OpenMP, of which torch's number of threads knows nothing, is read at its start."""
    code = """
        import torch
        from kd_prune.inference import accelerate
        from tests.inference.models import batch, sparse_model

        torch.set_num_threads(3)
        model = sparse_model("bert")
        accelerated = accelerate(model, minimum_sparsity=0.5)
        with torch.inference_mode():
            for size, length in ((1, 1), (8, 64)):
                inputs = batch(size, length)
                expected, found = model(**inputs), accelerated(**inputs)
                torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    """
    root = Path(__file__).parents[2]
    limited = {**os.environ, "OMP_THREAD_LIMIT": "2", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=limited, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_result_does_not_depend_on_the_rest_of_the_batch():
    accelerated = accelerate(sparse_model("bert-eager"), minimum_sparsity=0.5)
    inputs = batch(70, 40)
    with torch.inference_mode():
        together = accelerated(**inputs).last_hidden_state
        alone = [
            accelerated(**{key: value[row : row + 1] for key, value in inputs.items()})[0]
            for row in range(70)
        ]
    assert torch.equal(together, torch.cat(alone))


def test_result_is_the_same_from_threads_and_runs():
    accelerated = accelerate(sparse_model("bert"), minimum_sparsity=0.5)
    results = {}

    def work(number):
        with torch.inference_mode():
            results[number] = [accelerated(**batch(4, 30)).logits for _ in range(5)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    first = results[0][0]
    assert all(torch.equal(first, logits) for found in results.values() for logits in found)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_copy_of_an_accelerated_model_stands_alone(again):
    model = sparse_model("bert")
    accelerated = accelerate(model, minimum_sparsity=0.5)
    assert_same(accelerated, model, **batch(2, 9))
    copied = again(accelerated)
    (stack,) = [part for part in accelerated.modules() if isinstance(part, FusedLayers)]
    for step in stack:
        for block in step.fused.blocks:
            block.up.values.fill_(float("nan"))
    assert_same(copied, model, **batch(2, 9))
    assert_same(copied, model, **batch(2, 9), output_hidden_states=True)


def test_model_itself_stays_as_it_was_unless_inplace():
    model = sparse_model("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accelerated = accelerate(model, minimum_sparsity=0.5)
    assert not any(isinstance(part, SparseLinear) for part in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    # What stays dense is not copied.
    embeddings = [one.get_input_embeddings().weight for one in (model, accelerated)]
    assert embeddings[0].data_ptr() == embeddings[1].data_ptr()
    assert accelerate(model, minimum_sparsity=0.5, inplace=True) is model
    assert report(model) == report(accelerated)


def test_block_with_a_dense_matrix_stays_with_torch_and_the_others_are_fused():
    model = sparse_model("bert")
    layer = model.bert.encoder.layer[0]
    for part in layer.modules():
        if isinstance(part, nn.Linear):
            part.weight.data = torch.randn_like(part.weight) / 8
    accelerated = accelerate(model, minimum_sparsity=0.5)
    found = report(accelerated)
    assert (found.blocks, found.sparse, found.dense) == (1, 6 + 2, 6)
    assert_same(accelerated, model, **batch(3, 20))


class Custom(nn.Module):
    """An encoder of no known family, with one layer in two places."""

    def __init__(self):
        super().__init__()
        self.first = sparse_linear(16, 32)
        self.again = self.first
        self.blocks = nn.ModuleList([sparse_linear(32, 32) for _ in range(2)])
        self.head = sparse_linear(32, 2, sparsity=0)

    def forward(self, inputs):
        hidden = self.first(inputs) + self.again(inputs)
        for block in self.blocks:
            hidden = block(hidden).relu()
        return self.head(hidden)


def test_any_model_of_linear_layers_is_accelerated():
    model = Custom()
    accelerated = accelerate(model, minimum_sparsity=0.5)
    assert accelerated.first is accelerated.again
    assert (report(accelerated).sparse, report(accelerated).dense) == (3, 1)
    inputs = torch.randn(5, 16)
    torch.testing.assert_close(accelerated(inputs), model(inputs))


def test_transformer_encoder_of_torch_is_accelerated():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.weight.data *= torch.rand_like(part.weight) > 0.8
    accelerated = accelerate(model, minimum_sparsity=0.5)
    assert report(accelerated).sparse == 4
    inputs = torch.randn(3, 10, 32)
    with torch.inference_mode():
        torch.testing.assert_close(accelerated(inputs), model(inputs), rtol=1e-4, atol=1e-5)
        padding = torch.arange(10) >= torch.tensor([[10], [7], [4]])
        model.use_nested_tensor = False  # torch warns of its prototype
        found, expected = (
            each(inputs, src_key_padding_mask=padding) for each in (accelerated, model)
        )
        torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-4, atol=1e-5)


def test_measured_costs_decide_what_stays_dense(monkeypatch):
    costs = crossover.measure(512, 512, 1)
    assert costs.dense > 0 <= costs.fixed
    assert costs.per_step > 0
    equal_at_80 = crossover.Costs(dense=1.0, fixed=0.0, per_step=1 / (0.2 * 512 * 512))
    monkeypatch.setattr(crossover, "measure", lambda *shape: equal_at_80)
    model = nn.Sequential(*(sparse_linear(512, 512, share) for share in (0.0, 0.7, 0.9)))
    assert [type(layer) for layer in accelerate(model)] == [nn.Linear, nn.Linear, SparseLinear]


def test_training_an_accelerated_model_is_refused():
    accelerated = accelerate(sparse_model("bert"), minimum_sparsity=0.5)
    with pytest.raises(RuntimeError, match="for inference only"):
        accelerated.train()
    with pytest.raises(RuntimeError, match="for inference only"):
        accelerated(**batch(1, 5))  # embeddings need gradients


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda model: model.half(), {}, r"^model\.first\.weight=.*float16 on cpu: expected torch"),
        (lambda model: model.to("meta"), {}, "expected torch.float32 on cpu"),
        (lambda model: model, {"minimum_sparsity": 95}, r"^minimum_sparsity=95: expected a share"),
        (lambda model: "bert", {}, r"^model='?bert'?: expected a torch.nn.Module"),
    ],
)
def test_what_cannot_be_accelerated_is_refused(change, options, message):
    with pytest.raises(ConfigError, match=message):
        accelerate(change(Custom()), **options)


def test_accelerate_without_llvmlite_says_what_to_install(monkeypatch):
    library._load.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^llvmlite: is not installed.*kd_prune\[cpu\]'$"):
        accelerate(nn.Linear(3, 3))


def test_hidden_states_that_were_asked_for_once_leave_no_model_slow(monkeypatch):
    """transformers leaves its hooks in a model; blocks still run inside of one kernel."""
    calls = []
    forward = FusedBlocks.forward
    monkeypatch.setattr(FusedBlocks, "forward", lambda *a: calls.append(1) or forward(*a))
    model, inputs = sparse_model("bert"), batch(3, 20)
    with torch.inference_mode():
        model(**inputs, output_hidden_states=True)
        accelerated = accelerate(model, minimum_sparsity=0.5)
        assert report(accelerated).blocks == 2
        for _ in range(2):
            calls.clear()
            accelerated(**inputs)
            assert calls == [1]
            found = accelerated(**inputs, output_hidden_states=True)
            assert len(found.hidden_states) == 3


def test_refused_training_changes_no_part():
    model = sparse_model("bert")
    model.config.hidden_dropout_prob = 0.5
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    for accelerated in (
        accelerate(model, minimum_sparsity=0.5),
        copy.deepcopy(accelerate(model, minimum_sparsity=0.5)),
        pickle.loads(pickle.dumps(accelerate(model, minimum_sparsity=0.5))),  # noqa: S301
    ):
        with pytest.raises(RuntimeError, match="train"):
            accelerated.train()
        assert not any(module.training for module in accelerated.modules())
        assert accelerated.eval() is accelerated


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_traced_model_is_refused():
    fast = SparseLinear(sparse_linear(8, 16))
    with pytest.raises(RuntimeError, match="cannot be traced"):
        torch.jit.trace(fast, torch.zeros(2, 8))


def test_slice_of_the_blocks_is_a_plain_list():
    accelerated = accelerate(sparse_model("bert"), minimum_sparsity=0.5)
    layers = accelerated.base_model.encoder.layer
    assert type(layers[:1]) is nn.ModuleList
    assert layers[:1][0] is layers[0]


def test_kernels_are_loaded_once_by_any_number_of_threads():
    library._load.cache_clear()
    barrier, found = threading.Barrier(8), []

    def load():
        barrier.wait()
        found.append(library.kernels())

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(kernels) for kernels in found}) == 1
