"""The processor that kernels are compiled for."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

from llvmlite import binding

from kd_prune.errors import ConfigError

VARIABLE = "KD_PRUNE_CPU"
X86 = ("x86_64", "amd64", "i686")


@dataclass(frozen=True)
class Target:
    """Name, features and vector registers of a processor.

    Attributes:
        name: LLVM's name of the processor.
        features: LLVM's list of its features, ``+`` or ``-`` before each.
        lanes: Floats in a vector register.
        registers: Number of vector registers.
        vectors: The vector instructions in a word: ``AVX-512``, ``AVX2``, ``NEON``, …
    """

    name: str
    features: str
    lanes: int
    registers: int
    vectors: str


@cache
def initialize() -> None:
    """Load LLVM's back end of this machine, once."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


def host() -> Target:
    """Return the processor at hand, or what ``KD_PRUNE_CPU=avx2`` restricts it to.

    Raises:
        ConfigError: ``KD_PRUNE_CPU`` names something else.
    """
    restriction = os.environ.get(VARIABLE, "").lower()
    if restriction not in ("", "avx2"):
        raise ConfigError(VARIABLE, restriction, "expected avx2, or nothing for all features")
    initialize()
    features = dict(binding.get_host_cpu_features())
    if restriction == "avx2":
        features |= {name: False for name in features if name.startswith("avx512")}
    # Vectors of 512 bits where the processor has them: some are tuned to avoid them.
    listed = ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items()))
    name = binding.get_host_cpu_name()
    if platform.machine().lower() not in X86:
        return Target(name, listed, lanes=4, registers=32, vectors="NEON")
    listed += ",-prefer-256-bit"
    if features.get("avx512f") and features.get("avx512vl"):
        return Target(name, listed, lanes=16, registers=32, vectors="AVX-512")
    if features.get("avx2") and features.get("fma"):
        return Target(name, listed, lanes=8, registers=16, vectors="AVX2")
    return Target(name, listed, lanes=4, registers=16, vectors="SSE")
