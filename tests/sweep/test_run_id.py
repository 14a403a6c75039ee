"""Names: what two jobs have to differ in to be two."""

from __future__ import annotations

import pytest

from kd_prune.sweep.run_id import IGNORED_KEYS, config_hash

from .runs import config_of


@pytest.mark.parametrize("key", IGNORED_KEYS)
def test_places_and_records_are_of_no_matter(key):
    without = {name: value for name, value in config_of().items() if name != key}
    for value in (None, 1, {"a": 1}):
        assert config_hash(without | {key: value}) == config_hash(without)
    assert config_hash(config_of() | {key: 1}) == config_hash(
        {k: v for k, v in config_of().items() if k != key}
    )


@pytest.mark.parametrize("key", sorted({*IGNORED_KEYS} - {"cache_dir"}))
def test_what_is_named_like_one_within_another_key_matters(key):
    """A callback or a term that a user called so, for one."""

    def named(value):
        return config_hash(config_of(callbacks={key: {"value": value}}))

    assert named(1) != named(2)


def test_a_cache_is_one_anywhere():
    def kept_in(place):
        return config_hash(
            config_of(task__path={"cache_dir": place, "train": [{"cache_dir": place}]})
        )

    assert kept_in("here") == kept_in("there")
