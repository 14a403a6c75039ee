"""Pruning while training, side by side with its peers: behaviour and cost, in one process.

    python benchmarks/peers.py [--model <folder>] [--shape bert minilm] [--write]

Peers: Lightning's ModelPruning, torch.ao.pruning, torchao's PAT. torchao is needed for its own
column only (``pip install torchao==0.18.0``). Times are CPU seconds of one thread: on an idle
machine they equal the clock, and other load on a busy machine changes them least.

Writes benchmarks/results/peers.json; ``--write`` also puts the tables into docs/why.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging

import torch
from common import ROOT, machine, save
from peers_behaviour import behaviours
from peers_cost import costs
from peers_tables import markdown, rewrite
from peers_tools import HAS_TORCHAO

PAGE = ROOT / "docs" / "why.md"
SHAPES = {
    "bert": {
        "title": "BERT-base: 12 layers of 768 and 3072, batch 8 x 32",
        "config": {},
        "batch": (8, 32),
        "rounds": 7,
    },
    "minilm": {
        "title": "MiniLM: 6 layers of 384 and 1536, batch 16 x 56",
        "config": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
        "batch": (16, 56),
        "rounds": 15,
    },
}


def versions() -> dict[str, str]:
    """Versions of the packages compared."""
    names = ["torch", "lightning", "transformers", *(["torchao"] if HAS_TORCHAO else [])]
    return {name: importlib.metadata.version(name) for name in names}


def main() -> None:
    """Measure, save the figures, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="folder of a model for shape minilm; default: random weights"
    )
    parser.add_argument("--shape", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument(
        "--rounds", type=int, help="steps timed per tool; default: 7 for bert, 15 for minilm"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/why.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    result = {"versions": versions(), "machine": machine(), "behaviour": behaviours(), "cost": {}}
    for shape in arguments.shape:
        print(f"{shape}:", flush=True)
        folder = arguments.model if shape == "minilm" else None
        result["cost"][shape] = costs(SHAPES[shape], folder, arguments.rounds)
    save(result, "peers")
    titles = {shape: SHAPES[shape]["title"] for shape in arguments.shape}
    text = markdown(result, titles)
    print(text)
    if not HAS_TORCHAO:
        print("\ntorchao PAT is missing: pip install torchao==0.18.0")
    if arguments.write:
        rewrite(PAGE, text)


if __name__ == "__main__":
    main()
