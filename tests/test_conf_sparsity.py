"""conf/sparsity: every option, alone and combined, prunes a model to what it says."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import MissingMandatoryValue
from torch import nn
from transformers import BertConfig, BertModel

from kd_prune.hf.models import encoder_scope
from kd_prune.pruning import (
    Block,
    Platon,
    PruningPlan,
    Rows,
    Schedule,
    SparsityReport,
    steady_plan,
)
from kd_prune.pruning.pruner import Pruner
from kd_prune.run import PromiseError
from kd_prune.run.check import Promise, verify
from kd_prune.sweep import names  # noqa: F401  Hydra's configuration uses them

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("criterion", "allocation", "select", "shape")
METHODS = sorted(file.stem for file in (CONF / "sparsity").glob("*.yaml"))
PARTS = sorted(
    f"sparsity/{file.parent.name}={file.stem}" for file in (CONF / "sparsity").glob("*/*.yaml")
)
HEADS = ["sparsity.select.size=16"]
NEEDS = {"sparsity/select=heads": HEADS, "sparsity/select=attention_heads": HEADS}
STEPS = 12
NO_TARGET = {"sparsity/allocation=threshold"}  # what falls below it goes
OWN_TARGET = {"sparsebert_official", "soft_movement"}


@pytest.fixture(autouse=True)
def _conf(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_PRUNE_CACHE", str(tmp_path))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def parts(*overrides: str) -> dict[str, Any]:
    """What the configuration would make a callback of."""
    config = compose("train", overrides=list(overrides)).sparsity
    config["_target_"] = "builtins.dict"
    return instantiate(config, _convert_="all")


def make_encoder() -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=8,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
        ),
        add_pooling_layer=False,
    )


def prune(made: dict[str, Any], steps: int = STEPS) -> tuple[Pruner, PruningPlan]:
    """Carry a ramp through on made-up gradients and inputs; the plan is that of before."""
    model = make_encoder()
    scope = made.get("scope") or encoder_scope(model)
    schedule = Schedule(**{key: made[key] for key in ("final", "initial", "begin", "end", "shape")})
    options = {key: made[key] for key in ("criterion", "allocation", "select", "plan", "regrow")}
    weights = scope.select(model)
    pruner = Pruner(weights, schedule, total_steps=steps, updates=6, **options)
    planned = pruner.preview()
    optimizer = torch.optim.SGD(weights.values(), lr=0.01)
    pruner.attach(optimizer)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=draw)
        if getattr(pruner.criterion, "observes", None) == "input":
            inputs = {n: torch.randn(8, w.shape[1], generator=draw) for n, w in weights.items()}
            pruner.observe(inputs)
        optimizer.step()
    return pruner, planned


def check(made: dict[str, Any], tolerance: float = 2e-3) -> Pruner:
    """Prune, and hold what comes out against what was planned, in the masks and in the weights."""
    pruner, planned = prune(made)
    pruned = {name: mask.numel() - int(mask.sum()) for name, mask in pruner.masks.items()}
    assert sum(pruned.values()) == planned.pruned
    zeros = {name: int((weight == 0).sum()) for name, weight in pruner.parameters.items()}
    assert zeros == pruned
    assert pruner.sparsity == pytest.approx(made["final"], abs=tolerance)
    keeps_its_promise(pruner)
    return pruner


def keeps_its_promise(pruner: Pruner) -> None:
    """Raise PromiseError as a run would, unless the weights hold what the Pruner promised."""
    named = {name.replace(".", "_"): weight for name, weight in pruner.parameters.items()}
    model = nn.ParameterDict(OrderedDict(named))  # any other mapping would be sorted
    verify(Promise.of(pruner), SparsityReport.count(model, list(model)), Path("out"))


def test_every_file_is_an_option_here():
    assert {"sparsebert", "global", "linear", "oneshot", "cosine", "gmp", "rigl", "regrow"} <= set(
        METHODS
    )
    files = [file for file in (CONF / "sparsity").rglob("*") if file.is_file()]
    assert len(METHODS) + len(PARTS) == len(files)
    assert {part.split("=")[0].split("/")[1] for part in PARTS} == set(GROUPS)


@pytest.mark.parametrize("method", sorted(set(METHODS) - OWN_TARGET))
def test_a_method_prunes_to_its_target(method):
    pruner = check(parts(f"sparsity={method}"))
    assert pruner.target == 0.95


@pytest.mark.parametrize("part", sorted(set(PARTS) - NO_TARGET))
def test_a_part_prunes_to_its_target(part):
    made = parts(part, *NEEDS.get(part, []), *([] if "nm" in part else ["sparsity.final=0.75"]))
    # Of a matrix of 64 × 64 rows of 128, blocks of a quarter, heads of a quarter: 0.75 is whole.
    check(made)  # asserts counts of masks and weights


def test_the_reference_code_stops_a_step_early():
    made = parts("sparsity=sparsebert_official")
    pruner, _ = prune(made)
    keeps_its_promise(pruner)
    assert not pruner.promised  # it keeps ties
    assert pruner.target == max(pruner.plan.values()) < 0.95
    assert pruner.sparsity == pytest.approx(pruner.target, abs=1e-3)


def test_the_penalty_of_soft_movement_decides_what_goes():
    asked = ["sparsity=soft_movement", "sparsity.criterion.rate=0.05", "sparsity.final=0.5"]
    found = []
    for penalty in (10, 4000):
        pruner, planned = prune(parts(*asked, f"sparsity.criterion.penalty={penalty}"), steps=100)
        assert planned.pruned == 0  # nothing has moved yet
        assert pruner.target == 0.5
        keeps_its_promise(pruner)
        found.append(pruner.sparsity)
    assert found[0] < 0.4 < 0.6 < found[1]


def test_a_threshold_of_another_score():
    made = parts("sparsity/allocation=threshold", "sparsity.allocation.threshold=0.02")
    pruner, planned = prune(made)
    size = sum(weight.numel() for weight in pruner.parameters.values())
    assert planned.pruned / size == pytest.approx(0.68, abs=0.01)  # 0.02 is a standard deviation
    assert pruner.sparsity > 0.68
    keeps_its_promise(pruner)


@pytest.mark.parametrize("criterion", ["magnitude", "platon", "wanda", "block_fisher"])
@pytest.mark.parametrize("allocation", ["layerwise", "erk", "per_type", "global"])
@pytest.mark.parametrize("select", ["exact", "block", "rows"])
def test_three_parts_combine(criterion, allocation, select):
    made = parts(
        f"sparsity/criterion={criterion}",
        f"sparsity/allocation={allocation}",
        f"sparsity/select={select}",
        "sparsity.final=0.6",
    )
    pruner, _ = prune(made)
    assert pruner.sparsity == pytest.approx(0.6, abs=1e-3 if select == "exact" else 0.1)
    keeps_its_promise(pruner)


@pytest.mark.parametrize("part", ["exact", "rows", "block", "nm", "attention_heads"])
def test_one_weight_off_is_a_broken_promise(part):
    """Small matrices reach few sparsities: what counts is what they can reach, to the weight."""
    part = f"sparsity/select={part}"
    pruner, _ = prune(parts(part, *NEEDS.get(part, []), "sparsity.final=0.45"))
    keeps_its_promise(pruner)
    name = next(iter(pruner.masks))
    mask, weight = pruner.masks[name].view(-1), pruner.parameters[name].detach().view(-1)
    gone, kept = int((~mask).nonzero()[0]), int(mask.nonzero()[0])
    weight[gone] = 1.0
    with pytest.raises(PromiseError, match="zeros in scope where the masks prune"):
        keeps_its_promise(pruner)
    mask[gone] = True
    with pytest.raises(PromiseError, match="were promised"):
        keeps_its_promise(pruner)
    mask[gone], mask[kept], weight[gone], weight[kept] = False, False, 0.0, 0.0
    with pytest.raises(PromiseError, match="were promised"):
        keeps_its_promise(pruner)


def test_many_zeros_that_no_mask_asked_for_are_a_broken_promise():
    pruner, _ = prune(parts("sparsity.final=0.5"))
    first = next(iter(pruner.parameters.values())).detach()
    first[0] = 0.0  # of kept weights, some 30 in 65,000: a layer may die a little
    keeps_its_promise(pruner)
    first.zero_()
    with pytest.raises(PromiseError):
        keeps_its_promise(pruner)


def test_a_pattern_under_an_allocation_that_is_not_uniform():
    asked = ["sparsity/criterion=platon", "sparsity/select=nm", "sparsity/allocation=erk"]
    with pytest.raises(ValueError, match=r"reaches sparsity 0\.5 in every tensor and no more"):
        prune(parts(*asked))  # the larger matrices would have to go beyond it
    made = parts(*asked, "sparsity.final=0.4")
    assert isinstance(made["criterion"], Platon)
    check(made)
    check(parts("sparsity=global", "sparsity/select=nm", "sparsity.allocation.ceiling=0.5"))


def test_a_method_combines_with_parts():
    made = parts("sparsity=rigl", "sparsity/allocation=erk", "sparsity.final=0.8")
    assert (made["initial"], made["plan"]) == (0.8, steady_plan)
    pruner, _ = prune(made)
    assert pruner.sparsity == pytest.approx(0.8, abs=1e-3)
    assert isinstance(parts("sparsity=gmp", "sparsity/select=rows")["select"], Rows)
    official = parts("sparsity=sparsebert_official", "sparsity/select=block")
    assert official["select"] == Block()
    assert (
        parts("sparsity=global", "sparsity.allocation.ceiling=0.99")["allocation"].ceiling == 0.99
    )
    assert parts("sparsity/criterion=random", "seed=7")["criterion"].seed == 7


@pytest.mark.parametrize("part", NEEDS)
def test_a_size_of_heads_has_to_be_given(part):
    """A wrong one that divides cannot be told from the weights."""
    with pytest.raises(MissingMandatoryValue, match="size"):
        parts(part)
