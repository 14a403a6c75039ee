"""``kd-prune bench <folder…>``: how fast saved models run on this machine, dense and sparse."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_prune.cli.quiet import errors_in_one_line
from kd_prune.errors import ConfigError

if TYPE_CHECKING:
    from kd_prune.inference.rivals import Rival

DESCRIPTION = """\
Measure sentences per second and latency of saved models on this machine: dense with torch (float32
with the default BLAS and with oneDNN, bfloat16 where the processor has it), accelerated by
kd_prune, also with sparse layers in int8 where that gains, and with ONNX Runtime, OpenVINO and
SparseLab where they are installed. All take turns in one process, with as many threads each. The
speed-up is to the better of torch's two float32 ways, the difference is the largest one of an
output to torch's, relative to the largest output."""
EXAMPLES = """\
examples:
  kd-prune bench outputs/mrpc/<run>                       sentences as long as the task's
  kd-prune bench outputs/mrpc/<run> outputs/mrpc/<other run> --batch 1 8 32
  kd-prune bench outputs/mrpc/<run> --curve --out bench   speed over compression, as a figure
  kd-prune bench outputs/mrpc/<run> --file rows.csv       sentences as long as these
  kd-prune bench outputs/mrpc/<run> --length 64 --threads 1 --rivals openvino

rivals:
  onnxruntime   float32, and int8 by its dynamic quantizer          (pip install 'kd_prune[onnx]')
  openvino      float32, bfloat16, int8 by NNCF                     (pip install openvino nncf)
  sparselab     float32, its sparse layers                          (pip install sparselab)"""
NAMES = ("onnxruntime", "openvino", "sparselab")
COMPRESSIONS = (1.0, 2.0, 4.0, 8.0, 16.0, 20.0)


def main(arguments: list[str]) -> None:
    """Measure the models, print the table, write the files."""
    options = parse(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            sys.exit(f"error: {folder}: no such folder")
    with errors_in_one_line():
        if options.out:  # before minutes of measuring
            options.out.mkdir(parents=True, exist_ok=True)
        rows = run(options)
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
        help="tokens of every sentence; default: as in the task's validation rows, else 128",
    )
    parser.add_argument("--file", type=Path, help="sentences as long as the rows of this file")
    parser.add_argument("--text", help="its text column, or two with a comma; default: the task's")
    parser.add_argument("--sentences", type=positive, default=64, help="sentences in a round")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds that count")
    parser.add_argument("--threads", type=positive, help="threads; default: torch's")
    parser.add_argument(
        "--rivals", nargs="*", choices=NAMES, help="default: those installed; no name: none"
    )
    parser.add_argument(
        "--curve",
        nargs="*",
        type=parse_compression,
        metavar="COMPRESSION",
        help="the same model at other sparsities too, with random weights in the encoder's "
        "matrices; without a number: 1 2 4 8 16 20",
    )
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.png")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """Parse a number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return number


def parse_compression(text: str) -> float:
    """Parse a compression: all weights over those that are not zero."""
    number = float(text)
    if not 1 <= number < float("inf"):
        raise argparse.ArgumentTypeError("expected a number of at least 1")
    return number


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every folder; return the rows of the tables.

    Raises:
        ConfigError: A setting cannot work, or a model cannot be read.
    """
    import torch  # takes seconds

    from kd_prune.cli.bench_folder import measure_folder
    from kd_prune.cli.quiet import quiet_libraries

    if options.curve is not None and len(options.folders) > 1:
        raise ConfigError("--curve", len(options.folders), "expected one folder")
    options.curve = options.curve if options.curve != [] else list(COMPRESSIONS)
    quiet_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)
    rivals = chosen_rivals(options.rivals)
    rows = []
    for folder in options.folders:
        rows += measure_folder(folder, options, rivals)
    return rows


def chosen_rivals(names: list[str] | None) -> list[Rival]:
    """Return the rivals of some names; None: all that are installed, and a line names the others.

    Raises:
        ConfigError: A named one is not installed.
    """
    from kd_prune.inference import rivals

    if names is None:
        found = rivals.installed(rivals.RIVALS)
        others = [rival for rival in rivals.RIVALS if rival not in found]
        if others:
            listed = ", ".join(f"{rival.name} (pip install {rival.install})" for rival in others)
            print(f"not installed, so not measured: {listed}")
        return found
    chosen = [rival for rival in rivals.RIVALS if rival.name in names]
    for rival in chosen:
        if lacking := rivals.missing(rival):
            raise ConfigError(
                "--rivals",
                rival.name,
                f"needs the package {', '.join(lacking)}",
                f"pip install {rival.install}",
            )
    return chosen


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the table as JSON, and the figure."""
    from kd_prune.inference import figure

    (out / "bench.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        lines = panels.setdefault(f"batch {row['batch_size']}", {})
        point = (row["compression"], row["sentences_per_second"])
        lines.setdefault(row["engine"], []).append(point)
    machine = f"{rows[0]['vectors']}, {rows[0]['threads']} threads"
    figure.draw(panels, out / "bench.png", f"Speed on this machine ({machine})")
    print(f"written: {out / 'bench.json'}, {out / 'bench.png'}")
