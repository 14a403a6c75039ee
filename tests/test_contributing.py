"""The recipes of CONTRIBUTING.md: files are written, imported and composed as they are printed."""

from __future__ import annotations

import importlib
import re

import pages
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file

from kd_prune.cli.job import make_job
from kd_prune.distillation import Activations
from kd_prune.hf import Task
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import run
from kd_prune.pruning import Pruner, Schedule

PAGE = "CONTRIBUTING.md"
COMMANDS = [c for c in pages.commands(PAGE) if c.startswith("kd-prune train --config-dir my_conf")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with every file that the recipes print."""
    folder = tmp_path_factory.mktemp("contributing")
    for language in ("python", "yaml"):
        for block in pages.blocks(PAGE, language):
            name = re.match(r"(?:# @package \S+\n)?# (\S+\.(?:py|yaml))\n", block)
            assert name, f"a block without a file name:\n{block}"
            path = folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    return folder


@pytest.fixture
def importable(project, monkeypatch):
    monkeypatch.syspath_prepend(str(project))
    return importlib.import_module


@pytest.fixture
def composed(project, importable):
    """Compose a command's job."""

    def compose_job(command):
        words = [w for w in pages.words(command)[2:] if w not in ("--config-dir", "my_conf")]
        own = [f"hydra.searchpath=[file://{project / 'my_conf'}]", f"cache_dir={project / 'cache'}"]
        with initialize_config_dir(version_base="1.3", config_dir=str(pages.ROOT / "conf")):
            return compose("train", overrides=[*words, *own])

    return compose_job


@pytest.fixture
def activations():
    torch.manual_seed(0)
    return [
        Activations(
            logits=torch.randn(2, 1, requires_grad=True),
            hidden_states=tuple(torch.randn(2, 4, 64) for _ in range(3)),
            attention_scores=tuple(torch.randn(2, 4, 4, 4) for _ in range(2)),
        )
        for _ in range(2)
    ]


def test_every_recipe_has_a_command():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_recipe_builds_a_job(command, composed, tmp_path):
    job = make_job(composed(command), tmp_path)
    assert isinstance(job.sparsity, SparsityCallback)


def test_criterion_without_state_ranks_within_rows(importable):
    criterion = importable("my_criteria").relative_magnitude
    score = criterion(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    assert score.tolist() == [[0.5, 1.0], [0.0, 0.0]]


def test_criterion_with_state_prunes_a_model(importable):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    pruner = Pruner(
        {"weight": model.weight},
        Schedule(final=0.5),
        total_steps=4,
        criterion=importable("my_criteria").MeanGradient(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    for _ in range(4):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (model.weight == 0).sum() == 32


def test_loss_without_parameters_is_zero_for_equal_states(importable, activations):
    batch = {"attention_mask": torch.ones(2, 4)}
    student, teacher = activations
    cosine = importable("my_losses").cosine
    assert cosine(student, student, batch).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine(student, teacher, batch).item() > 0.1


def test_loss_with_parameters_is_registered_and_trains(composed, activations):
    (command,) = [c for c in COMMANDS if c.endswith("distillation=with_my_losses")]
    objective = instantiate(composed(command).distillation, _convert_="all")
    names = [name for name, _ in objective.named_parameters()]
    assert [name.rpartition(".")[2] for name in names] == ["weight", "bias"]
    total, losses = objective(*activations, {"attention_mask": torch.ones(2, 4)})
    total.backward()
    assert {"cosine", "mapped_state"} < set(losses)
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_task_kind_predicts_probabilities(composed, importable, activations):
    (command,) = [c for c in COMMANDS if "task=toxicity" in c]
    task = instantiate(composed(command).task, _convert_="all")
    assert isinstance(task, Task)
    assert isinstance(task.kind, importable("my_kinds").Probability)
    batch = {"labels": torch.tensor([0.2, 0.9])}
    predictions, targets = task.kind.predict(activations[0], batch)
    assert ((predictions > 0) & (predictions < 1)).all()
    assert torch.equal(targets, batch["labels"])
    assert task.kind.hard_label_loss(activations[0], batch).shape == ()


def test_recipes_together_run_to_a_report(composed, tmp_path):
    """A criterion, a term with parameters and a stage of one's own in one job."""
    small = "task.path.train=256 task.path.validation=64 trainer.max_epochs=1 teacher.max_epochs=1"
    job = make_job(
        composed(
            "kd-prune train experiment=assistant distillation=with_my_losses sparsity.updates=2 "
            f"sparsity/criterion=mean_gradient stages.assistant.max_epochs=1 {small}"
        ),
        tmp_path,
    )
    result = run(job)
    assert list(result.stages) == ["teacher", "assistant", "student"]
    assert result.student.sparsity == pytest.approx(0.95, abs=1e-4)
    saved = load_file(tmp_path / "student" / "model.safetensors")
    assert not [name for name in saved if "map" in name]


def test_make_targets_of_the_checks_are_listed():
    makefile = (pages.ROOT / "Makefile").read_text()
    for target in ("lint", "types", "test", "smoke", "faults", "mutants"):
        assert f"`make {target}`" in pages.PAGES[PAGE]
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
