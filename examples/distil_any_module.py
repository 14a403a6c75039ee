"""Any two torch models: a small one learns from a large one while it loses 90 % of its weights.

python examples/distil_any_module.py
"""

import lightning.pytorch as L
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from kd_prune.distillation import Activations, HardLabels, Objective, SoftTargets
from kd_prune.lit import DistillModule, SparsityCallback
from kd_prune.metrics import metric_collection
from kd_prune.pruning import Scope

CLASSES, FEATURES = 5, 32


def network(width: int) -> nn.Sequential:
    """Build a plain torch model without knowledge of batches, labels or Lightning."""
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip


def forward(
    model: nn.Module, batch: dict[str, torch.Tensor], requires: frozenset[str]
) -> Activations:
    """Run either model on a batch; `requires` names the activations that the objective reads."""
    return Activations(logits=model(batch["rows"]))


def optimizer(model: nn.Module, total_steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Build an optimizer with a learning-rate schedule that is stepped after every step."""
    adamw = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return adamw, OneCycleLR(adamw, max_lr=5e-3, total_steps=total_steps)


def rows(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Draw points around ten centres, two of each class; the key `labels` is required."""
    centres = torch.randn(2 * CLASSES, FEATURES, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 2 * CLASSES, (count,), generator=generator)
    points = centres[places] + 1.2 * torch.randn(count, FEATURES, generator=generator)
    labels = places % CLASSES
    return [{"rows": p, "labels": y} for p, y in zip(points, labels, strict=True)]


def fit(module: DistillModule, epochs: int, *callbacks: L.Callback) -> float:
    """Train, and return the accuracy on unseen rows."""
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=list(callbacks),
    )  # fmt: skip
    # Mappings of tensors: torch's own collation makes {"rows": …, "labels": …} of them.
    train = DataLoader(rows(2000, seed=0), batch_size=50, shuffle=True)
    trainer.fit(module, train, DataLoader(rows(1000, seed=1), batch_size=500))
    return float(trainer.callback_metrics["val/accuracy"])


def main(epochs: int = 6) -> tuple[float, float, float]:
    """Train a teacher, then its student; returns both accuracies and the student's sparsity."""
    L.seed_everything(0, verbose=False)
    shared = {
        "forward": forward,
        "optimizer": optimizer,
        "metrics": metric_collection(["accuracy"], CLASSES),
    }
    labels = Objective({"labels": HardLabels()})  # without a teacher
    teacher = network(width=256)
    taught = fit(DistillModule(teacher, objective=labels, **shared), epochs)

    both = Objective({"teacher": SoftTargets(temperature=2.0), "labels": HardLabels(weight=0.5)})
    student = DistillModule(network(width=64), teacher=teacher, objective=both, **shared)
    # With `submodule` the scope uses the student's parameter names: its first two layers.
    pruning = SparsityCallback(
        0.9,
        end=0.7,
        submodule="student",
        scope=Scope(include=["0.weight", "2.weight"]),
        verbose=False,
    )
    accuracy = fit(student, epochs, pruning)
    # student.student is the plain network, its pruned weights zeros; the teacher is not in
    # student.state_dict(), its optimizer or its checkpoints.
    return taught, accuracy, pruning.pruner.sparsity


if __name__ == "__main__":
    taught, accuracy, sparsity = main()
    print(f"accuracy of the teacher: {taught:.3f}")
    print(f"accuracy of the student: {accuracy:.3f}, at sparsity {sparsity:.4f}")
