"""SparsityCallback beside averages of weights: what is validated and saved is sparse."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback

from .networks import (
    BATCHES,
    UserModule,
    make_trainer,
    mlp,
    zeros_per_tensor,
)


@pytest.mark.parametrize("averaging_first", [True, False])
def test_averaged_weights_are_sparse_at_the_end(tmp_path, averaging_first):
    module = UserModule(mlp(), (8,))
    pruning = SparsityCallback(0.9, end=0.9)
    averaging = WeightAveraging() if averaging_first else StochasticWeightAveraging(1e-3, 0.5)
    callbacks = (averaging, pruning)[:: 1 if averaging_first else -1]
    make_trainer(tmp_path, *callbacks, max_epochs=4).fit(module, module.batches())
    for name, (zeros, size) in zeros_per_tensor(module, pruning).items():
        assert zeros == round(0.9 * size), name


def test_a_moving_average_after_the_callback_is_refused(tmp_path):
    """It would replace the saved weights by its own, which nothing zeroes."""
    module = UserModule(mlp(), (8,))
    callbacks = (SparsityCallback(0.9), EMAWeightAveraging(decay=0.9))
    expected = "trainer.callbacks=EMAWeightAveraging: .*; list it before SparsityCallback"
    with pytest.raises(ConfigError, match=expected):
        make_trainer(tmp_path, *callbacks).fit(module, module.batches())


def test_moving_average_is_validated_and_saved_sparse(tmp_path):
    seen = []

    class Validated(UserModule):
        def validation_step(self, batch, index):
            rows = zeros_per_tensor(self, pruning).values()
            seen.append((sum(zeros for zeros, _ in rows), pruning.pruned))

    module = Validated(mlp(), (8,))
    pruning = SparsityCallback(0.9, end=0.9, updates=10)
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=4)  # within epochs too
    trainer = make_trainer(
        tmp_path,
        EMAWeightAveraging(decay=0.9),
        pruning,
        saved,
        max_epochs=4,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, module.batches(), module.batches())
    assert len(seen) == 4 * BATCHES
    assert all(zeros == pruned for zeros, pruned in seen)
    assert seen[0][1] < seen[-1][1]
    files = list(tmp_path.glob("*.ckpt"))
    assert len(files) == 6
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        for name, mask in checkpoint["callbacks"]["SparsityCallback"]["pruner"]["masks"].items():
            assert not checkpoint["state_dict"][name][~mask].any()


def test_statistics_of_batch_norm_are_of_pruned_weights(tmp_path):
    """The last epoch takes them anew, of the average; no validation comes before it here."""
    normed = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), *mlp()[3:])
    module = UserModule(normed, (8,))
    pruning = SparsityCallback(0.9, end=0.5)
    zeros = []

    def count(*_):
        zeros.append(sum(found for found, _ in zeros_per_tensor(module, pruning).values()))

    normed.register_forward_pre_hook(count)
    trainer = make_trainer(tmp_path, pruning, StochasticWeightAveraging(1e-3, 0.6), max_epochs=4)
    trainer.fit(module, module.batches())
    assert len(zeros) == 5 * BATCHES  # one epoch for the statistics alone
    assert set(zeros[-BATCHES:]) == {pruning.pruned}


def test_last_weights_alone_are_saved_sparse(tmp_path):
    module = UserModule(mlp(), (8,))
    pruning = SparsityCallback(0.9, end=0.5)
    saved = ModelCheckpoint(
        tmp_path, save_last=True, save_weights_only=True, every_n_train_steps=1000
    )
    averaging = EMAWeightAveraging(decay=0.9)
    make_trainer(tmp_path, averaging, pruning, saved, enable_checkpointing=True).fit(
        module, module.batches()
    )
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, mask in pruning.pruner.masks.items():
        assert not state[name][~mask].any()


def test_moving_average_of_another_package_is_refused_too(tmp_path):
    """Classes of pytorch_lightning are others, of the same names."""
    kind = type("WeightAveraging", (L.Callback,), {})
    module = UserModule(mlp(), (8,))
    with pytest.raises(ConfigError, match=r"WeightAveraging: .*; list it before SparsityCallback"):
        make_trainer(tmp_path, SparsityCallback(0.9), kind()).fit(module, module.batches())
