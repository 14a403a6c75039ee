"""Registration of the reader of packed folders, as soon as transformers can take it.

transformers has no entry point for quantizers, and importing it takes seconds, which
`import kd_prune` must not. So a finder at the front of `sys.meta_path` waits for one module of
transformers, the one with the register, and adds the reader once that module has been executed.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULE = "transformers.quantizers.auto"
log = logging.getLogger(__name__)


def install() -> None:
    """Register the reader now if transformers is loaded that far, else when it is."""
    if MODULE in sys.modules:
        register_reader()
    elif not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def register_reader() -> None:
    """Register the reader; a version of transformers without its hooks gets a line in the log."""
    try:
        importlib.import_module("kd_prune.export.quantizer")  # registers itself
    except (ImportError, AttributeError) as error:  # transformers itself has to go on working
        log.warning("packed folders cannot be read with this version of transformers (%s)", error)


class Finder(MetaPathFinder):
    """Finder of one module: what the other finders say of it, with a loader that registers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec; None for every other module, which then takes its usual way."""
        if fullname != MODULE:
            return None
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = RegisteringLoader(self, spec.loader)
                return spec
        return None


class RegisteringLoader(Loader):
    """The module's own loader, which registers the reader after it has executed the module."""

    def __init__(self, finder: Finder, loader: Loader) -> None:
        self.finder = finder
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back its own loader, execute it, register the reader."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        register_reader()
