"""Smaller vocabulary: tokens that some texts do not need leave the tokenizer and the embeddings.

The result gives the same tokens, and so the same outputs, for every text that was named; this is
checked. Other texts fall back to shorter pieces: single characters are always kept.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.errors import ConfigError

KEY = "trim_vocabulary"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
BATCH = 1000
TOKEN_IDS = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Tokenizer:
    """Remove the tokens that no text needs from the model, in place; return the new tokenizer.

    Args:
        model: A model without a head over the vocabulary.
        tokenizer: Its tokenizer, which stays as it is.
        texts: Texts whose tokens have to stay the same.

    Raises:
        ConfigError: The model predicts tokens, the tokenizer is of an unknown type, or a text would
            get other tokens.
    """
    whole: Any = model
    if whole.get_output_embeddings() is not None:
        raise ConfigError(KEY, expected=f"{type(model).__name__} has a head over its vocabulary")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(KEY, expected=f"{type(tokenizer).__name__} has no file tokenizer.json")
    # Padding and truncation are settings of the tokenizer's last call.
    description = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    before = Tokenizer.from_str(json.dumps(description))
    needed = {i for ids in encoded(before, texts) for i in ids}
    needed.update(tokenizer.all_special_ids)
    if (padding := getattr(model.config, "pad_token_id", None)) is not None:
        # RoBERTa counts positions from the padding's index, so it and those below it stay.
        needed.update(range(padding + 1) if counts_positions_from_padding(model) else [padding])
    trimmed, new_ids = without(description, needed)
    if others := differing(before, trimmed, new_ids, texts):
        # A word that WordPiece calls unknown may be split another way without the longest pieces.
        needed.update(tokens_within(description, before, others))
        trimmed, new_ids = without(description, needed)
        if others := differing(before, trimmed, new_ids, texts):
            raise ConfigError(KEY, expected=f"the text {others[0][:60]!r} would get other tokens")
    trim_model(model, new_ids)
    return trimmed


def counts_positions_from_padding(model: PreTrainedModel) -> bool:
    """Return whether the model's positions begin behind the index of its padding."""
    return any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the token ids of every text."""
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch(list(texts[start : start + BATCH])):
            yield encoding.ids


def without(
    description: Mapping[str, Any], needed: Iterable[int]
) -> tuple[Tokenizer, dict[int, int]]:
    """Return a tokenizer with the needed tokens only, and old id → new id.

    Args:
        description: Content of tokenizer.json.
        needed: Ids that texts and model need.
    """
    kept = sorted(tokens_to_keep(description, needed))
    new_ids = {old: new for new, old in enumerate(kept)}
    return Tokenizer.from_str(json.dumps(with_new_ids(description, new_ids))), new_ids


def differing(
    before: Tokenizer, after: Tokenizer, new_ids: Mapping[int, int], texts: Sequence[str]
) -> list[str]:
    """Return the texts that do not have the same tokens as before."""
    pairs = zip(texts, encoded(before, texts), encoded(after, texts), strict=True)
    return [text for text, old, new in pairs if [new_ids.get(i) for i in old] != new]


def tokens_within(
    description: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[str]
) -> set[int]:
    """Return the ids of all tokens that occur anywhere in some texts."""
    prefix = description["model"].get("continuing_subword_prefix") or ""
    normalizer = tokenizer.normalizer
    joined = "\n".join(normalizer.normalize_str(text) if normalizer else text for text in texts)
    pieces = ids_of(description["model"]).items()
    return {i for token, i in pieces if token.removeprefix(prefix) in joined}


def tokens_to_keep(description: Mapping[str, Any], needed: Iterable[int]) -> set[int]:
    """Return the ids to keep: those needed, those that make them, single characters and bytes.

    Args:
        description: Content of tokenizer.json.
        needed: Ids that texts and model need.

    Raises:
        ConfigError: The tokenizer is of an unknown type.
    """
    model = description["model"]
    vocabulary = ids_of(model)
    kept = set(needed) | {token["id"] for token in description.get("added_tokens", ())}
    prefix = model.get("continuing_subword_prefix") or ""
    kept |= {i for token, i in vocabulary.items() if len(token.removeprefix(prefix)) <= 1}
    if model.get("byte_fallback"):  # what is in no vocabulary becomes bytes, such as <0xC3>
        kept |= {i for token, i in vocabulary.items() if BYTE.fullmatch(token)}
    kept &= set(vocabulary.values()) | {t["id"] for t in description.get("added_tokens", ())}
    if model["type"] == "BPE":
        # Every merge that leads to a kept token, with its two parts: these are all the merges
        # that were applied to the texts, so the same ones are applied again.
        sources: dict[str, list[tuple[str, str]]] = {}
        for left, right in merges_of(model):
            sources.setdefault(left + right.removeprefix(prefix), []).append((left, right))
        names = {i: token for token, i in vocabulary.items()}
        waiting = list(kept)
        while waiting:
            for parts in sources.get(names.get(waiting.pop(), ""), ()):
                new = {vocabulary[part] for part in parts} - kept
                kept |= new
                waiting += new
    return kept


def ids_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Return token → id of a tokenizer's model.

    Raises:
        ConfigError: The model is of an unknown type.
    """
    if model["type"] in ("WordPiece", "WordLevel", "BPE"):
        return dict(model["vocab"])
    if model["type"] == "Unigram":
        return {token: i for i, (token, _) in enumerate(model["vocab"])}
    raise ConfigError(KEY, expected=f"a tokenizer of type {model['type']} cannot be trimmed")


def merges_of(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges of a BPE model; older files join the two parts by a space."""
    merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in merges]


def with_new_ids(description: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Return the content of a tokenizer.json with the kept tokens only, under their new ids."""
    new: dict[str, Any] = json.loads(json.dumps(description))
    model = new["model"]
    vocabulary = ids_of(model)
    if model["type"] == "Unigram":
        model["vocab"] = [pair for i, pair in enumerate(model["vocab"]) if i in new_ids]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {t: new_ids[i] for t, i in vocabulary.items() if i in new_ids}
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in merges_of(model)
            if {left, right, left + right.removeprefix(prefix)} <= model["vocab"].keys()
        ]
    for token in new.get("added_tokens", ()):
        token["id"] = new_ids[token["id"]]
    if new.get("post_processor"):
        _renumber_processor(new["post_processor"], new_ids)
    return new


def _renumber_processor(processor: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Replace the ids that a post-processor inserts, in place."""
    for inner in processor.get("processors", ()):
        _renumber_processor(inner, new_ids)
    for name in ("sep", "cls"):  # of RoBERTa's and BERT's processors
        if name in processor:
            token, old = processor[name]
            processor[name] = [token, new_ids[old]]
    special = processor.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        token["ids"] = [new_ids[old] for old in token["ids"]]


@torch.no_grad()
def trim_model(model: PreTrainedModel, new_ids: Mapping[int, int]) -> None:
    """Reduce a model's token embeddings to the kept tokens, in the order of their new ids."""
    old: Any = model.get_input_embeddings()
    rows = torch.tensor(sorted(new_ids, key=lambda i: new_ids[i]))
    padding = old.padding_idx
    weight = old.weight[rows].clone()
    table = copy.copy(old)  # of the same class: some scale what they return
    table._parameters = {"weight": nn.Parameter(weight, requires_grad=old.weight.requires_grad)}
    table.num_embeddings = len(rows)
    table.padding_idx = None if padding is None else new_ids[padding]
    model.set_input_embeddings(table)
    model.config.vocab_size = len(rows)
    for name in TOKEN_IDS:
        value = getattr(model.config, f"{name}_token_id", None)
        if isinstance(value, int):
            setattr(model.config, f"{name}_token_id", new_ids.get(value))


def replace_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Put a tokenizer into a folder that the original one was saved in.

    Args:
        folder: The folder.
        tokenizer: The tokenizer with fewer tokens.
    """
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    for name in ("vocab.txt", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.pop("added_tokens_decoder", None) is not None:  # by id; tokenizer.json has them too
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
