"""Milestones: students that a run saves before it reaches the final sparsity."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kd_prune import atomic_io
from kd_prune.lit import SparsityCallback
from kd_prune.lit.resumable import Resumable
from kd_prune.pipeline.resume_check import CheckpointError
from kd_prune.pipeline.verification import ExpectedSparsity


@dataclass(frozen=True)
class Milestone:
    """A student saved at a milestone.

    Attributes:
        sparsity: Sparsity in scope that was asked for.
        step: Optimizer steps before the student was saved.
        expected: Expected zeros of the student.
    """

    sparsity: float
    step: int
    expected: ExpectedSparsity


class Milestones(Resumable):
    """Saves a student at every milestone: the mean of the weights over the pause's second half.

    While the ramp pauses at a milestone the learning rate is still high, so the weights of single
    steps scatter around better ones; the mean (Izmailov et al. 2018, arXiv 1803.05407) is nearer to
    these. Masks do not change during a pause, so the mean has the same zeros. Training continues
    from the weights of the last step.

    Args:
        save: Called with the sparsity to save the module's student.
    """

    def __init__(self, save: Callable[[float], None]) -> None:
        self.save = save
        self.saved: list[Milestone] = []
        self._sparsity: SparsityCallback | None = None
        self._mean: dict[str, Tensor] = {}
        self._count = 0
        self._step = 0

    def connect(self, sparsity: SparsityCallback) -> SparsityCallback:
        """Return a copy of `sparsity` that calls this callback, which must come after it."""
        self._sparsity = sparsity.replace(on_milestone=self._on_milestone)
        return self._sparsity

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the saved milestones and the mean from the checkpoint."""
        if resumed := self.take_resumed():
            self.saved = [
                Milestone(**{**found, "expected": ExpectedSparsity(**found["expected"])})
                for found in resumed["saved"]
            ]
            self._mean, self._count = dict(resumed["mean"]), resumed["count"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Add the weights to the mean after every optimizer step in a pause's second half."""
        sparsity = self._sparsity
        pruner = sparsity.pruner if sparsity else None
        window = pruner.milestone_window if pruner else None
        if sparsity is None or window is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if sparsity.step >= (window.start + window.stop) // 2:
            self._add(pl_module)

    @torch.no_grad()
    def _add(self, module: L.LightningModule) -> None:
        self._count += 1
        for name, weight in _trained(module).items():
            if name not in self._mean:
                self._mean[name] = weight.detach().clone()
            else:
                mean = self._mean[name].to(weight.device)  # checkpoints load onto the CPU
                self._mean[name] = mean.lerp_(weight.detach(), 1 / self._count)

    @torch.no_grad()
    def _on_milestone(self, module: L.LightningModule, sparsity: float) -> None:
        pruner = self._sparsity.pruner if self._sparsity else None
        if pruner is None:
            return
        self._add(module)
        weights = _trained(module)
        last = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(self._mean[name])
        pruner.project()
        if module.trainer.is_global_zero:
            self.save(sparsity)
        for name, weight in weights.items():
            weight.copy_(last[name])
        self.saved.append(Milestone(sparsity, module.global_step, ExpectedSparsity.of(pruner)))
        self._mean, self._count = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the saved milestones and the mean so far: plain tensors and numbers."""
        saved = [asdict(milestone) for milestone in self.saved]
        return {"saved": saved, "mean": dict(self._mean), "count": self._count}


def saved_milestones(checkpoint: Mapping[str, Any]) -> list[float]:
    """Return the sparsities of the milestones that were saved before a checkpoint."""
    state = checkpoint["callbacks"].get("Milestones", {"saved": []})
    return [saved["sparsity"] for saved in state["saved"]]


def milestone_folder(out: Path, sparsity: float) -> Path:
    """Return the folder of a milestone's student."""
    return out / "milestones" / f"{sparsity:g}"


@rank_zero_only
def copy_milestones(source: Path, out: Path, checkpoint: Mapping[str, Any]) -> None:
    """Copy the students saved before a checkpoint to the run folder that resumes it.

    Raises:
        CheckpointError: A student is no longer in the checkpoint's run folder.
    """
    if source.resolve() == out.resolve():
        return
    for sparsity in saved_milestones(checkpoint):
        there, here = (milestone_folder(run, sparsity) for run in (source, out))
        if not there.is_dir():
            raise CheckpointError(
                source / "last.ckpt",
                f"its student of {sparsity:g} is not in {there}",
                "take the checkpoint in its run folder",
            )
        with atomic_io.folder(here, replace=True) as scratch:
            shutil.copytree(there, scratch, dirs_exist_ok=True)


def _trained(module: L.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
