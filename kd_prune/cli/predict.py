"""``kd-prune predict <folder>``: the predictions of a saved model for the rows of a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kd_prune.cli.quiet import errors_in_one_line, quiet_libraries
from kd_prune.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import PreTrainedModel

    from kd_prune.export.source import Source
    from kd_prune.hf.prediction import Prediction

DESCRIPTION = """\
Predict a class, or a number, for every row of a file or of standard input. Sparse layers run on the
sparse engine where it is installed and gains (`kd_prune.inference`), else on torch. The output has
the rows' columns and the prediction, as CSV, in the order of the input."""
EXAMPLES = """\
examples:
  kd-prune predict outputs/mrpc/<run> --file rows.csv --out predictions.csv
  kd-prune predict outputs/sst2/<run> --file reviews.jsonl --text review
  kd-prune predict student-packed --file pairs.parquet --text question,sentence
  kd-prune predict outputs/mrpc/<run> --file rows.csv --int8    sparse layers in int8
  echo "a fine film" | kd-prune predict outputs/sst2/<run>"""
NOT_ROUNDED = (
    "Nothing is rounded to int8: no layer has enough 1×4 blocks of zeros, or it gains nothing here"
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(
        prog="kd-prune predict",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", help="run folder, model folder (packed too) or hub id")
    made.add_argument(
        "--file",
        type=Path,
        help="rows: csv, tsv, jsonl, parquet, or txt, a text per line; else stdin. Blank lines are"
        " left out",
    )
    made.add_argument(
        "--stdin", default="txt", choices=("txt", "csv", "tsv", "jsonl"), help="format of stdin"
    )
    made.add_argument("--out", type=Path, help="CSV file to write; default: standard output")
    made.add_argument("--text", help="text column, or two with a comma; default: the task's")
    made.add_argument("--probabilities", action="store_true", help="a column per class")
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--max-length", type=int, help="tokens per row; default: the task's")
    made.add_argument("--dense", action="store_true", help="run on torch alone")
    made.add_argument(
        "--int8", action="store_true", help="round sparse layers to int8: faster, less exact"
    )
    return made


def main(arguments: list[str]) -> None:
    """Predict the rows for the model that the first argument names."""
    given = parser().parse_args(arguments)
    with errors_in_one_line():
        run(given)


def run(given: argparse.Namespace) -> None:
    """Read model and rows, predict, write.

    Raises:
        ConfigError: A setting cannot work, or model or rows cannot be read.
    """
    from torch import nn

    from kd_prune.export.source import Source  # loads torch, which takes seconds
    from kd_prune.hf.layers import max_positions
    from kd_prune.hf.prediction import class_names, longest_input, predict

    quiet_libraries()
    for key in ("batch_size", "max_length"):
        if (value := getattr(given, key)) is not None and value < 1:
            raise ConfigError(key, value, "expected at least 1")
    if given.int8 and given.dense:
        raise ConfigError("int8", expected="is of the sparse engine, and --dense does without it")
    if given.out and given.out.is_dir():
        raise ConfigError("out", str(given.out), "is a folder; name a file")
    source = Source.find(given.folder)
    if (form := source.record.get("format")) in ("onnx", "openvino"):
        raise ConfigError("folder", given.folder, f"exported as {form}, for its own runtime")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = source.load(), source.tokenizer()
    rows = read_input(given.file, given.stdin)
    columns = [texts_of(rows, name) for name in choose_columns(rows, given.text, source)]
    nn.Module.float(model)
    longest = max_positions(model)
    if given.max_length and given.max_length > longest:
        raise ConfigError("max_length", given.max_length, f"the model reads {longest:g} tokens")
    wanted = given.max_length or source.task.get("max_length") or longest_input(model, tokenizer)
    with ExitStack() as stack:
        found = predict(
            model,
            tokenizer,
            columns,
            max_length=int(min(wanted, longest)),
            batch_size=given.batch_size,
            forward=None if given.dense else accelerated(model, given.int8),
            progress=stack.enter_context(progress_bar(len(rows))),
        )
    names = class_names(model)
    result = with_predictions(rows, found, names if given.probabilities else ())
    if given.out:
        from kd_prune import atomic_io

        atomic_io.write(given.out, result.to_csv(index=False))
        sys.stderr.write(f"{len(rows):,} rows: {given.out}\n")
    else:
        result.to_csv(sys.stdout, index=False)


def read_input(file: Path | None, form: str, stdin: TextIO | None = None) -> pd.DataFrame:
    """Read the rows of a file, or of standard input.

    Raises:
        ConfigError: They cannot be read, or there are none.
    """
    from kd_prune.hf.rows import UNREADABLE, parse_rows, read_rows

    if file is not None:
        rows = read_rows(file)
    else:
        stream = stdin or sys.stdin
        if stream.isatty():
            raise ConfigError(
                "file", expected="there are no rows", hint="name a file: --file rows.csv"
            )
        try:
            rows = parse_rows(stream.read(), form)
        except UNREADABLE as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError("stdin", form, f"cannot be read ({reason})") from error
    if rows.empty:
        raise ConfigError("file", str(file or "-"), "there are no rows")
    return rows


def choose_columns(rows: pd.DataFrame, given: str | None, source: Source) -> list[str]:
    """Return the text columns: the given ones, the task's, or the only ones that there are.

    Raises:
        ConfigError: A column is missing, or it is not clear which are meant.
    """
    from kd_prune.hf.rows import TEXT, text_columns

    there = [str(name) for name in rows.columns]
    if given is not None:
        wanted = [name.strip() for name in given.split(",")]
        if missing := [name for name in wanted if name not in there]:
            raise ConfigError("text", missing[0], f"not a column; there are {', '.join(there)}")
        if len(wanted) > 2:
            raise ConfigError("text", given, "expected one column or two")
        return wanted
    of_task = [str(name) for name in source.task.get("text") or ()]
    if of_task and set(of_task) <= set(there):
        return of_task
    found = text_columns(rows)
    if len(of_task) < 2 and (len(found) == 1 or TEXT in found):
        return [TEXT] if TEXT in found else found
    task = f"the task reads {' and '.join(of_task)}; " if of_task else ""
    few = len(found) < len(of_task)
    raise ConfigError(
        "text",
        expected=f"{task}which columns hold the text? There are {', '.join(there)}",
        hint=f"give rows with the columns {' and '.join(of_task)}: --file <file>, or --stdin csv"
        if few
        else "name one, or two with a comma: --text <column>",
    )


def texts_of(rows: pd.DataFrame, column: str) -> list[str]:
    """Return a column as texts; a missing value is an empty one."""
    return [str(text) for text in rows[column].astype(object).fillna("")]


def accelerated(model: PreTrainedModel, int8: bool = False) -> nn.Module:
    """Return the model on the sparse engine; itself, with one line, where that cannot be used.

    Args:
        model: The model.
        int8: Round what gains from it to int8; one line says if that is nothing.
    """
    from kd_prune.inference import accelerate, report

    try:
        fast = accelerate(model, int8=int8)
    except (ImportError, OSError, ConfigError) as error:  # llvmlite is missing, or does not load
        sys.stderr.write(f"Dense torch is used: {error}\n")
        return model
    if int8 and not report(fast).int8:
        sys.stderr.write(f"{NOT_ROUNDED}\n")
    return fast


def progress_bar(rows: int) -> Any:
    """Return a context whose value advances a bar on standard error; no bar without a terminal."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    @contextmanager
    def shown() -> Any:
        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("rows", total=rows)
            yield lambda done: progress.advance(bar, done)

    return shown()


def with_predictions(
    rows: pd.DataFrame, found: Sequence[Prediction], classes: Iterable[str]
) -> pd.DataFrame:
    """Return the rows with a column ``prediction``, for classes also ``score``.

    A name that the rows have already becomes ``predicted_<name>``, with a line on standard error.

    Args:
        rows: The rows.
        found: Their predictions.
        classes: Class names that get a column with their probability; none for a regression.
    """
    new: dict[str, Any]
    if found and found[0].label is None:
        new = {"prediction": [one.score for one in found]}
    else:
        new = {
            "prediction": [one.label for one in found],
            "score": [round(one.score, 6) for one in found],
        } | {
            f"p({name})": [round(one.probabilities[i], 6) for one in found]
            for i, name in enumerate(classes)
        }
    columns = {}
    for name, values in new.items():
        free = name
        while free in rows.columns:
            free = f"predicted_{free}"
        if free != name:
            sys.stderr.write(f"The rows have a column {name}; the new one is {free}.\n")
        columns[free] = values
    return rows.assign(**columns)
