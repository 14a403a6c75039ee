"""Every experiment that is a pruning method runs on the embedded default, and does what it says."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from kd_prune.hf.tiny import make_model

SMALL = (
    "task.path.train=192",
    "task.path.validation=32",
    "model.path.hidden_size=16",
    "model.path.heads=2",
    "teacher.max_epochs=1",
    "trainer.max_epochs=4",
    f"trainer.accelerator={os.environ['KD_PRUNE_TEST_ACCELERATOR']}",
)
KEPT = {
    "poster/bert_tickets": 0.5,
    "poster/bert_tickets_oneshot": 0.5,
    "poster/rpp": 0.116,
    "poster/rpp_downstream": 0.116,
    "later/gmp_star": 0.05,
    "later/movement": 0.05,
    "later/soft_movement": 0.05,
    "later/platon": 0.05,
    "later/obert": 0.05,
    "later/smp": 0.05,
    "later/spd": 0.05,
}
SHORTER = {
    "poster/bert_tickets": ["stages.tickets.rounds=2", "stages.tickets.max_epochs=1"],
    "poster/rpp": ["stages.pruned.callbacks.reweighted_l1.rounds=3", "pretraining.max_steps=12"],
    "poster/rpp_downstream": ["callbacks.reweighted_l1.rounds=3"],
}
POOLER = ("poster/bert_tickets", "poster/bert_tickets_oneshot")


@pytest.fixture(scope="module")
def run_of(cache, tmp_path_factory):
    """Run folder of each experiment that has run in this module."""
    return {}


@pytest.fixture
def finished(call, run_of, tmp_path_factory):
    def run(experiment):
        if experiment not in run_of:
            out = tmp_path_factory.mktemp(experiment.replace("/", "_"))
            given = [*SMALL, *SHORTER.get(experiment, [])]
            code, _, said = call(f"experiment={experiment}", *given, f"hydra.run.dir={out}")
            assert not code, said
            run_of[experiment] = out
        return run_of[experiment]

    return run


def scoped(out, *, pooler):
    """Weights of the encoder's matrices in the saved student."""
    weights = load_file(out / "student" / "model.safetensors")
    return {
        name: weight
        for name, weight in weights.items()
        if weight.ndim == 2 and (".layer." in name or (pooler and "pooler" in name))
    }


@pytest.mark.filterwarnings("ignore:.*would lose all weights:UserWarning")  # one ranking, 16 wide
@pytest.mark.parametrize("experiment", KEPT)
def test_experiment_keeps_its_share_of_the_weights(finished, experiment):
    out = finished(experiment)
    found = scoped(out, pooler=experiment in POOLER)
    zeros = sum(int((weight == 0).sum()) for weight in found.values())
    kept = 1 - zeros / sum(weight.size for weight in found.values())
    assert kept == pytest.approx(KEPT[experiment], abs=2e-3)
    result = json.loads((out / "result.json").read_text())
    assert 1 - result["stages"]["student"]["sparsity"] == pytest.approx(kept, abs=1e-6)


def test_scores_alone_are_trained(finished, cache):
    """Kept weights of the student are those of the model that it began with."""
    first = load_file(
        f"{make_model(str(cache), layers=2, hidden_size=16, heads=2)}/model.safetensors"
    )
    saved = load_file(finished("later/smp") / "student" / "model.safetensors")
    for name, weight in saved.items():
        if "classifier" in name or "pooler" in name:  # the head
            continue
        kept, before = weight != 0, first.get(name.removeprefix("bert."), first.get(name))
        np.testing.assert_array_equal(weight[kept], before[kept])


def test_student_of_tickets_has_the_masks_of_the_last_round(finished):
    out = finished("poster/bert_tickets")
    stages = json.loads((out / "result.json").read_text())["stages"]
    sparsities = [stages[name]["sparsity"] for name in ("tickets_round_1", "tickets", "student")]
    assert sparsities == pytest.approx([0.25, 0.5, 0.5], abs=1e-3)
    ticket = load_file(f"{stages['tickets']['path']}/model.safetensors")
    for name, weight in scoped(out, pooler=True).items():
        np.testing.assert_array_equal(weight == 0, ticket[name] == 0)


def test_student_of_rpp_has_the_masks_of_its_pretraining(finished):
    out = finished("poster/rpp")
    stages = json.loads((out / "result.json").read_text())["stages"]
    pruned = load_file(f"{stages['pruned']['path']}/model.safetensors")
    for name, weight in scoped(out, pooler=False).items():
        np.testing.assert_array_equal(weight == 0, pruned[name] == 0)


def test_parts_of_spd_that_are_not_grafted_are_the_teachers(finished):
    out = finished("later/spd")
    stages = json.loads((out / "result.json").read_text())["stages"]
    teacher = load_file(f"{stages['teacher']['path']}/model.safetensors")
    changed = {
        name
        for name, weight in load_file(out / "student" / "model.safetensors").items()
        if not np.array_equal(weight, teacher[name])
    }
    assert changed
    assert all(".layer." in name for name in changed)


def test_proximal_steps_without_a_ramp_are_refused_before_training(call):
    code, _, said = call("callbacks=rpp", "sparsity=fixed", *SMALL)
    assert code == 1
    assert said.startswith("error: callbacks.reweighted_l1.name=null: its SparsityCallback has no")


def test_target_of_fixed_masks_is_refused_and_the_stage_that_prunes_is_named(call):
    code, _, said = call("experiment=poster/rpp", "sparsity.final=0.95", *SMALL)
    assert code == 1
    assert said == (
        "error: sparsity.final=0.95: sparsity=fixed keeps zeros and prunes nothing; "
        "set stages.pruned.sparsity.final\n"
    )
