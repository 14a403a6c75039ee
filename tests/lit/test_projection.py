"""A student narrower than its teacher: the projection trains, resumes, and is never pruned."""

from __future__ import annotations

import signal

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from kd_prune.distillation import Embeddings, HardLabels, HiddenStates, Objective
from kd_prune.lit import NonFiniteError, ResumePoint, RewindCallback, SparsityCallback
from kd_prune.lit.signals import Interrupted
from kd_prune.pruning import Scope

from .test_checkpointing import At, send
from .toy import (
    STEPS_PER_EPOCH,
    WIDTH,
    Toy,
    adamw,
    fit,
    forward_with_hidden_states,
    make_module,
    make_trainer,
)

PROJECTIONS = [f"objective.term_modules.{name}.projection.weight" for name in ("emb", "hidden")]
WIDER = WIDTH + 8


def distilling(optimizer=adamw, dropout=0.3):
    torch.manual_seed(5)
    objective = Objective(
        {"emb": Embeddings(), "hidden": HiddenStates(layer_map={1: 1}), "labels": HardLabels()}
    )
    objective.match_widths(WIDTH, WIDER)
    return make_module(
        teacher=Toy(seed=7, width=WIDER),
        terms=objective,
        forward=forward_with_hidden_states,
        optimizer=optimizer,
        dropout=dropout,
    )


def run(folder, *callbacks, pruning=None, resume=False, seed=11):
    L.seed_everything(seed, verbose=False)
    module = distilling()
    L.seed_everything(seed, verbose=False)
    path = folder / "last.ckpt"
    folder.mkdir(exist_ok=True)
    pruning = pruning or SparsityCallback(0.8, updates=7)
    trainer = make_trainer(folder, pruning, ResumePoint(path), *callbacks, max_epochs=2)
    fit(trainer, module, ckpt_path=path if resume else None, weights_only=True)
    return module, trainer


def test_projection_trains_with_the_student(tmp_path):
    before = dict(distilling().state_dict())
    module, trainer = run(tmp_path)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.parameters()}
    for name in PROJECTIONS:
        assert not torch.equal(module.state_dict()[name], before[name]), name


def test_projection_resumes_bitwise(tmp_path):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", At(send(signal.SIGTERM), batch=STEPS_PER_EPOCH + 2))
    checkpoint = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert [name for name in checkpoint["state_dict"] if "objective" in name] == PROJECTIONS
    again, _ = run(tmp_path / "cut", resume=True, seed=99)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("scope", [None, Scope(include=["*.weight"])], ids=str)
@pytest.mark.parametrize("submodule", [None, "student"])
def test_projection_is_never_pruned(tmp_path, scope, submodule):
    pruning = SparsityCallback(0.8, updates=7, scope=scope, submodule=submodule)
    module, _ = run(tmp_path, pruning=pruning)
    assert not any("projection" in name for name in pruning.pruner.parameters)
    assert any("encoder" in name for name in pruning.pruner.parameters)
    for name in PROJECTIONS:
        assert module.state_dict()[name].all(), name


def test_pattern_that_matches_a_projection_alone_is_refused(tmp_path):
    pruning = SparsityCallback(0.8, scope=Scope(include=["*projection*"]))
    with pytest.raises(ValueError, match="matches no parameter"):
        run(tmp_path, pruning=pruning)


def test_projection_is_no_part_of_the_student(tmp_path):
    module, _ = run(tmp_path)
    assert module.student.state_dict().keys() == Toy().state_dict().keys()


def test_projection_is_not_rewound(tmp_path):
    module, _ = run(tmp_path, RewindCallback([1.0]))
    fresh = Toy(0.3).state_dict()
    assert torch.equal(module.student.embeddings.weight.cpu(), fresh["embeddings.weight"])
    before = dict(distilling().state_dict())
    assert not any(torch.equal(module.state_dict()[n].cpu(), before[n]) for n in PROJECTIONS)


@pytest.mark.parametrize("learned", [True, False])
def test_optimizer_gets_the_objective_only_if_it_has_parameters(tmp_path, learned):
    given = []

    def note(model, total_steps):
        given.append(model)
        return adamw(model, total_steps)

    module = distilling(note) if learned else make_module(optimizer=note)
    fit(make_trainer(tmp_path, max_epochs=1), module)
    (model,) = given
    if learned:
        assert isinstance(model, nn.ModuleDict)
        assert list(model) == ["student", "objective"]
        assert model["student"] is module.student
        assert model["objective"] is module.objective
    else:
        assert model is module.student


def test_projection_that_is_nan_is_not_saved(tmp_path):
    class Break(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            with torch.no_grad():
                module.objective.term_modules["emb"].projection.weight[0, 0] = float("nan")

    trainer = make_trainer(tmp_path, Break(), ResumePoint(tmp_path / "last.ckpt"), max_epochs=1)
    with pytest.raises(NonFiniteError, match=r"emb\.projection\.weight is not finite at step 7"):
        fit(trainer, distilling())
    assert not (tmp_path / "last.ckpt").exists()
