"""Masks taken from another model, and stages of several rounds (lottery tickets)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from kd_prune import hf
from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import Stage, run
from kd_prune.pipeline.rounds import rounds_of
from kd_prune.pruning import Global, Scope, cubic, linear, one_shot

from .jobs import InterruptAt, folder_of

SCOPE = Scope(include=["*.query.weight", "*pooler.dense.weight"])


def tickets(final=0.6, **settings):
    sparsity = SparsityCallback(
        final, ramp=linear, allocation=Global(), scope=SCOPE, verbose=False, **settings
    )
    return Stage(rounds=3, sparsity=sparsity, max_epochs=1)


def scoped(folder):
    found = load_file(Path(folder) / "model.safetensors")
    return {n: w.numpy() for n, w in found.items() if "query.weight" in n or "pooler.dense.w" in n}


def still(rate=1e-12):
    """An optimizer that moves no weight by a visible amount."""
    return hf.AdamWWithSchedule(lr=rate, weight_decay=0.0)


@pytest.fixture(scope="module")
def found(make_job, tmp_path_factory):
    out = tmp_path_factory.mktemp("tickets")
    job = make_job(
        out,
        stages={"tickets": tickets()},
        student=Stage(masks_from="tickets"),
        sparsity=SparsityCallback(None, scope=SCOPE, verbose=False),
        optimizer=still(),
    )
    job = replace(
        job, stages={"tickets": replace(tickets(), optimizer=hf.AdamWWithSchedule(lr=2e-2))}
    )
    return job, run(job)


def test_rounds_prune_by_their_ranking_and_begin_from_the_first_weights(found):
    """The masks that a plain implementation finds from the weights at the end of every round."""
    job, result = found
    names = ["tickets_round_1", "tickets_round_2", "tickets"]
    assert [name for name in result.stages if name.startswith("tickets")] == names
    first = scoped(job.model.path)
    first = {n: next(w for m, w in first.items() if n.endswith(m)) for n in scoped(folder(result))}
    alive = np.concatenate([np.ones(w.size, bool) for w in first.values()])
    for k, name in enumerate(names, start=1):
        trained = np.concatenate([w.ravel() for w in scoped(folder(result, name)).values()])
        kept = trained != 0
        assert not (kept & ~alive).any()  # nested
        assert (~kept).sum() == round(0.2 * k * kept.size)
        alive = kept
    student = np.concatenate([w.ravel() for w in scoped(job.out / "student").values()])
    begun = np.concatenate([w.ravel() for w in first.values()])
    np.testing.assert_allclose(student, np.where(alive, begun, 0.0), atol=1e-6)
    moved = np.abs(trained - np.where(alive, begun, 0.0)).max()
    assert moved > 1e-3  # of the round that the masks were found in


def folder(result, name="tickets"):
    return result.stages[name].path


def test_a_round_prunes_the_smallest_of_its_trained_weights(make_job, tmp_path):
    """One round of one stage: the pruned weights are those a second fit has smallest at its end."""
    fast = hf.AdamWWithSchedule(lr=2e-2)
    dense = Stage(max_epochs=1, optimizer=fast)
    pruned = replace(tickets(0.5), rounds=2, optimizer=fast)
    job = make_job(
        tmp_path,
        stages={"dense": dense, "tickets": pruned},
        student=Stage(init="dense", masks_from="tickets"),
        sparsity=SparsityCallback(None, scope=SCOPE, verbose=False),
    )
    result = run(job)
    trained = np.concatenate([w.ravel() for w in scoped(folder(result, "dense")).values()])
    first = np.concatenate([w.ravel() for w in scoped(folder(result, "tickets_round_1")).values()])
    count = round(0.25 * trained.size)
    smallest = np.argsort(np.abs(trained), kind="stable")[:count]
    expected = np.ones(trained.size, bool)
    expected[smallest] = False
    np.testing.assert_array_equal(first != 0, expected)


def test_interrupted_rounds_are_resumed_to_the_same_bytes(found, make_job, tmp_path):
    job, result = found
    stage = job.stages["tickets"]

    def again(step):
        return replace(
            job,
            out=tmp_path / "run",
            stages={"tickets": replace(stage, callbacks={"interrupt": InterruptAt(step)})},
        )

    from kd_prune.lit.signals import Interrupted

    with pytest.raises(Interrupted):
        run(again(3))
    resumed = run(again(-1))
    assert not resumed.stages["tickets_round_1"].reused
    for name in ("tickets_round_1", "tickets"):
        ours, theirs = (scoped(folder(one, name)) for one in (resumed, result))
        assert all((ours[n] == theirs[n]).all() for n in theirs)


def test_stage_with_other_masks_is_another_stage(found, make_job, tmp_path):
    _, result = found
    after = Stage(max_epochs=1)

    def place(masks):
        stages = {"after": replace(after, masks_from=masks)}
        return folder_of(make_job(tmp_path, stages=stages, student=Stage(init="after")), "after")

    places = {place(None), place(folder(result)), place(folder(result, "tickets_round_1"))}
    assert len(places) == 3


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (linear, [0.3, 0.6, 0.9]),
        (cubic, [0.9 * 19 / 27, 0.9 * 26 / 27, 0.9]),
        (one_shot, [0.9] * 3),
    ],
)
def test_sparsities_of_rounds_are_those_of_the_ramp(ramp, expected):
    stage = Stage(rounds=3, sparsity=SparsityCallback(0.9, ramp=ramp))
    fits = rounds_of("t", stage)
    assert [one.masks_from for one in fits.values()] == [None, "t_round_1", "t_round_2"]
    finals = [one.sparsity.schedule.final for one in fits.values()]
    assert finals == pytest.approx(expected)
    assert {one.rounds for one in fits.values()} == {1}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"stages": {"a": Stage(rounds=2)}},
            "stages.a.rounds=2: nothing is pruned at the end of a round",
        ),
        (
            {"stages": {"a": replace(tickets(), sparsity=SparsityCallback(0.5, end=0.5))}},
            "stages.a.sparsity.end=0.5: the ramp is one over rounds",
        ),
        ({"student": Stage(rounds=2)}, "student.rounds=2: the student is one fit"),
        (
            {"stages": {"a": tickets(), "a_round_1": Stage()}},
            "stages.a_round_1: the name of a round of a",
        ),
    ],
)
def test_impossible_rounds_are_refused(make_job, tmp_path, settings, says):
    with pytest.raises(ConfigError) as error:
        make_job(tmp_path, **settings)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (
            "tickts",
            "student.masks_from=tickts: there is no such stage, folder or hub id; there are ",
        ),
        ("/no/such", "student.masks_from=/no/such: there is no such folder"),
        ("{model}", "student.masks_from={model}: it has no zeros among the weights in scope"),
        ("{wide}", "student.masks_from={wide}: its bert.encoder.layer.0.attention.self.query.weig"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    make_job, cache, tmp_path, no_training, masks, says, found
):
    from kd_prune.hf.tiny import make_model

    names = {
        "model": make_job(tmp_path).model.path,
        "wide": make_model(str(cache), layers=2, hidden_size=32, heads=2),
    }
    job = make_job(
        tmp_path,
        student=Stage(masks_from=masks.format(**names)),
        stages={"tickets": Stage(max_epochs=1)},
    )
    with pytest.raises(ConfigError) as error:
        run(job)
    assert str(error.value).startswith(says.format(**names))


def test_student_that_is_pruned_further_keeps_the_zeros_of_its_masks(found, make_job, tmp_path):
    """Without `keep_zeros` of its own, though its ramp begins at 0."""
    _, result = found
    masks = folder(result, "tickets_round_1")
    job = make_job(
        tmp_path / "run",
        student=Stage(masks_from=masks),
        sparsity=SparsityCallback(0.5, scope=SCOPE, end=0.5, updates=4, verbose=False),
    )
    student = run(job).student
    assert student.sparsity == pytest.approx(0.5, abs=1e-3)
    before, after = scoped(masks), scoped(tmp_path / "run" / "student")
    assert all((after[name][before[name] == 0] == 0).all() for name in before)
