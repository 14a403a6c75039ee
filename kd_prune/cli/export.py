"""``kd-prune export <folder>``: a saved model in a format for shipping, with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kd_prune.cli.quiet import errors_in_one_line, quiet_libraries

if TYPE_CHECKING:
    from kd_prune.export.folders import Exported

DESCRIPTION = """\
Export a saved model, whoever trained it, to a folder with tokenizer and model card. The model
itself stays as it is.

formats:
  packed    sparse matrices as positions and values: bit-equal, at 95 % about 15 times smaller
            without the embeddings; `import kd_prune` reads it with transformers' from_pretrained
  fp16      the dense model in half precision, for everything that reads Hugging Face folders
  onnx      a graph for ONNX Runtime; --int8 also quantizes it     (pip install 'kd_prune[onnx]')
  openvino  a model for OpenVINO                                   (pip install openvino)"""
EXAMPLES = """\
examples:
  kd-prune export outputs/mrpc/<run> --format packed
  kd-prune export outputs/mrpc/<run> --format packed --values fp16 --embeddings int8
  kd-prune export outputs/mrpc/<run> --format packed --trim-vocabulary train.csv validation.csv
  kd-prune export outputs/mrpc/<run> --format onnx --int8 --out mrpc-onnx
  kd-prune export outputs/mrpc/<run of seed 1> --seeds outputs/mrpc/<run of seed 2>
  kd-prune export outputs/mrpc/<run> --push-to-hub <user>/<name>"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(
        prog="kd-prune export",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", help="run folder, model folder or hub id")
    made.add_argument(
        "--format", default="packed", choices=("packed", "fp16", "onnx", "openvino"), dest="form"
    )
    made.add_argument(
        "--out", type=Path, help="folder to write; default: <model folder>-<format and options>"
    )
    made.add_argument("--replace", action="store_true", help="replace an existing folder")
    made.add_argument(
        "--values",
        default="lossless",
        choices=("lossless", "fp16"),
        help="packed: type of all weights but embeddings (default: as they are)",
    )
    made.add_argument(
        "--embeddings",
        default="lossless",
        choices=("lossless", "fp16", "int8"),
        help="packed: type of the embeddings; int8 has a factor per row (default: as they are)",
    )
    made.add_argument("--int8", action="store_true", help="onnx: quantize with ONNX Runtime")
    made.add_argument(
        "--trim-vocabulary",
        nargs="+",
        metavar="FILE",
        help="remove the tokens that no text in these files needs (csv, jsonl, parquet, txt)",
    )
    made.add_argument(
        "--seeds",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of the same job with other seeds: the card then shows mean ± deviation",
    )
    made.add_argument("--push-to-hub", metavar="ID", help="upload the folder: <user>/<name>")
    made.add_argument("--private", action="store_true", help="make a new repository private")
    return made


def main(arguments: list[str]) -> None:
    """Export the model that the first argument names."""
    given = parser().parse_args(arguments)
    with errors_in_one_line():
        exported = run(given)
    before, after = (size / 1e6 for size in exported.bytes)
    print(
        f"{exported.folder}: {after:.2f} MB of weights, {after / before:.0%} of the dense model's"
    )
    if exported.tokens[0] != exported.tokens[1]:
        print(f"vocabulary: {exported.tokens[1]:,} of {exported.tokens[0]:,} tokens")
    if given.push_to_hub:
        from kd_prune.export.hub import push

        with errors_in_one_line():
            print(push(exported.folder, given.push_to_hub, private=given.private))


def run(given: argparse.Namespace) -> Exported:
    """Check the settings, read the model, write the folder.

    Raises:
        ConfigError: A setting cannot work, or the model cannot be read.
    """
    from kd_prune.export.folders import Export, export  # loads torch, which takes seconds
    from kd_prune.export.source import Source
    from kd_prune.hf.rows import texts_of_files

    quiet_libraries()
    texts = texts_of_files(given.trim_vocabulary) if given.trim_vocabulary else None
    settings = Export(
        form=given.form,
        values=given.values,
        embeddings=given.embeddings,
        int8=given.int8,
        texts=texts,
    )
    settings.check()
    source = Source.find(given.folder, given.seeds)
    out = given.out or source.default_out(settings.suffix)
    return export(source, settings, out, replace=given.replace)
