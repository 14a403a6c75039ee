"""Sparse inference on CPUs: `accelerate` returns a model that computes the same, faster.

Needs llvmlite (``pip install 'kd_prune[cpu]'``), which compiles the kernels on the spot.
"""

from kd_prune.inference.convert import accelerate, report
from kd_prune.inference.linear import SparseLinear

__all__ = ["SparseLinear", "accelerate", "report"]
