"""``python -m kd_prune <folder>``: the sparsity of every layer of a saved model, as counted."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kd_prune.saved import count_saved


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m kd_prune", description=__doc__)
    parser.add_argument("path", type=Path, help="a model folder, a run folder or a weights file")
    given = parser.parse_args(arguments)
    try:
        print(count_saved(given.path), flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # `| head` has seen enough; nor has Python to flush at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
