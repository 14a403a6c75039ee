"""``kd-prune sparsity <folder>``: the sparsity of every layer of a saved model, as counted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Count the zeros of every layer of a saved model, whoever saved it: a run of kd_prune, a Hugging
Face folder, a Lightning checkpoint, a file of weights. No model is built."""
EXAMPLES = """\
examples:
  kd-prune sparsity outputs/mrpc/<run>
  kd-prune sparsity outputs/mrpc/<run>/student
  kd-prune sparsity model.safetensors
  kd-prune sparsity lightning_logs/version_0/checkpoints/last.ckpt"""


def main(arguments: list[str]) -> None:
    """Print the table of layers."""
    parser = argparse.ArgumentParser(
        prog="kd-prune sparsity",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a run folder, a model folder or a weights file")
    path = parser.parse_args(arguments).path
    if not path.exists():
        sys.exit(f"error: {path}: no such folder or file")
    from kd_prune.checkpoint_sparsity import count_saved  # loads torch, which takes seconds

    try:
        print(count_saved(path), flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
