"""plain_settings and SparsityCallback.settings: plain data that tells settings apart."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kd_prune.distillation import HiddenStates
from kd_prune.lit import SparsityCallback
from kd_prune.lit.settings import UnknownPartError, plain_settings
from kd_prune.pruning import ERK, Global, Movement, RigL, Scope, cubic, linear, magnitude


@dataclass(frozen=True)
class Point:
    x: float
    function: object


class Own:
    def __init__(self):
        self.rate, self._hidden = 0.5, 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (np.float64(0.5), 0.5),
        (float("inf"), "inf"),
        (Path("a/b"), "a/b"),
        ((1, [2]), [1, [2]]),
        ({"b", "a"}, ["a", "b"]),
        ({1: magnitude}, {"1": f"{magnitude.__module__}.magnitude"}),
        (Own, f"{__name__}.Own"),
        (Own(), {"class": f"{__name__}.Own", "rate": 0.5}),
        (Point(1.0, Own), {"class": f"{__name__}.Point", "x": 1.0, "function": f"{__name__}.Own"}),
        (
            partial(max, 1, key=abs),
            {"function": "builtins.max", "arguments": [1], "keywords": {"key": "builtins.abs"}},
        ),
        (
            nn.Sequential(nn.Dropout(0.1)),
            {
                "class": "torch.nn.modules.container.Sequential",
                "0": {"class": "torch.nn.modules.dropout.Dropout", "p": 0.1, "inplace": False},
            },
        ),
    ],
)
def test_plain_settings(value, plain):
    assert plain_settings(value) == plain


def test_plain_settings_of_a_term_with_a_projection():
    plain = plain_settings(HiddenStates(weight=2.0, projection=nn.Linear(2, 3)))
    assert (plain["weight"], plain["layer_map"]) == (2.0, None)
    assert plain["projection"]["out_features"] == 3


def test_settings_name_every_argument_of_the_callback():
    settings = SparsityCallback(0.9, criterion=Movement(), allocation=Global()).settings()
    assert set(settings) == set(inspect.signature(SparsityCallback).parameters)
    assert settings["final"] == 0.9
    assert settings["ramp"] == f"{cubic.__module__}.cubic"
    assert json.loads(json.dumps(settings)) == settings
    assert settings == SparsityCallback(0.9, criterion=Movement(), allocation=Global()).settings()


@pytest.mark.parametrize(
    "other",
    [
        {"final": 0.8},
        {"final": None},
        {"scope": Scope(include=["*.weight"])},
        {"submodule": "student"},
        {"initial": 0.1},
        {"ramp": linear},
        {"milestones": [0.5]},
        {"updates": 7},
        {"criterion": Movement()},
        {"allocation": ERK()},
        {"regrow": RigL()},
        {"name": "second"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_settings_differ_where_an_argument_does(other):
    (name,) = other
    one, two = SparsityCallback().settings(), SparsityCallback(**other).settings()
    assert [key for key in one if one[key] != two[key]] == [name]


def test_settings_follow_a_scope_that_is_set_later():
    pruning = SparsityCallback()
    pruning.scope, pruning.submodule = Scope(include=["a.*"]), "student"
    assert pruning.settings()["scope"]["include"] == ["a.*"]
    assert pruning.settings()["submodule"] == "student"


class Biased:
    def __init__(self, bias):
        self.bias = bias

    def arguments(self):
        return {"bias": self.bias}

    def loss(self, student, teacher, batch):
        return self.bias


def test_weights_of_a_term_tell_it_apart():
    ones, zeros = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    nn.init.ones_(ones.weight)
    nn.init.zeros_(zeros.weight)
    assert plain_settings(ones) != plain_settings(zeros)
    counted = nn.Linear(2, 2, bias=False)
    nn.init.ones_(counted.weight)
    assert plain_settings(ones) == plain_settings(counted)
    counted.register_buffer("classes", torch.ones(3))
    other = plain_settings(counted)
    counted.classes.zero_()
    assert plain_settings(counted) != other


def test_methods_of_objects_with_other_settings_are_told_apart():
    first, second = (plain_settings(Biased(bias).loss, strict=True) for bias in (0, 1))
    assert first["of"]["bias"] == 0
    assert first != second


def test_function_of_a_script_is_not_known_to_other_processes():
    def loss():
        return 0

    loss.__qualname__, loss.__module__ = "loss", "__main__"
    assert plain_settings(loss) == "__main__.loss"
    with pytest.raises(UnknownPartError, match=r"__main__\.loss has no name that other processes"):
        plain_settings(loss, strict=True)
