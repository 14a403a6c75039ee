"""RunLength: the same before a fit as in it, whatever limit ends the run."""

from __future__ import annotations

from datetime import timedelta

import lightning.pytorch as L
import pytest

from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback
from kd_prune.lit.progress import RunLength

from .networks import BATCHES, Manual, UserModule, make_trainer, mlp


class Note(L.Callback):
    def on_train_start(self, trainer, module):
        self.length = RunLength.from_fit(trainer)
        self.steps = []

    def on_train_batch_end(self, trainer, *args):
        self.steps.append(self.length.step(trainer))


CASES = {
    "epochs": (UserModule, {"max_epochs": 2}, RunLength(steps=12)),
    "accumulated": (
        UserModule,
        {"max_epochs": 2, "accumulate_grad_batches": 4},
        RunLength(steps=4),
    ),
    "limited": (UserModule, {"max_epochs": 2, "limit_train_batches": 3}, RunLength(steps=6)),
    "a share": (UserModule, {"max_epochs": 2, "limit_train_batches": 0.5}, RunLength(steps=6)),
    "steps": (UserModule, {"max_epochs": -1, "max_steps": 9}, RunLength(steps=9)),
    "the nearer": (UserModule, {"max_epochs": 2, "max_steps": 9}, RunLength(steps=9)),
    "manual": (Manual, {"max_epochs": 2}, RunLength(batches=12)),
    "manual steps": (Manual, {"max_epochs": 2, "max_steps": 9}, RunLength(steps=9, batches=12)),
    "time": (
        UserModule,
        {"max_epochs": 1, "max_time": timedelta(hours=1)},
        RunLength(steps=6, seconds=3600.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_run_length_before_a_fit_is_that_of_the_fit(tmp_path, case):
    kind, settings, expected = CASES[case]
    module = kind() if kind is Manual else kind(mlp(), (8,))
    planned = RunLength.from_trainer_config(
        make_trainer(tmp_path, **settings), BATCHES, automatic=module.automatic_optimization
    )
    note = Note()
    make_trainer(tmp_path, note, **settings).fit(module, UserModule(mlp(), (8,)).batches())
    assert planned == note.length == expected
    assert note.steps == sorted(note.steps)
    if case != "time":
        assert note.steps[-1] == expected.total
    assert set(note.steps) - {0} <= set(range(1, expected.total + 1))
    if len(expected.limits) == 1:
        assert set(note.steps) - {0} == set(range(1, expected.total + 1))


@pytest.mark.parametrize(
    ("length", "total", "unit"),
    [
        (RunLength(steps=12), 12, "optimizer steps"),
        (RunLength(batches=12), 12, "batches"),
        (RunLength(steps=9, batches=12), 9, "optimizer steps"),
        (RunLength(steps=9, seconds=60.0), 9, "optimizer steps"),
        (RunLength(seconds=59.5), 60, "seconds"),
    ],
)
def test_unit_is_that_of_the_first_limit(length, total, unit):
    assert (length.total, length.unit) == (total, unit)
    assert length.step_after(steps=12, batches=12, seconds=60.0) == total
    assert length.step_after(steps=0, batches=0, seconds=0.0) == 0


def test_step_is_that_of_the_nearest_limit():
    length = RunLength(steps=100, batches=50, seconds=10.0)
    assert length.step_after(steps=10, batches=10, seconds=1.0) == 20
    assert length.step_after(steps=10, batches=0, seconds=9.0) == 90
    assert length.step_after(steps=1000, batches=0, seconds=0.0) == 100


def test_single_limit_is_counted_exactly():
    for total in range(1, 200):
        length = RunLength(steps=total)
        assert all(length.step_after(steps=step) == step for step in range(total + 1))


@pytest.mark.parametrize("per_epoch", [6, float("inf")])
def test_run_without_an_end_is_refused(tmp_path, per_epoch):
    trainer = make_trainer(tmp_path, max_epochs=-1 if per_epoch == 6 else 3)
    with pytest.raises(ValueError, match=r"a run needs an end.*max_steps or max_time"):
        RunLength.from_trainer_config(trainer, per_epoch)


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_ramp_in_seconds_is_not_resumed_without_a_time(tmp_path):
    module = UserModule(mlp(), (8,))
    timed = {"max_epochs": -1, "max_time": timedelta(seconds=0.5)}
    trainer = make_trainer(tmp_path, SparsityCallback(0.9), **timed)
    trainer.fit(module, module.batches())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = make_trainer(tmp_path, SparsityCallback(0.9), max_epochs=10**6)
    with pytest.raises(ConfigError, match=r"trainer\.max_time=null: .*seconds, 0\.5 in all"):
        resumed.fit(module, module.batches(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def test_run_without_batches_names_the_setting(tmp_path):
    module = UserModule(mlp(), (8,))
    trainer = make_trainer(tmp_path, SparsityCallback(0.9), limit_train_batches=0)
    with pytest.raises(ConfigError, match=r"trainer\.limit_train_batches=0: leaves no batch"):
        trainer.fit(module, module.batches())
