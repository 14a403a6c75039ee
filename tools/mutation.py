"""Mutants: a fault in one function, placed by the function's name and not by its exact text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path


class PlaceError(LookupError):
    """The place of a mutant is not found, or is not unique."""


@dataclass(frozen=True)
class Replace:
    """Replace what the pattern matches in the function's source, as `ast.unparse` writes it."""

    pattern: str
    new: str

    def apply(self, function: ast.AST) -> ast.AST:
        """Return the changed function."""
        source, count = re.subn(self.pattern, self.new, ast.unparse(function))
        if count != 1:
            raise PlaceError(f"{self.pattern!r} matches {count} times")
        return ast.parse(source).body[0]


@dataclass(frozen=True)
class Drop:
    """Replace the simple statement that the pattern matches by ``pass``."""

    pattern: str

    def apply(self, function: ast.AST) -> ast.AST:
        """Return the changed function."""
        found = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.stmt)
            and not hasattr(node, "body")
            and re.search(self.pattern, ast.unparse(node))
        ]
        return _swapped(function, found, ast.Pass(), self.pattern)


@dataclass(frozen=True)
class Assume:
    """Replace the condition that the pattern matches by a constant."""

    pattern: str
    value: bool

    def apply(self, function: ast.AST) -> ast.AST:
        """Return the changed function."""
        conditions = [
            node.test for node in ast.walk(function) if isinstance(node, ast.If | ast.IfExp)
        ]
        found = [test for test in conditions if re.search(self.pattern, ast.unparse(test))]
        return _swapped(function, found, ast.Constant(self.value), self.pattern)


def without_docstring(function: ast.AST) -> ast.AST:
    """Return a copy of the function without its docstring, which patterns must not match."""
    copy = deepcopy(function)
    if ast.get_docstring(copy) is not None:
        copy.body = copy.body[1:] or [ast.Pass()]
    return copy


def _swapped(tree: ast.AST, found: list[ast.AST], new: ast.AST, pattern: str) -> ast.AST:
    if len(found) != 1:
        raise PlaceError(f"{pattern!r} matches {len(found)} times")

    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is found[0] else self.generic_visit(node)

    return Swap().visit(tree)


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: The fault in words.
        place: Folder or file below ``kd_prune`` that contains the function, at any depth.
        function: Qualified name of the function, unique in `place`; ``Class.method``,
            ``function.inner``.
        edit: What is changed in it.
        tests: Arguments of pytest: the tests that must fail.
    """

    name: str
    place: str
    function: str
    edit: Replace | Drop | Assume
    tests: str

    def mutate(self, package: Path) -> tuple[Path, str]:
        """Find the place in a copy of the package; return the file and its changed source.

        Raises:
            PlaceError: The function or the place in it is not found, or is not unique.
        """
        root = package / self.place
        files = [root] if root.is_file() else sorted(root.rglob("*.py"))
        found = [
            (file, tree, node)
            for file in files
            for tree in [ast.parse(file.read_text())]
            for name, node in functions(tree)
            if name == self.function
        ]
        if len(found) != 1:
            raise PlaceError(f"{len(found)} functions {self.function} in {self.place}")
        ((file, tree, node),) = found
        edited = self.edit.apply(without_docstring(node))
        if ast.unparse(edited) == ast.unparse(without_docstring(node)):
            raise PlaceError(f"the edit changes nothing in {self.function}")
        changed = _swapped(tree, [node], edited, self.function)
        return file, ast.unparse(ast.fix_missing_locations(changed))

    def missing_tests(self, root: Path) -> list[str]:
        """Return the paths of `tests` that do not exist."""
        paths = [word for word in self.tests.split() if word.startswith("tests/")]
        return [path for path in paths if not (root / path).exists()]


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield qualified name and node of every function, also of methods and inner functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if isinstance(node, ast.FunctionDef):
                yield name, node
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, prefix)


def check_places(mutants: list[Mutant], root: Path) -> list[str]:
    """Describe every mutant whose place in the code, or whose tests, are not found."""
    problems = []
    for mutant in mutants:
        try:
            mutant.mutate(root / "kd_prune")
        except (PlaceError, SyntaxError) as error:
            problems.append(f"{mutant.name}: {error}")
        problems += [f"{mutant.name}: no {path}" for path in mutant.missing_tests(root)]
    return problems
