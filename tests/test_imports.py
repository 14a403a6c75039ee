"""Who may import whom: the source, compared with the table in ARCHITECTURE.md."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kd_prune"

ARCHITECTURE = ROOT / "ARCHITECTURE.md"


def import_table():
    """Read the table of ARCHITECTURE.md: part → (parts of ours, other packages) it may import."""
    section = ARCHITECTURE.read_text().split("\n## Who may import whom\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {
        re.findall(r"`([\w.]+)`", part)[0]: (
            {f"kd_prune.{name}" for name in re.findall(r"`([\w.]+)`", ours)},
            set(re.findall(r"\w+", others)),
        )
        for part, ours, others in rows
    }


TABLE = import_table()
# Module → what of ours it may import at most: these are pure, or of use without the rest.
ALONE = {
    "kd_prune.pruning.checks": {"kd_prune.errors"},
    "kd_prune.pruning.criteria.base": set(),
    "kd_prune.pruning.layout": {"kd_prune.pruning.layers"},
    "kd_prune.pruning.pauses": {"kd_prune.errors", "kd_prune.pruning.checks"},
    "kd_prune.pruning.ramps": {"kd_prune.errors", "kd_prune.pruning.checks"},
    "kd_prune.pruning.schedule": {
        "kd_prune.errors",
        "kd_prune.pruning.checks",
        "kd_prune.pruning.pauses",
        "kd_prune.pruning.ramps",
    },
    "kd_prune.pruning.layers": set(),
    "kd_prune.pruning.scope": {
        "kd_prune.errors",
        "kd_prune.pruning.layers",
        "kd_prune.pruning.layout",
    },
    "kd_prune.pruning.scope_patterns": set(),
    "kd_prune.pruning.selection": {"kd_prune.pruning.sharding"},
    "kd_prune.pruning.sharding": set(),
    "kd_prune.pruning.unchanged": set(),
}
# Package → the only places that may import it.
ONLY_IN = {
    package: {part for part, (_, others) in TABLE.items() if package in others}
    for package in ("hydra", "omegaconf", "transformers", "datasets", "lightning", "torchmetrics")
} | {"pytorch_lightning": set()}  # lightning.pytorch is the one that is imported


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
from kd_prune.pruning import selection, Pruner
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
        "kd_prune.pruning.selection",
        "kd_prune.hf",
        "kd_prune.pruning.scope",
        "kd_prune.pruning.schedule",
        "kd_prune.distillation.losses",
        "hydra",
    }
    relative = "from .selection import unstructured"
    assert imports_of(relative, "kd_prune.pruning", is_package=True) == {
        "kd_prune.pruning.selection"
    }


def part_of(module):
    """The row of the table that a module belongs to: the longest name that includes it."""
    rows = [
        part for part in TABLE if module == part or (part != "kd_prune" and within(module, part))
    ]
    return max(rows, key=len, default=None)


def test_every_part_is_there():
    assert set(TABLE) | set(ALONE) <= set(MODULES)
    assert len(MODULES) >= 25


def test_every_module_belongs_to_a_part():
    assert [module for module in MODULES if part_of(module) is None] == []


@pytest.mark.parametrize("module", [m for m in MODULES if m in ALONE])
def test_modules_that_stand_alone(module):
    assert {name for name in GRAPH[module] if within(name, "kd_prune")} <= ALONE[module]


def test_importing_the_package_alone_imports_no_part_of_it():
    """Its public names are imported on first access; others' dependencies need not be installed."""
    code = "import sys, kd_prune; print([name for name in sys.modules if '.' not in name])"
    parts = "print([name for name in sys.modules if name.startswith('kd_prune.')])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {parts}"], capture_output=True, text=True, cwd=ROOT
    )
    packages, of_ours = map(ast.literal_eval, done.stdout.splitlines())
    assert of_ours == ["kd_prune.transformers_hook"]  # waits for transformers to be imported
    assert not set(packages) & {"torch", "numpy", "lightning", "transformers", "hydra"}


@pytest.mark.parametrize("module", MODULES)
def test_what_of_ours_a_part_imports(module):
    part = part_of(module)
    ours = {name for name in GRAPH[module] if within(name, "kd_prune")} - {"kd_prune"}
    allowed = TABLE[part][0] | ({part} if part != "kd_prune" else set())
    assert {name for name in ours if not any(within(name, a) for a in allowed)} == set()


@pytest.mark.parametrize("module", MODULES)
def test_what_of_others_a_part_imports(module):
    theirs = {name.split(".")[0] for name in GRAPH[module]} - sys.stdlib_module_names
    assert theirs - {"kd_prune"} <= TABLE[part_of(module)][1]


@pytest.mark.parametrize("package", ONLY_IN)
def test_where_a_package_is_imported(package):
    importers = {m for m, names in GRAPH.items() if any(within(n, package) for n in names)}
    places = ONLY_IN[package]
    assert {m for m in importers if not any(within(m, place) for place in places)} == set()


def test_the_table_keeps_the_rules():
    """Whatever is written into the table: these hold."""
    ours = {part.removeprefix("kd_prune."): {n[9:] for n in TABLE[part][0]} for part in TABLE}
    others = {part.removeprefix("kd_prune."): TABLE[part][1] for part in TABLE}
    for part in ("pruning", "distillation", "lit", "hf", "metrics", "errors", "results"):
        assert not ours[part] & {"pipeline", "sweep", "cli"}, part
    assert not {name for name in ours["pruning"] if name.startswith("distillation")}
    assert not {name for name in ours["distillation"] if name.startswith("pruning")}
    assert not {name for name in ours["hf"] if name.startswith("lit")}
    assert not {name for name in ours["lit"] if name.startswith("hf")}
    assert not others["errors"] | others["results"]
    assert not others["sweep"] & {"torch", "lightning", "transformers", "datasets"}
    assert others["pruning"] == {"torch", "numpy"}
    assert others["distillation"] == {"torch"}
    assert others["lit"] == {"torch", "numpy", "lightning", "torchmetrics"}
    assert {part for part in others if others[part] & {"hydra", "omegaconf"}} == {"cli", "sweep"}


def test_no_circles():
    graph = {
        module: {name for name in names if name in MODULES and name != module}
        for module, names in GRAPH.items()
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(MODULES)
