"""Compiled kernels: their cache, and restricted processors."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("llvmlite", reason="pip install 'kd_prune[cpu]'")

from kd_prune.errors import ConfigError
from kd_prune.inference.jit import objects
from kd_prune.inference.jit.emitter import FLOAT, INT, POINTER, Program
from kd_prune.inference.jit.target import host
from kd_prune.inference.team import single

SMALL = """
import torch
from kd_prune.inference.jit import target
from kd_prune.inference.linear import SparseLinear
torch.manual_seed(0)
layer = torch.nn.Linear(40, 30)
layer.weight.data *= torch.rand(30, 40) > 0.5
inputs = torch.randn(70, 40)
with torch.no_grad():
    difference = (SparseLinear(layer)(inputs) - layer(inputs)).abs().max()
print(target.host().vectors, float(difference) < 1e-5)
"""


def counting(target):
    """Write a program that adds up floats, with a count of how often it is written."""
    counting.calls += 1
    program = Program(target.lanes, target.registers)
    with program.function("total", POINTER, exported=True) as (emit, (block,)):
        total = emit.variable(emit.constant_float(0.0))
        for index in emit.range(1, emit.load(block, 0, INT)):
            total.set(total.get() + emit.load(block, index * 2, FLOAT))
        emit.store(total.get(), block, 0)
    return program


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_PRUNE_CACHE", str(tmp_path / "cache"))
    counting.calls = 0
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "kernel.py").write_text("1")
    return folder


def total(library, count):
    block = torch.zeros(count, dtype=torch.int64)
    block[0] = count
    block[1:] = torch.ones(count - 1).view(torch.int32)
    single(library.address("total"))(block.data_ptr())
    return block[:1].view(torch.float32)[0].item()


def test_program_is_compiled_once_and_then_read_from_the_cache(sources):
    for _ in range(2):
        assert total(objects.load(counting, sources, host()), 11) == 10
    assert counting.calls == 1


def test_change_of_the_sources_compiles_again(sources):
    objects.load(counting, sources, host())
    (sources / "kernel.py").write_text("2")
    objects.load(counting, sources, host())
    assert counting.calls == 2


@pytest.mark.parametrize(
    "damage", [lambda code: code[:-1], lambda code: b"", lambda code: code[::-1]]
)
def test_damaged_cache_is_compiled_again(sources, damage):
    objects.load(counting, sources, host())
    (path,) = objects.cache_folder().iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert total(objects.load(counting, sources, host()), 5) == 4
    assert counting.calls == 2


def test_cache_that_cannot_be_written_is_done_without(sources, monkeypatch):
    monkeypatch.setenv("KD_PRUNE_CACHE", "/dev/null/none")
    assert total(objects.load(counting, sources, host()), 5) == 4


def test_unknown_function_has_no_address(sources):
    with pytest.raises(KeyError):
        objects.load(counting, sources, host()).address("other")


def test_unknown_restriction_of_the_processor_is_refused(monkeypatch):
    monkeypatch.setenv("KD_PRUNE_CPU", "avx3")
    with pytest.raises(ConfigError, match=r"^KD_PRUNE_CPU=avx3: expected avx2"):
        host()


@pytest.mark.skipif(host().vectors not in ("AVX-512", "AVX2"), reason="the processor has no AVX2")
def test_kernels_for_avx2_compute_the_same_on_a_larger_processor():
    environment = {**os.environ, "KD_PRUNE_CPU": "avx2"}
    result = subprocess.run(
        [sys.executable, "-c", SMALL], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["AVX2", "True"]
