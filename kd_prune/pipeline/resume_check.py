"""Resume check: a checkpoint is read as plain data, and resumed only by the run that wrote it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.config_utils import flatten
from kd_prune.errors import ConfigError
from kd_prune.lit.progress import RunLength
from kd_prune.pipeline.context import Context
from kd_prune.pipeline.fingerprint import describe_each, describe_stage
from kd_prune.pipeline.stage import STUDENT
from kd_prune.plain_settings import plain_settings

log = logging.getLogger(__name__)


TRAINER_SETTINGS = (
    "accumulate_grad_batches",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "overfit_batches",
    "precision",
)
"""Settings of the trainer that must be the same when a fit is resumed."""


class CheckpointError(ConfigError):
    """A checkpoint cannot be resumed."""

    def __init__(self, value: Any, expected: str, hint: str = "") -> None:
        super().__init__("ckpt_path", value, expected, hint)


def checkpoint_file(path: str) -> str:
    """Find the checkpoint that a path names: a file, or the ``last.ckpt`` of a run folder.

    Raises:
        CheckpointError: The path is a folder without ``last.ckpt``.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return str(folder)
    file = folder / "last.ckpt"
    if not file.is_file():
        raise CheckpointError(
            path, "a folder without last.ckpt", "name a run folder or a checkpoint"
        )
    return str(file)


def load_checkpoint(path: str) -> Any:
    """Load a file that torch wrote, unpickling plain data only.

    Raises:
        CheckpointError: The file is missing or truncated.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            path, "no such file", "name a run folder that holds a last.ckpt"
        ) from error
    except Exception as error:  # of any type: each kind of damage raises another
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise CheckpointError(
            path,
            f"truncated or no checkpoint{reason}",
            "name another, or begin again without ckpt_path",
        ) from error


def load_if_valid(path: Path) -> str | None:
    """Return the checkpoint's path if it can be read; log a warning if it is damaged."""
    if not path.is_file():
        return None
    try:
        load_checkpoint(str(path))
    except CheckpointError as error:
        log.warning("%s; training begins from the start", error)
        return None
    return str(path)


def run_fingerprint(context: Context, student: PreTrainedModel) -> dict[str, Any]:
    """Fingerprint stored in a checkpoint of the student's fit; a run resumes only if it matches.

    Optimizer, learning rate and position on the ramp are restored from the checkpoint, so with
    other settings the record would not describe the result.

    Args:
        context: The run.
        student: The initial model; its weights are hashed, as a path does not identify them.
    """
    job, inputs = context.job, context.inputs[STUDENT]
    settings: dict[str, Any] = {}
    for name, stage in context.chain.items():
        # Callbacks may change, such as one that only logs; parts that cannot be described are not
        # compared.
        found = describe_stage(stage, leave_out=("callbacks",), skip_unknown=True)
        if name != STUDENT:
            data = context.inputs[name].data.fingerprint[:12]
            found |= {"path": stage.path, "batch_size": stage.task.batch_size, "data": data}
        settings[stage.key] = found
    own = settings.pop(STUDENT)
    for key, setting in (
        ("distillation", "objective"),
        ("sparsity", "sparsity"),
        ("optimizer", "optimizer"),
    ):
        settings[key] = own.pop(setting, None)
    settings[STUDENT] = own
    trainer = getattr(job.trainer, "keywords", {})
    settings["trainer"] = {key: trainer.get(key) for key in TRAINER_SETTINGS}
    trains = {name: one for name, one in job.callbacks.items() if hasattr(one, "arguments")}
    settings["callbacks"] = describe_each(trains, skip_unknown=True)  # others may only log
    task = context.chain[STUDENT].task
    sparsity = job.sparsity
    schedule = sparsity.schedule if sparsity else None
    flat = flatten({name: value for name, value in settings.items() if value is not None})
    return {
        # Parameters of terms are restored from the checkpoint; their initial values may differ.
        **{name: value for name, value in flat.items() if ".tensors." not in name},
        "data": inputs.data.fingerprint[:12],
        "seed": job.seed,
        "task.batch_size": task.batch_size,
        "task.pad_to": task.pad_to,
        "trainer.devices": job.trainer(logger=False).world_size,
        "sparsity.final": schedule.final if schedule else None,
        **flatten({"model.scope": plain_settings(job.model.scope)}),
        "model": hf.model_fingerprint(student, inputs.tokenizer, head=False)[:12],
    }


def read_checkpoint(
    path: str, context: Context, student: PreTrainedModel, fingerprint: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a checkpoint of the student's fit.

    Args:
        path: File of the checkpoint.
        context: The run that resumes.
        student: The student.
        fingerprint: Fingerprint of this run.

    Raises:
        CheckpointError: The file is missing, truncated, or of another run.
    """
    checkpoint = load_checkpoint(path)
    state = checkpoint.get("state_dict", {}) if isinstance(checkpoint, dict) else {}
    wanted = {f"student.{name}": tensor.shape for name, tensor in student.state_dict().items()}
    if {name: t.shape for name, t in state.items() if name.startswith("student.")} != wanted:
        raise CheckpointError(
            path,
            "not a checkpoint of this student (other weights)",
            "take the model that it was saved with, or begin again without ckpt_path",
        )
    callbacks = checkpoint.get("callbacks", {})
    pruned = bool(sparsity_state(checkpoint))
    if pruned != (context.job.sparsity is not None):
        kinds = ("dense", "pruned")
        raise CheckpointError(
            path,
            f"a checkpoint of a {kinds[pruned]} fit, and this one is {kinds[not pruned]}",
            "take the last.ckpt of a run folder",
        )
    theirs = callbacks.get("ResumePoint", {}).get("fingerprint", {})
    for name in (*fingerprint, *theirs):
        if theirs.get(name) != fingerprint.get(name):
            raise CheckpointError(
                path,
                f"a checkpoint of another run, with {name}={theirs.get(name)} where this one has "
                f"{fingerprint.get(name)}",
                "run the command that wrote it",
            )
    return dict(checkpoint)


def sparsity_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `SparsityCallback` or a subclass saved in a checkpoint; empty if nothing."""
    states = checkpoint.get("callbacks", {}).values()
    return next((s for s in states if isinstance(s, Mapping) and "pruner" in s), {})


def check_resume_step(
    context: Context, checkpoint: Mapping[str, Any], length: RunLength | None
) -> None:
    """Refuse a checkpoint from behind the end of the run that resumes it.

    The last checkpoint of a run is at its end, and the same command may resume it to repeat the
    evaluation. In a shorter run the ramp would not reach its end.

    Raises:
        CheckpointError: Nothing is left to train.
    """
    step, epoch, steps = (
        checkpoint["global_step"],
        checkpoint["epoch"],
        (length and length.steps) or math.inf,
    )
    ramp = (sparsity_state(checkpoint).get("length") or {}).get("steps")
    epochs = context.job.trainer(logger=False).max_epochs or -1
    if step > steps or 0 < epochs <= epoch or (step == steps and (ramp or steps) > steps):
        planned = f", of a run of {ramp} steps" if ramp else ""
        raise CheckpointError(
            context.job.ckpt_path,
            f"after step {step}, in epoch {epoch + 1}{planned}, which leaves nothing to train: "
            f"this run ends after step {steps}",
            "run the command that wrote it (trainer.max_epochs, trainer.max_steps), or leave "
            "ckpt_path out",
        )
