"""Preflight: what cannot work is refused before anything is trained."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd_prune import hf
from kd_prune.distillation import HiddenStates, Objective
from kd_prune.errors import ConfigError
from kd_prune.hf.tiny import make_model
from kd_prune.lit import ReweightedL1, RewindCallback, SparsityCallback
from kd_prune.pipeline import Stage, evaluate_saved, run
from kd_prune.pipeline.preflight import check_stage
from kd_prune.pruning import Scope, Taylor

from .jobs import BATCH, LABELS, loaded_context


def other_teacher(done, tmp_path, **changes):
    """The teacher's folder with another config, and weights that fit it."""
    source = Path(done.result.teacher.path)
    config = AutoConfig.from_pretrained(source)
    for name, value in changes.items():
        if name not in ("words", "reads"):
            setattr(config, name, value)
    folder = tmp_path / "teacher"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words = json.loads((source / "tokenizer.json").read_text())
    if "words" in changes:
        vocabulary = words["model"]["vocab"]
        words["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    if "reads" in changes:
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return Stage(path=str(folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 200}, r"^teacher\.path=.*vocabulary is 200, the student's 119; take a"),
        ({"num_labels": 3}, r"^teacher\.path=.*has 3 labels, the task 8; take one that"),
        (
            {"id2label": dict(enumerate(["fruit", "animal", *LABELS[2:]]))},
            r"^teacher\.path=.*labels are \['fruit', 'animal'.*set task\.labels",
        ),
        (
            {"id2label": dict(enumerate(["other", *LABELS[:-1]]))},  # seven of eight names
            r"^teacher\.path=.*labels are \['other', 'animal'.*set task\.labels",
        ),
        (
            {"id2label": dict(enumerate(["FRUIT", "Animal", *LABELS[2:]]))},
            r"^teacher\.path=.*labels are \['FRUIT', 'Animal'.*set task\.labels",
        ),
        (
            {"num_hidden_layers": 1},
            r"^distillation\.terms\.hidden_states\.layer_map=null: 1 teacher.*give a layer_map",
        ),
        ({"words": "turned round"}, r"^teacher\.path=.*: the teacher's vocabulary has \d+ for '"),
        ({"reads": "capitals"}, r"^teacher\.path=.*: the teacher's tokenizer makes \[.*take a tea"),
    ],
)  # fmt: skip
def test_teacher_that_does_not_suit_the_student_is_refused(
    done, make_job, tmp_path, no_training, changes, says
):
    teacher = other_teacher(done, tmp_path, **changes)
    with pytest.raises(ConfigError, match=says):
        run(make_job(tmp_path / "out", teacher=teacher))


class PerRow(Taylor):
    """A criterion of one's own whose scores have another shape than the weight."""

    def __call__(self, weight, state):
        return state["score"].sum(-1)


class Misnamed(Taylor):
    """One that reads a state which it never made."""

    def __call__(self, weight, state):
        return state["scores"]


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        (PerRow(), r"^sparsity\.criterion=PerRow.*gives scores of shape \(16,\) for .*"),
        (Misnamed(), r"^sparsity\.criterion=Misnamed.*cannot score a weight \('scores'\)"),
    ],
)
def test_criterion_that_cannot_score_is_refused(make_job, tmp_path, no_training, criterion, says):
    sparsity = SparsityCallback(0.9, criterion=criterion)
    with pytest.raises(ConfigError, match=says):
        run(make_job(tmp_path, sparsity=sparsity))


def test_teacher_without_a_head_is_refused(done, make_job, tmp_path, no_training):
    """It would be given a random head, and the student would learn from noise."""
    model = AutoModelForSequenceClassification.from_pretrained(done.result.teacher.path)
    model.base_model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ConfigError, match=r"^teacher\.path=.*BertModel has no head for a task of"):
        run(make_job(tmp_path, teacher=Stage(path=str(tmp_path / "encoder"))))


def test_teacher_that_is_not_there_is_refused(make_job, tmp_path, no_training):
    with pytest.raises(ConfigError, match=r"^teacher\.path=.*nowhere: there is no such folder"):
        run(make_job(tmp_path, teacher=Stage(path=str(tmp_path / "nowhere"))))


@pytest.mark.parametrize("setting", ["init", "teacher"])
def test_model_that_the_student_names_and_is_not_there_is_refused(
    make_job, tmp_path, no_training, setting
):
    student = Stage(**{setting: str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=rf"^student\.{setting}=.*nowhere: there is no such fold"):
        run(make_job(tmp_path, student=student))


def test_teacher_that_the_student_names_is_refused_by_that_key(
    done, make_job, tmp_path, no_training
):
    other = other_teacher(done, tmp_path, vocab_size=200)
    with pytest.raises(ConfigError, match=r"^student\.teacher=.*vocabulary is 200"):
        run(make_job(tmp_path / "out", student=Stage(teacher=other.path)))


NOWHERE = Scope(include=["*decoder*"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"distillation": Objective({"hidden_states": HiddenStates(layer_map={1: 7})})},
            r"^distillation\.terms\.hidden_states\.layer_map=\{1: 7\}: the teacher has layers 1 …",
        ),
        (
            {"sparsity": SparsityCallback(0.5, scope=NOWHERE)},
            r"^sparsity\.scope='\*decoder\*': the pattern matches no parameter; there are for exam",
        ),
        (
            {"sparsity": SparsityCallback(0.5, begin=0.01, end=0.02)},
            r"^sparsity\.begin=0\.01: between begin and end=0\.02 lies no step of this run of 12",
        ),
        (
            {"sparsity": SparsityCallback(0.5, updates=0)},
            r"^sparsity\.updates=0: .*",
        ),
        (
            {"sparsity": SparsityCallback(0.5, name="encoder")},
            r"^sparsity\.name=encoder: a fit prunes once, without a name",
        ),
        (
            {"callbacks": {"rpp": ReweightedL1()}},
            r"^callbacks\.rpp\.name=null: its SparsityCallback prunes on the ramp itself, first at",
        ),
        (
            {"callbacks": {"rewind": RewindCallback([0.5], exclude=["*classifer*"])}},
            r"^callbacks\.rewind\.exclude: the pattern '\*classifer\*' matches no parameter",
        ),
        (
            {"trainer_settings": {"max_epochs": -1, "max_time": "00:00:01:00"}},
            r"^trainer\.max_epochs=-1: the learning rate needs a number of steps",
        ),
        (
            {"trainer_settings": {"limit_train_batches": 0.001}},
            r"^trainer\.limit_train_batches=0\.001: leaves no batch",
        ),
        ({"trainer_settings": {"max_epochs": -1}}, r"^trainer\.max_epochs=-1: a run needs an end"),
        ({"trainer_settings": {"max_epochs": 0}}, r"^trainer\.max_epochs=0: expected a number a"),
        (
            {"trainer_settings": {"val_check_interval": 50}},
            r"^trainer\.val_check_interval=50: an epoch of the teacher has 6 batches; lower it",
        ),
        (
            {"trainer_settings": {"accelerator": "abacus"}},
            r"^trainer\.accelerator=abacus: .*; take trainer\.accelerator=auto",
        ),
        (
            {"trainer_settings": {"num_nodes": 2, "devices": 1, "strategy": "ddp"}},
            r"^trainer\.num_nodes=2: nothing says which machine this is; start it with torchrun or",
        ),
        ({"task": {"metrics": ["f1"], "monitor": "f1"}}, r"^task\.metrics=f1: "),
        ({"task": {"label": "nope"}}, r"^task\.label=nope: the train split has no such column"),
    ],
)  # fmt: skip
def test_job_that_cannot_work_is_refused(make_job, tmp_path, no_training, settings, says):
    with pytest.raises(ConfigError, match=says):
        run(make_job(tmp_path, **settings))


def test_scope_of_the_model_that_matches_nothing_is_refused(make_job, tmp_path, no_training):
    model = dataclasses.replace(make_job(tmp_path).model, scope=NOWHERE)
    with pytest.raises(ConfigError, match=r"^model\.scope='\*decoder\*': the pattern matches no"):
        run(make_job(tmp_path, model=model))


def test_model_that_is_not_there_is_refused(make_job, tmp_path, no_training):
    model = hf.PretrainedEncoder(path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"^model\.path=.*nowhere: there is no such folder; pass"):
        run(make_job(tmp_path, model=model))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"kind": hf.Regression()},
            r"metrics=accuracy: does not suit .*task\.metrics=\[pearson,spearman\] and task\.",
        ),
        ({"metrics": ["accuracy", "pearson"]}, r"metrics=pearson: does not suit"),
    ],
)
def test_metric_that_does_not_suit_the_kind_of_task_is_refused(make_job, tmp_path, settings, says):
    with pytest.raises(ConfigError, match=says):
        make_job(tmp_path, task=settings)


def test_setting_of_an_earlier_stage_is_refused_by_its_full_key(make_job, tmp_path, no_training):
    base = Stage(
        teacher="pretrained",
        objective=Objective({"hidden_states": HiddenStates(layer_map={1: 7})}),
    )
    job = make_job(tmp_path, stages={"base": base}, student=Stage(init="base"))
    with pytest.raises(
        ConfigError, match=r"^stages\.base\.objective\.terms\.hidden_states\.layer_"
    ):
        run(job)
    base = Stage(sparsity=SparsityCallback(0.5, begin=0.01, end=0.02))
    job = make_job(tmp_path, stages={"base": base}, student=Stage(init="base"))
    with pytest.raises(ConfigError, match=r"^stages\.base\.sparsity\.begin=0\.01"):
        run(job)


def test_strategy_that_shards_parameters_is_refused(make_job, tmp_path, no_training):
    class DeepSpeedStrategy(SingleDeviceStrategy):
        """By name the one that shards; the real one needs its package and a GPU."""

    settings = {"strategy": DeepSpeedStrategy(device="cpu"), "accelerator": "auto"}
    with pytest.raises(ConfigError, match=r"^trainer\.strategy=DeepSpeedStrategy: it shards param"):
        run(make_job(tmp_path, trainer_settings=settings))


def test_texts_whose_tokens_the_tokenizer_does_not_know_are_warned_of(make_job, tmp_path, caplog):
    for split in ("train", "validation"):
        rows = [{"text": f"{'zyzzyva ' * 4}{i}", "label": i % 2} for i in range(BATCH)]
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    unknown = hf.Task(name="rare", path=str(tmp_path), text=["text"], batch_size=BATCH)
    context = loaded_context(dataclasses.replace(make_job(tmp_path / "out"), task=unknown))
    for stage in context.chain.values():
        check_stage(context, stage)
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    says = "does not know 71 % of the tokens of task=rare; take a model"
    assert [says in message for message in found].count(True) == 1  # not once for every stage


@pytest.mark.parametrize("key", ["max_length", "pad_to"])
def test_rows_longer_than_the_model_reads_are_refused(make_job, tmp_path, no_training, key):
    """The tiny model has 64 positions."""
    for split in ("train", "validation"):
        rows = [{"text": "fox " * count, "label": f"{count}"} for count in (1, 90)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    long = hf.Task(name="long", path=str(tmp_path), text=["text"], **{key: 128})
    with pytest.raises(ConfigError, match=rf"^task\.{key}=128: .*64"):
        run(dataclasses.replace(make_job(tmp_path / "out"), task=long))


def test_max_length_above_what_the_model_reads_is_allowed_for_shorter_rows(make_job, tmp_path):
    context = loaded_context(make_job(tmp_path, task={"max_length": 1000}))
    for stage in context.chain.values():
        check_stage(context, stage)


def test_length_of_a_teacher_that_reads_less_counts_too(make_job, cache, tmp_path, no_training):
    """A teacher of fewer positions than the student."""
    short = Path(make_model(str(cache), layers=2, hidden_size=16, heads=2))
    config = AutoConfig.from_pretrained(short, num_labels=8, max_position_embeddings=16)
    config.label2id = {name: index for index, name in enumerate(LABELS)}
    config.id2label = dict(enumerate(LABELS))
    folder = tmp_path / "short"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    hf.PretrainedEncoder(path=str(short)).tokenizer().save_pretrained(folder)
    job = make_job(tmp_path / "out", task={"pad_to": 32}, teacher=Stage(path=str(folder)))
    with pytest.raises(ConfigError, match=r"^task\.pad_to=32: the model reads 16 tokens at most"):
        run(job)


def test_teacher_that_is_fitted_on_other_tokens_is_refused(
    done, make_job, tmp_path, no_training, cache
):
    """The student begins elsewhere, with a tokenizer of its own; the teacher is the job's model."""
    folder = tmp_path / "other"
    shutil.copytree(make_model(str(cache), layers=2, hidden_size=16, heads=2), folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = sorted(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(tokenizer))
    job = make_job(tmp_path / "out", student=Stage(init=str(folder)))
    with pytest.raises(ConfigError, match=r"^student\.teacher=teacher: the teacher's vocabulary"):
        run(job)
    given = Stage(path=str(folder), objective=Objective({"hidden_states": HiddenStates()}))
    job = make_job(tmp_path / "out", stages={"base": given}, student=Stage(init="base"))
    with pytest.raises(ConfigError, match=r"^stages\.base\.path=.*: its tokenizer differs"):
        run(job)


def test_given_stage_that_cannot_be_evaluated_is_refused(done, make_job, tmp_path, no_training):
    """Though the student learns from another stage."""
    model = hf.PretrainedEncoder(path=done.result.teacher.path)
    two = model.load(kind=hf.Classification(), num_outputs=2)
    hf.save(two, model.tokenizer(), tmp_path / "two", kind=hf.Classification())
    job = make_job(
        tmp_path / "out",
        teacher=Stage(path=str(tmp_path / "two")),
        stages={"assistant": Stage()},
        student=Stage(teacher="assistant"),
    )
    with pytest.raises(ConfigError, match=r"^teacher\.path=.*: the model has 2 labels, the task 8"):
        run(job)


@pytest.mark.parametrize("start", [run, lambda job: evaluate_saved(job, "anything")])
def test_student_of_a_task_without_metrics_is_refused(make_job, tmp_path, no_training, start):
    job = make_job(tmp_path, task={"kind": hf.Text(), "metrics": (), "monitor": "loss"})
    with pytest.raises(
        ConfigError, match=r"^task\.metrics=\[\]: a student is reported by a metric"
    ):
        start(job)


def test_rows_that_are_cut_off_are_warned_of(make_job, tmp_path, no_training, caplog):
    with pytest.raises(AssertionError, match="training began"):
        run(make_job(tmp_path, task={"max_length": 12}))
    says = r"task\.max_length=12: \d+ % of the training rows of task=tiny are as long"
    assert re.search(says, caplog.text)


def test_token_without_an_embedding_is_refused(done, make_job, tmp_path, no_training):
    folder = tmp_path / "model"
    shutil.copytree(done.job.model.path, folder)
    tokenizer = hf.PretrainedEncoder(path=str(folder)).tokenizer()
    tokenizer.add_tokens(["zzz", "moose , old"])
    tokenizer.save_pretrained(folder)
    job = make_job(tmp_path / "out", model=hf.PretrainedEncoder(path=str(folder)))
    assert "moose , old" in (Path(job.task.path) / "train.jsonl").read_text()
    says = r"^model\.path=\S+: its tokenizer makes 'moose , old' of a row of the train .* 120,"
    with pytest.raises(ConfigError, match=says):
        run(job)
