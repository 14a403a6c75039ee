"""What may be done with an accelerated model: threads, types, copies; and what is refused."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite", reason="pip install 'kd_prune[cpu]'")

from kd_prune.inference import SparseLinear, accelerate, crossover
from kd_prune.inference.stack import FusedBlocks
from tests.inference.models import batch, pickled, sparse_linear, sparse_model
from tests.inference.test_convert import assert_same


def test_first_calls_of_several_threads_use_no_freed_memory(monkeypatch):
    """Each thread may describe the blocks anew: `cached_property` has no lock from Python 3.12."""
    described = FusedBlocks.table.func
    model = sparse_model("bert")
    accelerated = accelerate(model, minimum_sparsity=0.5)
    monkeypatch.setattr(FusedBlocks, "table", property(described))
    assert_same(accelerated, model, **batch(3, 20))
    assert "work" in vars(SparseLinear(sparse_linear(16, 8)).packed)


@pytest.mark.parametrize("masked", [False, True])
def test_torchs_default_type_changes_nothing(masked):
    model = sparse_model("bert")
    crossover.measure.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        accelerated = accelerate(model)
        always = accelerate(model, minimum_sparsity=0.5)
        for found in (accelerated, always):
            assert_same(found, model, **batch(3, 20, masked=masked))
        (layer, *_) = (m for m in always.modules() if isinstance(m, SparseLinear))
        assert layer.weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_dense_matrix_that_a_model_asks_for_is_built_once():
    """T5 reads the type of a weight at every call."""
    layer = SparseLinear(sparse_linear(16, 8))
    assert layer.weight is layer.weight
    assert "weight" not in vars(pickled(layer))


def test_saving_and_changing_the_blocks_are_refused(tmp_path):
    """Either would pass without a word: the folder has no weights, the kernel no other block."""
    accelerated = copy.deepcopy(accelerate(sparse_model("bert"), minimum_sparsity=0.5))
    with pytest.raises(RuntimeError, match="save the model that it was made from"):
        accelerated.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    layers = accelerated.bert.encoder.layer
    for change in (
        lambda: layers.__delitem__(1),
        lambda: layers.__setitem__(0, nn.Identity()),
        lambda: layers.append(nn.Identity()),
    ):
        with pytest.raises(RuntimeError, match="the blocks of an accelerated model are fixed"):
            change()
    assert len(layers) == 2
