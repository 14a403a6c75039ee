"""Modules of a user's project around small networks, and what is counted of them."""

from __future__ import annotations

import os

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader

BATCHES, CLASSES = 6, 3


class UserModule(L.LightningModule):
    """A user's module: a network and cross-entropy."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.shape = shape

    def batches(self, count: int = BATCHES) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randn(*self.shape, generator=generator) for _ in range(4 * count)]
        return DataLoader(list(zip(rows, [0, 1, 2, 0] * count, strict=True)), batch_size=4)

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Tokens(nn.Module):
    """A Hugging Face model in a user's module; rows of floats become token ids."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(input_ids=(x.abs() * 10).long().clamp(max=19)).logits[..., :CLASSES]


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(8 * 16, CLASSES),
    )  # fmt: skip


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, CLASSES))


def gpt():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=20, n_positions=8, num_labels=CLASSES,
        pad_token_id=0,
    )  # fmt: skip
    return Tokens(GPT2ForSequenceClassification(config))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return Tokens(
        BertForSequenceClassification(
            BertConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                vocab_size=20,
                num_labels=CLASSES,
            )
        )
    )


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model = ViTForImageClassification(
                ViTConfig(
                    hidden_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=32,
                    image_size=8,
                    patch_size=4,
                    num_labels=CLASSES,
                )
            )

        def forward(self, x):
            return self.model(x).logits

    return Images()


def make_trainer(out, *callbacks, **settings):
    return L.Trainer(
        **{
            "accelerator": os.environ["KD_PRUNE_TEST_ACCELERATOR"],
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": out,
            "max_epochs": 2,
        }
        | settings,
        callbacks=list(callbacks),
    )


def zeros_per_tensor(module, pruning):
    """In-scope tensors: (zeros, weights), counted without the callback."""
    parameters = dict(module.named_parameters())
    return {
        name: (int((parameters[name] == 0).sum()), parameters[name].numel())
        for name in pruning.pruner.parameters
    }


def assert_exact(module, pruning, sparsity=0.9):
    counts = zeros_per_tensor(module, pruning)
    assert counts
    for name, (zeros, size) in counts.items():
        assert zeros == round(sparsity * size), name


class Manual(UserModule):
    """Two networks, two optimizers, manual optimization, three steps in two batches."""

    def __init__(self):
        super().__init__(mlp(), (8,))
        self.other = mlp()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        first, second = self.optimizers()
        x, y = batch
        for network, optimizer in ((self.network, first), (self.other, second)):
            if network is self.network or index % 2:
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(network(x), y))
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.AdamW(n.parameters(), lr=1e-2) for n in (self.network, self.other)]
