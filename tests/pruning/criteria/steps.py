"""Training steps and criteria shared by the tests of criteria."""

import torch


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def run_of(shape, steps, *, observes="gradient", seed=0, dtype=torch.float32):
    """Weights with gradients or inputs of some training steps."""
    generator = seeded(seed)
    rows = (5, shape[1]) if observes == "input" else shape
    return [
        tuple(torch.randn(*size, generator=generator).to(dtype) for size in (shape, rows))
        for _ in range(steps)
    ]


def observe_all(criterion, run, state=None):
    state = criterion.init_state(run[0][0]) if state is None else state
    for weight, grad_or_input in run:
        criterion.observe(weight, grad_or_input, state)
    return state


def score_of(criterion, run):
    return criterion(run[-1][0], observe_all(criterion, run))
