"""FSDP2: a sharded module is pruned as an unsharded one is, and its checkpoints fit any number."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from kd_prune.errors import ConfigError
from kd_prune.lit import RewindCallback
from kd_prune.lit.distributed import refuse_sharding
from tests.processes import finish, start, torchrun_environments

SCRIPT = Path(__file__).with_name("fsdp2.py")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch is built without gloo"
)


def begin(folder, processes, name, what="whole"):
    environments = torchrun_environments(1, processes) if processes > 1 else [{}]
    return start(environments, SCRIPT, folder, name, what)


def ends(folder, name, processes):
    """What each process ended with."""
    files = [folder / f"{name}-{rank}.pt" for rank in range(processes)]
    return [torch.load(file, weights_only=True) for file in files]


def assert_same(end, expected, *, exactly=True):
    assert end["pruned"] == expected["pruned"]
    assert end["report"] == expected["report"]
    for kind, compare in (("masks", torch.equal), ("weights", torch.equal)):
        close = compare if exactly or kind == "masks" else torch.allclose
        assert end[kind].keys() == expected[kind].keys()
        for name, tensor in end[kind].items():
            assert close(tensor, expected[kind][name]), (kind, name)


def test_two_processes_prune_what_one_does(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    stdout = finish(begin(alone, 1, "one") + begin(together, 2, "two"))
    (expected,) = ends(alone, "one", 1)
    assert expected["pruned"] == 133  # of 148 weights
    for end in ends(together, "two", 2):
        assert_same(end, expected)
    # The scores before training would take all weights of a tensor, and one is kept.
    said = [output.count("Pruning 132 of 148 weights") for output in stdout]
    assert said == [1, 1, 0]  # of the two, the first says it


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_checkpoints_resume_bitwise_and_on_another_number_of_processes(tmp_path):
    """Gathered and distributed ones: of two processes on two, three and one, and of one on two."""
    alone, together, three = (tmp_path / name for name in ("alone", "together", "three"))
    for folder in (alone, together, three):
        folder.mkdir()
    finish(begin(alone, 1, "whole"))
    finish(begin(together, 2, "whole"))
    finish(begin(three, 3, "whole"))
    (expected,) = ends(alone, "whole", 1)
    (in_three, *_) = ends(three, "whole", 3)
    assert_same(in_three, expected, exactly=False)  # a third of a gradient is rounded
    cases = [
        (together, 2, "gathered"), (together, 2, "distributed"), (three, 3, "distributed"),
        (together, 3, "gathered"), (together, 3, "distributed"),
        (together, 1, "gathered"), (together, 1, "distributed"), (alone, 2, "gathered"),
    ]  # fmt: skip
    for folder, processes, kind in cases:
        name = f"{kind}-on-{processes}"
        finish(begin(folder, processes, name, folder / f"{kind}.ckpt"))
        same = in_three if folder == three else expected
        for end in ends(folder, name, processes):
            assert_same(end, same, exactly=processes != 3 or folder == three)


def with_strategy(strategy, monkeypatch, *callbacks):
    """A trainer that says it has the strategy, which may need a GPU."""
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=list(callbacks)
    )
    monkeypatch.setattr(trainer.strategy, "__class__", strategy)
    return trainer


def test_fsdp1_is_refused_with_what_to_take(monkeypatch):
    trainer = with_strategy(FSDPStrategy, monkeypatch)
    with pytest.raises(ConfigError, match="take ModelParallelStrategy, which is FSDP2, or strat"):
        refuse_sharding(trainer)


def test_averages_and_rewinding_of_sharded_weights_are_refused(monkeypatch):
    average = L.callbacks.EMAWeightAveraging()
    trainer = with_strategy(ModelParallelStrategy, monkeypatch, average)
    with pytest.raises(ConfigError, match=r"trainer.callbacks=EMAWeightAveraging: the average of"):
        refuse_sharding(trainer)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        module = torch.distributed.fsdp.fully_shard(L.LightningModule(), mesh=mesh)
        module.layer = torch.distributed.fsdp.fully_shard(torch.nn.Linear(2, 2), mesh=mesh)
        with pytest.raises(ConfigError, match="weights are not rewound where they are sharded"):
            RewindCallback(at=[0.5]).start_fit(trainer, module)
    finally:
        torch.distributed.destroy_process_group()
