"""Checkpoints: read without unpickling anything but plain data, and held against the job."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kd_prune.dotted import flatten
from kd_prune.hf import TaskData
from kd_prune.run.job import Job

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from."""


def checkpoint_file(path: str) -> str:
    """The checkpoint that a path names: a file, or the ``last.ckpt`` of a run folder.

    Raises:
        CheckpointError: It is a folder without one.
    """
    if not Path(path).is_dir():
        return path
    file = Path(path) / "last.ckpt"
    if not file.is_file():
        raise CheckpointError(
            f"ckpt_path={path}: a folder without last.ckpt; name a run folder or a checkpoint"
        )
    return str(file)


def load_checkpoint(path: str) -> Any:
    """What is in a file that torch wrote, without unpickling anything but plain data.

    Raises:
        CheckpointError: It is missing or truncated.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"ckpt_path={path}: no such file; name a run folder that holds a last.ckpt"
        ) from error
    except Exception as error:  # torch raises a different type for each way to be broken
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise CheckpointError(
            f"ckpt_path={path}: truncated or no checkpoint{reason}; name another, or begin anew "
            "without ckpt_path"
        ) from error


OF_THE_FIT = ("teacher", "student", "sparsity", "distillation", "optimizer")
"""Groups of the configuration that a fit hangs on, whole."""
OF_THE_TRAINER = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "limit_train_batches",
    "precision",
)
OF_THE_REPORT = ("student.min_retained", "sparsity.verbose")


def what_it_is_of(job: Job, data: TaskData, model: str) -> dict[str, Any]:
    """What a checkpoint of a student's fit says of its run, and one that goes on has to share.

    Optimizer and learning rate come from the checkpoint, and so does the place on the ramp: with
    other settings the result would be called what it is not.

    Args:
        job: The job.
        data: Its data.
        model: Hash of what the student begins as, which a folder's path does not tell.
    """
    schedule = job.sparsity.schedule if job.sparsity else None
    groups = {name: job.config[name] for name in OF_THE_FIT if name in job.config}
    groups["model"] = {"scope": job.config.get("model", {}).get("scope")}
    trainer = job.config.get("trainer", {})
    settings = flatten({**groups, "trainer": {k: trainer.get(k) for k in OF_THE_TRAINER}})
    return {
        **{name: value for name, value in settings.items() if name not in OF_THE_REPORT},
        "data": data.fingerprint[:12],
        "seed": job.seed,
        "task.batch_size": job.task.batch_size,
        "task.pad_to": job.task.pad_to,
        "trainer.devices": job.trainer(logger=False).world_size,
        "sparsity.final": schedule.final if schedule else None,
        "sparsity.milestones": list(schedule.milestones) if schedule else [],
        "model": model[:12],
    }


def read_checkpoint(
    path: str, job: Job, student: PreTrainedModel, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a checkpoint of a student's fit; `about` is `what_it_is_of` the job.

    Raises:
        CheckpointError: It is missing, truncated, or of something else.
    """
    checkpoint = load_checkpoint(path)
    state = checkpoint.get("state_dict", {}) if isinstance(checkpoint, dict) else {}
    wanted = {f"student.{name}": tensor.shape for name, tensor in student.state_dict().items()}
    if {name: t.shape for name, t in state.items() if name.startswith("student.")} != wanted:
        raise CheckpointError(
            f"ckpt_path={path}: not a checkpoint of this student (other weights); take the model "
            "that it was saved with, or begin anew without ckpt_path"
        )
    pruned = any(key.startswith("SparsityCallback") for key in checkpoint.get("callbacks", {}))
    if pruned != (job.sparsity is not None):
        kinds = ("dense", "pruned")
        raise CheckpointError(
            f"ckpt_path={path}: a checkpoint of a {kinds[pruned]} fit, and this one is "
            f"{kinds[not pruned]}; take the last.ckpt of a run folder"
        )
    theirs = checkpoint["callbacks"].get("ResumePoint", {}).get("about", {})
    for name in (*about, *theirs):
        if theirs.get(name) != about.get(name):
            raise CheckpointError(
                f"ckpt_path={path}: a checkpoint of another run, with {name}={theirs.get(name)} "
                f"where this one has {about.get(name)}; give the command that it is of"
            )
    return dict(checkpoint)


def if_whole(path: Path) -> str | None:
    """The checkpoint's path, if there is one that can be read; one that cannot is named."""
    if not path.is_file():
        return None
    try:
        load_checkpoint(str(path))
    except CheckpointError as error:
        log.warning("%s; training begins anew", error)
        return None
    return str(path)
