"""Random activations and a batch, without a model."""

import torch

from kd_prune.distillation import Activations


def activations(*, seed, layers=2, width=4, heads=2, outputs=3, rows=3, length=4):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return Activations(
        logits=random(rows, outputs),
        hidden_states=tuple(random(rows, length, width) for _ in range(layers + 1)),
        attention_scores=tuple(random(rows, heads, length, length) for _ in range(layers)),
    )


def batch(*, regression=False):
    labels = torch.tensor([0.5, -1.0, 2.0]) if regression else torch.tensor([0, 2, 1])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
    return {"attention_mask": mask, "labels": labels}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
