"""DDP, on one machine and on several: one run, the same masks in every process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.processes import LAUNCHERS, finish, start

SCRIPT = Path(__file__).with_name("ddp.py")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
@pytest.mark.parametrize(
    ("nodes", "per_node", "launcher"),
    [
        (1, 2, None),  # Lightning starts the second one
        (2, 1, "torchrun"),
        *(pytest.param(2, 2, launcher, marks=pytest.mark.slow) for launcher in LAUNCHERS),
    ],
)
def test_all_processes_have_the_same_masks_and_weights(tmp_path, nodes, per_node, launcher):
    """Though their scores differ: rank 0 decides."""
    environments = LAUNCHERS[launcher](nodes, per_node) if launcher else [{}]
    outputs = finish(start(environments, SCRIPT, tmp_path, nodes, per_node))
    said = [output.count("Pruning 230 of 256 weights") for output in outputs]
    assert sum(said) == said[0] == 1  # the first of them says it
    first, *others = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for rank in range(nodes * per_node)
    )
    for other in others:
        for kind in ("masks", "weights"):
            assert first[kind].keys() == other[kind].keys()
            for name, tensor in first[kind].items():
                assert torch.equal(tensor, other[kind][name]), name
    assert first["planned"] == first["steps"] == 2 * 8 // (nodes * per_node)
    for name, mask in first["masks"].items():
        assert int((~mask).sum()) == round(0.9 * mask.numel())
        assert not first["weights"][name][~mask].any()
