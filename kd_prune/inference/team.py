"""Threads that run a kernel together: the OpenMP team that torch has already started."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Runtime:
    """Functions of the OpenMP library that torch has loaded, as addresses.

    A team of one's own would compete with torch's threads, which spin for a while after their work.
    """

    parallel: ctypes._NamedFuncPointer
    barrier: int
    thread_number: int
    team_size: int


@cache
def runtime() -> Runtime | None:
    """Find torch's OpenMP library; None where there is none: kernels run in one thread."""
    try:
        library = ctypes.CDLL(None)
        parallel = library.GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        called = (library.GOMP_barrier, library.omp_get_thread_num, library.omp_get_num_threads)
        return Runtime(parallel, *map(address, called))
    except (AttributeError, TypeError, OSError):
        return None


def address(function: ctypes._NamedFuncPointer) -> int:
    """Return where a function of a library begins."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def size() -> int:
    """Return the number of threads a kernel may use: `torch.get_num_threads()`."""
    return torch.get_num_threads() if runtime() else 1


def run(function: int, arguments: int, threads: int) -> None:
    """Call a kernel in every thread of a team, and wait; the interpreter's lock is released.

    The team may have fewer threads: `OMP_THREAD_LIMIT`, `OMP_DYNAMIC`.
    """
    team = runtime()
    if team is None or threads == 1:
        single(function)(arguments)
    else:
        team.parallel(function, arguments, threads, 0)


@cache
def single(function: int) -> Callable[[int], None]:
    """Return a kernel as a Python function, called in the present thread."""
    kernel: Callable[[int], None] = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    return kernel
