"""conf/sparsity: every option, alone and combined, prunes a model to what it says."""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, MissingMandatoryValue
from torch import nn
from transformers import BertConfig, BertModel

from kd_prune.cli.validation import check_choices
from kd_prune.hf import encoder_scope
from kd_prune.pipeline.verification import ExpectedSparsity, VerificationError, verify_sparsity
from kd_prune.pruning import (
    PLATON,
    Block,
    PruningPreview,
    Rows,
    Schedule,
    SparsityReport,
    periodic_updates,
)
from kd_prune.pruning.pruner import Pruner

from .files import CONF

GROUPS = ("criterion", "allocation", "granularity", "ramp")
METHODS = sorted(f.stem for f in (CONF / "sparsity").glob("*.yaml"))
PARTS = sorted(
    f"sparsity/{file.parent.name}={file.stem}" for file in (CONF / "sparsity").glob("*/*.yaml")
)
HEADS = ["sparsity.granularity.size=16"]
NEEDS = {
    "sparsity=heads": [*HEADS, "sparsity.final=0.75"],
    "sparsity/granularity=heads": HEADS,
    "sparsity/granularity=attention_heads": HEADS,
    "sparsity/granularity=nm": ["sparsity.final=0.5"],
}
FINAL = {"nm": 0.5, "heads": 0.75}
STEPS = 12
NO_TARGET = {"sparsity/allocation=threshold"}  # what falls below it goes
OWN_TARGET = {"sparsebert_official", "soft_movement", "fixed"}


def parts(*overrides: str) -> dict[str, Any]:
    """Arguments of the callback that the configuration describes."""
    config = composed(*overrides)
    config["_target_"] = "builtins.dict"
    return instantiate(config, _convert_="all")


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The composed group `sparsity`; parts of it are asked for again and again."""
    return compose("train", overrides=list(overrides)).sparsity


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
    )


def prune(made: dict[str, Any], steps: int = STEPS) -> tuple[Pruner, PruningPreview]:
    """Train on random gradients and inputs; return the Pruner and the preview made before."""
    model = make_encoder()
    scope = made.get("scope") or encoder_scope(model)
    schedule = Schedule(**{key: made[key] for key in ("final", "initial", "begin", "end", "ramp")})
    options = {
        key: made[key]
        for key in ("criterion", "allocation", "granularity", "update_schedule", "regrow")
    }
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
    """Prune, and compare masks and weights with the preview."""
    pruner, planned = prune(made)
    pruned = {name: mask.numel() - int(mask.sum()) for name, mask in pruner.masks.items()}
    assert sum(pruned.values()) == planned.pruned
    zeros = {name: int((weight == 0).sum()) for name, weight in pruner.parameters.items()}
    assert zeros == pruned
    assert pruner.sparsity == pytest.approx(made["final"], abs=tolerance)
    assert_expected_zeros(pruner)
    return pruner


def assert_expected_zeros(pruner: Pruner) -> None:
    """Raise VerificationError as a run would, unless the zeros are those the Pruner expects."""
    named = {name.replace(".", "_"): weight for name, weight in pruner.parameters.items()}
    model = nn.ParameterDict(OrderedDict(named))  # any other mapping would be sorted
    verify_sparsity(
        ExpectedSparsity.of(pruner), SparsityReport.count(model, list(model)), Path("out")
    )


def test_every_sparsity_file_is_tested():
    assert {"sparsebert", "global", "linear", "oneshot", "cosine", "gmp", "rigl", "regrow"} <= set(
        METHODS
    )
    files = [file for file in (CONF / "sparsity").rglob("*") if file.is_file()]
    assert len(METHODS) + len(PARTS) == len(files)
    assert {part.split("=")[0].split("/")[1] for part in PARTS} == set(GROUPS)


@pytest.mark.parametrize("method", sorted(set(METHODS) - OWN_TARGET - {"none"}))
def test_preset_reaches_its_final_sparsity(method):
    pruner = check(parts(f"sparsity={method}", *NEEDS.get(f"sparsity={method}", [])))
    assert pruner.target == FINAL.get(method, 0.95)


@pytest.mark.parametrize("part", sorted(set(PARTS) - NO_TARGET))
def test_option_reaches_its_final_sparsity(part):
    # In a matrix of 64 × 64, rows are 1/64, blocks and heads a quarter: 0.75 is reached exactly.
    made = parts(part, "sparsity.final=0.75", *NEEDS.get(part, []))
    check(made)  # asserts counts of masks and weights


def test_heads_preset_prunes_only_query_key_and_value():
    scope = parts("sparsity=heads", *NEEDS["sparsity=heads"])["scope"]
    names = list(scope.select(make_encoder()))
    assert len(names) == 6
    assert {name.split(".")[-2] for name in names} == {"query", "key", "value"}
    assert parts("sparsity/granularity=heads", *HEADS)["final"] == 0.95
    assert "scope" not in parts("sparsity/granularity=heads", *HEADS)


def test_sparsebert_official_stops_a_step_early():
    made = parts("sparsity=sparsebert_official")
    pruner, _ = prune(made)
    assert_expected_zeros(pruner)
    assert not pruner.expected_pruned  # it keeps ties
    assert pruner.target == max(pruner.update_schedule.values()) < 0.95
    assert pruner.sparsity == pytest.approx(pruner.target, abs=1e-3)


def test_fixed_preset_has_no_final_sparsity():
    assert parts("sparsity=fixed")["final"] is None


def test_soft_movement_penalty_decides_the_sparsity():
    asked = ["sparsity=soft_movement", "sparsity.criterion.rate=0.05", "sparsity.final=0.5"]
    found = []
    for penalty in (10, 4000):
        pruner, planned = prune(parts(*asked, f"sparsity.criterion.penalty={penalty}"), steps=100)
        assert planned.pruned == 0  # nothing has moved yet
        assert pruner.target == 0.5
        assert_expected_zeros(pruner)
        found.append(pruner.sparsity)
    assert found[0] < 0.4 < 0.6 < found[1]


def test_threshold_of_magnitudes_reaches_their_quantile():
    made = parts("sparsity/allocation=threshold", "sparsity.allocation.threshold=0.02")
    pruner, planned = prune(made)
    size = sum(weight.numel() for weight in pruner.parameters.values())
    assert planned.pruned / size == pytest.approx(0.68, abs=0.01)  # 0.02 is a standard deviation
    assert pruner.sparsity > 0.68
    assert_expected_zeros(pruner)


def combinations():
    """All combinations; half are slow tests, and in the other half every two options meet."""
    criteria = ["magnitude", "platon", "wanda", "block_fisher"]
    allocations = ["uniform", "erk", "group", "global"]
    granularities = ["unstructured", "block", "rows"]
    for (i, one), (j, two), (k, three) in itertools.product(
        *map(enumerate, (criteria, allocations, granularities))
    ):
        yield pytest.param(one, two, three, marks=[pytest.mark.slow] if (i + j + k) % 2 else [])


@pytest.mark.filterwarnings("ignore:.*would lose all weights")  # of two blocks, one stays
@pytest.mark.parametrize(("criterion", "allocation", "granularity"), list(combinations()))
def test_criterion_allocation_and_granularity_combine(criterion, allocation, granularity):
    chosen = {"criterion": criterion, "allocation": allocation, "granularity": granularity}
    made = parts("sparsity.final=0.6")
    made |= {group: parts(f"sparsity/{group}={name}")[group] for group, name in chosen.items()}
    pruner, _ = prune(made)
    assert pruner.sparsity == pytest.approx(0.6, abs=1e-3 if granularity == "unstructured" else 0.1)
    assert_expected_zeros(pruner)


@pytest.mark.parametrize("part", ["unstructured", "rows", "block", "nm", "attention_heads"])
def test_verify_one_weight_off_raises(part):
    """Small matrices reach few sparsities; the reachable counts are compared exactly."""
    part = f"sparsity/granularity={part}"
    pruner, _ = prune(parts(part, *NEEDS.get(part, []), "sparsity.final=0.45"))
    assert_expected_zeros(pruner)
    name = next(iter(pruner.masks))
    mask, weight = pruner.masks[name].view(-1), pruner.parameters[name].detach().view(-1)
    gone, kept = int((~mask).nonzero()[0]), int(mask.nonzero()[0])
    weight[gone] = 1.0
    with pytest.raises(VerificationError, match="zeros in scope where the masks prune"):
        assert_expected_zeros(pruner)
    mask[gone] = True
    with pytest.raises(VerificationError, match="were to be pruned"):
        assert_expected_zeros(pruner)
    mask[gone], mask[kept], weight[gone], weight[kept] = False, False, 0.0, 0.0
    with pytest.raises(VerificationError, match="were to be pruned"):
        assert_expected_zeros(pruner)


def test_verify_many_unexpected_zeros_raise():
    pruner, _ = prune(parts("sparsity.final=0.5"))
    first = next(iter(pruner.parameters.values())).detach()
    first[0] = 0.0  # of kept weights, some 30 in 65,000: a layer may die a little
    assert_expected_zeros(pruner)
    first.zero_()
    with pytest.raises(VerificationError):
        assert_expected_zeros(pruner)


def test_nm_with_nonuniform_allocation_is_bounded():
    asked = ["sparsity/criterion=platon", "sparsity/granularity=nm", "sparsity/allocation=erk"]
    with pytest.raises(ValueError, match=r"reaches sparsity 0\.5 in every tensor and no more"):
        prune(parts(*asked, "sparsity.final=0.5"))  # the larger matrices would have to go beyond
    made = parts(*asked, "sparsity.final=0.4")
    assert isinstance(made["criterion"], PLATON)
    check(made)
    capped = ["sparsity/allocation=global", "sparsity.allocation.ceiling=0.5"]
    check(parts("sparsity=nm", *capped))


def test_presets_combine_with_options():
    made = parts("sparsity=rigl", "sparsity/allocation=erk", "sparsity.final=0.8")
    assert (made["initial"], made["update_schedule"]) == (0.8, periodic_updates)
    pruner, _ = prune(made)
    assert pruner.sparsity == pytest.approx(0.8, abs=1e-3)
    assert isinstance(parts("sparsity=gmp", "sparsity/granularity=rows")["granularity"], Rows)
    official = parts("sparsity=sparsebert_official", "sparsity/granularity=block")
    assert official["granularity"] == Block()
    assert (
        parts("sparsity=global", "sparsity.allocation.ceiling=0.99")["allocation"].ceiling == 0.99
    )
    assert parts("sparsity/criterion=random", "seed=7")["criterion"].seed == 7


@pytest.mark.parametrize("part", [part for part, needed in NEEDS.items() if HEADS[0] in needed])
def test_heads_size_is_mandatory(part):
    """A wrong size that divides the matrices cannot be detected."""
    with pytest.raises(MissingMandatoryValue, match="size"):
        parts(part)


@pytest.mark.parametrize("name", ["RobertaForSequenceClassification", "BertForQuestionAnswering"])
def test_tickets_prune_models_without_a_pooler(name):
    config = compose("train", overrides=["experiment=poster/bert_tickets_oneshot"])
    kind = getattr(transformers, name)
    shape = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    model = kind(kind.config_class(vocab_size=9, intermediate_size=8, **shape))
    names = instantiate(config.sparsity.scope).select(model)
    assert len(names) == 6
    assert not any("classifier" in name for name in names)


@pytest.mark.parametrize("option", METHODS)
def test_overfitting_prunes_nothing_with_any_method(option):
    needed = {"heads": ["sparsity.granularity.size=16"], "rpp": ["callbacks=rpp"]}.get(option, [])
    given = ["debug=overfit", f"sparsity={option}", *needed]
    config = compose("train", overrides=given, return_hydra_config=True)
    check_choices(config, config.hydra.runtime.choices)
    callback = instantiate(config.sparsity, _convert_="all")
    assert callback is None or callback.schedule.final == 0.0


def test_method_chosen_beside_the_best_recipe_keeps_its_own_criterion():
    """And its settings are those of the recipe where it has none of its own."""
    best = composed("experiment=best")
    assert best.criterion._target_ == "kd_prune.pruning.Taylor"
    assert best.allocation.ceiling == 0.99
    for method in ("platon", "obert", "movement", "smp", "soft_movement", "tickets"):
        chosen = composed("experiment=best", f"sparsity={method}")
        assert chosen.criterion == composed(f"sparsity={method}").criterion
        assert chosen.end == best.end


@pytest.mark.parametrize(
    "experiment",
    [*sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")), "later/soft_movement"],
)
def test_dense_student_composes_with_every_experiment(experiment):
    made = composed(f"experiment={experiment}", "sparsity=none")
    assert made._target_ == "kd_prune.pipeline.dense"
