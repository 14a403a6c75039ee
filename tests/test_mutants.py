"""The mutants of `make mutants`: each finds its place in the code, and its tests exist."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = '''
class Ramp:
    def at(self, step):
        """Return (1 - u) ** 3."""
        if step < 0:
            return 0
        self.count += 1
        return (1 - step) ** 3
'''


@pytest.fixture
def mutation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import mutation

    yield mutation
    for name in ("mutation", "mutant_list"):
        sys.modules.pop(name, None)


@pytest.fixture
def package(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "ramp.py").write_text(SOURCE)
    return tmp_path


def mutate(mutation, package, edit, function="Ramp.at"):
    mutant = mutation.Mutant("a fault", "part", function, edit, "tests")
    return mutant.mutate(package)


def test_every_mutant_finds_its_place_and_its_tests(mutation):
    from mutant_list import MUTANTS

    assert len(MUTANTS) == len({mutant.name for mutant in MUTANTS}) == 52
    assert mutation.check_places(MUTANTS, ROOT) == []


def test_replace_changes_the_code_and_not_the_docstring(mutation, package):
    path, source = mutate(mutation, package, mutation.Replace(r"\*\* 3", "** 2"))
    assert path == package / "part" / "ramp.py"
    namespace = {}
    exec(compile(source, "ramp", "exec"), namespace)  # noqa: S102
    ramp = namespace["Ramp"]()
    ramp.count = 0
    assert ramp.at(3) == 4
    assert path.read_text() == SOURCE


def test_drop_and_assume_change_one_statement(mutation, package):
    _, source = mutate(mutation, package, mutation.Drop("count"))
    assert "count" not in source
    assert "pass" in source
    _, source = mutate(mutation, package, mutation.Assume("step < 0", False))
    assert "if False:" in source
    ast.parse(source)


@pytest.mark.parametrize(
    ("edit", "function", "says"),
    [
        (("Replace", r"\*\* 4", "** 2"), "Ramp.at", "matches 0 times"),
        (("Replace", "step", "x"), "Ramp.at", "matches 3 times"),
        (("Drop", "return"), "Ramp.at", "matches 2 times"),
        (("Assume", "step > 0", True), "Ramp.at", "matches 0 times"),
        (("Replace", r"\*\* 3", "** 3"), "Ramp.at", "changes nothing"),
        (("Drop", "count"), "at", "0 functions at in part"),
    ],
)
def test_mutant_without_a_unique_place_is_refused(mutation, package, edit, function, says):
    kind, *arguments = edit
    with pytest.raises(mutation.PlaceError, match=says):
        mutate(mutation, package, getattr(mutation, kind)(*arguments), function)
