"""What every test relies on: no hub, one thread, the same examples every time."""

import copy
import functools
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# gpu: where this is set, trainers of the tests run there (what needs one by nature is test_cuda).
os.environ.setdefault("KD_PRUNE_TEST_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"  # sums in one order, here and in the processes tests start

import pytest
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hypothesis import settings

settings.register_profile("kd_prune", derandomize=True, deadline=None)
settings.load_profile("kd_prune")

CONF = str(Path(__file__).parents[1] / "conf")
Plugins.instance()  # registers who reads the files
FileConfigSource = SourcesRegistry.instance().resolve("file")
load_config = FileConfigSource.load_config
load_once = functools.cache(lambda path: load_config(FileConfigSource("main", CONF), path))


def load_config_once(self, config_path):
    """Some hundred tests compose settings of a few dozen files, which never change."""
    if self.path == CONF:
        return copy.deepcopy(load_once(config_path))
    return load_config(self, config_path)


FileConfigSource.load_config = load_config_once


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Let one process run all tests of a file, which share trained models: `pytest -n 2` too."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"


@pytest.fixture(autouse=True)
def _curves_are_not_drawn(monkeypatch):
    """They take a sixth of a small run; those of runs in fixtures and in processes are drawn."""
    run = sys.modules.get("kd_prune.pipeline.run")
    if run is not None:
        monkeypatch.setattr(run, "draw_curves", lambda rows, path, **_: path.touch())
