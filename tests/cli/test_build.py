"""Errors of objects that cannot be built: one line with the full key."""

from __future__ import annotations

import pytest

from kd_prune.cli.build import build
from kd_prune.errors import ConfigError

TERMS = "kd_prune.distillation"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"_target_": f"{TERMS}.SoftTargets", "width": 32},
            "terms.x: SoftTargets.__init__() got an unexpected keyword argument 'width'",
        ),
        (
            {"_target_": f"{TERMS}.SoftTarget"},
            f"terms.x: {TERMS} has no SoftTarget; did you mean SoftTargets?",
        ),
        (
            {"_target_": "hydra.utils.get_method", "path": f"{TERMS}.losses.no_such"},
            f"terms.x: {TERMS}.losses has no no_such",
        ),
    ],
)
def test_object_that_cannot_be_built_is_one_line(settings, says):
    with pytest.raises(ConfigError) as error:
        build({"terms": {"x": settings}})
    assert str(error.value) == says
