"""The embedded task and model: generated without a network, and learnt in seconds.

The task: a list of things, some with adjectives, and an ordinal; the label is the kind of the thing
at that position. ``"the small fox , old hammer , pear and green canoe" / "third"`` → ``fruit``. It
takes a lexicon (the kind of every noun) and a selection (adjectives shift positions, so counting
words is not enough). The model is a small randomly initialised BERT with a tokenizer of exactly
these words.

Both are written as ordinary folders and read like any other data set and model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from kd_prune import atomic_io
from kd_prune.errors import ConfigError

KINDS = {
    "animal": "fox otter badger heron lizard camel weasel toad moose ferret goose lynx",
    "fruit": "pear plum fig mango cherry lemon papaya apricot quince melon grape lime",
    "tool": "hammer chisel pliers wrench drill shovel rasp anvil clamp trowel hatchet awl",
    "vessel": "canoe ferry raft yacht barge kayak trawler tanker schooner gondola dinghy tug",
    "garment": "scarf glove jacket bonnet apron kilt mitten vest cloak sandal tunic shawl",
    "instrument": "cello flute banjo oboe harp tuba lute fiddle bugle cymbal viola drum",
    "tree": "oak birch cedar willow maple alder spruce elm poplar larch rowan hazel",
    "metal": "iron copper zinc nickel cobalt silver tin chromium lead titanium mercury gold",
}
ADJECTIVES = "small old green shiny heavy strange little brown pretty broken"
ORDINALS = ("first", "second", "third", "fourth", "fifth")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentences(count: int, *, seed: int, things: int = 5) -> list[dict[str, str]]:
    """Draw rows ``{"things", "which", "label"}`` of the task; all labels are equally likely.

    Args:
        count: Number of rows.
        seed: Seed of all choices.
        things: Length of the list, 1 … 5; with 1 only the lexicon has to be learnt.
    """
    rng = np.random.default_rng(seed)
    kinds = {kind: nouns.split() for kind, nouns in KINDS.items()}
    adjectives = ADJECTIVES.split()
    rows = []
    for _ in range(count):
        listed = rng.choice(list(kinds), size=things)
        phrases = []
        for kind in listed:
            noun = str(rng.choice(kinds[kind]))
            phrases.append(f"{rng.choice(adjectives)} {noun}" if rng.random() < 0.5 else noun)
        asked = int(rng.integers(things))
        text = " and ".join(filter(None, (" , ".join(phrases[:-1]), phrases[-1])))
        rows.append(
            {"things": f"the {text}", "which": ORDINALS[asked], "label": str(listed[asked])}
        )
    return rows


def make_task(
    cache_dir: str,
    *,
    train: int = 8000,
    validation: int = 1000,
    things: int = 5,
    seed: int = 0,
) -> str:
    """Write the task as ``train.jsonl`` and ``validation.jsonl``; return the folder.

    Raises:
        ConfigError: A number is out of its range.
    """
    if things > len(ORDINALS):
        raise ConfigError("things", things, f"expected a whole number up to {len(ORDINALS)}")

    def write(folder: Path) -> None:
        for split, count, stream in (("train", train, 1), ("validation", validation, 2)):
            rows = sentences(count, seed=1000 * seed + stream, things=things)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines)

    settings = {"train": train, "validation": validation, "things": things, "seed": seed}
    return cached_folder(cache_dir, "task", settings, write)


def make_model(
    cache_dir: str,
    *,
    layers: int = 2,
    hidden_size: int = 64,
    heads: int = 4,
    seed: int = 0,
) -> str:
    """Write a randomly initialised BERT and its tokenizer; return the folder.

    Raises:
        ConfigError: A number is out of its range.
        ValueError: `hidden_size` is no multiple of `heads`.
    """

    def write(folder: Path) -> None:
        words = " ".join((*KINDS.values(), ADJECTIVES, *ORDINALS, "the , and")).split()
        vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
        BertTokenizer(vocab=vocabulary).save_pretrained(folder)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,  # 0.02, made for widths of 768, learns far slower here
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            BertForSequenceClassification(config).save_pretrained(folder)

    settings = {"layers": layers, "hidden_size": hidden_size, "heads": heads, "seed": seed}
    return cached_folder(cache_dir, "model", settings, write)


def cached_folder(
    cache_dir: str, name: str, settings: Mapping[str, int], write: Callable[[Path], None]
) -> str:
    """Return the folder for these settings, written if it does not exist.

    Args:
        cache_dir: Cache folder.
        name: First part of the folder's name.
        settings: Numbers that the content depends on; the second part is their hash.
        write: Fills the folder.

    Raises:
        ConfigError: A number is out of its range.
    """
    for key, value in settings.items():
        least = 0 if key == "seed" else 1
        if value < least:
            raise ConfigError(key, value, f"expected a whole number from {least}")
    source = Path(__file__).read_bytes()
    digest = hashlib.sha256(source + repr((name, sorted(settings.items()))).encode()).hexdigest()[
        :16
    ]
    folder = Path(cache_dir).expanduser() / "tiny" / f"{name}-{digest}"
    if not folder.is_dir():
        with atomic_io.folder(folder) as scratch:
            write(scratch)
    return str(folder)
