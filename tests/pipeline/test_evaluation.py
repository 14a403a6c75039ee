"""Evaluation of saved models: metrics and counted zeros, in process and tiny."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from kd_prune.errors import ConfigError
from kd_prune.pipeline import Stage, evaluate_saved, run
from kd_prune.pipeline.stage_cache import obtain_stage
from kd_prune.pruning import Scope

from .jobs import loaded_context, milestone_sparsity, trainer


@pytest.fixture(scope="module")
def queries_alone(make_job, tmp_path_factory):
    """A finished run with two milestones that pruned the queries alone; a job that judges it."""
    folder = tmp_path_factory.mktemp("queries")
    scope = Scope(include=["*.query.weight"])
    job = make_job(folder / "run", sparsity=milestone_sparsity(scope=scope))
    return job.out, run(job), dataclasses.replace(job, out=folder / "judged")


def test_evaluation_of_a_run_counts_the_scope_that_it_recorded(queries_alone, capsys):
    out, result, judge = queries_alone
    found = evaluate_saved(judge, str(out))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].strip() == f"{out.name}/student on tiny"
    assert printed[-1] == f"Results: {judge.out / 'evaluation.json'}"
    assert found.sparsity == result.student.sparsity == pytest.approx(0.9, abs=1e-2)
    assert found.metrics == result.student.metrics
    assert (found.nonzero, found.bytes) == (result.student.nonzero, result.student.bytes)
    assert found.path == str(out / "student")
    stored = json.loads((judge.out / "evaluation.json").read_text())
    assert stored == {"task": "tiny", **dataclasses.asdict(found)}


def test_evaluation_of_a_milestone_counts_the_scope_of_its_run(queries_alone):
    out, _, judge = queries_alone
    found = evaluate_saved(judge, str(out / "milestones/0.4"))
    assert found.sparsity == pytest.approx(0.4, abs=1e-2)


def test_evaluation_of_another_model_counts_the_encoders_matrices(queries_alone, tmp_path):
    out, result, judge = queries_alone
    shutil.copytree(out / "student", tmp_path / "elsewhere/model")
    found = evaluate_saved(judge, str(tmp_path / "elsewhere/model"))
    assert 0 < found.sparsity < 0.2
    assert found.model_sparsity == result.student.model_sparsity


def test_evaluation_of_a_family_whose_layers_are_not_found_shows_the_model_alone(
    done, make_job, tmp_path, capsys
):
    folder = tmp_path / "albert"
    tokenizer = AutoTokenizer.from_pretrained(done.job.model.path)
    sizes = {"hidden_size": 16, "embedding_size": 16, "intermediate_size": 32}
    config = AlbertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, num_attention_heads=2, num_labels=8, **sizes
    )
    AlbertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = evaluate_saved(make_job(tmp_path / "out"), str(folder))
    assert 0 < found.model_sparsity < 0.1
    table = capsys.readouterr().out
    assert "sparsity of the model" in table
    assert "sparsity of the encoder" not in table
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["sparsity"] is None


@pytest.mark.parametrize("learnt", [False, True])
def test_model_that_gives_every_row_the_same_class_is_named(
    done, make_job, tmp_path, caplog, learnt
):
    model = AutoModelForSequenceClassification.from_pretrained(done.result.teacher.path)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1e4] + [0.0] * 7) if not learnt else 0.0)
    if learnt:  # two classes at least, whatever the rows
        torch.nn.init.normal_(model.classifier.weight, std=10.0)
    folder = tmp_path / "teacher"
    shutil.copytree(done.result.teacher.path, folder)
    model.save_pretrained(folder)
    context = loaded_context(make_job(tmp_path / "run", teacher=Stage(path=str(folder))))
    obtain_stage(context, context.chain["teacher"])
    said = "On validation, the teacher gives every row the same class, animal: it learnt nothing"
    assert (said in caplog.text) == (not learnt)


def test_evaluation_reads_all_rows_whatever_the_fit_reads(queries_alone, make_job, tmp_path):
    out, result, _ = queries_alone
    for limits in ({"limit_val_batches": 1}, {"overfit_batches": 1}):
        job = make_job(tmp_path / "judged", trainer=trainer(**limits))
        assert evaluate_saved(job, str(out)).metrics == result.student.metrics


def test_evaluation_of_rows_that_are_too_long_is_refused(queries_alone, tmp_path):
    out, _, judge = queries_alone
    short = tmp_path / "model"
    shutil.copytree(out / "student", short)
    model = AutoModelForSequenceClassification.from_pretrained(short)
    positions = model.bert.embeddings.position_embeddings
    positions.weight = torch.nn.Parameter(positions.weight[:4].clone())
    model.config.max_position_embeddings = 4
    model.save_pretrained(short)
    with pytest.raises(ConfigError, match=r"task\.max_length=\d+: a row of the validation split"):
        evaluate_saved(judge, str(short))


def test_evaluation_names_the_key_of_an_unknown_metric(queries_alone):
    out, _, judge = queries_alone
    task = dataclasses.replace(judge.task, metrics=["f1"], monitor="f1")
    with pytest.raises(ConfigError, match=r"^task\.metrics=f1: "):
        evaluate_saved(dataclasses.replace(judge, task=task), str(out))


def test_names_with_brackets_are_printed_as_they_are(queries_alone, tmp_path, capsys):
    out, _, judge = queries_alone
    task = dataclasses.replace(judge.task, name="tiny [v2]")
    judge = dataclasses.replace(judge, task=task, out=tmp_path / "a [b]" / "[x] c")
    evaluate_saved(judge, str(out))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == f"{out.name}/student on tiny [v2]"
    assert lines[-1] == f"Results: {tmp_path}/a [b]/[x] c/evaluation.json"


def test_evaluation_needs_no_training_rows(queries_alone, tmp_path):
    """The classes are the model's then."""
    out, result, judge = queries_alone
    rows = tmp_path / "rows"
    rows.mkdir()
    shutil.copy(Path(judge.task.path) / "validation.jsonl", rows)
    judge = dataclasses.replace(judge, task=dataclasses.replace(judge.task, path=str(rows)))
    assert evaluate_saved(judge, str(out)).metrics == result.student.metrics
    (rows / "validation.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"^task\.path=.*found no train\.parquet"):
        evaluate_saved(judge, str(out))
