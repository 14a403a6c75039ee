"""Settings whose type says little are let pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from kd_prune.cli.validation import check_types


def anything(
    any_value: Any = 1,
    mapping: dict[str, Any] | None = None,
    several: Iterable[str] = (),
    implicitly: str = None,  # noqa: RUF013 - as other packages have it
    plain=None,
) -> None:
    """Takes what has no type of its own."""


@pytest.mark.parametrize(
    "given",
    [
        {"any_value": "x"},
        {"any_value": None},
        {"mapping": {"team": "x", "runs": [1]}},
        {"several": ["a", "b"]},
        {"implicitly": None},
        {"plain": 3},
    ],
    ids=str,
)
def test_what_a_type_does_not_rule_out_is_let_pass(given, monkeypatch):
    monkeypatch.setattr("kd_prune.cli.validation.get_object", lambda target: anything)
    check_types({"_target_": "anything", **given})
    with pytest.raises(ValueError, match="implicitly=3: expected text or null"):
        check_types({"_target_": "anything", "implicitly": 3})
