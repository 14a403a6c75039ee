"""Rows of single files or streams: the texts to predict, or those that a vocabulary is kept for."""

from __future__ import annotations

import csv
import gzip
import json
import re
import warnings
import zlib
from collections import deque
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.errors import ParserWarning

from kd_prune.errors import ConfigError

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
    ".jsonl.gz": "jsonl",
    ".txt.gz": "txt",
}
"""End of a file's name → format; a ``.gz`` is unpacked while it is read."""
UNREADABLE = (OSError, ValueError, EOFError, zlib.error, RecursionError)
"""What reading rows raises: parsers have their own kinds of ValueError, gzip the last three."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, as texts that were cut in the middle of an emoji have it in JSON."""
ENCLOSED = re.compile(r'"([^"]|"")*"')
TEXT = "text"
"""Name of the column of a file with one text per line."""


def format_of_file(file: Path, key: str = "file") -> str:
    """Return the format of a file by the end of its name.

    Raises:
        ConfigError: It is unknown.
    """
    form = format_of(file)
    if form is None:
        raise ConfigError(key, str(file), f"expected a file of {', '.join(FORMATS)}")
    return form


def format_of(file: Path) -> str | None:
    """Return the format of a file by the end of its name; None: it is unknown."""
    name = file.name.lower()
    return next((form for ending, form in FORMATS.items() if name.endswith(ending)), None)


def read_rows(file: Path, key: str = "file") -> pd.DataFrame:
    """Read the rows of a file; text stays text, whatever it looks like.

    Raises:
        ConfigError: There is no such file, its format is unknown, or it cannot be parsed.
    """
    form = format_of_file(file, key)
    try:
        if form == "parquet":
            return pd.read_parquet(file)
        opened = gzip.open if file.suffix.lower() == ".gz" else open
        with opened(file, "rt", encoding="utf-8-sig") as content:
            return parse_rows(content.read(), form)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(key, str(file), "no such file") from error
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(key, str(file), f"cannot be read ({reason})") from error


def parse_rows(content: str, form: str) -> pd.DataFrame:
    r"""Parse the rows of a text: ``csv``, ``tsv``, ``jsonl``, or ``txt`` with one text per line.

    Blank lines are left out. Half a character becomes U+FFFD, as no tokenizer reads it.

    Raises:
        ValueError: It is no text of that format.

    >>> parse_rows("a,b\n1,NA\n", "csv").values.tolist()
    [['1', 'NA']]
    """
    content = content.removeprefix("\ufeff")
    # Not `splitlines`, which also cuts at U+2028 and other characters that may stand in a text.
    lines = [line for line in content.replace("\r\n", "\n").split("\n") if line.strip()]
    if form == "txt":
        return pd.DataFrame({TEXT: lines})
    if form == "jsonl":
        if content.lstrip().startswith("["):
            rows = json.loads(content)
        else:
            rows = [json.loads(line) for line in lines]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("expected one object per row")
        whole = [
            {name: replace_lone_surrogates(value) for name, value in row.items()} for row in rows
        ]
        return pd.DataFrame(whole, dtype=object)  # text stays text, dates too
    return parse_table(content, form)


def replace_lone_surrogates(value: Any) -> Any:
    """Replace every lone surrogate of a text by U+FFFD; return any other value unchanged."""
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def parse_table(content: str, form: str, most: int | None = None) -> pd.DataFrame:
    r"""Parse a table, ``csv`` or ``tsv``, in which every value is text and an empty one is "".

    At most `most` rows are read, all if it is None.

    Raises:
        ValueError: It is no such table.

    >>> parse_table("a\tb\n01\tnull\n", "tsv").values.tolist()
    [['01', 'null']]
    """
    quoted = form == "csv" or has_quoted_fields(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)
        try:
            return pd.read_csv(
                StringIO(content),
                sep="\t" if form == "tsv" else ",",
                dtype="string",
                keep_default_na=False,
                index_col=False,
                nrows=most,
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            )
        except ParserWarning:
            raise ValueError("a row has more fields than the header") from None


def has_quoted_fields(content: str) -> bool:
    r"""Return whether the quotes of a TSV file enclose fields, as those of a spreadsheet's export.

    In files such as GLUE's they belong to the texts: each line has the header's number of fields,
    and some begin with a quote that is not closed at their end.

    >>> has_quoted_fields('text\tid\n"a\tb"\t1\n'), has_quoted_fields('text\tid\n"a" b\t1\n')
    (True, False)
    """
    lines = content.replace("\r\n", "\n").rstrip("\n").split("\n")
    rows = [line.split("\t") for line in lines if line]
    if all(len(row) == len(rows[0]) > 1 for row in rows):
        fields = (field for row in rows for field in row)
        return all(ENCLOSED.fullmatch(field) for field in fields if field.startswith('"'))
    try:
        deque(csv.reader(lines, delimiter="\t", strict=True), maxlen=0)
    except csv.Error:
        return False
    return True


def text_columns(rows: pd.DataFrame) -> list[str]:
    """Return the names of the columns that hold text, in one row at least."""
    return [
        str(name)
        for name in rows.columns
        if any(isinstance(value, str) for value in rows[name].astype(object))
    ]


def texts_of_files(files: Sequence[str], key: str = "trim_vocabulary") -> list[str]:
    """Read the different texts of all text columns of some files.

    Raises:
        ConfigError: A file cannot be read.
    """
    texts: dict[str, None] = {}
    for file in files:
        rows = read_rows(Path(file), key)
        for column in text_columns(rows):
            texts.update(dict.fromkeys(map(str, rows[column].dropna())))
    return list(texts)
