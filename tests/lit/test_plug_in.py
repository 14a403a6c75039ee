"""SparsityCallback in a user's project: `callbacks=[SparsityCallback()]` is all it adds."""

from __future__ import annotations

import os
from datetime import timedelta

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Scope

from .networks import (
    Manual,
    Recurrent,
    UserModule,
    assert_exact,
    bert,
    cnn,
    gpt,
    make_trainer,
    mlp,
    vit,
)

NETWORKS = {
    "cnn": (cnn, (3, 8, 8), ["0.weight", "3.weight"]),
    "lstm": (
        Recurrent,
        (5, 8),
        [f"lstm.weight_{kind}_l{layer}" for layer in (0, 1) for kind in ("ih", "hh")],
    ),
    "gpt": (
        gpt,
        (6,),
        [
            f"model.transformer.h.{layer}.{name}.weight"
            for layer in (0, 1)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ],
    ),
    "bert": (bert, (6,), None),
    "vit": (vit, (3, 8, 8), None),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_any_network(tmp_path, capsys, kind):
    make, shape, expected = NETWORKS[kind]
    module = UserModule(make(), shape)
    pruning = SparsityCallback(0.9)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    taken = list(pruning.pruner.parameters)
    if expected is not None:
        assert taken == [f"network.{name}" for name in expected]
    else:  # the encoder's layers, 6 of each or all of ViT's, and its patches or pooler
        assert len(taken) == 13
        assert not any("embeddings.word" in n or "classifier" in n for n in taken)
    assert_exact(module, pruning)
    dense = {n: p for n, p in module.named_parameters() if n not in taken}
    assert not any((p == 0).sum() > 0.5 * p.numel() for n, p in dense.items() if "bias" not in n)
    printed = capsys.readouterr().out
    assert "Left dense:" in printed
    assert "output head" in printed
    assert "scope=Scope(include=" in printed
    assert "whole model" in printed


def test_several_optimizers_do_not_accelerate_the_ramp(tmp_path):
    trace = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            trace[trainer.fit_loop.total_batch_idx + 1] = pruning.pruner.target

    pruning = SparsityCallback(0.9, end=0.5, updates=3)
    module = Manual()
    make_trainer(tmp_path, pruning, Watch()).fit(module, module.batches())
    assert module.trainer.global_step == 18
    assert trace[1] == 0.0
    assert [step for step in trace if trace[step] == 0.9] == list(range(6, 13))
    assert len(set(trace.values())) == 4
    heads = {"network.3.weight", "other.3.weight"}
    assert set(pruning.pruner.parameters) == {
        n for n, p in module.named_parameters() if p.ndim == 2 and n not in heads
    }
    assert_exact(module, pruning)


def test_a_pruned_weight_is_zero_in_every_forward_pass(tmp_path):
    """Between two steps within one batch too."""
    leaks = []

    class Twice(UserModule):
        def __init__(self):
            super().__init__(mlp(), (8,))
            self.automatic_optimization = False

        def training_step(self, batch, index):
            x, y = batch
            for _ in range(2):
                for name, mask in pruning.pruner.masks.items():
                    leaks.append(bool(dict(self.named_parameters())[name][~mask].any()))
                self.optimizers().zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self.network(x), y))
                self.optimizers().step()

    pruning = SparsityCallback(0.9, end=0.3)
    module = Twice()
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert not any(leaks)
    assert_exact(module, pruning)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize("skipped", [{2, 3}, {12}])
def test_a_step_that_amp_skips_updates_nothing(tmp_path, skipped):
    """The next real step makes up for it; where the last is skipped, the end of the run does."""
    updates, real = [], []

    class Overflows(UserModule):
        def on_train_start(self):
            update = pruning.pruner.update
            pruning.pruner.update = lambda step, *agree: (
                update(step, *agree) and not updates.append(step)
            )
            self.optimizers().optimizer.register_step_post_hook(
                lambda *_: real.append(self.trainer.global_step + 1)
            )

        def backward(self, loss):
            super().backward(loss)
            if self.trainer.global_step + 1 in skipped:  # before the scaler looks
                next(self.parameters()).grad.fill_(float("inf"))

    device = {"cpu": "cpu", "gpu": "cuda"}[os.environ["KD_PRUNE_TEST_ACCELERATOR"]]
    scaler = torch.amp.GradScaler(device, init_scale=2.0)
    plugin = MixedPrecision("16-mixed", device, scaler=scaler)
    pruning = SparsityCallback(0.9, updates=6)
    module = Overflows(mlp(), (8,))
    make_trainer(tmp_path, pruning, plugins=[plugin]).fit(module, module.batches())
    assert set(real) == set(range(1, 13)) - skipped
    assert not set(updates) & skipped - {12}
    assert updates[-1] == 12
    assert_exact(module, pruning)


def test_gradient_clipping_and_checkpointing(tmp_path):
    module = UserModule(bert(), (6,))
    module.network.model.activation_checkpointing_enable()
    pruning = SparsityCallback(0.9)
    make_trainer(tmp_path, pruning, gradient_clip_val=0.1).fit(module, module.batches())
    assert_exact(module, pruning)


def test_a_compiled_network_has_the_same_names_and_masks(tmp_path):
    """Compiled without a backend of its own: what matters here is the wrapper and its names."""
    states = []
    for wrap in (lambda n: n, lambda n: torch.compile(n, backend="eager")):
        torch.manual_seed(0)
        module = UserModule(wrap(mlp()), (8,))
        pruning = SparsityCallback(0.9, scope=Scope(include=["network.?.weight"]))
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        states.append(pruning.pruner.masks)
    plain, compiled = states
    assert list(plain) == list(compiled)
    assert all(torch.equal(plain[name], compiled[name]) for name in plain)


@pytest.mark.parametrize("options", [{}, {"begin": 0.2, "end": 0.4}])
def test_fast_dev_run(tmp_path, options):
    module = UserModule(mlp(), (8,))
    pruning = SparsityCallback(0.9, **options)
    make_trainer(tmp_path, pruning, fast_dev_run=True).fit(module, module.batches())
    assert_exact(module, pruning)


def test_run_limited_by_time_reaches_the_final_sparsity(tmp_path, monkeypatch):
    """An hour of clock per four batches: ends after 9 of 100 epochs' batches, at `final`."""
    import lightning.pytorch.callbacks.timer as timer

    module = UserModule(mlp(), (8,))
    clock = type("Clock", (), {"monotonic": lambda: 900.0 * module.trainer.global_step})
    monkeypatch.setattr(timer, "time", clock)
    pruning = SparsityCallback(0.9, end=0.5)
    trainer = make_trainer(tmp_path, pruning, max_time=timedelta(hours=2), max_epochs=100)
    trainer.fit(module, module.batches())
    assert trainer.global_step == 8
    assert_exact(module, pruning)


def test_milestones_must_fit_between_steps_of_a_run_limited_by_time(tmp_path):
    pruning = SparsityCallback(0.8, end=0.5, milestones=[0.3, 0.6], milestone_length=0.08)
    module = UserModule(mlp(), (8,))
    trainer = make_trainer(tmp_path, pruning, max_epochs=2, max_time=timedelta(hours=2))
    with pytest.raises(ValueError, match=r"milestone_length=0\.08: 2 milestones .* do not fit"):
        trainer.fit(module, module.batches())


def test_loader_without_a_length_needs_a_limit(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield torch.ones(8), 0

    loader = DataLoader(Stream(), batch_size=4)
    module = UserModule(mlp(), (8,))
    with pytest.raises(ValueError, match=r"max_steps or max_time"):
        make_trainer(tmp_path, SparsityCallback(0.9)).fit(module, loader)
    pruning = SparsityCallback(0.9)
    make_trainer(tmp_path, pruning, max_steps=5, max_epochs=-1).fit(module, loader)
    assert_exact(module, pruning)


def test_run_that_stops_early_warns(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step >= 8

    module = UserModule(mlp(), (8,))
    pruning = SparsityCallback(0.9)
    with pytest.warns(UserWarning, match=r"stopped: it ended at 8 of 24 .*sparsity 0\.6528"):
        make_trainer(tmp_path, pruning, Stop(), max_epochs=4).fit(module, module.batches())
    assert pruning.pruner.sparsity < 0.7


def test_parameters_that_do_not_train_are_not_pruned(tmp_path):
    class WithTeacher(UserModule):
        def __init__(self):
            super().__init__(mlp(), (8,))
            self.teacher = mlp().requires_grad_(False)
            self.unused = nn.Linear(8, 8)  # trains, but in no optimizer

        def configure_optimizers(self):
            return torch.optim.AdamW(self.network.parameters(), lr=1e-2)

    module = WithTeacher()
    before = {n: p.clone() for n, p in module.named_parameters() if not n.startswith("network")}
    pruning = SparsityCallback(0.9)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert list(pruning.pruner.parameters) == ["network.0.weight", "network.2.weight"]
    parameters = dict(module.named_parameters())
    assert all(torch.equal(parameters[name], before[name]) for name in before)


def test_one_callback_serves_other_modules(tmp_path):
    pruning = SparsityCallback(0.9)
    for make, shape in ((mlp, (8,)), (cnn, (3, 8, 8)), (mlp, (8,))):
        module = UserModule(make(), shape)
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        assert_exact(module, pruning)
        assert not pruning._hooks._handles


def test_final_none_keeps_existing_zeros(tmp_path):
    """A sparse model is fine-tuned as sparse as it is."""
    module = UserModule(mlp(), (8,))
    with torch.no_grad():
        module.network[2].weight[:, ::2] = 0
    pruning = SparsityCallback(None)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert (module.network[2].weight[:, ::2] == 0).all()
    assert (module.network[2].weight[:, 1::2] != 0).all()
    assert (module.network[0].weight != 0).all()
    assert pruning.pruner.target == pruning.pruner.sparsity == 128 / (256 + 128)


def test_preview_before_training_is_that_of_the_fit(tmp_path):
    module = UserModule(mlp(), (8,))
    pruning = SparsityCallback(0.9, end=0.5, updates=4)
    before = {name: p.clone() for name, p in module.named_parameters()}
    plan = pruning.preview(make_trainer(tmp_path, max_epochs=4), module, module.batches())
    assert (plan.total, plan.unit, max(plan.updates)) == (24, "optimizer steps", 12)
    assert [(t.name, t.pruned) for t in plan.tensors] == [
        ("network.0.weight", round(0.9 * 128)),
        ("network.2.weight", round(0.9 * 256)),
    ]
    assert plan.excluded == {"network.3.weight": "output head (last layer)"}
    assert "4 mask updates from 3 to 12 of 24 optimizer steps, then 12 at 0.9" in str(plan)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    trainer = make_trainer(tmp_path, pruning, max_epochs=4)
    trainer.fit(module, module.batches())
    assert pruning.preview(trainer).updates == plan.updates


def test_sharding_strategy_is_refused(tmp_path):
    class FSDPStrategy:
        pass

    module = UserModule(mlp(), (8,))
    trainer = make_trainer(tmp_path)
    pruning = SparsityCallback(0.9)
    trainer.strategy.__class__ = type("FSDPStrategy", (type(trainer.strategy),), {})
    with pytest.raises(ValueError, match=r"strategy=FSDPStrategy: it keeps.*strategy='ddp'"):
        pruning.on_fit_start(trainer, module)


def test_trainer_of_pytorch_lightning(tmp_path):
    old = pytest.importorskip("pytorch_lightning")

    class Module(old.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = mlp()

        training_step = UserModule.training_step
        configure_optimizers = UserModule.configure_optimizers

    module = Module()
    pruning = SparsityCallback(0.9)
    trainer = old.Trainer(
        accelerator=os.environ["KD_PRUNE_TEST_ACCELERATOR"], devices=1, logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=2, callbacks=[pruning],
    )  # fmt: skip
    trainer.fit(module, UserModule(mlp(), (8,)).batches())
    assert_exact(module, pruning)
