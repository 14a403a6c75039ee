"""What the README tells people to type works as it stands."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from lightning.pytorch import Trainer

from kd_prune.distillation import Activations, Objective
from kd_prune.hf import Pretrained, Task, load
from kd_prune.hf.tiny import make_model
from kd_prune.lit import SparsityCallback
from kd_prune.run import Job
from train import make_job

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands():
    """Every ``python train.py …`` and ``make …`` in the README, code blocks and prose alike."""
    found = re.findall(r"(?:python train\.py|make) [^`#\n]*", README)
    return sorted({command.strip() for command in found})


def overrides():
    """Every override named in the tables and in prose."""
    return sorted(
        {
            part
            for code in re.findall(r"`([^`\n]+)`", README)
            for part in code.split()
            if re.fullmatch(r"(sparsity|distillation|student|trainer)[\w.]*=[\w.,\[\]-]+", part)
        }
    )


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """Composes with the YAML files that the README shows in their places."""
    folder = tmp_path_factory.mktemp("readme")
    conf = Path(shutil.copytree(ROOT / "conf", folder / "conf"))
    (task,) = [block for block in blocks("yaml") if "name: reviews" in block]
    (conf / "task" / "reviews.yaml").write_text(task)
    (mine,) = [block for block in blocks("yaml") if "mine.score" in block]
    (conf / "experiment" / "mine.yaml").write_text(mine)

    def compose_job(words):
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            return compose("train", overrides=[*words, f"cache_dir={folder / 'cache'}"])

    return compose_job


def test_it_shows_commands_and_overrides():
    assert len(commands()) >= 5
    assert len(overrides()) >= 8


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python")])
def test_train_commands_compose(command, composed):
    words = re.sub(r"<[^>]*>", "x", command).split()[2:]
    if words[:1] != ["-m"]:
        composed(words)
        return
    parser = OverridesParser.create()
    batches = BasicSweeper.split_arguments(parser.parse_overrides(words[1:]), None)
    assert sum(map(len, batches)) > 1
    for job in batches[0]:
        composed(job)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_make_targets_exist(command):
    target = command.split()[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("override", overrides())
def test_overrides_compose_and_build(override, composed, tmp_path):
    job = make_job(composed([override]), tmp_path)
    assert isinstance(job, Job)
    assert isinstance(job.sparsity, SparsityCallback)
    assert isinstance(job.distillation, Objective)
    assert isinstance(job.trainer(logger=False, default_root_dir=tmp_path), Trainer)


def test_functions_of_ones_own_are_named_in_yaml(composed, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def score(weight): return weight.abs()\n"
        "def cosine(student, teacher, batch):\n"
        "    ours, theirs = student.hidden_states[-1], teacher.hidden_states[-1]\n"
        "    return (1 - (ours * theirs).sum(-1) / ours.norm(dim=-1) / theirs.norm(dim=-1)).mean()"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    job = make_job(composed(["experiment=mine"]), tmp_path)
    assert job.sparsity.criterion(torch.tensor([-2.0])).item() == 2.0
    same = Activations(
        logits=torch.randn(2, 2),
        hidden_states=(torch.randn(2, 4, 6),) * 3,
        attention_scores=(torch.randn(2, 1, 4, 4),) * 2,
    )
    _, losses = job.distillation(same, same, {"attention_mask": torch.ones(2, 4)})
    assert losses["cosine"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses.keys() > {"cosine", "soft_targets"}


def test_the_task_file_is_a_task(composed, tmp_path):
    (text,) = [block for block in blocks("yaml") if "name: reviews" in block]
    assert len(text.splitlines()) <= 9
    config = composed(["task=reviews", "model=distilbert"])
    task = instantiate(config.task, _convert_="all")
    assert isinstance(task, Task)
    for split, stars in (("train", [5, 1, 3]), ("validation", [2, 4])):
        rows = "".join(f"fox,the old fox,{star}\n" for star in stars)
        (tmp_path / f"{split}.csv").write_text(f"title,body,stars\n{rows}")
    tokenizer = Pretrained(path=make_model(str(tmp_path))).tokenizer()
    data = load(replace(task, path=str(tmp_path)), tokenizer, tmp_path / "cache")
    assert [list(split["labels"]) for split in data.splits.values()] == [[4, 0, 2], [1, 3]]


def test_the_ci_workflow_is_one():
    (text,) = [block for block in blocks("yaml") if "runs-on" in block]
    assert yaml.safe_load(text)["jobs"]["smoke"]["steps"][-1] == {"run": "make smoke"}


def test_the_callback_example_runs():
    (code,) = blocks("python")
    names = {}
    exec(code, names)  # noqa: S102 - our own README
    assert isinstance(names["callback"], SparsityCallback)
    assert names["trainer"].max_epochs == 10
