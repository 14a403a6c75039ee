"""Settings are composed from the repository's conf/."""

from __future__ import annotations

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from kd_prune.sweep import run_id  # noqa: F401  Hydra's configuration uses them

from .files import CONF


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The embedded task and model are written once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _conf(cache, monkeypatch):
    monkeypatch.setenv("KD_PRUNE_CACHE", str(cache))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()
