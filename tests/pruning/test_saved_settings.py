"""A state is loaded with the kind of pruning it was saved with."""

import copy
import re
from functools import partial

import pytest
import torch

from kd_prune.errors import ConfigError
from kd_prune.pruning import (
    ERK,
    NM,
    Block,
    Global,
    Movement,
    Rows,
    Schedule,
    Taylor,
    magnitude,
    uniform,
)
from kd_prune.pruning.saved_settings import described_settings

from .toy import STEPS, make_model, make_pruner

OTHER = [
    ({"granularity": Block(rows=1, columns=1)}, {}, "granularity=kd_prune", "Block(rows=1"),
    ({"granularity": Block(rows=1, columns=1)}, {"granularity": Rows()}, "granularity=Rows", "Blo"),
    ({}, {"allocation": ERK()}, "allocation=ERK(power=1.0)", "kd_prune"),
    ({"allocation": ERK()}, {"allocation": ERK(power=0.5)}, "allocation=ERK(power=0.5)", "ERK(p"),
    ({"criterion": Taylor()}, {"criterion": Movement()}, "criterion=Movement", "Taylor"),
]


@pytest.mark.parametrize(("saved", "loaded", "key", "found"), OTHER)
def test_load_state_dict_of_other_settings_is_refused(saved, loaded, key, found):
    schedule = Schedule(final=0.8)  # as near as rows come to it
    state = make_pruner(make_model(), schedule, **saved)
    state.update(STEPS // 2)
    pruner = make_pruner(make_model(), schedule, **loaded)
    before = copy.deepcopy(pruner.state_dict())
    says = rf"^{re.escape(key)}.*was made with \w+={re.escape(found)}.*resume with the same$"
    with pytest.raises(ConfigError, match=says):
        pruner.load_state_dict(state.state_dict())
    after = pruner.state_dict()
    assert all(torch.equal(mask, before["masks"][name]) for name, mask in after["masks"].items())
    assert after["updated_at"] == before["updated_at"] == 0


@pytest.mark.parametrize(("saved", "loaded", "key", "found"), OTHER[:4])
def test_load_state_dict_without_a_schedule_takes_any_masks(saved, loaded, key, found):
    state = make_pruner(make_model(), **saved)
    state.update(STEPS)
    pruner = make_pruner(make_model(), None, **loaded)
    pruner.load_state_dict(state.state_dict())
    assert all(torch.equal(mask, state.masks[name]) for name, mask in pruner.masks.items())


def test_load_state_dict_of_other_numbers_of_a_criterion_is_allowed():
    saved = make_pruner(make_model(), criterion=Taylor(decay=0.5))
    saved.update(STEPS)
    pruner = make_pruner(make_model(), criterion=Taylor(decay=0.9))
    pruner.load_state_dict(saved.state_dict())
    assert all(torch.equal(mask, saved.masks[name]) for name, mask in pruner.masks.items())


def test_described_settings_have_no_addresses():
    class Own:
        def __call__(self, masks, score, sparsity): ...

    described = described_settings(partial(magnitude), Own(), partial(partial, Own()))
    assert not any("0x" in text for text in described.values())
    assert described_settings(magnitude, uniform, NM()) != described_settings(
        magnitude, Global(), NM()
    )
