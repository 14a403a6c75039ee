"""Freezing: parts of a model that a fit does not train, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from kd_prune.errors import ConfigError
from kd_prune.hf.layers import encoder_layers

PARTS = "embeddings, layers, layers[:-1], head"
LAYERS = re.compile(r"layers(\[-?\d*:-?\d*\])?")


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> None:
    """Exclude parts of a model from training; the others train.

    A weight that two parts share, such as an output layer tied to the embeddings, belongs to the
    first of them.

    Args:
        model: The model.
        parts: ``embeddings`` (all before the encoder's layers, and what the layers share, such as
            embeddings of relative positions), ``layers``, some layers in Python's slice notation
            (``layers[:-1]``: all but the last), ``head`` (all after the layers, a pooler
            included), or globs over parameter names.

    Raises:
        ConfigError: A part is not found, or nothing is left to train. The key is ``freeze``.
    """
    frozen = set[str]()
    for part in parts:
        if not (found := part_names(model, part)):
            expected = f"expected {PARTS}, or a pattern that matches a parameter's name"
            raise ConfigError("freeze", part, expected)
        frozen |= found
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("freeze", list(parts), "nothing is left to train")


def part_names(model: PreTrainedModel, part: str) -> set[str]:
    """Return the names of the parameters of a part; see `freeze`."""
    names = [name for name, _ in model.named_parameters()]
    if part not in ("embeddings", "head") and not LAYERS.fullmatch(part):
        return {name for name in names if fnmatchcase(name, part)}
    stacks = encoder_layers(model)
    prefixes = tuple(f"{stack}." for stack in stacks)
    in_layers = [i for i, name in enumerate(names) if name.startswith(prefixes)]
    if part in ("embeddings", "head"):
        # DeBERTa and MPNet register what their layers share after them, below the same module.
        beside = tuple(f"{stack.rpartition('.')[0]}." for stack in stacks if "." in stack)
        after = names[in_layers[-1] + 1 :]
        shared = {name for name in after if name.startswith(beside)}
        return set(names[: in_layers[0]]) | shared if part == "embeddings" else {*after} - shared
    bounds = re.findall(r"\[(-?\d*):(-?\d*)\]", part)
    begin, end = (int(bound) if bound else None for bound in (bounds[0] if bounds else ("", "")))
    chosen = {
        id(parameter)
        for layers in stacks.values()
        for layer in list(layers)[begin:end]
        for parameter in layer.parameters()
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
