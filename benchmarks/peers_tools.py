"""Tools that prune while training, each on the same small Lightning module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.ao.pruning import CubicSL, WeightNormSparsifier
from torch.optim import AdamW, Optimizer

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Schedule, Scope

FINAL = 0.95
EPOCHS, PER_EPOCH, RAMP_EPOCHS = 8, 8, 6
"""The small model's run."""
RAMP = RAMP_EPOCHS * PER_EPOCH
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None


class Small(nn.Module):
    """Embedding, three layers with norms that are to be pruned, a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(32, 64), (64, 64), (64, 32)]
        self.embedding = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(size[1]) for size in sizes)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Compute the logits."""
        hidden = self.embedding(ids).mean(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = norm(F.gelu(layer(hidden)))
        return self.head(hidden)


class Distil(L.LightningModule):
    """Student that learns from labels and a frozen teacher."""

    def __init__(self, make_optimizer: Callable[[Small], Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = Small(), Small().requires_grad_(False).eval()
        self.make_optimizer = make_optimizer

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        """Compute the cross entropy plus the squared error to the teacher's logits."""
        ids, labels = batch
        logits = self.student(ids)
        return F.cross_entropy(logits, labels) + F.mse_loss(logits, self.teacher(ids))

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer of the tool."""
        return self.make_optimizer(self.student)


def adamw(student: nn.Module) -> Optimizer:
    """Make AdamW of all parameters."""
    return AdamW(student.parameters(), lr=1e-3)


def prune_optimizer(
    model: nn.Module, weights: Sequence[Tensor], lr: float, *, end: int, **group: Any
) -> Optimizer:
    """Make PAT around AdamW: single weights, ranked within each tensor."""
    from torchao.prototype.pat import PruneOptimizer

    ids = {id(weight) for weight in weights}
    rest = [p for p in model.parameters() if id(p) not in ids]
    pruned = {
        "params": list(weights),
        "group_type": "KElementGrouper",
        "k": 1,
        "prox_type": "MinSparsityConstraint",
        "min_sparsity": FINAL,
        **group,
    }
    return PruneOptimizer(AdamW([pruned, {"params": rest}], lr=lr), healing_start_step=end)


def pat(student: Small) -> Optimizer:
    """Make PAT with its own cubic ramp, which reaches the target one step before `end`."""
    weights = [layer.weight for layer in student.layers]
    return prune_optimizer(student, weights, 1e-3, end=RAMP + 1, min_sparsity_schedule=True)


def cubic(epoch: int) -> float:
    """Target sparsity after an epoch; the first epoch is 0."""
    return Schedule(final=FINAL)(min(1.0, (epoch + 1) / RAMP_EPOCHS))


def cubic_of_remaining(epoch: int) -> float:
    """Share of the remaining weights to prune so that the sparsity becomes `cubic`."""
    return 1 - (1 - cubic(epoch)) / (1 - cubic(epoch - 1))


def kd_prune_callback(module: Distil) -> L.Callback:
    """Make kd_prune's callback."""
    scope = Scope(include=["student.layers.*.weight"])
    return SparsityCallback(
        final=FINAL, scope=scope, begin=0.0, end=RAMP_EPOCHS / EPOCHS, updates=RAMP
    )


def lightning_cubic(module: Distil, amount: Callable[[int], float] = cubic) -> L.Callback:
    """Make ModelPruning of the student's layers, without rewinding."""
    layers = [(layer, "weight") for layer in module.student.layers]
    return ModelPruning(
        "l1_unstructured",
        parameters_to_prune=layers,
        amount=amount,
        use_lottery_ticket_hypothesis=False,
    )


class Sparsify(L.Callback):
    """Use torch.ao.pruning in Lightning, with a step of sparsifier and scheduler after each batch.

    With `keep` the states of both are saved in the checkpoint, and loading tolerates the masks that
    the state dict leaves out.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Register the parametrizations before a checkpoint is loaded, whose keys contain them."""
        pl_module.strict_loading = not self.keep
        names = [f"student.layers.{i}.weight" for i in range(len(pl_module.student.layers))]
        self.sparsifier, self.scheduler = sparsifier(pl_module, names, RAMP)

    def on_train_batch_end(self, *_: Any) -> None:
        """Raise the sparsity and update the masks."""
        self.scheduler.step()
        self.sparsifier.step()

    def state_dict(self) -> dict[str, Any]:
        """Return both states."""
        if not self.keep:
            return {}
        return {
            "sparsifier": self.sparsifier.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both states."""
        if state_dict:
            self.sparsifier.load_state_dict(state_dict["sparsifier"])
            self.scheduler.load_state_dict(state_dict["scheduler"])


def sparsifier(
    model: nn.Module, names: Sequence[str], steps: int
) -> tuple[WeightNormSparsifier, CubicSL]:
    """Make a sparsifier of single weights (blocks of 1x1) with a cubic ramp."""
    found = WeightNormSparsifier(sparsity_level=FINAL, sparse_block_shape=(1, 1))
    found.prepare(model, [{"tensor_fqn": name} for name in names])
    scheduler = CubicSL(found, total_t=steps, delta_t=1)
    found.step()
    return found, scheduler


@dataclass(frozen=True)
class Tool:
    """Tool, a column of the behaviour table."""

    name: str
    callback: Callable[[Distil], L.Callback] | None = None
    make_optimizer: Callable[[Small], Optimizer] = adamw


PLAIN = Tool("none")
TOOLS = [
    Tool("kd_prune", kd_prune_callback),
    Tool("ModelPruning, cubic amount", lightning_cubic),
    Tool(
        "ModelPruning, cubic of what remains",
        lambda module: lightning_cubic(module, cubic_of_remaining),
    ),
    Tool("ModelPruning, defaults", lambda module: ModelPruning("l1_unstructured", amount=FINAL)),
    Tool("torch.ao", lambda module: Sparsify(keep=False)),
    Tool("torch.ao, kept by hand", lambda module: Sparsify(keep=True)),
    *([Tool("torchao PAT", make_optimizer=pat)] if HAS_TORCHAO else []),
]
