"""``kd-prune bench <folder…>``: how fast saved models run on this machine, dense and sparse."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_prune.errors import ConfigError

if TYPE_CHECKING:
    from kd_prune.inference.benchmark import Timing

DESCRIPTION = """\
Measure sentences per second and latency of saved models on this machine: dense with torch (float32
with the default BLAS and with oneDNN, bfloat16 where the processor has it), and accelerated by
kd_prune. All take turns in one process. The outputs are compared, too."""
DEFAULT_LENGTH = 128
EXAMPLES = """\
examples:
  kd-prune bench outputs/mrpc/<run>
  kd-prune bench outputs/mrpc/<run> outputs/mrpc/<other run> --batch 1 8 32
  kd-prune bench outputs/mrpc/<run> --file rows.csv       sentences as long as these
  kd-prune bench outputs/mrpc/<run> --length 64 --threads 1"""


def main(arguments: list[str]) -> None:
    """Measure the models, print the table, write the files."""
    options = parse(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            sys.exit(f"error: {folder}: no such folder")
    import torch  # takes seconds

    from kd_prune.cli.quiet import quiet_libraries

    quiet_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    try:
        for folder in options.folders:
            rows += measure_folder(folder, options)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if options.out and rows:
        write(rows, options.out)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="kd-prune bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders or model folders")
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 32], help="batch sizes")
    parser.add_argument(
        "--length",
        type=positive,
        help="tokens of every sentence; default: 128, if a model reads so many",
    )
    parser.add_argument("--file", type=Path, help="CSV file: sentences as long as its rows")
    parser.add_argument("--columns", nargs="+", help="its columns with text; default: all")
    parser.add_argument("--sentences", type=positive, default=64, help="sentences in a round")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds that count")
    parser.add_argument("--threads", type=positive, help="threads; default: torch's")
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.png")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """Parse a number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return number


def measure_folder(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one model, print its part of the table and return it."""
    import torch

    from kd_prune.hf import max_positions
    from kd_prune.inference import benchmark, report

    folder = folder / "student" if (folder / "student").is_dir() else folder
    model = load(folder)
    models = benchmark.engines(model)
    sparsity = benchmark.linear_sparsity(model)
    lengths = token_lengths(folder, options, max_positions(model))
    print(f"{folder}: {report(models[benchmark.OURS])}")
    print(f"{'':24}{'batch':>6}{'sentences/s':>13}{'median ms':>11}{'p95 ms':>9}{'speed-up':>10}")
    rows = []
    for size in options.batch:
        work = benchmark.batches(lengths, size, int(model.config.vocab_size))
        timings = benchmark.measure(models, work, options.rounds)
        for timing in timings:
            row = described(timing, benchmark.speed_up(timings, timing.engine))
            rows.append({"folder": str(folder), "sparsity": sparsity, **row})
            print(
                f"{timing.engine:24}{timing.batch_size:6}{timing.sentences_per_second:13.1f}"
                f"{timing.median * 1e3:11.2f}{timing.p95 * 1e3:9.2f}{row['speed_up']:9.2f}×"
            )
        with torch.inference_mode():
            dense, ours = (models[name](**work[0])[0] for name in (benchmark.BLAS, benchmark.OURS))
        print(f"largest difference of the outputs: {float((dense - ours).abs().max()):.1e}")
    return rows


def described(timing: Timing, ratio: float) -> dict[str, Any]:
    """Return a row of the table as plain data, times in milliseconds."""
    return {
        "engine": timing.engine,
        "batch_size": timing.batch_size,
        "sentences_per_second": timing.sentences_per_second,
        "median_ms": timing.median * 1e3,
        "p95_ms": timing.p95 * 1e3,
        "speed_up": ratio,
    }


def load(folder: Path) -> Any:
    """Load a model folder with the head that it was saved with.

    Raises:
        ConfigError: It cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from kd_prune.hf import load_error

    try:
        config = AutoConfig.from_pretrained(folder)
        named = " ".join(config.architectures or [])
        classifies = "ForSequenceClassification" in named
        kind = AutoModelForSequenceClassification if classifies else AutoModel
        model = kind.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise load_error("folder", str(folder), error) from error
    return model.eval()


def token_lengths(folder: Path, options: argparse.Namespace, longest: float) -> list[int]:
    """Return the lengths of the sentences to measure with.

    Args:
        folder: The model's folder, for its tokenizer.
        options: The command's options.
        longest: Tokens that the model reads.

    Raises:
        ConfigError: The model does not read so many tokens; the CSV file cannot be read, or has no
            such column.
    """
    if options.length and options.length > longest:
        raise ConfigError("--length", options.length, f"{folder} reads {longest:g} tokens")
    if options.file is None:
        return [options.length or int(min(DEFAULT_LENGTH, longest))] * options.sentences
    from transformers import AutoTokenizer

    try:
        with options.file.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--file", str(options.file), f"cannot be read: {error}") from error
    known = list(table[0]) if table else []
    columns = options.columns or known
    missing = sorted(set(columns) - set(known))
    if missing or not columns:
        raise ConfigError("--columns", missing, "not in the file", f"it has {', '.join(known)}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [" ".join(row[name] or "" for name in columns) for row in table[: options.sentences]]
    return [int(min(len(ids), longest)) for ids in tokenizer(texts, truncation=True)["input_ids"]]


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the table as JSON, and the figure."""
    from kd_prune.inference import figure

    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        lines = panels.setdefault(f"batch {row['batch_size']}", {})
        compression = 1 / max(1 - row["sparsity"], 1e-9)
        lines.setdefault(row["engine"], []).append((compression, row["sentences_per_second"]))
    figure.draw(panels, out / "bench.png", "Speed on this machine")
    print(f"written: {out / 'bench.json'}, {out / 'bench.png'}")
