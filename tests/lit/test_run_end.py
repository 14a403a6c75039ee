"""Runs that make fewer steps than their settings promise: the files they leave are as asked."""

from __future__ import annotations

import os
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset

from kd_prune.lit import SparsityCallback
from kd_prune.lit.progress import RunLength

from .networks import BATCHES, Manual, UserModule, assert_exact, make_trainer, mlp

UNKNOWN = r"^the training loader has no length, so the ramp is planned for the 1000 optimizer steps"
SHORTER = r"^the fit was shorter than planned: it ended at \d+ of \d+ optimizer steps, on the ramp"


class Stream(IterableDataset):
    """Batches of a user module, but nobody is told how many."""

    def __init__(self, module, batches=5):
        self.module, self.made = module, batches

    def __iter__(self):
        yield from list(self.module.batches())[: self.made]


class Validated(UserModule):
    """Notes its zeros at every validation, and logs a loss that is best at first."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(mlp(), (8,))
        self.zeros = []

    def validation_step(self, batch, index):
        if not index:
            self.zeros.append(sum(int((p == 0).sum()) for p in self.parameters() if p.ndim > 1))
            self.log("loss", float(self.current_epoch))

    def stream(self, batches=5):
        return DataLoader(Stream(self, batches), batch_size=None)


class Notes(L.Callback):
    """The target after every step."""

    def __init__(self, pruning):
        self.pruning, self.targets = pruning, []

    def on_train_batch_end(self, trainer, *args):
        self.targets.append(self.pruning.pruner.target)


def saving(folder, **options):
    return ModelCheckpoint(folder, save_last=True, **options)


def zeros_in(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return [int((state[f"network.{layer}.weight"] == 0).sum()) for layer in (0, 2)]


FINAL = [round(0.9 * 128), round(0.9 * 256)]


def fit(module, loader, folder, *callbacks, pruning=None, resume=None, **settings):
    pruning = pruning or SparsityCallback(0.9)
    trainer = make_trainer(
        folder,
        pruning,
        *callbacks,
        *([] if any(isinstance(c, ModelCheckpoint) for c in callbacks) else [saving(folder)]),
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(module, loader, module.batches(), ckpt_path=resume, weights_only=True)
    return trainer, pruning


def test_accumulation_that_changes_between_epochs_is_planned(tmp_path):
    module, pruning = Validated(), SparsityCallback(0.9)
    scheduler = GradientAccumulationScheduler({0: 4, 4: 2})
    settings = {"max_epochs": 8}
    before = pruning.preview(
        make_trainer(tmp_path, scheduler, **settings), module, module.batches()
    )
    trainer, _ = fit(module, module.batches(), tmp_path, scheduler, pruning=pruning, **settings)
    assert trainer.global_step == 4 * 2 + 4 * 3
    assert before.total == pruning.pruner.total_steps == max(before.updates) == 20
    assert zeros_in(tmp_path / "last.ckpt") == FINAL
    assert module.zeros[-1] == sum(FINAL)


def test_accumulation_ends_at_max_steps(tmp_path):
    trainer = make_trainer(
        tmp_path, GradientAccumulationScheduler({1: 2}), max_epochs=3, max_steps=10
    )
    assert RunLength.from_trainer_config(trainer, BATCHES) == RunLength(steps=10)
    trainer = make_trainer(tmp_path, GradientAccumulationScheduler({1: 2}), max_epochs=3)
    assert RunLength.from_trainer_config(trainer, BATCHES) == RunLength(steps=6 + 3 + 3)


def test_loader_without_a_length_is_planned_anew_after_the_first_epoch(tmp_path):
    module, pruning = Validated(), SparsityCallback(0.9, updates=1000)
    notes = Notes(pruning)
    with (
        pytest.warns(UserWarning, match=UNKNOWN),
        pytest.warns(UserWarning, match=r"run makes 20 of the 1000 optimizer steps planned"),
    ):
        trainer, _ = fit(
            module, module.stream(), tmp_path, notes, pruning=pruning, max_epochs=4, max_steps=1000
        )
    assert trainer.global_step == 20
    assert zeros_in(tmp_path / "last.ckpt") == FINAL
    assert module.zeros[-1] == sum(FINAL)
    rises = [b - a for a, b in zip(notes.targets[4:], notes.targets[5:], strict=False)]
    assert all(rise > 0 for rise in rises[:-1])
    assert rises[0] == max(rises) < 0.2  # cubic, from where the first epoch ended


def test_loader_without_a_length_in_one_epoch_ends_its_ramp_before_the_files(tmp_path):
    module = Validated()
    with (
        pytest.warns(UserWarning, match=rf"{UNKNOWN}.*max_epochs=1 .*pruned at once"),
        pytest.warns(UserWarning, match=SHORTER),
    ):
        fit(module, module.stream(), tmp_path, max_epochs=1, max_steps=1000)
    assert zeros_in(tmp_path / "last.ckpt") == FINAL
    assert module.zeros == [sum(FINAL)]


def test_loader_without_a_length_that_reaches_max_steps_is_not_planned_anew(tmp_path):
    module, pruning = Validated(), SparsityCallback(0.9, updates=8)
    notes = Notes(pruning)
    fit(module, module.stream(), tmp_path, notes, pruning=pruning, max_epochs=-1, max_steps=8)
    expected = list(pruning.pruner.update_schedule.values())
    assert notes.targets == expected
    assert zeros_in(tmp_path / "last.ckpt") == FINAL


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_planned_anew_and_resumed_equals_uninterrupted(tmp_path):
    class Accumulates(L.Callback):
        """By itself, so that nobody knows before."""

        def on_train_epoch_start(self, trainer, module):
            trainer.accumulate_grad_batches = 2 if trainer.current_epoch else 1

    def run(folder, resume=None):
        module = Validated()
        keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        _, pruning = fit(
            module, module.batches(), folder, Accumulates(), keep, resume=resume, max_epochs=4
        )
        return module, pruning

    with pytest.warns(UserWarning, match=r"run makes 15 of the 24 optimizer steps planned"):
        whole, pruning = run(tmp_path)
    assert_exact(whole, pruning)
    for epoch in (1, 2):
        # The correction is in the checkpoint, so it is not made, nor warned of, again.
        again, resumed = run(tmp_path / str(epoch), tmp_path / f"epoch={epoch}.ckpt")
        for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert resumed.pruner.update_schedule == pruning.pruner.update_schedule


def test_epoch_shorter_than_its_limit_is_planned_anew_in_a_manual_loop(tmp_path):
    class Short(Manual):
        def stream(self):
            return DataLoader(Stream(self, 3), batch_size=None)

    module, pruning = Short(), SparsityCallback(0.9)
    saved = saving(tmp_path)
    trainer = make_trainer(
        tmp_path, pruning, saved, max_epochs=4, limit_train_batches=9, enable_checkpointing=True
    )
    with pytest.warns(UserWarning, match=r"run makes 12 of the 36 batches planned"):
        trainer.fit(module, module.stream())
    assert zeros_in(tmp_path / "last.ckpt") == FINAL


def test_last_batch_that_amp_skips_ends_the_ramp_before_it_is_validated(tmp_path):
    class Overflows(Validated):
        def backward(self, loss):
            super().backward(loss)
            if self.trainer.global_step >= 2 * BATCHES - 2:  # before the scaler looks
                next(self.parameters()).grad.fill_(float("inf"))

    device = {"cpu": "cpu", "gpu": "cuda"}[os.environ["KD_PRUNE_TEST_ACCELERATOR"]]
    scaler = torch.amp.GradScaler(device, init_scale=2.0)
    plugin = MixedPrecision("16-mixed", device, scaler=scaler)
    module = Overflows()
    fit(module, module.batches(), tmp_path, plugins=[plugin], max_epochs=2)
    assert module.zeros[-1] == sum(FINAL)
    assert zeros_in(tmp_path / "last.ckpt") == FINAL


def test_loader_that_is_shorter_than_it_says_ends_the_ramp_before_the_file(tmp_path):
    class Overstated(DataLoader):
        def __len__(self):
            return 9

    module, pruning = UserModule(mlp(), (8,)), SparsityCallback(0.9)
    loader = Overstated(module.batches().dataset, batch_size=4)
    trainer = make_trainer(
        tmp_path, pruning, saving(tmp_path), max_epochs=1, enable_checkpointing=True
    )
    with pytest.warns(UserWarning, match=SHORTER):
        trainer.fit(module, loader)
    assert trainer.global_step == BATCHES
    assert zeros_in(tmp_path / "last.ckpt") == FINAL


def test_files_of_a_run_that_was_stopped_on_its_ramp_are_named(tmp_path):
    module = Validated()
    stop = EarlyStopping("loss", patience=1, mode="min")
    of = r"^saved on the ramp of SparsityCallback, below sparsity 0\.9"
    says = rf"{of}: \S+last\.ckpt \(the last\) at 0\.\d+"
    with (
        pytest.warns(UserWarning, match=r"the fit was stopped: .*ramp of SparsityCallback"),
        pytest.warns(UserWarning, match=says),
    ):
        fit(module, module.batches(), tmp_path, stop, max_epochs=8)
    assert sum(zeros_in(tmp_path / "last.ckpt")) < sum(FINAL)


def test_best_file_of_an_early_epoch_is_named(tmp_path):
    module, pruning = Validated(), SparsityCallback(0.9, name="mine")
    best = ModelCheckpoint(tmp_path, filename="best", monitor="loss", mode="min", save_last=True)
    trainer = make_trainer(
        tmp_path, pruning, best, max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0
    )
    # Lightning (2.6) saves last.ckpt only together with a best one.
    files = r"\S+last\.ckpt \(the last\) at 0\.\d+, \S+best\.ckpt \(the best by loss\) at 0\.\d+"
    of = r"^saved on the ramp of SparsityCallback\(name='mine'\), below sparsity 0\.9"
    says = rf"{of}: {files}; ModelCheckpoint\(save_on_train_epoch_end=True\), without monitor"
    with pytest.warns(UserWarning, match=says):
        trainer.fit(module, module.batches(), module.batches())
    assert_exact(module, pruning)


def test_files_that_are_no_plain_data_are_passed_over(tmp_path):
    class Hyper(Validated):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"own": EarlyStopping("loss")})

    module = Hyper()
    best = ModelCheckpoint(tmp_path, monitor="loss", mode="min")
    trainer = make_trainer(
        tmp_path, SparsityCallback(0.9), best, max_epochs=2, enable_checkpointing=True
    )
    trainer.fit(module, module.batches(), module.batches())
    assert_exact(module, trainer.callbacks[0])


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*", "ignore:.*does not have many workers")
def test_best_model_of_the_target_is_kept_as_the_page_says(tmp_path):
    page = (Path(__file__).parents[2] / "docs/plugin.md").read_text()
    code = page.split("the same\n  two methods:\n\n```python\n")[1].split("```")[0]
    found = {}
    exec(code, found)  # noqa: S102  # the snippet of our own page

    class Falling(UserModule):
        def validation_step(self, batch, index):
            self.log("score", -float(self.global_step))  # the densest model is the best

    module, pruning = Falling(mlp(), (8,)), SparsityCallback(0.95, end=0.6)
    best = found["BestAtTarget"](tmp_path, monitor="score", mode="max")
    trainer = make_trainer(
        tmp_path, pruning, best, max_epochs=5, enable_checkpointing=True, num_sanity_val_steps=0
    )
    trainer.fit(module, module.batches(), module.batches())
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["epoch"] == 2  # the first of the target
    assert int((saved["state_dict"]["network.2.weight"] == 0).sum()) == round(0.95 * 256)


@pytest.mark.filterwarnings("ignore:.*loss. of the best model")
def test_best_file_of_weights_alone_is_named_too(tmp_path):
    module, pruning = Validated(), SparsityCallback(0.9)
    best = ModelCheckpoint(
        tmp_path, filename="best", monitor="loss", mode="min", save_weights_only=True
    )
    trainer = make_trainer(
        tmp_path, pruning, best, max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0
    )
    says = r"^saved on the ramp .*below sparsity 0\.9: \S+best\.ckpt \(the best by loss\) at 0\.\d+"
    with pytest.warns(UserWarning, match=says):
        trainer.fit(module, module.batches(), module.batches())
    assert sum(zeros_in(tmp_path / "best.ckpt")) < sum(FINAL)


def test_last_file_of_weights_alone_at_the_target_is_not_named(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True, save_weights_only=True)
    module = Validated()
    fit(module, module.batches(), tmp_path, saved)  # warnings are errors
    assert zeros_in(tmp_path / "last.ckpt") == FINAL


def test_a_run_of_unknown_length_keeps_zeros(tmp_path):
    """Without a ramp nothing has to be known of the run's end."""
    module = Validated()
    with torch.no_grad():
        module.network[2].weight[:, ::2] = 0
    pruning = SparsityCallback(None)
    assert (
        pruning.preview(make_trainer(tmp_path, max_epochs=-1), module, module.stream()).total == 0
    )
    stop = EarlyStopping("loss", patience=1, mode="min")
    trainer = make_trainer(tmp_path, pruning, stop, max_epochs=-1, num_sanity_val_steps=0)
    trainer.fit(module, module.stream(), module.batches())
    assert trainer.current_epoch == 2
    assert (module.network[2].weight[:, ::2] == 0).all()
    assert (module.network[2].weight[:, 1::2] != 0).all()
