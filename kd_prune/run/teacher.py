"""The teacher: loaded, found again, or fine-tuned once for all runs that share it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from filelock import FileLock
from filelock import Timeout as LockTaken
from lightning.fabric.plugins import ClusterEnvironment
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.hf import models
from kd_prune.lit import ResumePoint
from kd_prune.run.checkpoint import if_whole
from kd_prune.run.fit import evaluate, make_module, make_trainer, train
from kd_prune.run.job import Job
from kd_prune.run.outcome import versions, write_json

log = logging.getLogger(__name__)


def obtain_teacher(
    job: Job, data: hf.TaskData, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The teacher and its metrics: loaded, found again, or fine-tuned under a lock."""
    if job.teacher.path:
        model = load_fine_tuned("teacher.path", job.teacher.path, data)
        return model, {
            **evaluate(job, data, tokenizer, model, role="teacher"),
            "path": job.teacher.path,
        }
    if job.teacher.batch_size:
        job = replace(job, task=replace(job.task, batch_size=job.teacher.batch_size))
    L.seed_everything(job.seed, verbose=False)
    model = job.model.load(num_labels=data.num_labels)
    key = teacher_key(job, data, models.fingerprint(model, tokenizer))
    folder = cache / "teachers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.with_suffix(".lock")):
        if found := teacher_if_whole(folder, data):
            return found
        fine_tune(job, data, tokenizer, model, folder)
        return read_teacher(folder, data)


def read_teacher(folder: Path, data: hf.TaskData) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A teacher of the cache and its metrics.

    Raises:
        ValueError: It is missing or damaged.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    model = hf.Pretrained(path=str(folder)).load(
        num_labels=data.num_labels, head=True, key="teacher"
    )
    return model, {**metrics, "path": str(folder)}


def teacher_if_whole(
    folder: Path, data: hf.TaskData
) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """A teacher of the cache, if there is one that can be read; one that cannot is named."""
    if not (folder / "metrics.json").is_file():
        return None
    try:
        with torch.random.fork_rng(devices=[]):  # or the one made anew would be another
            return read_teacher(folder, data)
    except ValueError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        log.warning("%s: a damaged teacher, fine-tuned anew (%s)", folder, reason)
        return None


def model_folder(path: str) -> str:
    """Where the model is: of a run folder its student, else `path` itself."""
    student = Path(path).expanduser() / "student"
    return str(student) if student.is_dir() else models.folder_or_id(path)


def fine_tuned_config(key: str, path: str) -> Any:
    """The configuration of a model that was fine-tuned; `key` is the option that named it.

    Raises:
        ValueError: It cannot be reached or was not fine-tuned; it would be given a random head.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise models.unreachable(key, path, error) from error
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        raise ValueError(
            f"{key}={path}: {', '.join(config.architectures or ['it'])} has no "
            f"classification head; fine-tune it on the task, or set {key}=null"
        )
    return config


def load_fine_tuned(key: str, path: str, data: hf.TaskData) -> PreTrainedModel:
    """A model that was fine-tuned on the task; `key` is the option that named it.

    Raises:
        ValueError: As in `fine_tuned_config`, or it was fine-tuned on other labels.
    """
    config = fine_tuned_config(key, path)
    if config.num_labels != data.num_labels:
        raise ValueError(
            f"{key}={path}: the model has {config.num_labels} labels, the task "
            f"{data.num_labels}; take one that was fine-tuned on this task"
        )
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    ours, theirs = ([name.strip().casefold() for name in one] for one in (data.labels, names))
    if set(theirs) == set(ours) and theirs != ours:
        raise ValueError(
            f"{key}={path}: the model's labels are in the order {names[:5]}, the task's "
            f"in the order {list(data.labels)[:5]}; set task.labels to the model's"
        )
    return hf.Pretrained(path=path).load(num_labels=data.num_labels, head=True, key=key)


def teacher_reads_segments(job: Job) -> bool:
    """Whether a teacher that is not fine-tuned here is used to ``token_type_ids``.

    Raises:
        ValueError: As in `fine_tuned_config`.
    """
    if not job.teacher.path:
        return False
    config = fine_tuned_config("teacher.path", job.teacher.path)
    try:
        tokenizer = hf.Pretrained(path=job.teacher.path).tokenizer()
    except ValueError:  # saved without it
        return bool(getattr(config, "type_vocab_size", 0) > 1)
    return models.SEGMENTS in tokenizer.model_input_names


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a file lock, saying so where another process has it; a dead process holds none."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except LockTaken:
        print("Another run is fine-tuning this teacher; waiting for it.", flush=True)
        lock.acquire()
    with lock:
        lock.release()
        yield


# Settings of the trainer that are the student's alone: a teacher has its own, and one process.
# Plugins are only where there are several (`on_one_device`): see `plugins`.
OF_THE_STUDENT = (
    "max_epochs",
    "max_steps",
    "max_time",
    "devices",
    "num_nodes",
    "strategy",
    "plugins",
)


def teacher_key(job: Job, data: hf.TaskData, model: str) -> str:
    """Hash of everything that a fine-tuned teacher depends on."""
    trainer = job.config.get("trainer") or getattr(job.trainer, "keywords", {})
    depends = {
        "data": data.fingerprint,
        "model": model,
        "max_epochs": job.teacher.max_epochs,
        "optimizer": repr(job.teacher.optimizer),
        "batch": (job.task.batch_size, job.task.pad_to),
        "trainer": {k: plain(v) for k, v in trainer.items() if k not in OF_THE_STUDENT},
        "metrics": list(job.task.metrics),
        "seed": job.seed,
        "versions": versions(),
        **({"plugins": used} if (used := plugins(job)) else {}),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def plain(setting: Any) -> Any:
    """A setting as JSON has it; of an object its class, which is the same in every process."""
    try:
        return json.loads(json.dumps(setting))
    except TypeError:
        return type(setting).__qualname__


def plugins(job: Job) -> list[Any]:
    """What a teacher's fit is plugged together with; where its process comes from is no matter."""
    given = getattr(job.trainer, "keywords", {}).get("plugins") or []
    given = given if isinstance(given, (list, tuple)) else [given]
    return [held(plugin) for plugin in given if not isinstance(plugin, ClusterEnvironment)]


def held(value: Any, within: tuple[Any, ...] = ()) -> Any:
    """A value as JSON has it; of an object its class and its settings, the same in every process.

    What use leaves in an object is no setting: tensors, and states by the id of something.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if any(value is outer for outer in within):
        return name
    within = (*within, value)
    if isinstance(value, (list, tuple)):
        return [held(inner, within) for inner in value]
    if isinstance(value, (type, torch.Tensor)):
        return name
    own = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    kept = {
        key: held(inner, within)
        for key, inner in own.items()
        if isinstance(key, str) and inner is not None and not isinstance(inner, torch.Tensor)
    }
    return [name, kept] if kept else name


def fine_tune(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    folder: Path,
) -> None:
    """Fine-tune `model` on the task and leave it in `folder`; goes on where it was interrupted."""
    module = make_module(job, data, model.train(), optimizer=job.teacher.optimizer)
    resume = folder.with_suffix(".ckpt")
    trainer = make_trainer(
        job,
        [ResumePoint(resume, job.checkpoint_minutes)],
        logger=False,
        max_epochs=job.teacher.max_epochs,
        max_steps=-1,
        max_time=None,
    )
    print(f"Fine-tuning the teacher on {job.task.name} ({folder.name})", flush=True)
    train(
        trainer,
        module,
        *hf.loaders(job.task, data, tokenizer, seed=job.seed),
        stage="the teacher",
        key="teacher.optimizer",
        saved=resume,
        going_on=if_whole(resume),
    )
    hf.save(model, tokenizer, folder, data.labels)
    write_json(evaluate(job, data, tokenizer, model, role="teacher"), folder / "metrics.json")
    resume.unlink(missing_ok=True)
