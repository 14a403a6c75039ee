"""Checks of the trainer: bfloat16 that a processor emulates."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch

from kd_prune.pipeline import trainer_checks


@pytest.mark.parametrize(
    ("precision", "machine", "fast", "warns"),
    [
        ("bf16-mixed", "x86_64", False, True),
        ("bf16-true", "x86_64", False, True),
        ("bf16-mixed", "x86_64", True, False),
        ("bf16-mixed", "aarch64", False, False),
        ("32-true", "x86_64", False, False),
    ],
)
def test_bfloat16_that_a_processor_emulates_warns(
    monkeypatch, caplog, precision, machine, fast, warns
):
    monkeypatch.setattr(trainer_checks.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    trainer = L.Trainer(precision=precision, accelerator="cpu", devices=1, logger=False)
    trainer_checks.warn_of_slow_precision(trainer)
    assert ("no instructions for bfloat16" in caplog.text) == warns
