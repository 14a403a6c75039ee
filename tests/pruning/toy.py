"""A small model and its Pruner."""

from functools import partial

import torch
from torch import nn

from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.update_schedule import ramp_updates

STEPS = 20


SCHEDULE = Schedule(final=0.9, begin=0.1, end=0.8)


PLAN = ramp_updates(SCHEDULE, total_steps=STEPS, updates=5)


OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
}


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3)).to(dtype)


def weights_of(model):
    return {name: p for name, p in model.named_parameters() if p.ndim == 2}


def make_pruner(model, schedule=SCHEDULE, **options):
    return Pruner(weights_of(model), schedule, **{"total_steps": STEPS, "updates": 5} | options)


def train_step(model, optimizer, step):
    """One optimizer step on a batch that depends on the step alone."""
    weight = next(model.parameters())
    batch = torch.randn(8, 7, generator=torch.Generator().manual_seed(step)).to(weight.dtype)
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def run(model, pruner, optimizer, steps):
    for step in steps:
        train_step(model, optimizer, step)
        pruner.update(step)
        pruner.project()


def bits(tensor):
    return tensor.detach().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
