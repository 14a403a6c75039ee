"""ShardedPruner in several processes against Pruner in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kd_prune.errors import ConfigTypeError
from kd_prune.pruning import Pruner, Schedule, ShardedPruner
from kd_prune.pruning.sharded_pruner import Lazy, make_pruner
from kd_prune.pruning.sharding import count_nonzero, gather, local_part, shard_like
from tests.processes import finish, start, torchrun_environments

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)


def compared(folder, processes, which):
    """What each process found in the script."""
    script = Path(__file__).with_name("sharded.py")
    finish(start(torchrun_environments(1, processes), script, folder, which))
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(processes)]


@pytest.mark.parametrize(
    ("processes", "which", "configurations"),
    [
        pytest.param(2, "quick", 2),
        pytest.param(3, "all", 36, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_sharded_pruner_prunes_what_one_process_would(tmp_path, processes, which, configurations):
    """Weights, masks, saved and loaded state and preview, bit by bit; errors in every process."""
    found = compared(tmp_path, processes, which)
    for rank in found:
        assert rank["compared"] == configurations
        assert rank["failures"] == []
        invalid, shape, nan, others, blocks = rank["errors"]
        assert invalid == (
            "ConfigError: allocation=__main__.none_of_it: "
            "gave no integer from 0 to the 8 weights of a"
        )
        assert shape.startswith("ConfigError: granularity.m=5: a: does not divide the 2 inputs")
        assert nan.startswith("ValueError: a contains NaN at step 1, so its weights cannot")
        assert others.startswith("ConfigError: scope: process 1 has other parameters than the")
        assert blocks.startswith("ConfigError: criterion=BlockFisher(")
        assert "keeps 50 values in 'sum' for the 8 weights of a" in blocks


@pytest.fixture
def mesh():
    """A group of this process alone."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(tensor, mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor, mesh, [Shard(0)])


def test_pruner_given_sharded_parameters_names_the_class_that_takes_them(mesh):
    weights = {"a": nn.Parameter(sharded(torch.ones(4, 2), mesh))}
    with pytest.raises(ConfigTypeError, match="are sharded between processes; take ShardedPruner"):
        Pruner(weights, Schedule(final=0.5), total_steps=1)
    assert type(make_pruner(weights, Schedule(final=0.5), total_steps=1)) is ShardedPruner
    plain = {"a": nn.Parameter(torch.ones(4, 2))}
    assert type(make_pruner(plain, Schedule(final=0.5), total_steps=1)) is Pruner


def test_shard_like_keeps_no_memory_of_the_whole(mesh):
    whole = torch.arange(6.0).view(3, 2)
    part = shard_like(whole, sharded(torch.zeros(3, 2), mesh))
    assert torch.equal(gather(part), whole)
    assert local_part(part).data_ptr() != whole.data_ptr()
    assert count_nonzero([part, whole, sharded(torch.eye(3), mesh)]) == [5, 5, 3]


def test_lazy_makes_a_value_at_each_access_and_none_before():
    made = []
    lazy = Lazy({"a": None, "b": None}, lambda name: made.append(name) or name.upper())
    assert ("a" in lazy, "c" in lazy, len(lazy), list(lazy), made) == (
        True,
        False,
        2,
        ["a", "b"],
        [],
    )
    assert (lazy["b"], lazy.get("c"), made) == ("B", None, ["b"])
