"""The README is short and begins with what a newcomer types; see also test_docs.py."""

import pages

LINES = pages.PAGES["README.md"].splitlines()


def test_readme_is_short():
    assert len(LINES) <= 180


def test_first_python_line_is_on_the_first_screen():
    assert LINES.index("```python") + 2 <= 30


def test_readme_names_each_kind_of_user_with_a_link():
    sections = "\n".join(LINES).split("\n## ")[1:]
    for title in ("You have a Lightning project", "You sweep", "You test in CI", "You ship"):
        (section,) = [text for text in sections if text.startswith(title)]
        assert "](docs/" in section, title


def test_first_callback_example_has_four_lines_of_code():
    code = pages.blocks("README.md", "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 4
