"""ResumePoint: a run that was interrupted and resumed equals an undisturbed one, bitwise."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

from kd_prune.lit import History, ResumePoint, RewindCallback, SparsityCallback
from kd_prune.lit.signals import Interrupted
from kd_prune.pruning import Schedule, ramp_updates
from tests.forked import SERVER

from .networks import UserModule, mlp
from .networks import make_trainer as trainer_of
from .toy import SCOPE, STEPS_PER_EPOCH, fit, make_module, make_trainer, validation_loader

EPOCHS = 3


class At(L.Callback):
    """Does something once, at a batch (counted over the run) or while an epoch is validated."""

    def __init__(self, action, *, batch=None, validation_of=None):
        self.action, self.batch, self.validation_of = action, batch, validation_of

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch * STEPS_PER_EPOCH + batch_idx == self.batch:
            self.action()

    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch == self.validation_of:
            self.action()


def send(number):
    return lambda: os.kill(os.getpid(), number)


class Run:
    """One toy run with dropout, pruning, history and a resume point, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        accumulate=1,
        end=1.0,
        epochs=EPOCHS,
        minutes=5.0,
        settings=None,
        **options,
    ):
        folder.mkdir(exist_ok=True)
        self.path = folder / "last.ckpt"
        self.module = make_module(dropout=0.3)
        self.pruning = SparsityCallback(0.8, scope=SCOPE, updates=7, end=end, **options)
        self.history = History(folder / "metrics.csv", every=2)
        self.folder, self.epochs, self.accumulate = folder, epochs, accumulate
        self.minutes, self.settings = minutes, settings or {}

    def go(self, *callbacks, resume=False, seed=11):
        L.seed_everything(seed, verbose=False)
        self.resume_point = ResumePoint(self.path, self.minutes)
        self.trainer = make_trainer(
            self.folder,
            self.pruning,
            self.history,
            self.resume_point,
            *callbacks,
            max_epochs=self.epochs,
            accumulate_grad_batches=self.accumulate,
            **self.settings,
        )
        # weights_only: a checkpoint holds plain data only, or this raises
        fit(self.trainer, self.module, ckpt_path=self.path if resume else None, weights_only=True)
        return self


def assert_equal_runs(one: Run, other: Run):
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name
    for name, mask in one.pruning.pruner.masks.items():
        assert torch.equal(mask, other.pruning.pruner.masks[name]), name
    ours, theirs = (run.trainer.optimizers[0].state_dict() for run in (one, other))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][index][k]) for k, value in state.items())
    assert one.history.rows == other.history.rows
    assert one.history.path.read_bytes() == other.history.path.read_bytes()
    assert one.trainer.global_step == other.trainer.global_step


@pytest.fixture(scope="module", params=[1, 3], ids=["every_batch", "accumulate_3"])
def undisturbed(request, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed"), accumulate=request.param).go()
    assert run.trainer.global_step == EPOCHS * -(-STEPS_PER_EPOCH // request.param)
    assert len(run.history.rows) > 3
    return run


def test_every_epoch_has_another_order(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch["input_ids"])

    Run(tmp_path, epochs=2).go(Look())
    first, second = seen[:STEPS_PER_EPOCH], seen[STEPS_PER_EPOCH:]
    assert not any(torch.equal(batch, other) for batch in first for other in second)
    assert sum(int(batch.sum()) for batch in first) == sum(int(batch.sum()) for batch in second)


@pytest.mark.parametrize("batch", range(STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH))
def test_interrupted_within_an_epoch(tmp_path, undisturbed, batch):
    first = Run(tmp_path, accumulate=undisturbed.accumulate)
    with pytest.raises(Interrupted, match=r"SIGTERM; saved .*last\.ckpt"):
        first.go(At(send(signal.SIGTERM), batch=batch))
    assert first.trainer.global_step < undisturbed.trainer.global_step
    second = Run(tmp_path, accumulate=undisturbed.accumulate).go(resume=True, seed=99)
    assert_equal_runs(undisturbed, second)


def test_crashed_in_the_next_epoch(tmp_path, undisturbed):
    """What was done after the epoch's checkpoint is done again, rows of the history included."""

    def crash():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        Run(tmp_path, accumulate=undisturbed.accumulate).go(At(crash, batch=STEPS_PER_EPOCH + 5))
    second = Run(tmp_path, accumulate=undisturbed.accumulate).go(resume=True, seed=99)
    assert_equal_runs(undisturbed, second)


@pytest.mark.parametrize("check_every", [2, 3])
def test_interrupted_by_a_validation_while_gradients_are_accumulated(tmp_path, check_every):
    """A checkpoint has no gradients, so the run goes on to its next step before it ends."""
    settings = {"accumulate": 3, "settings": {"val_check_interval": check_every}}
    undisturbed = Run(tmp_path / "a", **settings).go()
    with pytest.raises(Interrupted, match="SIGTERM"):
        Run(tmp_path / "b", **settings).go(At(send(signal.SIGTERM), validation_of=0))
    second = Run(tmp_path / "b", **settings).go(resume=True, seed=99)
    for name, tensor in undisturbed.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_interrupted_while_validating(tmp_path, undisturbed, epoch):
    """The last epoch too: whoever was told to stop does not go on to what follows the fit."""
    with pytest.raises(Interrupted, match="SIGINT"):
        Run(tmp_path, accumulate=undisturbed.accumulate).go(
            At(send(signal.SIGINT), validation_of=epoch)
        )
    second = Run(tmp_path, accumulate=undisturbed.accumulate).go(resume=True, seed=99)
    for name, tensor in undisturbed.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    assert undisturbed.history.rows == second.history.rows


@pytest.mark.parametrize(
    "settings",
    [
        {"val_check_interval": 3},
        {"val_check_interval": 1},
        {"val_check_interval": 4, "check_val_every_n_epoch": None},
    ],
    ids=str,
)
def test_interrupted_between_validations_within_an_epoch(tmp_path, settings):
    undisturbed = Run(tmp_path / "undisturbed", settings=settings).go()
    validated = [row["step"] for row in undisturbed.history.rows if "val/accuracy" in row]
    assert len(validated) > EPOCHS
    for batch in (2, 3, 5, 6, 9):  # of seven: with validations and between them
        folder = tmp_path / str(batch)
        with pytest.raises(Interrupted):
            Run(folder, settings=settings).go(At(send(signal.SIGTERM), batch=batch))
        resumed = Run(folder, settings=settings).go(resume=True, seed=12)
        assert_equal_runs(undisturbed, resumed)


def test_interrupted_after_the_ramp(tmp_path):
    """The curves of sparsity go on though no mask is updated any more."""
    whole = Run(tmp_path / "a", end=0.4).go()
    with pytest.raises(Interrupted):
        Run(tmp_path / "b", end=0.4).go(At(send(signal.SIGINT), batch=2 * STEPS_PER_EPOCH + 1))
    again = Run(tmp_path / "b", end=0.4).go(resume=True)
    assert whole.history.rows == again.history.rows
    assert all("sparsity/counted" in row for row in again.history.rows)


def test_checkpoint_is_saved_at_the_chosen_interval(tmp_path):
    """With no time at all between two checkpoints every optimizer step has one."""
    steps = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            if run.path.is_file():
                saved = torch.load(run.path, weights_only=True)["global_step"]
                steps.append((saved, trainer.global_step))

    run = Run(tmp_path, accumulate=3, epochs=1, minutes=0.0)
    run.go(Look())
    assert steps == [(1, 1)] * 3 + [(2, 2)]


def test_resume_with_more_epochs_keeps_the_ramp(tmp_path):
    Run(tmp_path, epochs=1).go()
    longer = Run(tmp_path, epochs=2).go(resume=True)
    plan = ramp_updates(Schedule(final=0.8), total_steps=STEPS_PER_EPOCH, updates=7)
    assert longer.pruning.pruner.update_schedule == plan
    sparsities = {row["step"]: row["sparsity/counted"] for row in longer.history.rows}
    assert sparsities[STEPS_PER_EPOCH] == sparsities[2 * STEPS_PER_EPOCH]
    assert longer.pruning.pruned == 2 * round(0.8 * 512)


def test_a_finished_run_that_is_resumed_keeps_its_seconds(tmp_path):
    """Lightning does not start to train where no step is left."""
    finished = Run(tmp_path, epochs=1).go().resume_point.seconds
    again = Run(tmp_path, epochs=1).go(resume=True)
    saved = torch.load(again.path, weights_only=True)["callbacks"]["ResumePoint"]["seconds"]
    assert 0.0 < again.resume_point.seconds == saved <= finished


@pytest.mark.parametrize("batch", [None, STEPS_PER_EPOCH + 2], ids=["finished", "interrupted"])
def test_signal_handlers_are_restored(tmp_path, batch):
    def mine(number, frame):
        raise AssertionError("not during a fit")

    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if batch is None:
            Run(tmp_path).go()
        else:
            with pytest.raises(Interrupted):
                Run(tmp_path).go(At(send(signal.SIGINT), batch=batch))
        assert all(signal.getsignal(number) is mine for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_failed_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    run = Run(tmp_path)

    def half(*args, **kwargs):
        (tmp_path / "last.ckpt.part").write_bytes(b"half a checkpoint")
        raise OSError("no space left on device")

    def fill_disk():
        monkeypatch.setattr(run.trainer, "save_checkpoint", half)

    with pytest.raises(OSError, match="no space left"):
        run.go(At(fill_disk, batch=STEPS_PER_EPOCH))
    assert torch.load(run.path, weights_only=True)["global_step"] == STEPS_PER_EPOCH
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "metrics.csv"}


def test_kill_while_a_folder_takes_its_place_leaves_the_previous_one(tmp_path, monkeypatch):
    """As FSDP2 saves: a folder cannot be replaced in one step."""
    point = ResumePoint(tmp_path / "last.ckpt")

    class Trainer:
        is_global_zero = True

        def __init__(self, text):
            self.text = text

        def save_checkpoint(self, path):
            path.mkdir()
            (path / "shard").write_text(self.text)

    def killed(self, target):
        raise KeyboardInterrupt

    point.save(Trainer("one"))
    point.save(Trainer("two"))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert (point.path / "shard").read_text() == "two"
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        point.save(Trainer("three"))
    assert not point.path.exists()
    assert (ResumePoint(point.path).path / "shard").read_text() == "two"


def test_second_fit_begins_a_history_of_its_own(tmp_path):
    history = History(tmp_path / "metrics.csv")
    history.rows = [{"step": 7}]
    history.start_fit(None, None)
    assert history.rows == []


def die_in_the_middle_of_a_write(folder: Path, accumulate: int):
    """In a process of its own: train until a checkpoint is half written, then be killed."""
    run = Run(folder, accumulate=accumulate)

    def write_half_and_die(checkpoint, path, *args, **kwargs):
        torch.save(checkpoint, path)
        os.truncate(path, 5000)
        os.kill(os.getpid(), signal.SIGKILL)

    def set_trap():
        run.trainer.strategy.checkpoint_io.save_checkpoint = write_half_and_die

    run.go(At(set_trap, batch=STEPS_PER_EPOCH + 1))


def test_killed_while_a_checkpoint_is_written(tmp_path, undisturbed):
    """A process that dies in the middle of a write leaves the checkpoint before."""
    child = SERVER.Process(
        target=die_in_the_middle_of_a_write, args=(tmp_path, undisturbed.accumulate)
    )
    child.start()
    child.join(timeout=120)
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "last.ckpt.part").stat().st_size == 5000
    resumed = Run(tmp_path, accumulate=undisturbed.accumulate).go(resume=True)
    assert_equal_runs(undisturbed, resumed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signal_that_the_process_handles_is_passed_on_after_the_checkpoint(tmp_path, number):
    """As under submitit, which has a job queued again; the fit goes on if its handler returns."""
    path = tmp_path / "last.ckpt"
    seen = []

    def handler(number, frame):
        state = torch.load(path, weights_only=True)
        seen.append((number, state["global_step"]))

    class Send(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            if trainer.global_step in (2, 4) and len(seen) == trainer.global_step // 2 - 1:
                os.kill(os.getpid(), number)

    before = signal.signal(number, handler)
    try:
        trainer = make_trainer(tmp_path, Send(), ResumePoint(path, minutes=60), max_epochs=1)
        fit(trainer, make_module())
        assert signal.getsignal(number) is handler  # and has it back
    finally:
        signal.signal(number, before)
    assert seen == [(number, 3), (number, 5)]
    assert trainer.global_step == STEPS_PER_EPOCH


@pytest.mark.parametrize("breaks", [False, True])
def test_checkpoint_that_was_validated_does_not_affect_a_later_fit(tmp_path, monkeypatch, breaks):
    """Cross-validation: fit, judge by the checkpoint, and the next fold with the same callbacks."""
    rewind = RewindCallback([0.5])
    first = Run(tmp_path / "both").go(rewind)
    if breaks:
        monkeypatch.setattr(first.module, "validation_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if breaks else nullcontext():
        first.trainer.validate(
            first.module, validation_loader(), ckpt_path=first.path, weights_only=True
        )
    second = Run(tmp_path / "both")
    second.pruning = first.pruning
    second.go(rewind)
    assert_equal_runs(Run(tmp_path / "alone").go(RewindCallback([0.5])), second)


def test_best_model_of_a_run_with_a_resume_point_alone_does_not_exist(tmp_path):
    module = UserModule(mlp(), (8,))
    module.test_step = lambda batch, index: None
    point = ResumePoint(tmp_path / "last.ckpt")
    trainer = trainer_of(tmp_path, point, enable_checkpointing=True)
    trainer.fit(module, module.batches())
    with pytest.raises(ValueError, match="ModelCheckpoint"):
        trainer.test(dataloaders=module.batches(), ckpt_path="best")
