"""Rows of files and streams: text stays text, whatever it looks like."""

from __future__ import annotations

import csv
import gzip
import json

import pandas as pd
import pytest

from kd_prune.errors import ConfigError
from kd_prune.hf.rows import format_of_file, parse_rows, read_rows, text_columns, texts_of_files

ODD = ["NA", "null", "1.50", "007", "2020-01-01", 'a "quoted", text']


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_text_is_read_as_it_was_written(form, tmp_path):
    rows = pd.DataFrame({"date": ODD})
    file = tmp_path / f"rows.{form}"
    match form:
        case "jsonl":
            rows.to_json(file, orient="records", lines=True)
        case "parquet":
            rows.to_parquet(file)
        case _:
            rows.to_csv(file, index=False, sep="\t" if form == "tsv" else ",")
    assert read_rows(file)["date"].tolist() == ODD


def test_quotes_of_a_plain_tsv_belong_to_its_texts():
    """GLUE's files quote nothing: pandas' rules would make one row of these three."""
    texts = [
        '"He left , she said .',
        "They stayed .",
        'Nobody came . " Why ?',
        '" Fine " , he said .',
    ]
    lines = [f"{text}\t{i}" for i, text in enumerate(texts)]
    rows = parse_rows("\n".join(["text\tid", *lines, ""]), "tsv")
    assert rows["text"].tolist() == texts
    assert rows["id"].tolist() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_quotes_of_a_writer_enclose_fields(quoting):
    texts = ["a\tb", 'say "no"', "two\nlines", "plain"]
    rows = pd.DataFrame({"text": texts, "id": range(4)})
    content = rows.to_csv(index=False, sep="\t", quoting=quoting)
    assert parse_rows(content, "tsv")["text"].tolist() == texts


@pytest.mark.parametrize("break_", [" ", "\n"])
def test_quotes_around_a_comma_enclose_fields(break_):
    """Spreadsheets quote more than a writer of tab-separated fields has to."""
    content = f'text\tid\n"Hello, world"\t1\n"two{break_}lines"\t2\n'
    assert parse_rows(content, "tsv")["text"].tolist() == ["Hello, world", f"two{break_}lines"]


def test_json_list_is_read_as_rows():
    assert parse_rows('[{"a": "x"}, {"a": "y"}]', "jsonl")["a"].tolist() == ["x", "y"]
    with pytest.raises(ValueError, match="one object per row"):
        parse_rows("[1, 2]", "jsonl")


def test_blank_lines_of_a_text_file_are_no_rows():
    assert parse_rows("a\n\n  \nb", "txt")["text"].tolist() == ["a", "b"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_break_ends_a_row(separator):
    text = f"one{separator}text"
    assert parse_rows(f"{text}\r\nb\n", "txt")["text"].tolist() == [text, "b"]
    line = json.dumps({"text": text}, ensure_ascii=False)
    assert parse_rows(f"{line}\n{line}\n", "jsonl")["text"].tolist() == [text, text]


def test_row_with_more_fields_than_the_header_is_not_cut():
    with pytest.raises(ValueError, match="a row has more fields than the header"):
        parse_rows("text,label\nfox, red,a\n", "csv")


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "rows.csv").write_text("﻿text\nabc\n", encoding="utf-8")
    assert list(read_rows(tmp_path / "rows.csv")) == ["text"]
    assert parse_rows("\ufeffabc\n", "txt")["text"].tolist() == ["abc"]  # standard input


def test_text_columns_are_those_with_text_only(tmp_path):
    rows = pd.DataFrame({"a": ["x", "y"], "n": [1, 2], "f": [0.5, 1.0], "b": ["z", None]})
    assert text_columns(rows) == ["a", "b"]
    rows.to_parquet(tmp_path / "one.parquet")
    (tmp_path / "two.txt").write_text("y\nw\n")
    files = [str(tmp_path / "one.parquet"), str(tmp_path / "two.txt")]
    assert texts_of_files(files) == ["x", "y", "z", "w"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xls", b"", "expected a file of .parquet"),
        ("rows.parquet", b"no parquet", "cannot be read"),
        ("rows.csv", b"", "cannot be read"),
        ("rows.jsonl", b"{", "cannot be read"),
        ("rows.txt", b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_file_that_cannot_be_read_is_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_rows(tmp_path / name)
    assert "\n" not in str(error.value)


def test_format_is_found_in_any_case(tmp_path):
    assert format_of_file(tmp_path / "ROWS.CSV") == "csv"


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.txt.GZ"])
def test_compressed_rows_are_unpacked(name, tmp_path):
    content = '{"text": "a b"}\n' if "jsonl" in name else "a b\n"
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    assert read_rows(tmp_path / name)["text"].tolist() == ["a b"]


def test_half_a_character_is_replaced():
    r"""A text that was cut in the middle of an emoji, as JSON writes it."""
    rows = parse_rows(
        '{"text": "cut \\ud83d", "n": 1}\n{"text": "\\ud83d\\ude00", "n": 2}', "jsonl"
    )
    assert rows["text"].tolist() == ["cut \ufffd", "\U0001f600"]
    assert rows["n"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.txt.gz", gzip.compress(b"a text\n" * 1000)[:-20]),
        ("damaged.txt.gz", gzip.compress(b"a text\n")[:10] + b"\xff" * 20),
        ("deep.jsonl", b"[" * 100_000),
    ],
    ids=["cut", "damaged", "deep"],
)
def test_a_damaged_file_is_refused_in_one_line(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows(tmp_path / name)


def test_a_column_with_other_values_too_is_one_of_text(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 1, "text": "the fox"}\n{"n": 2, "text": 7}\n')
    assert text_columns(read_rows(file)) == ["text"]
    assert texts_of_files([str(file)]) == ["the fox", "7"]
