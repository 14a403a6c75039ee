"""Behaviour of each tool on the small model: counts, teacher, resuming, checkpoints."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from peers_tools import EPOCHS, FINAL, HAS_TORCHAO, PER_EPOCH, PLAIN, TOOLS, Distil, Tool, pat
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

HALF, LATE = EPOCHS // 2, EPOCHS - 1
"""Epochs after which a run is interrupted: on the ramp, and after it."""


def effective_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copy the weights and biases that the layers compute with, also behind parametrizations."""
    return {
        f"{name}.{kind}": value.detach().clone()
        for name, layer in module.named_modules()
        for kind in ("weight", "bias")
        if isinstance(value := getattr(layer, kind, None), Tensor)
    }


def zeros(tensors: Mapping[str, Tensor], *words: str) -> float:
    """Share of zeros in the tensors whose name contains one of the words."""
    chosen = [t for name, t in tensors.items() if any(word in name for word in words)]
    return 1 - sum(int(t.count_nonzero()) for t in chosen) / sum(t.numel() for t in chosen)


def in_scope(module: Distil) -> dict[str, Tensor]:
    """Weights that were to be pruned, as the layers compute with them."""
    return {f"{i}": layer.weight.detach() for i, layer in enumerate(module.student.layers)}


class Recorder(L.Callback):
    """Record the sparsity after every step; save checkpoints after some epochs. Comes last."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.sparsity: dict[int, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Distil, *_: Any) -> None:
        """Count the zeros."""
        self.sparsity[trainer.global_step] = zeros(in_scope(pl_module), "")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Distil) -> None:
        """Save a checkpoint."""
        epoch = trainer.current_epoch + 1
        if self.folder and epoch in (HALF, LATE):
            trainer.save_checkpoint(self.folder / f"{epoch}.ckpt")


def loader() -> DataLoader:
    """The small model's data, always in the same order."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (8 * PER_EPOCH, 12), generator=generator)
    return DataLoader(TensorDataset(ids, (ids.sum(1) > 294).long()), batch_size=8)


def fit(
    tool: Tool, folder: Path | None = None, resume: Path | None = None
) -> tuple[Distil, dict[int, float]]:
    """Train new objects, from the beginning or from a checkpoint."""
    module = Distil(tool.make_optimizer)
    recorder = Recorder(folder)
    callbacks = [tool.callback(module)] if tool.callback else []
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, recorder],
        )
        trainer.fit(module, loader(), ckpt_path=resume, weights_only=False)
    return module, recorder.sparsity


def resume_outcome(
    tool: Tool, checkpoint: Path, uninterrupted: Distil, course: Mapping[int, float]
) -> dict:
    """Compare a run that resumes from the checkpoint with the uninterrupted one."""
    try:
        module, again = fit(tool, resume=checkpoint)
    except Exception as error:  # of any kind: the failure is the result
        return {"error": type(error).__name__}
    first = min(again)
    ended, straight = effective_tensors(module), effective_tensors(uninterrupted)
    return {
        "first": again[first],
        "first_uninterrupted": course[first],
        "end": zeros(in_scope(module), ""),
        "end_uninterrupted": zeros(in_scope(uninterrupted), ""),
        "bitwise": all(torch.equal(ended[name], straight[name]) for name in straight),
    }


def pat_in_a_loop() -> dict[str, float]:
    """Resume PAT after the ramp in a plain loop, with gradients before the optimizer's step.

    Lightning computes them inside the step, in a closure.
    """

    def train(module: Distil, optimizer: Optimizer, epochs: int) -> list[float]:
        course = []
        for batch in list(loader()) * epochs:
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
            course.append(zeros(in_scope(module), ""))
        return course

    module = Distil(pat)
    optimizer = module.configure_optimizers()
    train(module, optimizer, LATE)
    again = Distil(pat)
    fresh = again.configure_optimizers()
    again.load_state_dict(module.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    course = train(again, fresh, EPOCHS - LATE)
    return {"first": course[0], "end": course[-1]}


def loads_weights_only(checkpoint: Path) -> bool:
    """Return whether the checkpoint loads without running code from the file."""
    try:
        torch.load(checkpoint, weights_only=True)
    except Exception:  # torch raises several kinds
        return False
    return True


def behaviour(tool: Tool, keys: set[str], untouched: Mapping[str, Tensor]) -> dict[str, Any]:
    """Run the tool on the small model and describe the outcome."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, course = fit(tool, folder)
        half, late = folder / f"{HALF}.ckpt", folder / f"{LATE}.ckpt"
        found = set(torch.load(half, weights_only=False)["state_dict"])
        returns = {
            "half": resume_outcome(tool, half, module, course),
            "late": resume_outcome(tool, late, module, course),
        }
        loads = loads_weights_only(half)
    weights, everything = in_scope(module), effective_tensors(module)
    size = sum(weight.numel() for weight in weights.values())
    pruned = size - sum(int(weight.count_nonzero()) for weight in weights.values())
    steps = sorted(course)
    moved = [b for a, b in itertools.pairwise(steps) if course[b] > course[a] + 1e-9]
    teacher = {name: t for name, t in everything.items() if name.startswith("teacher.")}
    student = {name: t for name, t in everything.items() if name.startswith("student.")}
    return {
        "weights": size,
        "asked": sum(round(FINAL * weight.numel()) for weight in weights.values()),
        "got": pruned,
        "teacher_changed": any(not torch.equal(t, untouched[n]) for n, t in teacher.items()),
        "teacher_zeros": zeros(teacher, ".weight"),
        "bias_zeros": zeros(student, ".bias"),
        "embedding_zeros": zeros(student, "embedding"),
        "resumed": returns,
        "keys": len(keys),
        "keys_missing": len(keys - found),
        "keys_unexpected": len(found - keys),
        "rises": len(moved),
        "rises_within_epochs": sum((step - 1) % PER_EPOCH != 0 for step in moved),
        "weights_only": loads,
    }


def behaviours() -> dict[str, dict[str, Any]]:
    """Describe the behaviour of every tool: name → outcome."""
    module, _ = fit(PLAIN)
    keys, untouched = set(module.state_dict()), effective_tensors(module)
    found = {tool.name: behaviour(tool, keys, untouched) for tool in TOOLS}
    if HAS_TORCHAO:
        found["torchao PAT"]["resumed"]["late"]["loop"] = pat_in_a_loop()
    return found
