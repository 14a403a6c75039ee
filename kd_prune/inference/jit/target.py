"""The processor that kernels are compiled for."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

from llvmlite import binding

from kd_prune.errors import ConfigError

VARIABLE = "KD_PRUNE_CPU"
RESTRICTIONS = {"avx2": ("avx512", "avx10", "avxvnni"), "avxvnni": ("avx512", "avx10")}
"""Values of `VARIABLE`, and the beginnings of the features that they turn off."""
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
        int8: The instruction for products of int8: ``VPDPBUSD`` (VNNI), which adds four products in
            32 bits; ``VPMADDUBSW``, which adds two in 16 bits; or nothing.
    """

    name: str
    features: str
    lanes: int
    registers: int
    vectors: str
    int8: str = ""


@cache
def initialize() -> None:
    """Load LLVM's back end of this machine, once."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


def host() -> Target:
    """Return the processor at hand, or what ``KD_PRUNE_CPU`` restricts it to.

    Raises:
        ConfigError: ``KD_PRUNE_CPU`` names no restriction, or more than the processor has.
    """
    restriction = os.environ.get(VARIABLE, "").lower()
    if restriction not in ("", *RESTRICTIONS):
        known = " or ".join(RESTRICTIONS)
        raise ConfigError(VARIABLE, restriction, f"expected {known}, or nothing for all features")
    initialize()
    features = dict(binding.get_host_cpu_features())
    if restriction and not features.get(restriction):
        raise ConfigError(VARIABLE, restriction, "the processor does not have it")
    for prefix in RESTRICTIONS.get(restriction, ()):
        features |= {name: False for name in features if name.startswith(prefix)}
    # Vectors of 512 bits where the processor has them: some are tuned to avoid them.
    listed = ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items()))
    name = binding.get_host_cpu_name()
    if platform.machine().lower() not in X86:
        return Target(name, listed, lanes=4, registers=32, vectors="NEON")
    listed += ",-prefer-256-bit"
    if features.get("avx512f") and features.get("avx512vl"):
        int8 = "VPDPBUSD" if features.get("avx512vnni") else ""
        if not int8 and features.get("avx512bw"):
            int8 = "VPMADDUBSW"
        return Target(name, listed, lanes=16, registers=32, vectors="AVX-512", int8=int8)
    if features.get("avx2") and features.get("fma"):
        int8 = "VPDPBUSD" if features.get("avxvnni") else "VPMADDUBSW"
        return Target(name, listed, lanes=8, registers=16, vectors="AVX2", int8=int8)
    return Target(name, listed, lanes=4, registers=16, vectors="SSE")
