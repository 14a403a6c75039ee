"""Who may import whom, read from the source: the table that the package's structure rests on."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kd_prune"

# Part → what of ours it may import besides itself.
OURS = {
    "kd_prune.pruning": set(),
    "kd_prune.distillation": set(),
    "kd_prune.lit": {"kd_prune.pruning", "kd_prune.distillation", "kd_prune.whole"},
    "kd_prune.hf": {
        "kd_prune.pruning.scope",
        "kd_prune.pruning.report",
        "kd_prune.distillation.activations",
        "kd_prune.whole",
    },
}
ALONE = {f"kd_prune.pruning.{name}" for name in ("schedule", "criterion", "scope", "mask")}

# Part → the only packages outside the standard library that it may import.
THEIRS = {
    "kd_prune.pruning": {"torch", "numpy"},
    "kd_prune.distillation": {"torch"},
    # torchmetrics comes with Lightning.
    "kd_prune.lit": {"torch", "numpy", "lightning", "torchmetrics"},
}
# Package → the only places that may import it.
ONLY_IN = {
    "hydra": {"kd_prune.sweep"},
    "omegaconf": {"kd_prune.sweep"},
    "transformers": {"kd_prune.hf", "kd_prune.run"},
    "datasets": {"kd_prune.hf", "kd_prune.run"},
    "lightning": {"kd_prune.lit", "kd_prune.run"},
    "pytorch_lightning": set(),  # lightning.pytorch is the one that is imported
    "torchmetrics": {"kd_prune.lit", "kd_prune.run"},
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def within(module, part):
    return module == part or module.startswith(f"{part}.")


def imports_of(source, module, *, is_package=False):
    """Every module imported anywhere in a file, in functions too; of ours, down to the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in MODULES else base)
    return found


GRAPH = {
    name: imports_of(path.read_text(), name, is_package=path.stem == "__init__")
    for name, path in MODULES.items()
}


def test_the_reading_sees_every_kind_of_import():
    source = """
import os, torch.nn as nn
from kd_prune.pruning import mask, Pruner
from kd_prune import hf
from . import scope
from .schedule import cubic
from ..distillation import losses
def later():
    import hydra
"""
    assert imports_of(source, "kd_prune.pruning.pruner") == {
        "os",
        "torch.nn",
        "kd_prune.pruning",
        "kd_prune.pruning.mask",
        "kd_prune.hf",
        "kd_prune.pruning.scope",
        "kd_prune.pruning.schedule",
        "kd_prune.distillation.losses",
        "hydra",
    }
    relative = "from .mask import exact"
    assert imports_of(relative, "kd_prune.pruning", is_package=True) == {"kd_prune.pruning.mask"}


def test_every_part_is_there():
    parts = set(OURS) | ALONE | {"kd_prune.run"}
    assert parts <= set(MODULES)
    assert len(MODULES) >= 25


@pytest.mark.parametrize("module", [m for m in MODULES if m in ALONE])
def test_modules_that_stand_alone(module):
    assert {name for name in GRAPH[module] if within(name, "kd_prune")} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if any(within(m, p) for p in OURS)])
def test_what_of_ours_a_part_imports(module):
    (part,) = (part for part in OURS if within(module, part))
    ours = {name for name in GRAPH[module] if within(name, "kd_prune")}
    allowed = {part, *OURS[part]}
    assert {name for name in ours if not any(within(name, a) for a in allowed)} == set()


def test_the_package_itself_imports_nothing_of_ours():
    """What one uses is imported by its part; the others' dependencies need not be there."""
    assert not {name for name in GRAPH["kd_prune"] if within(name, "kd_prune")}


@pytest.mark.parametrize("module", [m for m in MODULES if any(within(m, p) for p in THEIRS)])
def test_what_of_others_a_part_imports(module):
    (allowed,) = (THEIRS[part] for part in THEIRS if within(module, part))
    theirs = {name.split(".")[0] for name in GRAPH[module]} - sys.stdlib_module_names
    assert theirs - {"kd_prune"} <= allowed


@pytest.mark.parametrize("package", ONLY_IN)
def test_where_a_package_is_imported(package):
    importers = {m for m, names in GRAPH.items() if any(within(n, package) for n in names)}
    places = ONLY_IN[package]
    assert {m for m in importers if not any(within(m, place) for place in places)} == set()


@pytest.mark.parametrize("part", ["pruning", "distillation", "lit", "hf"])
def test_nothing_below_imports_the_top_floor(part):
    """Run is where the parts meet, and a sweep is many runs; no arrow runs back up."""
    top = ("kd_prune.run", "kd_prune.sweep")
    for module, names in GRAPH.items():
        if within(module, f"kd_prune.{part}"):
            assert not {name for name in names if any(within(name, t) for t in top)}, module


def test_no_circles():
    graph = {
        module: {name for name in names if name in MODULES and name != module}
        for module, names in GRAPH.items()
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(MODULES)
