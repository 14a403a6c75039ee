"""ARCHITECTURE.md names every file of the package, and nothing that does not exist."""

import re

import pages


def tree():
    """Paths of the tree, files and folders, with their description."""
    (text,) = [block for block in pages.blocks("ARCHITECTURE.md", "text") if "kd_prune/\n" in block]
    found, parents = {}, []
    for line in text.splitlines():
        indent, name, description = re.fullmatch(r"( *)(\S+)\s*(.*)", line).groups()
        parents = [*parents[: len(indent) // 2], name.rstrip("/")]
        found["/".join(parents)] = description
    return found


def modules():
    files = (path.relative_to(pages.ROOT) for path in (pages.ROOT / "kd_prune").rglob("*.py"))
    return {str(path) for path in files}


def test_tree_lists_every_module():
    expected = {
        path
        for path in modules()
        if not path.endswith("/__init__.py") or path == "kd_prune/__init__.py"
    }
    listed = {path for path in tree() if path.startswith("kd_prune/") and path.endswith(".py")}
    assert expected - listed == set(), "not in ARCHITECTURE.md"
    assert listed - modules() == set(), "in ARCHITECTURE.md only"


def test_tree_lists_folders_that_exist_and_every_configuration_group():
    for path in tree():
        assert (pages.ROOT / path).exists(), path
    groups = {f"conf/{path.name}" for path in (pages.ROOT / "conf").iterdir() if path.is_dir()}
    assert groups == {path for path in tree() if path.startswith("conf/")}


def test_every_entry_of_the_tree_has_a_description():
    assert [path for path, text in tree().items() if not text] == ["kd_prune"]


def test_glossary_has_at_most_fifteen_nouns():
    (glossary,) = [table for table in pages.tables("ARCHITECTURE.md") if table[0][0] == "noun"]
    assert len(glossary) - 1 <= 15
