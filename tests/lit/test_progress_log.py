"""ProgressLog: one line per epoch and per half minute, from a clock that the test moves."""

from __future__ import annotations

import re
import sys

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from kd_prune.lit import ProgressLog, SparsityCallback, progress_log

from .networks import BATCHES, Manual, UserModule, mlp
from .networks import make_trainer as plain_trainer
from .toy import SCOPE, STEPS_PER_EPOCH, fit, make_module, make_trainer


class Clock(L.Callback):
    """Advances `time.monotonic` of the log by some seconds before every batch."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds = 100.0, seconds
        monkeypatch.setattr(progress_log, "time", self)

    def monotonic(self):
        return self.now

    def on_train_batch_start(self, *args):
        self.now += self.seconds


def lines(capsys, stage="student"):
    out = capsys.readouterr().out
    return [line for line in out.splitlines() if line.startswith(f"{stage}: ")]


def test_line_names_step_loss_sparsity_metrics_and_time_left(tmp_path, capsys, monkeypatch):
    clock = Clock(monkeypatch, 2.0)
    pruning = SparsityCallback(0.75, scope=SCOPE, updates=4, end=0.5)
    trainer = make_trainer(tmp_path, clock, pruning, ProgressLog("student"), max_epochs=2)
    fit(trainer, make_module())
    first, last = lines(capsys)
    value = r"[0-9.e-]+"
    assert re.fullmatch(
        rf"student: step 7/14 \(50 %\), loss {value}, sparsity 0\.75, val/accuracy {value}, "
        r"14 s left",
        first,
    )
    assert re.fullmatch(
        rf"student: step 14/14 \(100 %\), loss {value}, sparsity 0\.75, val/accuracy {value}", last
    )


@pytest.mark.parametrize(("seconds", "count"), [(29.0, 4), (30.0, 8), (10.0, 3), (0.0, 1)])
def test_line_is_printed_once_every_half_minute(tmp_path, capsys, monkeypatch, seconds, count):
    """At the end of the first batch that is late enough, and at the epoch's end."""
    clock = Clock(monkeypatch, seconds)
    trainer = make_trainer(tmp_path, clock, ProgressLog("teacher"), max_epochs=1)
    fit(trainer, make_module())
    assert len(lines(capsys, "teacher")) == count
    assert trainer.global_step == STEPS_PER_EPOCH


def test_time_between_lines_can_be_chosen(tmp_path, capsys, monkeypatch):
    clock = Clock(monkeypatch, 1.0)
    fit(make_trainer(tmp_path, clock, ProgressLog("student", 3), max_epochs=1), make_module())
    assert [line.split(",")[0] for line in lines(capsys)] == [
        "student: step 3/7 (43 %)", "student: step 6/7 (86 %)", "student: step 7/7 (100 %)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("terminal", "enabled", "printed"),
    [(True, None, 0), (False, None, 1), (True, True, 1), (False, False, 0)],
)
def test_nothing_is_printed_where_a_terminal_shows_the_bar(
    tmp_path, capsys, monkeypatch, terminal, enabled, printed
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    log = ProgressLog("student", enabled=enabled)
    fit(make_trainer(tmp_path, log, max_epochs=1), make_module())
    assert len(lines(capsys)) == printed


def test_other_processes_print_nothing(tmp_path, capsys):
    class Second(L.Callback):
        def setup(self, trainer, module, stage):
            type(trainer).is_global_zero = property(lambda self: False)

    before = L.Trainer.is_global_zero
    try:
        fit(make_trainer(tmp_path, Second(), ProgressLog("student"), max_epochs=1), make_module())
    finally:
        L.Trainer.is_global_zero = before
    assert lines(capsys) == []


def test_any_module_without_metrics_or_optimizer_steps_of_lightning(tmp_path, capsys):
    module = Manual()
    plain_trainer(tmp_path, ProgressLog("mine")).fit(module, UserModule(mlp(), (8,)).batches())
    assert lines(capsys, "mine") == [
        f"mine: batch {BATCHES}/12 (50 %), 0 s left", "mine: batch 12/12 (100 %)",
    ]  # fmt: skip


def test_run_without_a_known_end_shows_the_step_alone(tmp_path, capsys):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.ones(8), 0)] * 8)

    loader = DataLoader(Stream(), batch_size=4)
    plain_trainer(tmp_path, ProgressLog("mine")).fit(UserModule(mlp(), (8,)), loader)
    assert lines(capsys, "mine") == ["mine: step 2", "mine: step 4"]
