"""Stages before the student: fitted once, found again by what they depend on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from filelock import FileLock
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import LightningEnvironment
from safetensors.torch import load_file, save_file

from kd_prune import hf
from kd_prune.hf.tiny import make_model
from kd_prune.lit import DistillModule
from kd_prune.pipeline import Stage, run, stage_cache
from kd_prune.pipeline.stage_cache import obtain_stage, read_stage

from .jobs import BATCH, LABELS, STEPS, folder_of, found_again, loaded_context, timeless, weights


@pytest.fixture
def fits(monkeypatch):
    """One entry for every fit that a test makes."""
    made = []
    fit = L.Trainer.fit
    monkeypatch.setattr(
        L.Trainer, "fit", lambda self, *args, **kw: (made.append(1), fit(self, *args, **kw))[1]
    )
    return made


@pytest.fixture
def said(monkeypatch):
    """What the stage cache says."""
    messages = []
    monkeypatch.setattr(stage_cache, "say", messages.append)
    return messages


def test_teacher_is_fitted_once(done, make_job, tmp_path, fits):
    first = done.result.teacher
    before = weights(first.path)
    second = run(make_job(tmp_path, final=0.5))
    assert len(fits) == 1  # the student's
    assert second.teacher == found_again(first)
    assert weights(first.path) == before


def test_stage_of_this_run_has_its_time_and_is_not_marked_as_reused(make_job, tmp_path):
    job = make_job(tmp_path / "a", cache_dir=str(tmp_path / "cache"))
    context = loaded_context(job)
    first = obtain_stage(context, context.chain["teacher"]).result
    assert not first.reused
    assert first.seconds > 0
    second = obtain_stage(context, context.chain["teacher"]).result
    assert second == found_again(first)


@pytest.mark.parametrize(
    "change", ["trainer", "names of labels", "head", "seed", "optimizer", "epochs", "metrics"]
)
def test_teacher_of_other_settings_is_another_one(done, make_job, tmp_path, cache, change):
    settings = {
        "trainer": {"trainer_settings": {"accumulate_grad_batches": 2}},
        "names of labels": {"task": {"labels": [*reversed(LABELS)]}},
        "head": {"model": hf.PretrainedEncoder(path=str(tmp_path / "headed"))},
        "seed": {"seed": 1},
        "optimizer": {"teacher": dataclasses.replace(done.job.teacher, optimizer=None, seed=0)
                      , "optimizer": hf.AdamWWithSchedule(lr=3e-3)},
        "epochs": {"teacher": dataclasses.replace(done.job.teacher, max_epochs=2)},
        "metrics": {"task": {"metrics": ["accuracy", "macro_f1"]}},
    }[change]  # fmt: skip
    if change == "head":  # not the one that a job's seed gives
        model = hf.PretrainedEncoder(path=make_model(str(cache), layers=2, hidden_size=16, heads=2))
        kind = hf.Classification()
        torch.manual_seed(99)
        headed = model.load(kind=kind, num_outputs=8)
        hf.save(headed, model.tokenizer(), tmp_path / "headed", kind=kind, labels=LABELS)
    assert folder_of(make_job(tmp_path / "out"), "teacher") == Path(done.result.teacher.path)
    other = folder_of(make_job(tmp_path / "out", **settings), "teacher")
    assert other.parent == cache / "stages"
    assert other != Path(done.result.teacher.path)


@pytest.mark.parametrize(
    "settings",
    [
        {"final": 0.5},
        {"student": Stage(dropout=0.3, min_retained=0.1)},
        {"optimizer": hf.AdamWWithSchedule(lr=1e-4)},
        {"trainer_settings": {"max_epochs": 7}},
        {"trainer_settings": {"log_every_n_steps": 3, "enable_progress_bar": True}},
        {"trainer_settings": {"plugins": [LightningEnvironment()]}},
        {"trainer_settings": {"devices": 2, "strategy": "ddp"}},
        {
            "trainer_settings": {
                "devices": 2, "strategy": "ddp", "plugins": [LightningEnvironment()],
            }
        },
    ],
)  # fmt: skip
def test_teacher_does_not_depend_on_the_student(done, make_job, tmp_path, settings):
    """Nor on its number of processes: the teacher is fitted in one."""
    found = folder_of(make_job(tmp_path, **settings), "teacher")
    assert found == Path(done.result.teacher.path)


def test_stage_fitted_with_a_plugin_object_stays_in_the_run_folder(make_job, tmp_path, said):
    """No other process can tell what such an object does."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for plugin in (MixedPrecision("16-mixed", "cpu", scaler), MixedPrecision("bf16-mixed", "cpu")):
        settings = {"accelerator": "cpu", "plugins": [plugin]}
        found = folder_of(make_job(tmp_path / "run", trainer_settings=settings), "teacher")
        assert found.parent == tmp_path / "run" / "stages"
        assert found.name.startswith("teacher-")
    assert (
        said
        == ["The teacher is not shared between runs: MixedPrecision is no part with settings"] * 2
    )


def test_stage_kept_in_the_run_folder_depends_on_its_configuration(make_job, tmp_path, said):
    """What cannot be described is in there by name and arguments."""
    plugin = MixedPrecision("bf16-mixed", "cpu")
    folders = {
        folder_of(
            make_job(
                tmp_path / "run",
                trainer_settings={"accelerator": "cpu", "plugins": [plugin]},
                config={"teacher": {"callbacks": {"stop": {"step": step}}}, "seed": seed},
            ),
            "teacher",
        )
        for step, seed in ((1, 1), (1, 2), (25, 1))
    }
    assert len(folders) == 2
    assert len(said) == 3


def test_interrupted_teacher_is_resumed_to_the_same_bytes(make_job, tmp_path, said):
    job = make_job(tmp_path / "whole", teacher=Stage(max_epochs=2), cache_dir=str(tmp_path / "1"))
    context = loaded_context(job)
    whole = obtain_stage(context, context.chain["teacher"])
    again = dataclasses.replace(job, out=tmp_path / "again", cache_dir=str(tmp_path / "2"))
    context = loaded_context(again)
    original = DistillModule.training_step

    def stop(self, batch, batch_idx):
        if self.trainer.current_epoch == 1 and batch_idx == 3:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillModule, "training_step", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            obtain_stage(context, context.chain["teacher"])
    (left,) = (tmp_path / "2/stages").glob("*.ckpt")
    resumed = obtain_stage(context, context.chain["teacher"])
    assert said[-1].startswith("Resuming the teacher after step ")
    assert weights(resumed.path) == weights(whole.path)
    assert left == Path(resumed.path).with_suffix(".ckpt")
    assert not left.exists()


@pytest.mark.parametrize("damage", ["truncated", "headless", "no config", "record"])
def test_damaged_stage_of_the_cache_is_fitted_again(done, make_job, tmp_path, caplog, damage):
    first = done.result.teacher
    theirs = Path(first.path)
    folder = tmp_path / "stages" / theirs.name
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
        (folder / "stage.json").write_text("{")
    context = loaded_context(make_job(tmp_path / "out", cache_dir=str(tmp_path)))
    stage = context.chain["teacher"]
    random = torch.get_rng_state()
    assert read_stage(context, stage, folder) is None
    assert torch.equal(torch.get_rng_state(), random)  # or dropout would be another
    (record,) = [r for r in caplog.records if r.name == "kd_prune.pipeline.stage_cache"]
    message = record.getMessage()
    assert message.startswith(f"{folder}: a damaged stage, which is fitted once more (")
    assert "\n" not in message
    assert "model.path" not in message
    result = obtain_stage(context, stage).result
    assert weights(folder) == weights(theirs)
    assert not result.reused
    same = {"path": str(folder), "reused": False}
    assert timeless(result) == timeless(dataclasses.replace(first, **same))


def test_teacher_with_a_batch_size_of_its_own_is_shared_by_students_of_others(
    done, make_job, tmp_path
):
    teacher = dataclasses.replace(done.job.teacher, batch_size=BATCH)
    result = run(make_job(tmp_path, teacher=teacher, task={"batch_size": 2 * BATCH}))
    assert result.teacher == found_again(done.result.teacher)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1].startswith(f"{STEPS // 2},")


def test_teacher_is_evaluated_on_the_splits_of_the_task(make_job, tmp_path):
    found = []
    for splits in (["validation"], ["train", "validation"]):
        context = loaded_context(make_job(tmp_path, task={"validation": splits}))
        found.append(obtain_stage(context, context.chain["teacher"]).result.metrics)
    assert found[0]["accuracy"] == found[1]["validation/accuracy"]
    assert found[1]["accuracy"] != found[0]["accuracy"]


def test_run_says_that_it_waits_where_another_process_fits_the_stage(
    make_job, tmp_path, monkeypatch
):
    job = make_job(tmp_path / "out", cache_dir=str(tmp_path / "cache"))
    folder, context = folder_of(job, "teacher"), loaded_context(job)
    folder.parent.mkdir(parents=True)
    other_process = FileLock(folder.with_suffix(".lock"))
    other_process.acquire()
    said = []

    def say(message):
        said.append(message)
        other_process.release()

    monkeypatch.setattr(stage_cache, "say", say)
    obtain_stage(context, context.chain["teacher"])
    assert said[0] == "Another run is fitting this teacher; waiting for it."
    assert said[1].startswith("Fitting the teacher on tiny (")
    assert len(said) == 2


def test_run_that_waited_takes_what_the_other_process_left(done, make_job, tmp_path, monkeypatch):
    job = make_job(tmp_path / "out", cache_dir=str(tmp_path / "cache"))
    folder, context = folder_of(job, "teacher"), loaded_context(job)
    folder.parent.mkdir(parents=True)
    other_process = FileLock(folder.with_suffix(".lock"))
    other_process.acquire()
    said = []

    def say(message):
        said.append(message)
        if len(said) == 1:
            shutil.copytree(done.result.teacher.path, folder)
            other_process.release()

    monkeypatch.setattr(stage_cache, "say", say)
    outcome = obtain_stage(context, context.chain["teacher"])
    assert said == [
        "Another run is fitting this teacher; waiting for it.",
        f"Teacher from the cache ({folder.name})",
    ]
    path = {"path": str(folder)}
    assert outcome.result == dataclasses.replace(found_again(done.result.teacher), **path)


def test_run_that_fits_a_stage_alone_does_not_say_that_it_waits(make_job, tmp_path, said):
    context = loaded_context(make_job(tmp_path / "out", cache_dir=str(tmp_path / "cache")))
    obtain_stage(context, context.chain["teacher"])
    assert [message.partition(" ")[0] for message in said] == ["Fitting"]


def test_finished_stage_is_read_without_a_lock(done, make_job, tmp_path, said):
    """While another process holds the lock, which would never be released here."""
    folder = Path(done.result.teacher.path)
    context = loaded_context(make_job(tmp_path))
    with FileLock(folder.with_suffix(".lock")):
        outcome = obtain_stage(context, context.chain["teacher"])
    assert outcome.result == found_again(done.result.teacher)
    assert said == [f"Teacher from the cache ({folder.name})"]


def test_stage_found_under_another_name_of_its_task_has_this_one(done, make_job, tmp_path):
    task = {"name": "other", "metrics": ["accuracy"]}
    job = make_job(tmp_path, task={})
    job = dataclasses.replace(job, task=dataclasses.replace(job.task, name=task["name"]))
    context = loaded_context(job)
    outcome = obtain_stage(context, context.chain["teacher"])
    assert outcome.path == done.result.teacher.path
    assert outcome.result.task == "other"


def test_data_of_a_stage_do_not_depend_on_other_stages(done, make_job, tmp_path, distilbert):
    """A given BERT reads segments, of which DistilBERT's tokenizer makes none."""
    stages = {"assistant": Stage(max_epochs=1)}
    student = Stage(init="assistant", teacher="teacher")
    plain = make_job(tmp_path, model=distilbert, stages=stages, student=student)
    given = dataclasses.replace(plain, teacher=Stage(path=done.result.teacher.path))
    data = [loaded_context(job).inputs for job in (plain, given)]
    columns = [{n: i.data.splits["train"].column_names for n, i in d.items()} for d in data]
    assert "token_type_ids" not in columns[0]["student"]
    assert "token_type_ids" not in columns[1]["assistant"]
    assert "token_type_ids" in columns[1]["student"]
    assert data[0]["assistant"].data.fingerprint == data[1]["assistant"].data.fingerprint
