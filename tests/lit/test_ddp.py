"""Two processes: one run, the same masks on both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
def test_both_ranks_have_the_same_masks_and_weights(tmp_path):
    """Though their scores differ: rank 0 decides."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ddp.py")), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Pruning 230 of 256 weights") == 1  # one of them says it
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    for kind in ("masks", "weights"):
        assert first[kind].keys() == second[kind].keys()
        for name, tensor in first[kind].items():
            assert torch.equal(tensor, second[kind][name]), name
    for name, mask in first["masks"].items():
        assert int((~mask).sum()) == round(0.9 * mask.numel())
        assert not first["weights"][name][~mask].any()
