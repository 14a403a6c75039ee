from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from .script import SCRIPT


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def call(cache, monkeypatch, capsys):
    """Call the script in this process; returns exit code, stdout and stderr."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    # Hydra composes everything twice, first for `hydra.mode`, which nothing in conf/ sets.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    def call_script(*overrides: str, cache: Path = cache):
        monkeypatch.setenv("KD_PRUNE_CACHE", str(cache))
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by the script; unset again afterwards
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *overrides])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # the interpreter prints it and exits with 1
                print(code, file=sys.stderr)
                code = 1
        said = capsys.readouterr()
        return code, said.out, said.err

    yield call_script
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers[:], root.level = before, level
    GlobalHydra.instance().clear()
