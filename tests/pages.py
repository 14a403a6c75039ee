"""Read code blocks, commands, overrides and links from the project's Markdown pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
# First part of a configuration key: what tells an override from other code with an equals sign.
KEYS = (
    "budget|cache_dir|callbacks|checkpoint_minutes|ckpt_path|debug|distillation|eval|experiment|"
    "hparams_search|hydra|logger|model|optimizer|pretraining|seed|sparsity|stages|student|sweep|task|teacher|"
    "trainer"
)
OVERRIDE = re.compile(rf"\+{{0,2}}(?:{KEYS})(?:[./@][\w./@]+)?=\S+")
COMMAND = re.compile(r"(?:^|\s)((?:kd-prune|python(?= train\.py)|make(?= [a-z])).*)")


def blocks(page: str, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    fence = rf"^```{language}\n(.*?)^```"
    return re.findall(fence, PAGES[page], flags=re.DOTALL | re.MULTILINE)


def code_spans(page: str) -> list[str]:
    """Inline code outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]


def fill(text: str) -> str:
    """Replace every ``<placeholder>`` by a word and drop an ellipsis, comment or prompt.

    >>> fill("$ kd-prune eval <run folder or hub id> task=mrpc …  # a comment")
    'kd-prune eval x task=mrpc'
    """
    text = re.sub(r"<[^>]*>", "x", text)
    text = re.sub(r"(^|\s)#.*", "", text)
    return " ".join(word for word in text.removeprefix("$ ").split() if word != "…")


def commands(page: str) -> list[str]:
    """Commands of kd_prune and make, in shell blocks, after a prompt and in inline code."""
    shell = [
        line
        for language in ("sh", "text")
        for block in blocks(page, language)
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if language == "sh" or line.startswith("$ ")
    ]
    found = (COMMAND.search(fill(line)) for line in [*shell, *code_spans(page)])
    return sorted({match[1].split("|")[0].strip() for match in found if match})


def override_spans(page: str) -> list[str]:
    """Inline code that consists of overrides only; the ones that are shown in part are left out."""
    spans = (span for span in code_spans(page) if "…" not in span)
    filled = (span if "'" in span else fill(span) for span in spans)
    return sorted({span for span in filled if span and all(map(OVERRIDE.fullmatch, words(span)))})


def words(line: str) -> list[str]:
    """Split a line as a shell does, as far as quotes around an override are concerned.

    >>> words("a='{b: c}' 'd=e f'")
    ['a={b: c}', 'd=e f']
    """
    parts = re.findall(r"(?:[^\s']|'[^']*')+", line)
    return [part.replace("'", "") for part in parts]


def tables(page: str) -> list[list[list[str]]]:
    """Tables as rows of cells, header rows included, separator rows left out."""
    found: list[list[list[str]]] = []
    previous = ""
    for line in PAGES[page].splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                found.append([])
            if not re.fullmatch(r"[|\s:-]+", line):
                found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        previous = line
    return found


def anchors(page: str) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", PAGES[page], flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def links(page: str) -> list[str]:
    """Targets of links and pictures that lie in the repository."""
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return sorted({target for target in targets if not re.match(r"https?:|mailto:", target)})
