"""One run, in process and tiny: what it leaves, what it refuses, what it finds again."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
)

from kd_prune import hf
from kd_prune.distillation import (
    AttentionScores,
    Embeddings,
    HardLabels,
    HiddenStates,
    Objective,
    SoftTargets,
)
from kd_prune.hf import models
from kd_prune.hf.models import encoder_scope
from kd_prune.hf.tiny import make_model, make_task
from kd_prune.lit import DistillModule, History, NonFiniteError, SparsityCallback
from kd_prune.lit.resume import Interrupted
from kd_prune.pruning import NM, PerType, Rows, Scope, SparsityReport
from kd_prune.run import Job, PromiseError, Student, Teacher, evaluate_saved, run
from kd_prune.run.check import Promise, verify, verify_history, verify_retained
from kd_prune.run.fit import on_one_device
from kd_prune.run.milestones import Milestones
from kd_prune.run.outcome import draw_curves
from kd_prune.run.teacher import teacher_if_whole, teacher_key

ROWS, BATCH, EPOCHS = 96, 16, 2
LABELS = ["animal", "fruit", "garment", "instrument", "metal", "tool", "tree", "vessel"]
STEPS = EPOCHS * ROWS // BATCH


def trainer(**settings):
    return partial(
        L.Trainer,
        **{
            "accelerator": os.environ["KD_PRUNE_TEST_ACCELERATOR"],
            "devices": 1,
            "max_epochs": EPOCHS,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        }
        | settings,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def make_job(cache):
    """Jobs that differ where a test says so; a fresh callback each time."""
    model = make_model(str(cache), layers=2, hidden_size=16, heads=2)
    rows = make_task(str(cache), train=ROWS, validation=32)

    def make(out, *, final=0.9, trainer_settings=None, task=None, **settings):
        defaults = {
            "task": hf.Task(
                name="tiny",
                path=rows,
                **(
                    {"text": ["things", "which"], "max_length": 32, "batch_size": BATCH}
                    | (task or {})
                ),
            ),
            "model": hf.Pretrained(path=model),
            "teacher": Teacher(max_epochs=1, optimizer=hf.FineTuning(lr=2e-3)),
            "distillation": Objective(
                {
                    "embeddings": Embeddings(),
                    "hidden_states": HiddenStates(),
                    "attention_scores": AttentionScores(),
                    "soft_targets": SoftTargets(),
                }
            ),
            "sparsity": SparsityCallback(final, updates=4, end=0.5),
            "optimizer": hf.FineTuning(lr=2e-3),
            "trainer": trainer(**(trainer_settings or {})),
            "cache_dir": str(cache),
            "config": {"seed": 0},
            "out": out,
        }
        return Job(**(defaults | settings))

    return make


@pytest.fixture(scope="module")
def done(make_job, tmp_path_factory):
    """A finished run: its folder, job and result."""
    out = tmp_path_factory.mktemp("done")
    job = make_job(out)
    return out, job, run(job)


@pytest.fixture
def no_training(monkeypatch):
    """Whatever is trained fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(L.Trainer, "fit", refuse)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# What a run leaves


def test_result_json(done):
    out, _, result = done
    stored = json.loads((out / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert {
        "task", "seed", "teacher", "student", "sparsity", "model_sparsity", "seconds", "versions",
        "config",
    } <= stored.keys()  # fmt: skip
    assert (stored["task"], stored["seed"], stored["config"]) == ("tiny", 0, {"seed": 0})
    assert 0 <= stored["teacher"]["accuracy"] <= 1
    assert 0 <= stored["student"]["accuracy"] <= 1
    assert stored["student"].keys() == {"accuracy"}
    assert {"data", "teacher", "student", "evaluation"} <= stored["seconds"].keys()
    assert stored["versions"]["torch"] == torch.__version__


def test_sparsity_csv_adds_up(done):
    out, _, result = done
    model = AutoModelForSequenceClassification.from_pretrained(out / "student")
    with (out / "sparsity.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert int(rows[name]["size"]) == parameter.numel()
        assert int(rows[name]["zeros"]) == int((parameter == 0).sum())
    scoped = [row for row in rows.values() if row["in_scope"] == "True"]
    assert len(scoped) == 2 * 6
    for row in scoped:
        assert int(row["zeros"]) == round(0.9 * int(row["size"]))

    def total(rows, column):
        return sum(int(row[column]) for row in rows)

    assert result["sparsity"] == total(scoped, "zeros") / total(scoped, "size")
    assert result["model_sparsity"] == total(rows.values(), "zeros") / total(rows.values(), "size")
    assert result["parameters"] == total(rows.values(), "size")
    assert result["nonzero"] == result["parameters"] - total(rows.values(), "zeros")


def test_curves(done):
    out, _, result = done
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert float(rows[-1]["val/accuracy"]) == pytest.approx(result["student"]["accuracy"])
    assert float(rows[-1]["sparsity/counted"]) == pytest.approx(result["sparsity"])
    terms = {"loss", "embeddings", "hidden_states", "attention_scores", "soft_targets"}
    assert {f"train/{name}" for name in terms} <= rows[0].keys()


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every picture: what is in its lines by label, and its limits."""
    pictures = []

    def keep(figure, path, **options):
        pictures.append(
            [
                ({line.get_label(): line.get_xydata().tolist() for line in axes.lines}, axes)
                for axes in figure.axes
            ]
        )

    monkeypatch.setattr(Figure, "savefig", keep)
    return pictures


def test_the_curve_of_sparsity_begins_with_what_was_counted_at_first(
    make_job, tmp_path, cache, drawn
):
    pretrained = hf.Pretrained(path=make_model(str(cache), layers=2, hidden_size=16, heads=2))
    model = pretrained.load(num_labels=8)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight[:8] = 0.0
    hf.save(model, pretrained.tokenizer(), tmp_path / "model")
    begun = SparsityReport.count(model, encoder_scope(model).select(model).keys()).sparsity
    run(make_job(tmp_path / "out", model=hf.Pretrained(path=str(tmp_path / "model"))))
    ((curves, _), *_) = drawn[0]
    assert curves["counted"][0] == [0, begun]
    assert curves["counted"][1][0] > 0
    assert begun > 0.01


@pytest.mark.parametrize(
    ("values", "teacher"),
    [([0.5, 0.9], 0.8), ([0.8, 0.801], 0.802), ([0.99, 1.0], 1.0), ([1.0], 1.0), ([-0.1, 0.0], 0)],
)
def test_the_axis_of_the_metric_ends_at_one_and_makes_nothing_large(
    tmp_path, drawn, values, teacher
):
    rows = [{"step": i, "train/loss": 1.0, "val/accuracy": v} for i, v in enumerate(values, 1)]
    draw_curves(rows, tmp_path / "curves.png", monitor="accuracy", teacher=teacher)
    low, high = drawn[0][2][1].get_ylim()
    assert high <= 1.0
    assert high - low >= 0.05 - 1e-9
    assert all(low <= value <= high for value in (*values, teacher))
    assert high - low <= max(0.06, 1.2 * (max(*values, teacher) - min(*values, teacher)))


def test_the_student_is_read_where_kd_prune_is_not(done, tmp_path):
    """Another process, another folder, kd_prune barred: the same logits to the bit."""
    out, _, _ = done
    script = textwrap.dedent(
        """
        import sys

        class Bar:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "kd_prune":
                    raise ImportError("barred")

        sys.meta_path.insert(0, Bar())
        try:
            import kd_prune
        except ImportError:
            pass
        else:
            raise SystemExit("kd_prune was imported")
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder, target = sys.argv[1:]
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer("the fox , pear and old hammer", "second", return_tensors="pt")
        with torch.no_grad():
            torch.save(model(**batch).logits, target)
        """
    )
    subprocess.run(
        [sys.executable, "-I", "-c", script, str(out / "student"), str(tmp_path / "logits")],
        cwd=tmp_path,
        check=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(out / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "student")
    batch = tokenizer("the fox , pear and old hammer", "second", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, torch.load(tmp_path / "logits"))
    assert list(model.config.label2id) == LABELS


def test_the_teacher_is_dense_and_as_it_was(done, cache):
    _, _, result = done
    teacher = AutoModelForSequenceClassification.from_pretrained(result["teacher"]["path"])
    report = SparsityReport.count(teacher, ())
    assert report.model_sparsity < 0.01  # the padding token's embedding


def test_evaluation_counts_what_was_in_scope(done, make_job, tmp_path):
    """Of a run what it recorded, of its milestones too; of other models the encoder's matrices."""
    scope = Scope(include=["*.query.weight"])
    job = make_job(tmp_path / "a", sparsity=resting(scope=scope))
    first = run(job)
    judge = dataclasses.replace(job, out=tmp_path / "b")
    found = evaluate_saved(judge, str(tmp_path / "a"))
    assert found["sparsity"] == first["sparsity"] == pytest.approx(0.9, abs=1e-2)
    assert found["student"] == first["student"]
    half = evaluate_saved(judge, str(tmp_path / "a/milestones/0.4"))
    assert half["sparsity"] == pytest.approx(0.4, abs=1e-2)
    shutil.copytree(tmp_path / "a/student", tmp_path / "elsewhere/model")
    moved = evaluate_saved(judge, str(tmp_path / "elsewhere/model"))
    assert 0 < moved["sparsity"] < 0.2
    assert moved["model_sparsity"] == found["model_sparsity"]


def test_evaluation_of_a_family_whose_layers_are_not_found(done, make_job, tmp_path, capsys):
    folder = tmp_path / "albert"
    tokenizer = AutoTokenizer.from_pretrained(done[1].model.path)
    sizes = {"hidden_size": 16, "embedding_size": 16, "intermediate_size": 32}
    config = AlbertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, num_attention_heads=2, num_labels=8, **sizes
    )
    AlbertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = evaluate_saved(make_job(tmp_path / "out"), str(folder))
    assert found["sparsity"] is None
    assert 0 < found["model_sparsity"] < 0.1
    table = capsys.readouterr().out
    assert "sparsity of the model" in table
    assert "sparsity of the encoder" not in table


# What is found again


def test_the_teacher_is_trained_once(done, make_job, tmp_path, monkeypatch):
    _, _, first = done
    before = weights(Path(first["teacher"]["path"]))
    fits = []
    fit = L.Trainer.fit
    monkeypatch.setattr(
        L.Trainer, "fit", lambda self, *args, **kw: (fits.append(1), fit(self, *args, **kw))[1]
    )
    second = run(make_job(tmp_path, final=0.5))
    assert second["teacher"] == first["teacher"]
    assert len(fits) == 1  # the student's
    assert weights(Path(first["teacher"]["path"])) == before
    third = run(make_job(tmp_path, final=0.5, seed=1))
    assert third["teacher"]["path"] != first["teacher"]["path"]
    assert len(fits) == 3


@pytest.mark.parametrize("change", ["trainer", "names of labels", "head"])
def test_another_teacher_is_another_one(done, make_job, tmp_path, cache, change):
    """What a teacher depends on besides data, seed and optimizer."""
    settings = {}
    if change == "trainer":
        settings["trainer_settings"] = {"accumulate_grad_batches": 2}
    elif change == "names of labels":
        settings["task"] = {"labels": [*reversed(LABELS)]}
    else:
        model = hf.Pretrained(path=make_model(str(cache), layers=2, hidden_size=16, heads=2))
        torch.manual_seed(99)  # not the head that a job's seed gives
        hf.save(model.load(num_labels=8), model.tokenizer(), tmp_path / "headed", LABELS)
        settings["model"] = hf.Pretrained(path=str(tmp_path / "headed"))
    result = run(make_job(tmp_path / "out", **settings))
    assert result["teacher"]["path"] != done[2]["teacher"]["path"]


def test_an_interrupted_teacher_is_gone_on_with(done, make_job, tmp_path, cache):
    """Stopped in its first epoch's end, and the same teacher in the end."""

    job = make_job(tmp_path / "whole", teacher=Teacher(max_epochs=2), cache_dir=str(tmp_path / "1"))
    whole = run(job)
    again = dataclasses.replace(
        job, out=tmp_path / "again", cache_dir=str(tmp_path / "2"), sparsity=None
    )
    original = DistillModule.training_step

    def stop(self, batch, batch_idx):
        if self.trainer.current_epoch == 1 and batch_idx == 3:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillModule, "training_step", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            run(again)
    result = run(again)
    path = Path(result["teacher"]["path"])
    assert weights(path) == weights(Path(whole["teacher"]["path"]))
    assert not path.with_suffix(".ckpt").exists()


def scaled(init_scale, **settings):
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)], **settings}


def test_a_teacher_depends_on_the_plugins_that_it_is_fitted_with(make_job, tmp_path):
    def key(**settings):
        job = make_job(tmp_path, trainer_settings={"accelerator": "cpu", **settings})
        data = hf.TaskData({}, tuple(LABELS), "data", "rows")
        return teacher_key(on_one_device(job), data, "model"), job

    plain, _ = key()
    small, job = key(**scaled(2.0**10))
    assert len({plain, small, key(**scaled(2.0**16))[0]}) == 3
    assert key(plugins=MixedPrecision("bf16-mixed", "cpu"))[0] not in {plain, small}
    assert key(**scaled(2.0**10))[0] == small  # other objects, the same settings

    scaler, weight = job.trainer.keywords["plugins"][0].scaler, torch.ones(1, requires_grad=True)
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(torch.optim.SGD([weight]))
    data = hf.TaskData({}, tuple(LABELS), "data", "rows")
    assert teacher_key(job, data, "model") == small  # whatever their use left in them

    several = {"devices": 2, "strategy": "ddp", "plugins": [LightningEnvironment()]}
    assert key(**several)[0] == plain  # of several processes, the teacher has one
    assert key(plugins=[LightningEnvironment()])[0] == plain


@pytest.mark.parametrize("damage", ["truncated", "headless", "no config", "metrics"])
def test_a_damaged_teacher_of_the_cache_is_made_anew(done, make_job, tmp_path, caplog, damage):
    _, _, first = done
    theirs = Path(first["teacher"]["path"])
    folder = tmp_path / "teachers" / theirs.name
    shutil.copytree(theirs, folder)
    file = folder / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(weights(folder)[: file.stat().st_size // 2])
    elif damage == "headless":
        tensors = load_file(file)
        del tensors["classifier.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
    elif damage == "no config":
        (folder / "config.json").unlink()
    else:
        (folder / "metrics.json").write_text("{")
    random = torch.get_rng_state()
    assert teacher_if_whole(folder, hf.TaskData({}, tuple(LABELS), "", "")) is None
    assert torch.equal(torch.get_rng_state(), random)  # or dropout would be another
    (said,) = [r.getMessage() for r in caplog.records if r.name == "kd_prune.run.teacher"]
    assert said.startswith(f"{folder}: a damaged teacher, fine-tuned anew (")
    assert "\n" not in said
    assert "model.path" not in said
    result = run(make_job(tmp_path / "out", cache_dir=str(tmp_path)))
    assert weights(folder) == weights(theirs)
    assert result["teacher"] == first["teacher"] | {"path": str(folder)}


def test_a_teacher_keeps_its_own_batch_size(done, make_job, tmp_path):
    """So that students of other batch sizes share it."""
    _, _, first = done
    teacher = Teacher(max_epochs=1, optimizer=hf.FineTuning(lr=2e-3), batch_size=BATCH)
    result = run(make_job(tmp_path, teacher=teacher, task={"batch_size": 2 * BATCH}))
    assert result["teacher"] == first["teacher"]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1].startswith(f"{STEPS // 2},")
    with pytest.raises(ValueError, match=r"teacher\.batch_size=0: expected"):
        Teacher(batch_size=0)


def test_dropout_of_the_student_alone(done, make_job, tmp_path, monkeypatch):
    seen = []
    original = DistillModule.training_step

    def look(self, batch, batch_idx):
        dropouts = (m for m in self.student.modules() if isinstance(m, torch.nn.Dropout))
        seen.append({module.p for module in dropouts})
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DistillModule, "training_step", look)
    result = run(make_job(tmp_path, student=Student(dropout=0.25)))
    assert seen == [{0.25}] * STEPS  # the teacher was found, so all steps are the student's
    assert result["teacher"] == done[2]["teacher"]
    assert AutoConfig.from_pretrained(tmp_path / "student").hidden_dropout_prob == 0.0  # its own
    with pytest.raises(ValueError, match=r"student\.dropout=1\.5: expected a fraction in \[0, 1\)"):
        Student(dropout=1.5)


@pytest.fixture
def distilbert(done, tmp_path):
    """A DistilBERT that reads the same words as the runs' BERT."""
    folder = tmp_path / "distilbert"
    words = AutoTokenizer.from_pretrained(done[2]["teacher"]["path"]).get_vocab()
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
    config = DistilBertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    DistilBertTokenizer(vocab=words).save_pretrained(folder)
    return hf.Pretrained(path=str(folder))


def test_each_model_of_a_pair_gets_the_segments_it_is_used_to(
    done, distilbert, make_job, tmp_path, monkeypatch
):
    seen = {}
    forward = models.forward

    def look(model, batch, requires):
        seen.setdefault(model.config.model_type, batch["token_type_ids"].unique().tolist())
        return forward(model, batch, requires)

    monkeypatch.setattr(models, "forward", look)
    theirs = done[2]["teacher"]
    job = make_job(tmp_path / "run", model=distilbert, teacher=Teacher(path=theirs["path"]))
    result = run(job)
    assert seen == {"distilbert": [0, 1], "bert": [0, 1]}
    assert result["teacher"]["accuracy"] == theirs["accuracy"]
    saved = AutoTokenizer.from_pretrained(tmp_path / "run/student")
    assert "token_type_ids" not in saved("the fox", "first")


def test_a_student_that_would_learn_from_segments_it_never_gets_again(
    done, make_job, tmp_path, no_training
):
    folder = tmp_path / "student"
    shutil.copytree(done[1].model.path, folder)
    file = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    job = make_job(
        tmp_path / "out",
        model=hf.Pretrained(path=str(folder)),
        teacher=Teacher(path=done[2]["teacher"]["path"]),
    )
    with pytest.raises(ValueError, match=r"used to token_type_ids.*name them in model_input_names"):
        run(job)


def test_a_teacher_is_judged_anew_on_other_splits(make_job, tmp_path):
    found = [
        run(make_job(tmp_path / str(i), task={"validation": splits}))["teacher"]
        for i, splits in enumerate((["validation"], ["train", "validation"]))
    ]
    assert found[0]["accuracy"] == found[1]["validation/accuracy"]
    assert found[1]["accuracy"] != found[0]["accuracy"]


def test_a_teacher_by_path(done, make_job, tmp_path):
    _, _, first = done
    path = first["teacher"]["path"]
    by_run_folder = tmp_path / "teachers run"
    shutil.copytree(path, by_run_folder / "student")
    result = run(make_job(tmp_path, teacher=Teacher(path=str(by_run_folder))))
    assert result["teacher"]["path"] == str(by_run_folder / "student")
    assert result["teacher"]["accuracy"] == pytest.approx(first["teacher"]["accuracy"])
    assert result["student"] == first["student"]


def test_a_student_that_begins_as_the_teacher(done, make_job, tmp_path):
    """With next to no learning it ends as the teacher, but for what is pruned."""
    _, _, first = done
    job = make_job(
        tmp_path,
        final=0.5,
        student=Student(init="teacher"),
        optimizer=hf.FineTuning(lr=1e-12),
        trainer_settings={"max_epochs": 1},
    )
    result = run(job)
    ours, theirs = (
        AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "student", first["teacher"]["path"])
    )
    for name, tensor in theirs.items():
        kept = ours[name] != 0
        assert torch.allclose(ours[name][kept], tensor[kept], atol=1e-8), name
    assert result["sparsity"] == 0.5
    with pytest.raises(ValueError, match=r"student\.init=other: expected pretrained or teacher"):
        Student(init="other")


def test_a_job_does_not_depend_on_what_ran_before(done, make_job, tmp_path):
    """Bit by bit, though the global generators are elsewhere by then."""
    out, _, first = done
    run(make_job(tmp_path / "a", final=0.3, seed=5))
    torch.rand(7)
    second = run(make_job(tmp_path / "b"))
    assert weights(tmp_path / "b" / "student") == weights(out / "student")
    assert second["student"] == first["student"]
    assert (tmp_path / "b" / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()


def test_an_interrupted_student_is_gone_on_with(done, make_job, tmp_path):
    out, _, first = done
    job = make_job(tmp_path)

    class Signal(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == STEPS - 2:
                os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        run(dataclasses.replace(job, callbacks={"signal": Signal()}))
    assert not (tmp_path / "result.json").exists()
    last = tmp_path / "last.ckpt"
    state = torch.load(last, weights_only=True)
    state["callbacks"]["ResumePoint"]["seconds"] += 1000
    torch.save(state, last)
    second = run(make_job(tmp_path, ckpt_path=str(tmp_path)))  # a run folder, as `eval=` takes
    assert weights(tmp_path / "student") == weights(out / "student")
    assert second["student"] == first["student"]
    assert 1000 < second["seconds"]["student"] < 1100  # of both parts
    assert (tmp_path / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()


def test_accumulation_counts_optimizer_steps(done, make_job, tmp_path):
    result = run(make_job(tmp_path, trainer_settings={"accumulate_grad_batches": 4}))
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert int(rows[-1].split(",")[0]) == EPOCHS * 2
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)


# What is refused, before anything is trained


def other_teacher(done, tmp_path, **changes):
    """The teacher's folder with another config, and weights that fit it."""
    source = Path(done[2]["teacher"]["path"])
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
    return Teacher(path=str(folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 200}, r"teacher\.path.*vocabulary is 200, the student's 119; take a"),
        ({"num_labels": 3}, r"teacher\.path=.*has 3 labels, the task 8; take one that"),
        (
            {"id2label": dict(enumerate(["fruit", "animal", *LABELS[2:]]))},
            r"teacher\.path=.*order \['fruit', 'animal'.*set task\.labels",
        ),
        (
            {"id2label": dict(enumerate(["FRUIT", "Animal", *LABELS[2:]]))},
            r"teacher\.path=.*order \['FRUIT', 'Animal'.*set task\.labels",
        ),
        (
            {"num_hidden_layers": 3},
            r"^distillation\.terms\.hidden_states\.layer_map=null: 3 teacher.*give a layer_map",
        ),
        (
            {"hidden_size": 32},
            r"^distillation\.terms\.embeddings: .* 16 wide, .* 32; set distillation\.terms\..*0$",
        ),
        ({"words": "turned round"}, r"teacher\.path=.*: the teacher's vocabulary has \d+ for '"),
        ({"reads": "capitals"}, r"teacher\.path: the teacher's tokenizer makes \[.*take a teacher"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit(done, make_job, tmp_path, no_training, changes, says):
    teacher = other_teacher(done, tmp_path, **changes)
    with pytest.raises(ValueError, match=says):
        run(make_job(tmp_path / "out", teacher=teacher))


def test_a_student_that_cannot_begin_as_the_teacher(done, make_job, tmp_path, no_training):
    deeper = other_teacher(done, tmp_path, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"student\.init=teacher: bert.*layer\.2.* is \(16,.*None"):
        run(
            make_job(
                tmp_path,
                teacher=deeper,
                student=Student(init="teacher"),
                distillation=Objective({"soft_targets": SoftTargets()}),
            )
        )


def test_a_teacher_that_was_not_fine_tuned(done, make_job, tmp_path, no_training):
    """It would be given a random head, and the student would learn from noise."""
    model = AutoModelForSequenceClassification.from_pretrained(done[2]["teacher"]["path"])
    model.base_model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"teacher\.path=.*BertModel has no classification head"):
        run(make_job(tmp_path, teacher=Teacher(path=str(tmp_path / "encoder"))))
    with pytest.raises(ValueError, match=r"teacher\.path=.*nowhere: there is no such folder"):
        run(make_job(tmp_path, teacher=Teacher(path=str(tmp_path / "nowhere"))))


def test_a_job_that_cannot_work(make_job, tmp_path, no_training):
    def refused(match, **settings):
        with pytest.raises(ValueError, match=match):
            run(make_job(tmp_path, **settings))

    layer_map = {1: 7}
    refused(
        r"^distillation\.terms\.hidden_states\.layer_map=\{1: 7\}: the teacher has layers 1 … 2",
        distillation=Objective({"hidden_states": HiddenStates(layer_map=layer_map)}),
    )
    nowhere = Scope(include=["*decoder*"])
    refused(
        r"^sparsity\.scope: .*'\*decoder\*' matches no parameter; there are for example bert\.emb",
        sparsity=SparsityCallback(0.5, scope=nowhere),
    )
    model = make_job(tmp_path).model
    refused(r"^model\.scope: .*decoder", model=dataclasses.replace(model, scope=nowhere))
    refused(
        r"sparsity\.begin=0\.01, end=0\.02: no step of this run of 12",
        sparsity=SparsityCallback(0.5, begin=0.01, end=0.02),
    )
    refused(r"sparsity\.updates=0: a ramp needs", sparsity=SparsityCallback(0.5, updates=0))
    refused(
        r"trainer\.max_epochs=-1: the learning rate needs a number of steps",
        trainer_settings={"max_epochs": -1, "max_time": "00:00:01:00"},
    )
    refused(
        r"trainer\.limit_train_batches=0\.001: leaves no batch",
        trainer_settings={"limit_train_batches": 0.001},
    )
    refused(
        r"trainer\.max_epochs=-1: a run needs an end",
        trainer_settings={"max_epochs": -1},
    )
    refused(
        r"^task\.metrics=accuracy does not .*; set task\.metrics=\[pearson,spearman\] and task\.",
        task={"regression": True},
    )
    refused(r"task\.metrics=pearson does not suit", task={"metrics": ["accuracy", "pearson"]})
    refused(r"task\.label=nope: the train split has no such column", task={"label": "nope"})
    refused(
        r"model\.path=.*nowhere: there is no such folder; pass model\.path=<folder>",
        model=hf.Pretrained(path=str(tmp_path / "nowhere")),
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_nodes": 2, "devices": 1, "strategy": "ddp"}, "trainer.num_nodes=2: a job runs on"),
        ({"strategy": "deepspeed_like"}, "strategy=DeepSpeedStrategy: it shards parameters"),
    ],
)
def test_a_strategy_that_cannot_work(make_job, tmp_path, no_training, settings, says):
    class DeepSpeedStrategy(SingleDeviceStrategy):
        """By name the one that shards; the real one needs its package and a GPU."""

    if settings["strategy"] == "deepspeed_like":
        settings = {"strategy": DeepSpeedStrategy(device="cpu"), "accelerator": "auto"}
    with pytest.raises(ValueError, match=says):
        run(make_job(tmp_path, trainer_settings=settings))


def test_a_checkpoint_that_does_not_fit(done, make_job, tmp_path, no_training):
    out, _, _ = done

    def refused(match, path, **settings):
        with pytest.raises(ValueError, match=match) as refusal:
            run(make_job(tmp_path / "out", ckpt_path=str(path), **settings))
        assert "\n" not in str(refusal.value)

    whole = (out / "last.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"layer.weight": torch.ones(2)}, "epoch": 1}, foreign)
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    refused(r"ckpt_path=.*nowhere\.ckpt: no such file", tmp_path / "nowhere.ckpt")
    refused(r"ckpt_path=.*student: a folder without last\.ckpt; name a run fol", out / "student")
    refused(r"ckpt_path=.*cut\.ckpt: truncated or no checkpoint", cut)
    refused(r"ckpt_path=.*text\.ckpt: truncated or no checkpoint", text)
    refused(r"ckpt_path=.*foreign\.ckpt: not a checkpoint of this student", foreign)
    refused(r"of a pruned fit, and this one is dense", out / "last.ckpt", sparsity=None)
    refused(r"of another run, with seed=0 where this one has 1", out / "last.ckpt", seed=1)
    refused(r"with sparsity\.final=0\.9 where this one has 0\.5", out / "last.ckpt", final=0.5)
    other = {"text": ["things"]}
    refused(r"of another run, with data=.* where this one has", out / "last.ckpt", task=other)
    other = {"seed": 0, "optimizer": {"lr": 1e-6}}
    refused(r"with optimizer\.lr=None where this one has 1e-06", out / "last.ckpt", config=other)
    state = torch.load(out / "last.ckpt", weights_only=True)
    state["callbacks"]["ResumePoint"]["about"]["distillation.terms.embeddings.weight"] = 0.5
    torch.save(state, tmp_path / "weighed.ckpt")
    refused(r"distillation\.terms\.embeddings\.weight=0\.5 where", tmp_path / "weighed.ckpt")
    other = {"batch_size": 2 * BATCH}
    refused(r"of another run, with task\.batch_size=16 where", out / "last.ckpt", task=other)
    refused(r"task\.pad_to=None where this", out / "last.ckpt", task={"pad_to": 40})
    config = {"seed": 0, "trainer": {"precision": "bf16-mixed"}}
    refused(r"trainer\.precision=None where", out / "last.ckpt", config=config)
    config = {"seed": 0, "model": {"scope": {"include": ["*query.weight"]}}}
    refused(r"model\.scope=None where|model\.scope\.include=None", out / "last.ckpt", config=config)
    shutil.copytree(done[1].model.path, tmp_path / "model")
    settings = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(settings | {"hidden_act": "relu"}))
    other = hf.Pretrained(path=str(tmp_path / "model"))
    refused(r"of another run, with model=\w+ where this one has", out / "last.ckpt", model=other)


def test_a_checkpoint_beyond_the_end(done, make_job, tmp_path, no_training):
    last = str(done[0] / "last.ckpt")
    for end in ({"max_epochs": 1}, {"max_steps": STEPS - 1}, {"limit_train_batches": 5}):
        with pytest.raises(ValueError, match=rf"ckpt_path=.* after step {STEPS}, .*this run ends"):
            run(make_job(tmp_path, ckpt_path=last, trainer_settings=end))
    sparse = {"accumulate_grad_batches": 3, "max_epochs": 6}
    job = make_job(tmp_path, ckpt_path=last, trainer_settings=sparse)
    with pytest.raises(AssertionError, match="training began"):  # as many steps, more epochs
        run(job)


def test_a_checkpoint_at_the_end_of_a_shorter_run(done, make_job, tmp_path):
    """Its ramp would lack an end; that of the same command is gone on from, and judged again."""
    out, _, _ = done

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(make_job(tmp_path / "a", callbacks={"stop": Stop()}))
    last = str(tmp_path / "a/last.ckpt")
    with pytest.raises(ValueError, match=rf"after step 3, in epoch 1, of a run of {STEPS} steps"):
        run(make_job(tmp_path / "b", ckpt_path=last, trainer_settings={"max_steps": 3}))
    run(make_job(tmp_path / "c", ckpt_path=str(out / "last.ckpt")))
    assert weights(tmp_path / "c/student") == weights(out / "student")


@pytest.mark.parametrize("learnt", [False, True])
def test_a_model_that_has_one_answer_to_everything_is_named(
    done, make_job, tmp_path, caplog, learnt
):
    model = AutoModelForSequenceClassification.from_pretrained(done[2]["teacher"]["path"])
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1e4] + [0.0] * 7) if not learnt else 0.0)
    if learnt:  # two classes at least, whatever the rows
        torch.nn.init.normal_(model.classifier.weight, std=10.0)
    folder = tmp_path / "teacher"
    shutil.copytree(done[2]["teacher"]["path"], folder)
    model.save_pretrained(folder)
    run(make_job(tmp_path / "run", teacher=Teacher(path=str(folder))))
    said = "The teacher gives every row of validation the same class, animal: it learnt nothing"
    assert (said in caplog.text) == (not learnt)


def test_words_that_a_model_does_not_know_are_told_of(make_job, tmp_path, caplog):
    for split in ("train", "validation"):
        rows = [{"text": f"{'zyzzyva ' * 4}{i}", "label": i % 2} for i in range(BATCH)]
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    unknown = hf.Task(name="rare", path=str(tmp_path), text=["text"], batch_size=BATCH)
    run(dataclasses.replace(make_job(tmp_path / "out", final=0.5), task=unknown))
    assert "does not know 71 % of the tokens of task=rare; take a model" in caplog.text


def test_a_fit_that_was_stopped_on_its_ramp_is_no_success(make_job, tmp_path):
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    job = make_job(tmp_path, sparsity=SparsityCallback(0.9, updates=4), callbacks={"stop": Stop()})
    with (
        pytest.warns(UserWarning, match="the fit was stopped"),
        pytest.raises(
            PromiseError, match=r"ended on the ramp, at sparsity 0\.\d+ of 0\.9; let it train"
        ),
    ):
        run(job)
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "student").is_dir()


# Milestones


def resting(**settings):
    return SparsityCallback(0.9, updates=4, end=0.9, milestones=[0.4, 0.7], hold=0.3, **settings)


@pytest.fixture(scope="module")
def curve(make_job, tmp_path_factory):
    """A finished run with two milestones: its folder and result."""
    out = tmp_path_factory.mktemp("curve")
    return out, run(make_job(out, sparsity=resting()))


def test_a_student_at_each_milestone(curve):
    out, result = curve
    assert [found["target"] for found in result["milestones"]] == [0.4, 0.7]
    for found in result["milestones"]:
        model = AutoModelForSequenceClassification.from_pretrained(out / found["path"])
        counted = [
            (int((weight == 0).sum()), weight.numel())
            for name, weight in model.named_parameters()
            if ".layer." in name and weight.ndim == 2
        ]
        assert [zeros for zeros, _ in counted] == [round(found["target"] * n) for _, n in counted]
        assert found["sparsity"] == pytest.approx(found["target"], abs=1e-3)
        assert found["nonzero"] == sum(int(w.count_nonzero()) for w in model.parameters())
        assert found["student"].keys() == result["student"].keys()
    steps = [found["step"] for found in result["milestones"]]
    assert 0 < steps[0] < steps[1] < STEPS
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_a_milestone_is_the_mean_of_the_second_half_of_its_rest(make_job, tmp_path):
    seen = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen[trainer.global_step] = {
                name: weight.detach().double().cpu()
                for name, weight in pl_module.student.named_parameters()
            }

    sparsity = resting()
    run(make_job(tmp_path / "run", sparsity=sparsity, callbacks={"watch": Watch()}))
    plan = sparsity.pruner.plan
    start = next(step for step, value in plan.items() if value == 0.4)
    stop = next(step for step, value in plan.items() if value > 0.4)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/milestones/0.4")
    # At `stop` a mask update follows what is saved, and with it the zeros; biases show it whole.
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            values = [seen[step][name] for step in range((start + stop) // 2, stop + 1)]
            assert len(values) > 1
            torch.testing.assert_close(weight.double(), sum(values) / len(values))


def test_saving_on_the_way_changes_nothing(make_job, tmp_path, curve, monkeypatch):
    """The same ramp without anything saved ends in the same weights."""
    out, _ = curve
    job = make_job(tmp_path / "run", sparsity=resting())
    monkeypatch.setattr(Milestones, "_on_milestone", lambda *args: None)
    run(job)
    assert weights(tmp_path / "run/student") == weights(out / "student")


@pytest.mark.parametrize("at", range(1, STEPS))
def test_interrupted_anywhere_the_milestones_are_the_same(make_job, tmp_path, curve, at):
    out, result = curve

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == at:
                os.kill(os.getpid(), signal.SIGTERM)

    job = make_job(tmp_path / "run", sparsity=resting(), callbacks={"stop": Stop()})
    with pytest.raises(Interrupted):
        run(job)
    last = str(tmp_path / "run/last.ckpt")
    again = run(make_job(tmp_path / "run", sparsity=resting(), ckpt_path=last))
    assert again["milestones"] == result["milestones"]
    for name in ("milestones/0.4", "milestones/0.7", "student"):
        assert weights(tmp_path / "run" / name) == weights(out / name)


def test_milestones_come_along_where_a_run_goes_on_elsewhere(make_job, tmp_path, curve):
    out, result = curve

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == result["milestones"][1]["step"]:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(make_job(tmp_path / "a", sparsity=resting(), callbacks={"stop": Stop()}))
    last = str(tmp_path / "a/last.ckpt")
    again = run(make_job(tmp_path / "b", sparsity=resting(), ckpt_path=last))
    assert again["milestones"] == result["milestones"]
    for name in ("milestones/0.4", "milestones/0.7", "student"):
        assert weights(tmp_path / "b" / name) == weights(out / name)

    # A folder that holds students of another run.
    for name in ("0.4", "0.7"):
        shutil.rmtree(tmp_path / "b/milestones" / name)
        shutil.copytree(tmp_path / "b/student", tmp_path / "b/milestones" / name)
    run(make_job(tmp_path / "b", sparsity=resting(), ckpt_path=last))
    assert weights(tmp_path / "b/milestones/0.4") == weights(out / "milestones/0.4")

    shutil.rmtree(tmp_path / "a/milestones/0.4")
    with pytest.raises(ValueError, match=r"ckpt_path=.*its student of 0\.4 is not in .*take the"):
        run(make_job(tmp_path / "c", sparsity=resting(), ckpt_path=last))


# What an earlier run left in the run folder


def left(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    results = {"result.json", "sparsity.csv", "curves.png", "student", "metrics.csv"}
    return found & {*results, "milestones/0.4", "milestones/0.7", "milestones/mine"}


@pytest.fixture
def again(curve, tmp_path):
    """A copy of a finished run's folder, and what lies in it."""
    shutil.copytree(curve[0], tmp_path / "again")
    (tmp_path / "again/milestones/mine").mkdir()
    return tmp_path / "again", left(tmp_path / "again")


def test_a_run_that_fails_leaves_no_results_of_an_earlier_one(again, make_job):
    folder, before = again
    assert len(before) == 8
    with pytest.raises(NonFiniteError):
        run(make_job(folder, sparsity=resting(), optimizer=hf.FineTuning(lr=1e30)))
    assert left(folder) == {"milestones/mine"}


def test_a_refused_run_leaves_an_earlier_one_whole(again, make_job, tmp_path):
    folder, before = again
    last = str(folder / "last.ckpt")
    for refused in (
        {"seed": 1, "ckpt_path": last},
        {"trainer_settings": {"max_epochs": 1}, "ckpt_path": last},
        {"distillation": Objective({"hidden_states": HiddenStates(layer_map={1: 7})})},
    ):
        with pytest.raises(ValueError, match=r"ckpt_path|layer_map"):
            run(make_job(folder, sparsity=resting(), **refused))

    class Refuse(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            raise ValueError("by a callback")

    with pytest.raises(ValueError, match="by a callback"):
        run(make_job(folder, sparsity=resting(), callbacks={"refuse": Refuse()}))
    assert left(folder) == before
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere/milestones/0.7")
    last = str(tmp_path / "elsewhere/last.ckpt")
    with pytest.raises(ValueError, match=r"its student of 0\.7 is not in"):
        run(make_job(folder, sparsity=resting(), ckpt_path=last))
    assert left(folder) == before


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_a_run_that_goes_on_keeps_what_it_needs(again, make_job, tmp_path, place):
    folder, before = again
    shutil.copytree(folder, tmp_path / "elsewhere")
    last = {"here": folder, "elsewhere": tmp_path / "elsewhere"}[place] / "last.ckpt"
    run(make_job(folder, sparsity=resting(), ckpt_path=str(last)))
    assert left(folder) == before


def test_a_run_keeps_the_earlier_student_that_it_reads(again, make_job):
    folder, before = again
    job = make_job(folder, teacher=Teacher(path=str(folder)))
    result = run(dataclasses.replace(job, model=hf.Pretrained(path=str(folder / "student"))))
    assert result["teacher"]["path"] == str(folder / "student")
    assert left(folder) == before - {"milestones/0.4", "milestones/0.7"}


# What is promised


def test_a_scope_is_in_the_students_own_names(done, make_job, tmp_path):
    """Those that sparsity.csv shows; the module that is fitted has a prefix before them."""
    scope = Scope(include=["bert.encoder.layer.*.query.weight"], exclude=["bert.encoder.layer.0.*"])
    run(make_job(tmp_path / "a", sparsity=SparsityCallback(0.5, updates=4, scope=scope)))
    run(make_job(tmp_path / "b", model=dataclasses.replace(done[1].model, scope=scope)))
    for run_folder, share in (("a", 0.5), ("b", 0.9)):
        with (tmp_path / run_folder / "sparsity.csv").open() as handle:
            rows = [row for row in csv.DictReader(handle) if row["in_scope"] == "True"]
        assert [row["name"] for row in rows] == ["bert.encoder.layer.1.attention.self.query.weight"]
        assert int(rows[0]["zeros"]) == round(share * int(rows[0]["size"]))


def test_patterns_of_an_allocation_are_in_the_students_own_names_too(make_job, tmp_path):
    share = {"bert.encoder.layer.0.*": 2.0}
    sparsity = SparsityCallback(0.75, updates=4, allocation=PerType(share=share))
    run(make_job(tmp_path, sparsity=sparsity))
    with (tmp_path / "sparsity.csv").open() as handle:
        kept = {
            row["name"].split(".")[3]: 1 - int(row["zeros"]) / int(row["size"])
            for row in csv.DictReader(handle)
            if row["in_scope"] == "True"
        }
    assert kept["0"] == pytest.approx(2 * kept["1"], rel=0.02)


def test_a_job_runs_again(done, make_job, tmp_path):
    job = make_job(tmp_path / "a")
    for name in ("a", "b"):
        run(dataclasses.replace(job, out=tmp_path / name))
    assert weights(tmp_path / "b/student") == weights(tmp_path / "a/student")


@pytest.mark.parametrize(("select", "final"), [(NM(), 0.5), (Rows(), 0.95)])
def test_groups_of_a_model_that_holds_zeros_already(done, make_job, tmp_path, select, final):
    """How many weights go with them cannot be told before; what went is what is promised."""
    out, _, first = done
    sparse = hf.Pretrained(path=str(out / "student"))
    sparsity = SparsityCallback(final, updates=4, select=select)
    assert run(make_job(tmp_path, model=sparse, sparsity=sparsity))["sparsity"] > first["sparsity"]


def test_the_table_counts_the_teacher(done, make_job, tmp_path, capsys):
    out, _, _ = done
    sparse = Teacher(path=str(out / "student"))
    result = run(make_job(tmp_path, final=0.5, teacher=sparse))
    table = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│ ").split("│")]) == 3
    }
    assert table["sparsity in scope"] == ["89.97 %", "50.00 %"]
    assert table["non-zero weights"][1] == f"{result['nonzero']:,}"
    assert table["non-zero weights"][0] != f"{result['parameters']:,}"


def test_a_metrics_file_that_lost_rows_is_an_error(done):
    out, _, _ = done
    history = History(out / "metrics.csv")
    with history.path.open() as handle:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
    history.rows = [row | {"step": int(row["step"])} for row in rows]
    verify_history(history)
    history.rows = history.rows[:-1]
    with pytest.raises(PromiseError, match=r"metrics\.csv does not hold the \d+ rows of this fit"):
        verify_history(history)


def test_fewer_zeros_than_promised_is_an_error(done):
    out, job, _ = done
    model = AutoModelForSequenceClassification.from_pretrained(out / "student")
    scope = encoder_scope(model).select(model)
    promise = Promise.of(job.sparsity.pruner)
    verify(promise, SparsityReport.count(model, scope.keys()), out)
    with torch.no_grad():
        next(iter(scope.values())).fill_(1.0)
    with pytest.raises(PromiseError, match=r"zeros in scope where the masks prune"):
        verify(promise, SparsityReport.count(model, scope.keys()), out)


def test_a_run_whose_student_was_refilled_reports_nothing(done, make_job, tmp_path, monkeypatch):
    save = hf.save

    def refill(model, *args):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter[parameter == 0] = 1e-9
        save(model, *args)

    monkeypatch.setattr(hf, "save", refill)
    with pytest.raises(PromiseError, match=r"0 zeros in scope"):
        run(make_job(tmp_path))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("key", ["max_length", "pad_to"])
def test_rows_longer_than_the_model_reads_are_refused(make_job, tmp_path, key):
    """The tiny model has 64 positions."""
    for split in ("train", "validation"):
        rows = [{"text": "fox " * count, "label": f"{count}"} for count in (1, 90)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    long = hf.Task(name="long", path=str(tmp_path), text=["text"], **{key: 128})
    with pytest.raises(ValueError, match=rf"^task\.{key}=128: .*64"):
        run(dataclasses.replace(make_job(tmp_path / "out"), task=long))


def test_a_limit_above_what_the_model_reads_does_no_harm_to_shorter_rows(make_job, tmp_path):
    assert run(make_job(tmp_path, task={"max_length": 1000}))["task"] == "tiny"


def test_nothing_is_asked_of_a_student_by_default(make_job, tmp_path):
    # Raises PromiseError if anything is asked; correlations may be negative.
    verify_retained(make_job(tmp_path), student=-0.2, teacher=-0.1)


def test_labels_alone_and_dense(make_job, tmp_path):
    job = make_job(tmp_path, sparsity=None, distillation=Objective({"hard_labels": HardLabels()}))
    result = run(job)
    assert result["sparsity"] == 0
    assert result["model_sparsity"] < 0.01
