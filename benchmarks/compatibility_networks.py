"""Networks of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as L
import torch
from compatibility_project import (
    WORDS,
    Batch,
    Case,
    Project,
    Supervised,
    images,
    labelled_texts,
    mlp,
    supervised,
    vectors,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class UNet(nn.Module):
    """Convolutions down, transposed convolutions up, and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        first = F.relu(self.down[0](x))
        second = F.relu(self.down[1](first))
        up = F.relu(self.up[0](second))
        return self.out(self.up[1](torch.cat([up, first], 1)))


class Recurrent(nn.Module):
    """A recurrent layer over embeddings, and a classifier of its last state."""

    def __init__(self, layer: nn.Module, embedding: int = WORDS) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(embedding, 16), layer
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.head(self.layer(self.embedding(x))[0][:, -1])


class Cells(nn.Module):
    """A recurrent cell in a loop over time."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.embedding, self.cell, self.head = nn.Embedding(WORDS, 16), cell, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        state = None
        for embedded in self.embedding(x).unbind(1):
            state = self.cell(embedded, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Heads(nn.Module):
    """A shared body under several heads: actor and critic, or several tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(32, 1)  # defined first
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.actor = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs."""
        hidden = self.body(x)
        return self.actor(hidden), self.critic(hidden)


class Experts(nn.Module):
    """A mixture of experts whose weights are one three-dimensional parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(16, 4), nn.Linear(32, 5)
        self.experts = nn.Parameter(torch.randn(4, 32, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        made = torch.einsum("ehi,bi->beh", self.experts, x)
        return self.head(torch.einsum("be,beh->bh", self.gate(x).softmax(-1), made))


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(16, 32), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.head(F.linear(self.encoder(x).relu(), self.encoder.weight.T))


class Attention(nn.Module):
    """torch's own Transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.1)
        self.embedding = nn.Embedding(WORDS, 32)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.head(self.encoder(self.embedding(x)).mean(1))


def convolutions() -> nn.Module:
    """Make a network of dense, grouped and depthwise convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1, groups=4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


def reconstruct() -> Project:
    """Make a U-Net that reconstructs its input."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(network(batch["x"]), batch["x"])

    return Project(Supervised(UNet(), loss), images())


def actor_critic() -> Project:
    """Make a network with two heads, one of them defined before the body."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        actor, critic = network(batch["x"])
        return F.cross_entropy(actor, batch["y"]) + critic.square().mean()

    module = Supervised(Heads(), loss)
    module.example_input_array = torch.randn(1, 16)  # by which both heads are found
    return Project(module, vectors())


class Gan(L.LightningModule):
    """Two networks that step in turn, in a loop of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.judge = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch: Batch, index: int) -> None:
        """Make a step of each network."""
        forger, judge = self.optimizers()
        made = self.generator(batch["x"])
        judge.zero_grad()
        judged = self.judge(batch["x"]) - self.judge(made.detach())
        self.manual_backward(F.softplus(-judged).mean())
        judge.step()
        forger.zero_grad()
        self.manual_backward(F.softplus(-self.judge(made)).mean())
        forger.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one optimizer per network."""
        networks = (self.generator, self.judge)
        return [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]


def cases() -> list[Case]:
    """Return the cases, in the order of the table."""
    networks: dict[str, Callable[[], Project]] = {
        "perceptron": lambda: supervised(mlp, vectors),
        "convolutions, grouped and depthwise": lambda: supervised(convolutions, images),
        "U-Net": reconstruct,
        "nn.TransformerEncoder": lambda: supervised(Attention, labelled_texts),
        "actor and critic": actor_critic,
        "GAN, manual loop": lambda: Project(Gan(), vectors()),
        "experts in one 3-D parameter": lambda: supervised(Experts, vectors),
        "weights used twice": lambda: supervised(Tied, vectors),
        "weight_norm": lambda: supervised(
            lambda: mlp(parametrizations.weight_norm(nn.Linear(32, 32)), nn.ReLU()), vectors
        ),
        "spectral_norm": lambda: supervised(
            lambda: mlp(parametrizations.spectral_norm(nn.Linear(32, 32)), nn.ReLU()), vectors
        ),
    }
    for layer in (nn.LSTM, nn.GRU, nn.RNN):
        networks[f"nn.{layer.__name__}"] = lambda k=layer: supervised(
            lambda: Recurrent(k(16, 32, batch_first=True)), labelled_texts
        )
    for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        networks[f"nn.{cell.__name__}"] = lambda k=cell: supervised(
            lambda: Cells(k(16, 32)), labelled_texts
        )
    return [Case("networks of plain torch", name, make) for name, make in networks.items()]
