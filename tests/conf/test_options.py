"""conf/: every file is seen, every target exists, every option composes and is built."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method, get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from kd_prune.cli.build import build
from kd_prune.cli.job import COMMAND_KEYS
from kd_prune.cli.validation import check_types
from kd_prune.distillation import Objective
from kd_prune.hf import Classification, MaskedWords, QuestionAnswering, Regression, Task, Text
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import Job
from kd_prune.pruning import Global, linear, one_shot, ramp_updates, uniform

from .files import CONF

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = sorted(
    str(file.relative_to(CONF).with_suffix("")) for file in FILES if file.parent != CONF
)
GROUPS = {"task", "model", "sparsity", "distillation", "optimizer", "trainer", "callbacks"}
GROUPS |= {"logger", "budget", "experiment", "hparams_search", "debug", "hydra", "stage"}
NEEDS_A_PACKAGE = {"logger/tensorboard", "logger/wandb", "logger/mlflow"}
# What no file can know: where a model lies, and that heads are cut by the model's size of one.
NEEDS = {
    "sparsity/granularity/heads": ["sparsity.granularity.size=16"],
    "sparsity/granularity/attention_heads": ["sparsity.granularity.size=16"],
    "sparsity/heads": ["sparsity.granularity.size=16"],
    "task/corpus": ["task.path=folder"],
    "task/corpus_words": ["task.path=folder"],
    "task/kind/question_answering": [
        "task.metrics=[f1]",
        "task.monitor=f1",
        "task.max_length=384",
    ],
    "task/kind/regression": ["task.metrics=[pearson]", "task.monitor=pearson"],
    "task/kind/language_model": ["task.text=[things]"],
    "task/kind/masked_words": ["task.text=[things]"],
    "task/kind/text": ["task.metrics=[]", "task.monitor=loss"],
    "model/pretrained": ["model.path=folder"],
}
KINDS = {"stsb": Regression, "corpus": Text, "tiny_text": Text}
KINDS |= {"corpus_words": MaskedWords, "tiny_words": MaskedWords}
KINDS |= {"squad": QuestionAnswering, "squad_v2": QuestionAnswering}
TERMS = ("embeddings", "hidden_states", "attention_scores", "soft_targets")


def composed(*overrides: str) -> DictConfig:
    """As `train.py` gets it, with a tiny task that is made fast."""
    config = compose("train", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir = "out"
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        for key in set(COMMAND_KEYS) - {"pretraining"}:  # stages refer to it
            del config[key]
    if config.task.name == "tiny":
        config.task.path.train, config.task.path.validation = 8, 4
    return config


def built(config: DictConfig) -> Job:
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return build({key: value for key, value in plain.items() if key not in COMMAND_KEYS})


def made(*overrides: str) -> Job:
    return built(composed(*overrides))


def targets(node: Any):
    """Every node with a `_target_`, at any depth."""
    if OmegaConf.is_dict(node):
        if "_target_" in node:
            yield node
        for key in node:
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from targets(node[key])
    elif OmegaConf.is_list(node):
        for item in node:
            yield from targets(item)


def bind(node: DictConfig, *, whole: bool) -> None:
    """Raise TypeError unless the target takes these arguments (`whole`: and needs no more)."""
    target = get_object(node["_target_"])
    arguments = {key: None for key in node if not key.startswith("_") and key != "defaults"}
    signature = inspect.signature(target)
    if whole and not node.get("_partial_", False):
        signature.bind(**arguments)
    else:
        signature.bind_partial(**arguments)
    if target is get_method:
        assert callable(get_object(node["path"]))


def test_every_file_is_seen():
    assert {option.split("/")[0] for option in OPTIONS} == GROUPS
    assert len(FILES) == len(OPTIONS) + 1 >= 60
    assert all(file.suffix == ".yaml" for file in CONF.rglob("*") if file.is_file())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_targets_exist_and_take_their_arguments(file):
    config = OmegaConf.load(file)
    for key in COMMAND_KEYS:
        config.pop(key, None)
    for node in targets(config):
        bind(node, whole=False)
    named = file.read_text().count("_target_:")
    assert sum(1 for _ in targets(config)) + (file.parts[-2:] == ("callbacks", "default.yaml")) == (
        named
    )


def test_a_wrong_argument_would_be_noticed():
    with pytest.raises(TypeError, match="finl"):
        bind(OmegaConf.create({"_target_": "kd_prune.lit.SparsityCallback", "finl": 1}), whole=True)
    with pytest.raises(TypeError, match="path"):
        bind(OmegaConf.create({"_target_": "kd_prune.hf.PretrainedEncoder"}), whole=True)


def test_the_base_of_tasks_names_every_field():
    base = OmegaConf.load(CONF / "task" / "base.yaml")
    of_the_option = {"_target_", "defaults"}  # and the kind is an option of a group of its own
    named = {field.name for field in dataclasses.fields(Task)} - {"kind"}
    assert base.keys() - of_the_option == named


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sparsity.updates=1.5", "sparsity.updates=1.5: expected a whole number"),
        ("sparsity.final=true", "sparsity.final=true: expected a number or null"),
        ("sparsity.milestones=0.5", "sparsity.milestones=0.5: expected a list"),
        ("sparsity.milestones=[half]", "sparsity.milestones=half: expected a number"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9: expected a list"),
        ("optimizer.lr=[1e-3]", "optimizer.lr=[0.001]: expected a number"),
        (
            "distillation.terms.hidden_states.layer_map=[1,2]",
            "layer_map=[1, 2]: expected a mapping {name: value} or null",
        ),
        ("distillation.terms.hidden_states.layer_map={a: 1}", "layer_map=a: expected a whole num"),
        (
            "distillation.terms.hidden_states.layer_map={1: b}",
            "layer_map.1=b: expected a whole num",
        ),
        ("model.scope=query", "model.scope=query: expected a Scope (_target_: …) or null"),
        ("sparsity.regrow=maybe", "sparsity.regrow=maybe: expected true or false or a RigL"),
        ("sparsity.ramp=null", "sparsity.ramp=null: expected a Callable"),
        (
            "sparsity.allocation=global",
            "expected a Callable (_target_: …); an option is chosen with a slash, "
            "sparsity/allocation=global",
        ),
        ("optimizer.lr=null", "optimizer.lr=null: expected a number"),
        ("optimizer.lr=fast", "optimizer.lr=fast: expected a number"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs=1.5: expected a whole number or null"),
        ("student.init=3", "student.init=3: expected text"),
        ("distillation.terms.soft_targets.weight=x", "terms.soft_targets.weight=x: expected a num"),
    ],
)
def test_a_value_of_another_type_is_named(override, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        check_types(OmegaConf.to_container(composed(override), resolve=True))


def sets_sparsity(experiment: str) -> bool:
    """Whether a file of an experiment has settings of the pruning."""
    return "sparsity:" in (CONF / "experiment" / f"{experiment}.yaml").read_text()


EXPERIMENTS = [o.removeprefix("experiment/") for o in OPTIONS if o.startswith("experiment/")]


@pytest.mark.parametrize("experiment", [one for one in EXPERIMENTS if sets_sparsity(one)])
def test_experiments_and_ways_of_pruning_combine_freely(experiment):
    chosen = composed(f"experiment={experiment}", "sparsity=oneshot")
    # Raises ConfigError where one sets what the other does not take.
    callback = build(OmegaConf.to_container(chosen.sparsity, resolve=True))
    assert isinstance(callback, SparsityCallback)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "task/base"])
def test_every_option_composes_and_is_made(option):
    group, _, name = option.rpartition("/")
    if option.startswith("experiment/"):  # of which there are folders, and one option is chosen
        group, _, name = option.partition("/")
    package = "+stage@stages.one" if group == "stage" else group  # only experiments choose stages
    # Those of pruning besides an experiment that brings its own; alone: test_sparsity.
    besides = ["experiment=recovery_global"] if option.startswith("sparsity/") else []
    config = composed(*besides, f"{package}={name}", *NEEDS.get(option, []))
    check_types(OmegaConf.to_container(config, resolve=True))
    nodes = [node for node in targets(config) if "pretraining" not in node]  # without the root
    assert len(nodes) >= 10
    for node in nodes:
        bind(node, whole=True)
    if option in NEEDS_A_PACKAGE:
        pytest.importorskip(name)
    job = built(config)
    assert isinstance(job, Job)
    assert isinstance(job.distillation, Objective)
    if group == "task":
        assert job.task.name == name
        assert isinstance(job.task.kind, KINDS.get(name, Classification))
        assert job.task.monitor in (*job.task.metrics, *(["loss"] if not job.task.metrics else []))
    if group == "logger":
        assert len(job.logger) == (name != "none")


def test_the_ablations_are_one_override_each():
    assert made("distillation=none").distillation.terms.keys() == {"hard_labels"}
    assert not made("distillation=none").distillation.needs_teacher
    assert made("distillation=logits").distillation.terms.keys() == {"soft_targets"}
    assert made().distillation.terms.keys() == set(TERMS)
    for term in TERMS:
        left = made(f"distillation.terms.{term}.weight=0").distillation.terms.keys()
        assert left == set(TERMS) - {term}
    assert made("student.init=teacher").student.init == "teacher"


def test_the_ablations_of_pruning():
    default = made().sparsity
    assert (default.schedule.final, default.arguments()["updates"]) == (0.95, 100)
    assert made("sparsity=linear").sparsity.schedule.ramp(0.5) == linear(0.5)
    assert default.schedule.ramp(0.5) == 0.875
    oneshot = made("sparsity=oneshot").sparsity
    assert oneshot.schedule.ramp(0.0) == one_shot(0.0)
    assert list(ramp_updates(oneshot.schedule, total_steps=1000).values()) == [0.95]
    assert isinstance(instantiate(composed("sparsity=global").sparsity.allocation), Global)
    assert instantiate(composed().sparsity.allocation) is uniform


def budget(*overrides: str) -> dict[str, Any]:
    """Epochs and optimizers, as composed."""
    config = composed(*overrides)
    optimizers = {"student": config.optimizer, "teacher": config.teacher.optimizer}
    return {
        "epochs": (config.teacher.max_epochs, config.trainer.max_epochs),
        **{role: (chosen.lr, chosen.warmup) for role, chosen in optimizers.items()},
    }


FOR_RANDOM_WEIGHTS = {"epochs": (6, 6), "student": (2e-3, 0.1), "teacher": (2e-3, 0.1)}
FOR_PRETRAINED = {"epochs": (3, 3), "student": (3e-5, 0.0), "teacher": (3e-5, 0.0)}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], FOR_RANDOM_WEIGHTS),
        (["sparsity.final=0.9"], FOR_RANDOM_WEIGHTS),
        (["model=tiny", "task=mrpc"], FOR_RANDOM_WEIGHTS),
        (["model=minilm", "task=mrpc"], FOR_PRETRAINED),
        (["model=bert_base", "task=stsb"], FOR_PRETRAINED),
        (["model=pretrained", "model.path=folder"], FOR_PRETRAINED),
        (["optimizer.lr=1e-3"], FOR_RANDOM_WEIGHTS | {"student": (1e-3, 0.1)}),
        (["experiment=smoke"], FOR_RANDOM_WEIGHTS | {"epochs": (3, 5)}),
        (
            ["experiment=recovery_global", "model=minilm", "task=mrpc"],
            {"epochs": (5, 8), "student": (2e-3, 0.05), "teacher": (1e-4, 0.0)},
        ),
        (
            ["experiment=sparsebert_mrpc"],
            {"epochs": (3, 12), "student": (3e-5, 0.0), "teacher": (3e-5, 0.0)},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_budget_of_a_command(overrides, expected):
    """A model made of random weights has a budget of its own; an experiment changes either."""
    assert budget(*overrides) == expected


def test_groups_change_only_their_own_settings():
    """Neither a task nor a model sets a learning rate or a number of epochs."""
    for group in ("task", "model"):
        for file in (CONF / group).glob("*.yaml"):
            assert "@package _global_" not in file.read_text(), file


def test_a_job_shares_nothing_with_the_next():
    """A sweep makes its jobs in one process."""
    one, other = made(), made()
    assert one.sparsity is not other.sparsity
    assert one.distillation is not other.distillation
