"""Evaluation of a model that is there already: ``python train.py eval=<folder>``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kd_prune import hf
from kd_prune.hf import models
from kd_prune.pruning import SparsityReport
from kd_prune.run.fit import evaluate, on_one_device
from kd_prune.run.job import Job
from kd_prune.run.outcome import write_json
from kd_prune.run.teacher import fine_tuned_config, load_fine_tuned


def evaluate_saved(job: Job, path: str) -> dict[str, Any]:
    """Judge a fine-tuned model on the job's task; leave ``evaluation.json`` in the run folder.

    Args:
        job: Its task, metrics and trainer count; nothing is trained.
        path: A run folder, a Hugging Face folder or a hub id.

    Returns:
        `task`, `path`, `student` with its metrics, `sparsity` of the encoder's Linear weights and
        `model_sparsity` as counted, `parameters` and `nonzero`.

    Raises:
        ValueError: It cannot be loaded, or does not fit the task.
    """
    if (Path(path) / "student").is_dir():
        path = str(Path(path) / "student")
    fine_tuned_config("eval", path)
    tokenizer = hf.Pretrained(path=path).tokenizer(key="eval")
    data = hf.load(job.task, tokenizer, Path(job.cache_dir).expanduser())
    model = load_fine_tuned("eval", path, data)
    metrics = evaluate(on_one_device(job), data, tokenizer, model)
    report = SparsityReport.count(model, set(models.encoder_scope(model).select(model)))
    result = {
        "task": job.task.name,
        "path": path,
        "student": metrics,
        "sparsity": report.sparsity,
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
    table.add_row("sparsity of the encoder", f"{100 * report.sparsity:.2f} %")
    table.add_row("sparsity of the model", f"{100 * report.model_sparsity:.2f} %")
    table.add_row("non-zero weights", f"{report.nonzero:,} of {report.parameters:,}")
    Console().print(table)
    return result
