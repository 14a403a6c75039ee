"""The main job on a GPU, teacher to student, in every precision; `verify` counts the zeros."""

from __future__ import annotations

import json

import pytest
import torch

from .script import SMALL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_main_job(call, tmp_path, precision):
    code, _, stderr = call(
        *SMALL,
        "trainer.accelerator=gpu",
        f"trainer.precision={precision}",
        "trainer.max_epochs=2",
        f"hydra.run.dir={tmp_path}",
    )
    assert code == 0, stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["stages"]["student"]["sparsity"] == pytest.approx(0.95, abs=1e-3)
    assert result["config"]["trainer"]["precision"] == precision
