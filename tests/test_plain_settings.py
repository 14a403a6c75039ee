"""plain_settings: plain data that tells settings apart, and code that is no package's."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kd_prune.distillation import HiddenStates
from kd_prune.lit import SparsityCallback
from kd_prune.plain_settings import UnknownPartError, plain_settings
from kd_prune.pruning import ERK, Global, Movement, RigL, Scope, cubic, linear, magnitude


@dataclass(frozen=True)
class Point:
    x: float
    function: object


ROOT = Path(__file__).parents[1]
SHOW = (
    "from kd_prune.plain_settings import plain_settings; print(json.dumps(plain_settings({part})))"
)


class Own:
    def __init__(self):
        self.rate = 0.5


SOURCE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def named(name):
    return f"{__name__}.{name} (source {SOURCE})"


def settings(**arguments):
    return plain_settings(SparsityCallback(**arguments).arguments())


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
        (Own, named("Own")),
        (Point(1.0, Own), {"class": named("Point"), "x": 1.0, "function": named("Own")}),
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
    given = {"final": 0.9, "criterion": Movement(), "allocation": Global()}
    plain = settings(**given)
    assert set(plain) == set(inspect.signature(SparsityCallback).parameters)
    assert plain["final"] == 0.9
    assert plain["ramp"] == f"{cubic.__module__}.cubic"
    assert json.loads(json.dumps(plain)) == plain
    assert plain == settings(**given)


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
    one, two = settings(), settings(**other)
    assert [key for key in one if one[key] != two[key]] == [name]


def test_settings_follow_a_scope_that_is_set_later():
    pruning = SparsityCallback()
    pruning.scope, pruning.submodule = Scope(include=["a.*"]), "student"
    plain = plain_settings(pruning.arguments())
    assert (plain["scope"]["include"], plain["submodule"]) == (["a.*"], "student")


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
    first, second = (plain_settings(Biased(bias).loss) for bias in (0, 1))
    assert first["of"]["bias"] == 0
    assert first != second


def test_function_of_a_script_is_not_known_to_other_processes():
    def loss():
        return 0

    loss.__qualname__, loss.__module__ = "loss", "__main__"
    with pytest.raises(UnknownPartError, match=r"__main__\.loss has no name that other processes"):
        plain_settings(loss)


@pytest.mark.parametrize("value", [Own(), lambda: 0, object()], ids=["object", "lambda", "plain"])
def test_parts_without_settings_are_refused(value):
    with pytest.raises(UnknownPartError):
        plain_settings(value)


OWN_LOSS = """
from dataclasses import dataclass

@dataclass
class Loss:
    weight: float = 1.0

    def __call__(self, student, teacher, batch):
        return {value}

def loss(student, teacher, batch):
    return {value}
"""


@pytest.mark.parametrize("part", ["module.loss", "module.Loss()", "partial(module.loss, 1)"])
def test_a_change_of_your_own_code_is_a_change_of_settings(tmp_path, part):
    """Each version is imported in a process of its own, as by the same command run again."""
    plain = []
    for value in (1, 1, 2):
        (tmp_path / "module.py").write_text(OWN_LOSS.format(value=value))
        code = f"import module, json; from functools import partial; {SHOW.format(part=part)}"
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
        )
        plain.append(found.stdout)
    assert plain[0] == plain[1] != plain[2]


def test_code_of_packages_is_named_alone():
    assert plain_settings(nn.Linear) == "torch.nn.modules.linear.Linear"
    assert plain_settings(json.dumps) == "json.dumps"
    assert plain_settings(magnitude) == f"{magnitude.__module__}.magnitude"
