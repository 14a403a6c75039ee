"""Model cards: what result.json says, over seeds, with metadata that huggingface_hub takes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from kd_prune.errors import ConfigError
from kd_prune.export.folders import Export, export
from kd_prune.export.run_cards import write_cards
from kd_prune.export.source import Source
from kd_prune.results import RunResult

from .models import save_student
from .runs import CONFIG, make_run


def card_of(folder):
    return ModelCard.load(folder / "README.md")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", milestone=True)


def test_card_of_a_student_states_the_facts_of_its_result(run):
    result = RunResult.read(run)
    write_cards(result, run)
    card = card_of(run / "student")
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.pipeline_tag == "text-classification"
    assert {"pruned", "sparse", "kd_prune"} <= set(card.data.tags)
    found = {r.dataset_split: (r.metric_type, r.metric_value) for r in card.data.eval_results}
    assert found == {
        "validation": ("accuracy", 0.84),
        "test": ("matthews_correlation", 0.54),
    }
    assert {r.dataset_config for r in card.data.eval_results} == {"mrpc"}
    text = card.text
    assert f"{100 * result.student.sparsity:.2f} %" in text
    assert f"{100 * result.student.model_sparsity:.2f} %" in text
    assert f"{result.student.nonzero:,} of {result.student.parameters:,}" in text
    assert "| accuracy | 89.0 | 84.0 | -5.0 |" in text
    assert "`0123456789ab`" in text
    assert "single weights (unstructured)" in text
    assert "hard_labels" not in text  # its weight is 0
    assert "kd_prune need not be installed" in text


def test_card_of_a_milestone_states_its_own_figures(run):
    write_cards(RunResult.read(run), run)
    assert "| sparsity of the weights in scope | 50.00 % |" in card_of(run / "milestones/0.5").text


def test_card_over_seeds_states_mean_and_deviation(run, tmp_path):
    others = [
        str(make_run(tmp_path / f"run{seed}", seed=seed, accuracy=value))
        for seed, value in ((2, 0.80), (3, 0.88))
    ]
    source = Source.find(str(run), others)
    export(source, Export(form="fp16"), tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert "| accuracy | 89.0±4.0 | 84.0±4.0 | -5.0±0.0 |" in card.text
    assert "3 seeds (1, 2, 3)" in card.text
    assert "this model is the one of seed 1" in card.text
    (accuracy,) = [r for r in card.data.eval_results if r.metric_type == "accuracy"]
    assert accuracy.metric_value == pytest.approx(0.84)
    assert accuracy.metric_name == "accuracy, mean of 3 seeds"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "a run of seed 1 is among them already"),
        ({"seed": 2, "sparsity": {"final": 0.5}}, "another sparsity"),
        ({"seed": 2, "model": {"path": "other"}}, "another model.path"),
        ({"seed": 2, "distillation": {}}, "another distillation"),
        ({"seed": 2, "sparsity": {**CONFIG["sparsity"], "updates": 9}}, "another sparsity.updates"),
        ({"seed": 2, "optimizer": {"lr": 1.0}}, "another optimizer"),
    ],
)
def test_run_of_another_job_is_no_other_seed(change, message, run, tmp_path):
    other = make_run(tmp_path / "other", **change)
    with pytest.raises(ConfigError, match=f"^seeds=.*{message}"):
        Source.find(str(run), [str(other)])


def test_run_does_not_count_twice(run, tmp_path):
    other = str(make_run(tmp_path / "other", seed=2))
    with pytest.raises(ConfigError, match="a run of seed 2 is among them already"):
        Source.find(str(run), [other, other])


@pytest.mark.parametrize("terms", [{"soft_targets": {"weight": 1.0}}, {"hard_labels": {}}])
def test_card_says_distilled_only_of_a_model_that_learnt_from_its_teacher(terms, tmp_path):
    run = make_run(tmp_path / "run", distillation={"terms": terms})
    write_cards(RunResult.read(run), run)
    text = card_of(run / "student").text
    learnt = "soft_targets" in terms
    assert ("Pruned while it was distilled from the teacher" in text) == learnt
    assert ("sparsity, distilled from a fine-tuned teacher on mrpc" in text) == learnt
    assert ("sparsity, fine-tuned on mrpc" in text) != learnt


def test_card_of_a_student_whose_base_was_pruned_names_the_stage(tmp_path):
    blocks = {"_target_": "kd_prune.pruning.Block", "rows": 1, "columns": 4}
    stages = {"base": {"sparsity": CONFIG["sparsity"] | {"granularity": blocks}}}
    run = make_run(tmp_path / "run", stages=stages, sparsity=CONFIG["sparsity"] | {"final": None})
    write_cards(RunResult.read(run), run)
    text = card_of(run / "student").text
    assert "| pruned in the stage | base |" in text
    assert "| pattern | Block(rows=1, columns=4) |" in text
    assert "| criterion | magnitude |" in text
    assert "Pruned while" not in text


def test_card_of_a_dense_student_does_not_call_it_sparse(tmp_path):
    dense = CONFIG["sparsity"] | {"_target_": "kd_prune.pipeline.dense"}
    run = make_run(tmp_path / "run", sparsity=dense)
    result = RunResult.read(run)
    student = replace(result.student, sparsity=0.0)
    write_cards(replace(result, stages={**result.stages, "student": student}), run)
    card = card_of(run / "student")
    assert not {"pruned", "sparse"} & set(card.data.tags)
    assert "dense, distilled from a fine-tuned teacher on mrpc" in card.text
    assert "criterion" not in card.text


def test_seeds_of_a_folder_without_a_run_are_refused(run, tmp_path):
    folder = save_student(tmp_path / "model")
    with pytest.raises(ConfigError, match="is no student of a run"):
        Source.find(str(folder), [str(run)])
    with pytest.raises(ConfigError, match="name finished run folders"):
        Source.find(str(run), [str(folder)])


def test_card_of_a_model_without_a_run_has_counts_only(tmp_path):
    source = Source.find(str(save_student(tmp_path / "model")))
    export(source, Export(form="packed"), tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert card.data.to_dict().keys() == {"library_name", "tags", "pipeline_tag"}
    assert "## Evaluation" not in card.text
    assert "No measurement of this model is recorded" in card.text
    assert re.search(r"sparsity of the weights in scope \| [89]\d\.\d\d %", card.text)


def test_local_paths_are_no_ids_of_the_hub(tmp_path):
    """Nothing of this machine's folders but a last name is published."""
    task = {"name": "mrpc", "path": str(tmp_path / "data"), "text": ["a"]}
    run = make_run(tmp_path / "run", model={"path": str(tmp_path / "bert")}, task=task)
    write_cards(RunResult.read(run), run)
    card = card_of(run / "student")
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert str(tmp_path) not in card.content
    assert "`bert`, a local folder" in card.text


def test_relative_path_is_no_id_of_the_hub_in_another_folder_either(tmp_path, monkeypatch):
    (tmp_path / "models" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", model={"path": "models/bert"})
    monkeypatch.chdir(run)
    export(Source.find(str(run)), Export(form="fp16"), tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert card.data.base_model is None
    assert card.data.datasets == ["nyu-mll/glue"]


def test_metadata_are_plain_yaml(run):
    write_cards(RunResult.read(run), run)
    _, head, _ = (run / "student/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["model-index"][0]["name"] == "mrpc-bert-base-uncased-sparse87"
