"""Run folders as the pipeline leaves them, with models of no training."""

from __future__ import annotations

import json
from pathlib import Path

from kd_prune.export.run_cards import hub_ids
from kd_prune.pruning.report import SparsityReport
from kd_prune.results import MilestoneResult, RunResult, StageResult

from .models import save_student, sparse_model

CONFIG = {
    "seed": 1,
    "task": {
        "name": "mrpc",
        "path": "nyu-mll/glue",
        "subset": "mrpc",
        "text": ["sentence1", "sentence2"],
        "label": "label",
        "validation": ["validation", "test"],
        "max_length": 16,
    },
    "model": {"path": "google-bert/bert-base-uncased", "revision": None},
    "sparsity": {
        "final": 0.9,
        "updates": 100,
        "criterion": {"_target_": "hydra.utils.get_method", "path": "kd_prune.pruning.magnitude"},
        "granularity": {
            "_target_": "hydra.utils.get_method",
            "path": "kd_prune.pruning.unstructured",
        },
        "ramp": {"_target_": "hydra.utils.get_method", "path": "kd_prune.pruning.cubic"},
    },
    "distillation": {"terms": {"soft_targets": {"weight": 1.0}, "hard_labels": {"weight": 0.0}}},
}


def make_run(out: Path, *, seed=1, accuracy=0.84, milestone=False, family="bert", **config) -> Path:
    """A finished run whose student is a sparse model; teacher 0.05 better."""
    save_student(out / "student", family)
    model = sparse_model(family)
    scope = {name for name, p in model.named_parameters() if p.ndim > 1 and (p == 0).any()}
    report = SparsityReport.count(model, scope)
    report.write_csv(out / "sparsity.csv")
    counts = {
        "sparsity": report.sparsity,
        "model_sparsity": report.model_sparsity,
        "parameters": report.parameters,
        "nonzero": report.nonzero,
        "bytes": (out / "student" / "model.safetensors").stat().st_size,
    }
    metrics = {"accuracy": accuracy, "test/matthews": accuracy - 0.3}
    better = {name: value + 0.05 for name, value in metrics.items()}
    config = json.loads(json.dumps(CONFIG)) | {"seed": seed} | config
    milestones = []
    if milestone:
        save_student(out / "milestones" / "0.5", family)
        saved = {"metrics": metrics, **counts, "sparsity": 0.5, "path": "milestones/0.5"}
        milestones.append(MilestoneResult(target=0.5, step=7, **saved))
    RunResult(
        task="mrpc",
        seed=seed,
        data="0123456789ab",
        monitor="accuracy",
        stages={
            "teacher": StageResult(metrics=better, path="cache/teacher"),
            "student": StageResult(metrics=metrics, path="student", **counts),
        },
        milestones=milestones,
        versions={"kd_prune": "0.1.0", "torch": "2.13.0"},
        config=config,
        hub_ids=hub_ids(config),
    ).write(out)
    return out
