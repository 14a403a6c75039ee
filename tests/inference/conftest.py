"""Sparse inference: the kernels need llvmlite, which compiles them."""

import importlib.util

import pytest

MISSING = importlib.util.find_spec("llvmlite") is None


def pytest_collection_modifyitems(items):
    reason = "llvmlite is not installed (pip install 'kd_prune[cpu]')"
    for item in items:
        here = "tests/inference/" in item.path.as_posix()
        if MISSING and here and "without_llvmlite" not in item.name:
            item.add_marker(pytest.mark.skip(reason=reason))
