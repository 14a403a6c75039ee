"""SparsityCallback beside averages of weights: what is validated and saved is sparse."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

from kd_prune.lit import SparsityCallback

from .networks import (
    BATCHES,
    UserModule,
    make_trainer,
    mlp,
    zeros_per_tensor,
)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "averaging", [lambda: WeightAveraging(), lambda: StochasticWeightAveraging(1e-3, 0.5)]
)
def test_averaged_weights_are_sparse_at_the_end(tmp_path, averaging, first):
    module = UserModule(mlp(), (8,))
    pruning = SparsityCallback(0.9, end=0.9)
    callbacks = (pruning, averaging())[:: 1 if first else -1]
    make_trainer(tmp_path, *callbacks, max_epochs=4).fit(module, module.batches())
    for name, (zeros, size) in zeros_per_tensor(module, pruning).items():
        assert zeros == round(0.9 * size), name


@pytest.mark.parametrize("first", [True, False])
def test_moving_average_is_validated_and_saved_sparse(tmp_path, first):
    seen = []

    class Validated(UserModule):
        def validation_step(self, batch, index):
            rows = zeros_per_tensor(self, pruning).values()
            seen.append((sum(zeros for zeros, _ in rows), pruning.pruned))

    module = Validated(mlp(), (8,))
    pruning = SparsityCallback(0.9, end=0.9, updates=10)
    # Within an epoch what is saved is what the callback that comes last makes of it.
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=None if first else 4)
    trainer = make_trainer(
        tmp_path,
        *(pruning, EMAWeightAveraging(decay=0.9))[:: 1 if first else -1],
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
    assert len(files) == (4 if first else 6)
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        for name, mask in checkpoint["callbacks"]["SparsityCallback"]["pruner"]["masks"].items():
            assert not checkpoint["state_dict"][name][~mask].any()
