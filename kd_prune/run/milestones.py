"""Milestones: the students that a run saves on its way to the final sparsity."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kd_prune import whole
from kd_prune.lit import SparsityCallback
from kd_prune.lit.resumable import Resumable
from kd_prune.run.check import Promise
from kd_prune.run.checkpoint import CheckpointError
from kd_prune.run.job import Job


@dataclass(frozen=True)
class Milestone:
    """A student on the way.

    Attributes:
        sparsity: Sparsity in scope asked for.
        step: Optimizer steps made by then.
        promise: What its zeros are held against.
    """

    sparsity: float
    step: int
    promise: Promise


class Milestones(Resumable):
    """Saves a student at the end of each rest, with the mean of the weights in its second half.

    In a rest the learning rate is still high, so single steps scatter around a better place; their
    mean (Izmailov et al. 2018, arXiv 1803.05407) lies nearer to it, and masks stand still, so it
    has the same zeros. Training goes on from the weights as they were.

    Args:
        sparsity: The callback that prunes, before this one in the Trainer's list; its
            `on_milestone` is set.
        save: Saves the module's student for a sparsity.
    """

    def __init__(self, sparsity: SparsityCallback, save: Callable[[float], None]) -> None:
        self.sparsity = sparsity
        self.save = save
        self.reached: list[Milestone] = []
        self._mean: dict[str, Tensor] = {}
        self._count = 0
        self._step = 0
        sparsity.on_milestone = self._on_milestone

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with what a checkpoint says was reached."""
        if resumed := self.take_resumed():
            self.reached = [
                Milestone(**{**found, "promise": Promise(**found["promise"])})
                for found in resumed["reached"]
            ]
            self._mean, self._count = dict(resumed["mean"]), resumed["count"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """After an optimizer step in the second half of a rest: take it into the mean."""
        pruner = self.sparsity.pruner
        rest = pruner.rest if pruner else None
        if rest is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self.sparsity.position >= (rest.start + rest.stop) // 2:
            self._add(pl_module)

    @torch.no_grad()
    def _add(self, module: L.LightningModule) -> None:
        self._count += 1
        for name, weight in _trained(module).items():
            if name not in self._mean:
                self._mean[name] = weight.detach().clone()
            else:
                mean = self._mean[name].to(weight.device)  # a checkpoint's tensors are the CPU's
                self._mean[name] = mean.lerp_(weight.detach(), 1 / self._count)

    @torch.no_grad()
    def _on_milestone(self, module: L.LightningModule, sparsity: float) -> None:
        pruner = self.sparsity.pruner
        if pruner is None:
            return
        self._add(module)
        weights = _trained(module)
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(self._mean[name])
        pruner.project()
        if module.trainer.is_global_zero:
            self.save(sparsity)
        for name, weight in weights.items():
            weight.copy_(kept[name])
        promise = Promise.of(pruner)
        self.reached.append(Milestone(sparsity, module.global_step, promise))
        self._mean, self._count = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """What was reached, and the mean so far: plain tensors and numbers."""
        reached = [asdict(milestone) for milestone in self.reached]
        return {"reached": reached, "mean": dict(self._mean), "count": self._count}


def milestone_folder(out: Path, sparsity: float) -> Path:
    """Where a run keeps the student of a milestone."""
    return out / "milestones" / f"{sparsity:g}"


@rank_zero_only
def bring_milestones(source: Path, out: Path, checkpoint: Mapping[str, Any]) -> None:
    """Copy the students that were reached before the checkpoint to the run that goes on from it.

    Raises:
        CheckpointError: One is no longer beside the checkpoint.
    """
    if source.resolve() == out.resolve():
        return
    saved = checkpoint["callbacks"].get("Milestones", {"reached": []})
    for reached in saved["reached"]:
        there, here = (milestone_folder(run, reached["sparsity"]) for run in (source, out))
        if not there.is_dir():
            raise CheckpointError(
                f"ckpt_path={source / 'last.ckpt'}: its student of {reached['sparsity']:g} is not "
                f"in {there}; take the checkpoint in its run folder"
            )
        with whole.folder(here, replace=True) as scratch:
            shutil.copytree(there, scratch, dirs_exist_ok=True)


# What a run leaves besides its milestones and checkpoint; first what says that it is finished.
RESULTS = ("result.json", "sparsity.csv", "curves.png", "metrics.csv", "student")


@rank_zero_only
def clear_results(job: Job, checkpoint: Mapping[str, Any] | None) -> None:
    """Remove what an earlier run left in the run folder: this one may fail, and is another.

    Of a run that goes on from a checkpoint in its folder everything stays; else what this run
    reads (`teacher.path` may be the earlier student), and milestones brought along.
    """
    out = job.out.resolve()
    reads = [job.model.path, job.teacher.path, job.task.path, job.ckpt_path]
    kept = [Path(path).expanduser().resolve() for path in reads if path]
    if checkpoint:
        if kept[-1].is_relative_to(out):
            return
        saved = checkpoint["callbacks"].get("Milestones", {"reached": []})
        kept += [milestone_folder(out, reached["sparsity"]) for reached in saved["reached"]]
    ours = [path for path in (out / "milestones").glob("*") if _is_number(path.name)]
    for path in (*(out / name for name in RESULTS), *ours):
        if any(other.is_relative_to(path) for other in kept):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody keeps something there
        (out / "milestones").rmdir()


def _is_number(name: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(name))
    return False


def _trained(module: L.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
