"""Compiled kernels: built once per machine, kept in a file, loaded by later processes."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding

from kd_prune import atomic_io
from kd_prune.inference.jit import target as processors
from kd_prune.inference.jit.emitter import Program
from kd_prune.inference.jit.target import Target

DIGEST = hashlib.sha256().digest_size
NAME = "kernels"
_lock = threading.Lock()


class Library:
    """Machine code in memory; `address` gives a function's.

    Args:
        code: An object file.
        target: The processor it was compiled for.
    """

    def __init__(self, code: bytes, target: Target) -> None:
        self.target = target
        # JITLink lays all sections side by side. MCJIT, which does not, ends the process where they
        # are apart by more than 2 GB, as they may be in a process with much memory.
        self._engine = binding.create_lljit_compiler(machine(target), use_jit_link=True)
        self._linked = binding.JITLibraryBuilder().add_object_img(code).link(self._engine, NAME)
        self._found: dict[str, Any] = {}  # kept: a symbol that is let go takes all code with it
        self._search = threading.Lock()

    def address(self, name: str) -> int:
        """Return where the exported function `name` begins.

        Raises:
            KeyError: There is no such function.
        """
        with self._search:
            if name not in self._found:
                try:
                    self._found[name] = self._engine.lookup(NAME, name)
                except RuntimeError as error:
                    raise KeyError(name) from error
        address: int = self._found[name][name]
        return address


def machine(target: Target) -> binding.TargetMachine:
    """Return LLVM's code generator for a processor."""
    processors.initialize()
    triple = binding.Target.from_default_triple()
    return triple.create_target_machine(
        cpu=target.name, features=target.features, opt=3, reloc="pic", codemodel="default"
    )


def compile_program(program: Program, target: Target) -> bytes:
    """Compile a program to an object file.

    Loops are neither unrolled nor vectorized: the program's vectors say how wide.
    """
    generator = machine(target)
    module = binding.parse_assembly(str(program))
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False
    options.loop_vectorization = False
    options.slp_vectorization = False
    passes = binding.create_pass_builder(generator, options)
    passes.getModulePassManager().run(module, passes)
    code: bytes = generator.emit_object(module)
    return code


def load(write: Callable[[Target], Program], sources: Path, target: Target) -> Library:
    """Return the compiled program, from the cache if a process of this version left it there.

    Args:
        write: Writes the program for a processor.
        sources: Folder of the Python files that the program depends on; their content is part of
            the cache's key.
        target: The processor.
    """
    with _lock:
        path = cache_folder() / f"{key(sources, target)}.o"
        code = read(path)
        if code is None:
            code = compile_program(write(target), target)
            keep(path, code)
        return Library(code, target)


def key(sources: Path, target: Target) -> str:
    """Return a name that changes with the sources, LLVM, and the processor."""
    parts = [path.read_bytes() for path in sorted(sources.rglob("*.py"))]
    parts += [
        repr(target).encode(),
        llvmlite.__version__.encode(),
        f"{sys.platform} {platform.machine()}".encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def cache_folder() -> Path:
    """Return the folder of compiled kernels, below that of all caches."""
    return Path(os.environ.get("KD_PRUNE_CACHE") or "~/.cache/kd_prune").expanduser() / "kernels"


def read(path: Path) -> bytes | None:
    """Return a file's code, or None: there is none, it is damaged, or it is another user's."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if sys.platform != "win32" and status.st_uid not in (os.getuid(), 0):
                return None
            content = file.read()
    except OSError:
        return None
    digest, code = content[:DIGEST], content[DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def keep(path: Path, code: bytes) -> None:
    """Write code to the cache; without one (a full or read-only disk) it is compiled each time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_io.write_bytes(path, hashlib.sha256(code).digest() + code)
    except OSError:
        return
