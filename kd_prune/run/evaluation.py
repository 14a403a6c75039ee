"""Evaluation of a model that is there already: ``python train.py eval=<folder>``."""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.hf import models
from kd_prune.pruning import SparsityReport
from kd_prune.run.fit import evaluate, on_one_device
from kd_prune.run.job import Job, cache_folder
from kd_prune.run.outcome import write_json
from kd_prune.run.teacher import fine_tuned_config, load_fine_tuned, model_folder


def evaluate_saved(job: Job, path: str) -> dict[str, Any]:
    """Judge a fine-tuned model on the job's task; leave ``evaluation.json`` in the run folder.

    Args:
        job: Its task, metrics and trainer count; nothing is trained.
        path: A run folder, a Hugging Face folder or a hub id.

    Returns:
        `task`, `path`, `student` with its metrics, `sparsity` and `model_sparsity` as counted,
        `parameters` and `nonzero`. In scope is what was in the run that the model is of, of others
        the encoder's Linear weights; `sparsity` is None where its layers are not found.

    Raises:
        ValueError: It cannot be loaded, or does not fit the task.
    """
    path = model_folder(path)
    fine_tuned_config("eval", path)
    tokenizer = hf.Pretrained(path=path).tokenizer(key="eval")
    data = hf.load(job.task, tokenizer, cache_folder(job.cache_dir))
    model = load_fine_tuned("eval", path, data)
    metrics = evaluate(on_one_device(job), data, tokenizer, model, role="model")
    what, scope = counted_scope(path, model)
    report = SparsityReport.count(model, scope)
    result = {
        "task": job.task.name,
        "path": path,
        "student": metrics,
        "sparsity": report.sparsity if scope else None,
        "model_sparsity": report.model_sparsity,
        "parameters": report.parameters,
        "nonzero": report.nonzero,
    }
    job.out.mkdir(parents=True, exist_ok=True)
    write_json(result, job.out / "evaluation.json")
    table = Table(title=f"{path} on {job.task.name}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{100 * value:.1f}")
    table.add_section()
    if scope:
        table.add_row(f"sparsity {what}", f"{100 * report.sparsity:.2f} %")
    table.add_row("sparsity of the model", f"{100 * report.model_sparsity:.2f} %")
    table.add_row("non-zero weights", f"{report.nonzero:,} of {report.parameters:,}")
    Console().print(table)
    return result


def run_of(path: Path) -> Path:
    """The run folder of a saved student, ``<run>/student`` or ``<run>/milestones/0.5``, or itself.

    >>> run_of(Path("/runs/a/milestones/0.5")) == run_of(Path("/runs/a/student"))
    True
    """
    path = path.expanduser().resolve()
    if path.name == "student":
        return path.parent
    return path.parent.parent if path.parent.name == "milestones" else path


def counted_scope(path: str, model: PreTrainedModel) -> tuple[str, set[str]]:
    """What of a model is counted as in scope, in words and by name; nothing where it is unknown."""
    scope = recorded_scope(run_of(Path(path)) / "sparsity.csv")
    if scope and scope <= {name for name, _ in model.named_parameters()}:
        return "in scope", scope
    with suppress(ValueError):  # a family whose layers are not found
        return "of the encoder", set(models.encoder_scope(model).select(model))
    return "in scope", set()


def recorded_scope(path: Path) -> set[str]:
    """Names of what was in scope in a finished run; empty where there is no such record."""
    try:
        with path.open(newline="") as rows:
            return {row["name"] for row in csv.DictReader(rows) if row["in_scope"] == "True"}
    except (OSError, KeyError, ValueError, csv.Error):
        return set()
