"""Prune while distilling: ``kd-prune train`` in a clone (``python train.py --help``)."""

import sys

from kd_prune.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
