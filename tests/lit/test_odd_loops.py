"""SparsityCallback in unusual training loops, and in several fits."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from kd_prune.lit import RewindCallback, SparsityCallback
from kd_prune.pruning import Scope, Taylor, Wanda

from .networks import CLASSES, Manual, UserModule, assert_exact, make_trainer, mlp


def zeros_in(module):
    return sum(int((p == 0).sum()) for p in module.parameters() if p.ndim > 1)


def theirs():
    torch.manual_seed(0)
    return UserModule(mlp(), (8,))


class Adversaries(UserModule):
    """The usual GAN loop: one network steps between the other's forward and backward pass."""

    def __init__(self):
        super().__init__(mlp(), (8,))
        self.judge = nn.Sequential(nn.Linear(CLASSES, 16), nn.ReLU(), nn.Linear(16, 16),
                                   nn.ReLU(), nn.Linear(16, 1))  # fmt: skip
        self.automatic_optimization = False

    def training_step(self, batch, index):
        made = self.network(batch[0])
        forger, judge = self.optimizers()
        judge.zero_grad()
        judged = self.judge(made)
        self.manual_backward(self.judge(made.detach()).square().mean())
        forger.zero_grad()
        judge.step()
        self.manual_backward(self.judge(made).mean() + 0 * judged.detach().mean())
        forger.step()

    def configure_optimizers(self):
        return [torch.optim.AdamW(n.parameters(), lr=1e-2) for n in (self.network, self.judge)]


def test_step_of_one_network_leaves_the_graph_of_another_intact(tmp_path):
    module, pruning = Adversaries(), SparsityCallback(0.9)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert_exact(module, pruning)


class Unseen(Manual):
    """Lightning is not told of these steps."""

    def optimizers(self, use_pl_optimizer=True):
        return super().optimizers(use_pl_optimizer=False)


def test_criterion_observes_gradients_of_steps_unknown_to_lightning(tmp_path):
    masks = []
    for kind in (Manual, Unseen):
        torch.manual_seed(0)
        module, pruning = kind(), SparsityCallback(0.5, criterion=Taylor())
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        masks.append(pruning.pruner.masks)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


class Critic(Manual):
    """Of two networks one is pruned, and its steps are those that Lightning is not told of."""

    def optimizers(self, use_pl_optimizer=True):
        return super().optimizers(use_pl_optimizer=False)[0], super().optimizers()[1]


def test_steps_of_another_network_do_not_hide_gradients(tmp_path):
    masks = []
    for kind in (Manual, Critic):
        torch.manual_seed(0)
        scope = Scope(include=["network.*.weight"])
        module, pruning = kind(), SparsityCallback(0.5, scope=scope, criterion=Taylor())
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        masks.append(pruning.pruner.masks)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_optimizers_that_replace_others_are_hooked(tmp_path):
    class Anew(UserModule):
        def on_train_epoch_start(self):
            if self.trainer.current_epoch == 1:
                self.trainer.strategy.setup_optimizers(self.trainer)

        def on_train_batch_end(self, *_):
            for name, mask in pruning.pruner.masks.items():
                assert not self.get_parameter(name)[~mask].any()

    module, pruning = Anew(mlp(), (8,)), SparsityCallback(0.9)
    make_trainer(tmp_path, pruning, max_epochs=3).fit(module, module.batches())
    assert_exact(module, pruning)


def test_run_without_optimizer_steps_warns(tmp_path):
    class ByHand(UserModule):
        def __init__(self):
            super().__init__(mlp(), (8,))
            self.automatic_optimization = False

        def training_step(self, batch, index):
            super().training_step(batch, index).backward()
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter -= 0.01 * parameter.grad

    module, pruning = ByHand(), SparsityCallback(0.9)
    with pytest.warns(UserWarning, match=r"^no optimizer's step\(\) was called, .*at once now"):
        make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert_exact(module, pruning)


def test_dense_run_resumed_with_pruning_warns(tmp_path):
    module = theirs()
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, module.batches())
    trainer.save_checkpoint(path := tmp_path / "dense.ckpt")
    for begin in (0.0, 0.5):
        pruning = SparsityCallback(0.9, begin=begin)
        trainer = make_trainer(tmp_path, pruning, max_epochs=4)
        if begin:
            trainer.fit(module, module.batches(), ckpt_path=path, weights_only=True)
            continue
        says = r"continues at 12 of 24 .* to 0\.8005 at once; begin=0\.5"
        with pytest.warns(UserWarning, match=says):
            trainer.fit(module, module.batches(), ckpt_path=path, weights_only=True)
    assert_exact(module, pruning)


def test_masks_of_a_fit_are_not_saved_with_another_module(tmp_path):
    pruning, other = SparsityCallback(0.9), theirs()
    other.validation_step = other.training_step
    module = theirs()
    trainer = make_trainer(tmp_path, pruning)
    trainer.fit(module, module.batches())
    trainer.validate(other, other.batches(), verbose=False)
    trainer.save_checkpoint(path := tmp_path / "other.ckpt")
    saved = torch.load(path, weights_only=True)
    assert zeros_in(other) == 0
    assert not any((weight == 0).any() for weight in saved["state_dict"].values())
    assert "SparsityCallback" not in saved["callbacks"]


def test_saving_does_not_change_weights(tmp_path):
    module, pruning = theirs(), SparsityCallback(0.9)
    trainer = make_trainer(tmp_path, pruning)
    trainer.fit(module, module.batches())
    nn.init.ones_(module.network[0].weight)  # somebody's own business after the fit
    trainer.save_checkpoint(path := tmp_path / "x.ckpt")
    assert (module.network[0].weight == 1).all()
    saved = torch.load(path, weights_only=True)["state_dict"]["network.0.weight"]
    assert (saved == 0).sum() == round(0.9 * 128)


def test_a_shared_weight_is_saved_sparse_under_all_its_names(tmp_path):
    network = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), mlp()[3])
    network[2].weight = network[1].weight
    module, pruning = UserModule(network, (8,)), SparsityCallback(0.9)
    trainer = make_trainer(tmp_path, pruning)
    trainer.fit(module, module.batches())
    nn.init.ones_(network[1].weight)
    trainer.save_checkpoint(path := tmp_path / "x.ckpt")
    saved = torch.load(path, weights_only=True)["state_dict"]
    names = ("network.1.weight", "network.2.weight")
    assert {int((saved[name] == 0).sum()) for name in names} == {round(0.9 * 256)}
    assert saved[names[0]].data_ptr() == saved[names[1]].data_ptr()


@pytest.mark.parametrize("finder", ["before", "after", "tuner"])
def test_learning_rate_finder_does_not_affect_the_fit(tmp_path, finder):
    class Found(UserModule):
        lr = 1e-3

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    class Note(L.Callback):
        def on_train_start(self, trainer, module):
            began.append((pruning.pruner.target, zeros_in(module)))

    began, pruning = [], SparsityCallback(0.9, keep_zeros=True)
    rewind = RewindCallback(at=[1.0])
    fold = Found(mlp(), (8,))
    for module in (Found(mlp(), (8,)), fold, fold):
        dense = not zeros_in(module)
        callbacks = [pruning, rewind, Note()]
        search = LearningRateFinder(num_training_steps=5, early_stop_threshold=None)
        if finder != "tuner":
            callbacks.insert(0 if finder == "before" else len(callbacks), search)
        trainer = make_trainer(tmp_path, *callbacks)
        if finder == "tuner":
            Tuner(trainer).lr_find(
                module, module.batches(), num_training=5, early_stop_threshold=None
            )
            assert dense == (zeros_in(module) == 0)
        trainer.fit(module, module.batches())
        assert_exact(module, pruning)
        assert began[-1][0] == 0.0
        assert dense == (began[-1][1] == 0)


class Averaging(torch.optim.SGD):
    """As schedule-free optimizers do: evaluates an average, and goes on from elsewhere."""

    def eval(self):
        self.swap()

    train = eval

    @torch.no_grad()
    def swap(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter += 1.0


def test_weights_changed_by_a_validation_are_zero_again_in_training(tmp_path):
    class Free(UserModule):
        def configure_optimizers(self):
            return Averaging(self.parameters(), lr=0.01)

        def validation_step(self, batch, index):
            return self.training_step(batch, index)

        def on_validation_model_train(self):
            super().on_validation_model_train()
            self.trainer.optimizers[0].train()

        def on_train_batch_start(self, *_):
            for name, mask in pruning.pruner.masks.items():
                assert not self.get_parameter(name)[~mask].any()

    module, pruning = Free(mlp(), (8,)), SparsityCallback(0.9)
    make_trainer(tmp_path, pruning).fit(module, module.batches(), module.batches())
    assert_exact(module, pruning)


class Applied(nn.Module):
    """One layer between two."""

    def __init__(self, layer, shape):
        super().__init__()
        self.before, self.layer, self.shape = nn.Linear(8, 8), layer, shape
        self.head = nn.LazyLinear(CLASSES)
        self(torch.ones(1, 8))

    def forward(self, x):
        x = self.before(x).view(-1, *self.shape)
        x = self.layer(x, x) if isinstance(self.layer, nn.Bilinear) else self.layer(x)
        return self.head(x.flatten(1))


@pytest.mark.filterwarnings("ignore:Lazy modules are")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(4, 4, 1), (4, 2)),
        (nn.Conv1d(4, 4, 1, groups=2), (4, 2)),
        (nn.Bilinear(8, 8, 8), (8,)),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (2, 4)),
    ],
)
def test_wanda_refuses_layers_whose_input_does_not_match_the_weight(tmp_path, layer, shape):
    module = UserModule(Applied(layer, shape), (8,))
    names = [n for n, p in layer.named_parameters() if p.ndim > 1 and "in_proj" not in n]
    scope = Scope(include=[f"network.layer.{name}" for name in names])
    with pytest.raises(ValueError, match=r"criterion=Wanda\(\): it observes a layer's input, and"):
        make_trainer(tmp_path, SparsityCallback(0.5, scope=scope, criterion=Wanda())).fit(
            module, module.batches()
        )


class Stream(IterableDataset):
    def __iter__(self):
        yield from [(torch.ones(8), 0)] * 40


class Data(L.LightningDataModule):
    def setup(self, stage):
        self.ready = stage

    def train_dataloader(self):
        return theirs().batches(5 if self.ready == "fit" else 0)


@pytest.mark.parametrize(
    ("loader", "total"),
    [
        (lambda: [theirs().batches(4), theirs().batches(7)], 14),
        (lambda: {"a": theirs().batches(4), "b": theirs().batches(3)}, 8),
        (lambda: CombinedLoader([theirs().batches(4), theirs().batches(7)], "min_size"), 8),
        (lambda: CombinedLoader([theirs().batches(4), theirs().batches(7)], "max_size"), 14),
        (Data, 10),
        (lambda: DataLoader(Stream(), batch_size=4), None),
        (lambda: None, None),
    ],
)
def test_preview_accepts_every_loader_that_fit_accepts(tmp_path, loader, total):
    class AnyBatch(UserModule):
        def training_step(self, batch, index):
            return self.network(torch.ones(1, 8)).sum()

    module, pruning = AnyBatch(mlp(), (8,)), SparsityCallback(0.9)
    settings = {} if total else {"max_steps": 9, "max_epochs": -1}
    plan = pruning.preview(make_trainer(tmp_path, **settings), module, given := loader())
    assert plan.total == (total or 9)
    if given is not None:
        trainer = make_trainer(tmp_path, pruning, **settings)
        trainer.fit(module, given)
        assert pruning.preview(trainer).updates == plan.updates
        assert trainer.global_step == plan.total
