"""Evaluation of an existing model, ``kd-prune eval <folder>``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedConfig

from kd_prune import hf
from kd_prune.errors import key_prefix
from kd_prune.json_schema import write_json
from kd_prune.pipeline.context import GivenModel, Inputs
from kd_prune.pipeline.evaluation import evaluate, model_result
from kd_prune.pipeline.job import Job, cache_folder
from kd_prune.pipeline.models import label_names, load_fine_tuned
from kd_prune.pipeline.preflight import check_lengths, check_student_task
from kd_prune.pipeline.reporting import metric_text, print_place
from kd_prune.pipeline.stage import STUDENT
from kd_prune.results import ModelResult, recorded_scope, run_of


def evaluate_saved(job: Job, path: str) -> ModelResult:
    """Evaluate a fine-tuned model on the job's task; write ``evaluation.json`` to the run folder.

    The scope is that of the run that saved the model; for other models, the encoder's Linear
    weights.

    Args:
        job: The job, for its task and trainer; nothing is trained.
        path: A run folder, a Hugging Face folder or a hub id.

    Raises:
        ConfigError: The model cannot be loaded, or does not fit the task.
    """
    job = replace(job, task=job.task.labelled_only())
    given, task, stage = GivenModel.of(path, "eval"), job.task, job.chain()[STUDENT]
    path = given.path
    check_student_task(task)
    encoder = hf.PretrainedEncoder(path=path)
    config = encoder.fine_tuned_config(task.kind, "eval")
    tokenizer = encoder.tokenizer(key="eval")
    with key_prefix("task"):
        try:
            data = hf.load_data(task, tokenizer, cache_folder(job.cache_dir))
        except hf.MissingSplitError as error:
            task = without_training_rows(task, config)
            job = replace(job, task=task)
            stage = job.chain()[STUDENT]
            try:
                data = hf.load_data(task, tokenizer, cache_folder(job.cache_dir))
            except hf.MissingSplitError:  # it was a split for validation that is missing
                raise error from None
    model = load_fine_tuned(given, task, data)
    with key_prefix("task"):
        task.kind.metric_collection(task.metrics, data.num_outputs)
        read = {split: data.splits[split] for split in task.validation}
        check_lengths(task, replace(data, splits=read), hf.max_positions(model))
    metrics = evaluate(job, stage, Inputs(tokenizer, data), model, role="model")
    recorded = recorded_scope(run_of(Path(path)))
    from_run = bool(recorded) and recorded <= {name for name, _ in model.named_parameters()}
    scope = recorded if from_run else hf.encoder_weights(model)
    result = model_result(model, scope, metrics, path, path)
    job.out.mkdir(parents=True, exist_ok=True)
    record = {"task": task.name, **asdict(result)}
    if not scope:
        record["sparsity"] = None  # without a known scope there is no sparsity in scope
    write_json(record, job.out / "evaluation.json")
    title = f"{'/'.join(Path(path).parts[-2:])} on {task.name}"
    table = Table(title=escape(title), min_width=len(title), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in metrics.items():
        table.add_row(name, metric_text(name, value))
    table.add_section()
    if scope:
        what = "in scope" if from_run else "of the encoder"
        table.add_row(f"sparsity {what}", f"{100 * result.sparsity:.2f} %")
    table.add_row("sparsity of the model", f"{100 * result.model_sparsity:.2f} %")
    table.add_row("non-zero weights", f"{result.nonzero:,} of {result.parameters:,}")
    console = Console()
    console.print(table)
    print_place(job.out / "evaluation.json", console)
    return result


def without_training_rows(task: hf.Task, config: PreTrainedConfig) -> hf.Task:
    """Return a task of validation rows alone; its classes are the model's, if it does not name any.

    Args:
        task: The task.
        config: The model's.
    """
    labels = task.labels
    if labels is None and isinstance(task.kind, hf.Classification):
        labels = label_names(config)
    return replace(task, train=task.validation[0], labels=labels)
