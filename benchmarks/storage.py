"""Bytes, loading time and metric of exported folders: ``make bench-storage``.

Without RUN: an encoder of BERT-base's shape with random values, 95 % of each matrix zero; enough
for sizes and times. With RUN: the student of a run folder, evaluated on the run's task.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import lzma
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import print_table, save
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, BertConfig, BertTokenizer

from kd_prune.cli.quiet import quiet_libraries
from kd_prune.export.folders import Export, export, weight_bytes
from kd_prune.export.packed_file import is_packed
from kd_prune.export.source import Source
from kd_prune.hf import encoder_scope
from kd_prune.hf.rows import texts_of_files
from kd_prune.results import RunResult

OPTIONS: dict[str, dict[str, Any]] = {
    "fp16": {"form": "fp16"},
    "packed": {"form": "packed"},
    "packed, fp16 values": {"form": "packed", "values": "fp16"},
    "packed, fp16 values and embeddings": {
        "form": "packed",
        "values": "fp16",
        "embeddings": "fp16",
    },
    "packed, fp16 values, int8 embeddings": {
        "form": "packed",
        "values": "fp16",
        "embeddings": "int8",
    },
}


def random_model(folder: Path, *, sparsity: float, seed: int = 0) -> None:
    """Save a classifier of BERT-base's shape whose encoder has this share of zeros."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(BertConfig())
    with torch.no_grad():
        for weight in encoder_scope(model).select(model).values():
            kept = torch.rand_like(weight) >= sparsity
            weight.masked_fill_(~kept, 0.0)
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30517))]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)


def sizes(folder: Path) -> dict[str, int | None]:
    """Bytes of the encoder's layers and of the file; for packed ones also compressed."""
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, framework="pt") as tensors:
        names = [name for name in tensors.keys() if ".layer." in name]  # noqa: SIM118
        layers = [tensors.get_tensor(name).reshape(-1).view(torch.uint8) for name in names]
    packed = is_packed(file)
    return {
        "encoder": sum(layer.numel() for layer in layers),
        "whole": weight_bytes(folder),
        "encoder, xz": len(lzma.compress(torch.cat(layers).numpy())) if packed else None,
    }


def loading_seconds(folders: dict[str, Path], rounds: int) -> dict[str, float]:
    """Median time of `from_pretrained` per folder, taking turns; files are in the page cache."""
    times: dict[str, list[float]] = {name: [] for name in folders}
    for _ in range(rounds):
        for name, folder in folders.items():
            start = time.perf_counter()
            AutoModelForSequenceClassification.from_pretrained(folder)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def metrics_of(run: Path, folders: dict[str, Path], work: Path) -> dict[str, float]:
    """Evaluate every folder as the student of the run; return the run's monitored metric."""
    from kd_prune.cli.main import main as command

    monitor, found = RunResult.read(run).monitor, {}
    for number, (name, folder) in enumerate(folders.items()):
        copy = work / str(number)
        shutil.copytree(folder, copy / "student")
        for record in ("status.json", "result.json", "sparsity.csv"):
            shutil.copy(run / record, copy)
        with contextlib.redirect_stdout(io.StringIO()):  # a table each
            command(["eval", str(copy), f"hydra.run.dir={copy}"])
        found[name] = json.loads((copy / "evaluation.json").read_text())["metrics"][monitor]
    return found


def main() -> None:
    """Export in every way, measure, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="run folder of a trained student")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument(
        "--trim-vocabulary",
        nargs="+",
        metavar="FILE",
        help="measure the smallest form also with the tokens of these files alone",
    )
    parser.add_argument("--rounds", type=int, default=5, help="0: no times")
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(arguments, Path(scratch))
    columns = list(next(iter(results.values())))
    print_table(
        "bytes and seconds of exported folders",
        ("", *columns),
        [(name, *(cell(row[column]) for column in columns)) for name, row in results.items()],
    )
    save(results, f"storage_{arguments.run.name}" if arguments.run else "storage")


def cell(value: Any) -> str:
    """Format a number; empty if there is none."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, dict[str, Any]]:
    """Return per export: bytes, seconds of loading, and for a run the metric."""
    if arguments.run is None:
        dense = scratch / "dense"
        random_model(dense, sparsity=arguments.sparsity)
    else:
        dense = arguments.run / "student"
    folders = {"dense": dense}
    source = Source.find(str(arguments.run or dense))
    options = dict(OPTIONS)
    if arguments.trim_vocabulary:
        smallest, texts = list(OPTIONS)[-1], texts_of_files(arguments.trim_vocabulary)
        options[f"{smallest}, tokens of the files"] = OPTIONS[smallest] | {"texts": texts}
    for name, settings in options.items():
        folders[name] = export(source, Export(**settings), scratch / name).folder
    results: dict[str, dict[str, Any]] = {name: dict(sizes(f)) for name, f in folders.items()}
    if arguments.rounds:
        seconds = loading_seconds(folders, arguments.rounds)
        for name, row in results.items():
            row["seconds to load"] = seconds[name]
    if arguments.run is not None:
        metrics = metrics_of(arguments.run, folders, scratch / "evaluation")
        for name, row in results.items():
            row["metric"] = metrics[name]
    return results


if __name__ == "__main__":
    main()
