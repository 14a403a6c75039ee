"""RunLength: how long a run is, whatever ends it; the one before a fit is the one in it."""

from __future__ import annotations

from datetime import timedelta

import lightning.pytorch as L
import pytest

from kd_prune.lit.run_length import TICKS, RunLength

from .test_plug_in import BATCHES, Manual, Theirs, make_trainer, mlp


class Note(L.Callback):
    def on_train_start(self, trainer, module):
        self.length = RunLength.of(trainer)
        self.positions = []

    def on_train_batch_end(self, trainer, *args):
        self.positions.append(self.length.position(trainer))


CASES = {
    "epochs": (Theirs, {"max_epochs": 2}, RunLength(steps=12)),
    "accumulated": (Theirs, {"max_epochs": 2, "accumulate_grad_batches": 4}, RunLength(steps=4)),
    "limited": (Theirs, {"max_epochs": 2, "limit_train_batches": 3}, RunLength(steps=6)),
    "a share": (Theirs, {"max_epochs": 2, "limit_train_batches": 0.5}, RunLength(steps=6)),
    "steps": (Theirs, {"max_epochs": -1, "max_steps": 9}, RunLength(steps=9)),
    "the nearer": (Theirs, {"max_epochs": 2, "max_steps": 9}, RunLength(steps=9)),
    "manual": (Manual, {"max_epochs": 2}, RunLength(batches=12)),
    "manual steps": (Manual, {"max_epochs": 2, "max_steps": 9}, RunLength(steps=9, batches=12)),
    "time": (
        Theirs,
        {"max_epochs": 1, "max_time": timedelta(hours=1)},
        RunLength(steps=6, seconds=3600.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ahead_and_in_the_fit_it_is_the_same(tmp_path, case):
    kind, settings, expected = CASES[case]
    module = kind() if kind is Manual else kind(mlp(), (8,))
    ahead = RunLength.ahead(
        make_trainer(tmp_path, **settings), BATCHES, automatic=module.automatic_optimization
    )
    note = Note()
    make_trainer(tmp_path, note, **settings).fit(module, Theirs(mlp(), (8,)).batches())
    assert ahead == note.length == expected
    assert note.positions == sorted(note.positions)
    if case != "time":
        assert note.positions[-1] == expected.total
    if len(expected.limits) == 1:
        assert set(note.positions) - {0} == set(range(1, expected.total + 1))
    else:
        assert expected.total == TICKS
        assert expected.unit == f"1/{TICKS} of the run"


def test_progress_is_that_of_the_nearest_limit():
    length = RunLength(steps=100, batches=50, seconds=10.0)
    assert length.progress(steps=10, batches=10, seconds=1.0) == 0.2
    assert length.progress(steps=10, batches=0, seconds=9.0) == 0.9
    assert length.progress(steps=1000, batches=0, seconds=0.0) == 1.0


@pytest.mark.parametrize("per_epoch", [6, float("inf")])
def test_a_run_without_an_end(tmp_path, per_epoch):
    trainer = make_trainer(tmp_path, max_epochs=-1 if per_epoch == 6 else 3)
    with pytest.raises(ValueError, match=r"a run needs an end.*max_steps or max_time"):
        RunLength.ahead(trainer, per_epoch)
