"""The callback on a GPU: every precision, and a network compiled by the default backend."""

from __future__ import annotations

import pytest
import torch

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Scope

from .networks import UserModule, assert_exact, bert, make_trainer, mlp

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.parametrize(("network", "shape"), [(bert, (6,)), (mlp, (8,))])
def test_every_precision(tmp_path, precision, network, shape):
    pruning = SparsityCallback(0.9)
    module = UserModule(network(), shape)
    make_trainer(tmp_path, pruning, accelerator="gpu", precision=precision).fit(
        module, module.batches()
    )
    assert_exact(module, pruning)


@pytest.mark.filterwarnings("default")  # the compiler's own, about itself
def test_compiled(tmp_path):
    network = mlp()
    module = UserModule(torch.compile(network), (8,))
    pruning = SparsityCallback(0.9, scope=Scope(include=["network.?.weight"]))
    make_trainer(tmp_path, pruning, accelerator="gpu").fit(module, module.batches())
    assert pruning.pruner.parameters["network.0.weight"] is network[0].weight
    for weight in pruning.pruner.parameters.values():
        assert int((weight == 0).sum()) == round(0.9 * weight.numel())
