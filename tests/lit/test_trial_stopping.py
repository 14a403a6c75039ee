"""TrialStoppingCallback: asked after every validation, it ends the fit for a reason."""

from __future__ import annotations

import pytest

from kd_prune.lit import SparsityCallback
from kd_prune.lit.trial_stopping import TrialStoppedError, TrialStoppingCallback

from .toy import SCOPE, STEPS_PER_EPOCH, fit, make_module, make_trainer


def test_rule_gets_percent_sparsity_and_metric_after_every_validation(tmp_path):
    asked = []

    def never(percent, sparsity, value):
        asked.append((percent, sparsity))
        assert 0.0 <= value <= 1.0

    pruning = SparsityCallback(0.75, scope=SCOPE, updates=4, end=0.5)
    trainer = make_trainer(
        tmp_path,
        pruning,
        TrialStoppingCallback(never, "val/accuracy"),
        max_epochs=2,
        num_sanity_val_steps=2,
    )
    fit(trainer, make_module())
    assert asked == [(50, 0.75), (100, 0.75)]


def test_reason_ends_the_fit(tmp_path):
    def stop(percent, sparsity, value):
        return f"stopped at {percent} %" if percent == 50 else None

    trainer = make_trainer(tmp_path, TrialStoppingCallback(stop, "val/accuracy"), max_epochs=4)
    with pytest.raises(TrialStoppedError, match=r"^stopped at 50 %$") as caught:
        fit(trainer, make_module())
    assert trainer.global_step == 2 * STEPS_PER_EPOCH
    assert caught.value.state == "stopped"
