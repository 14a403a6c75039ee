"""Tiny sparse models, as a run would have saved them."""

from __future__ import annotations

from pathlib import Path

import torch
from hf.families import VOCABULARY, model, tokenizer
from torch import nn

SPARSITY = 0.9
SIZES = {"hidden_size": 32, "intermediate_size": 64}


def sparse_model(family="bert", *, dtype=torch.float32, seed=0):
    """A model with zeros in its layers' matrices, none of them −0.0."""
    made = model(family, seed=seed, **SIZES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.Linear) and module.weight.numel() > 512:
                kept = torch.rand(module.weight.shape, generator=generator) >= SPARSITY
                module.weight.masked_fill_(~kept, 0.0)
    return made.to(dtype)


def save_student(folder: Path, family="bert", **settings) -> Path:
    sparse_model(family, **settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the bit: −0.0 is not 0.0, and NaN is NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (one, other)))


__all__ = ["SIZES", "VOCABULARY", "same_bits", "save_student", "sparse_model", "tokenizer"]
