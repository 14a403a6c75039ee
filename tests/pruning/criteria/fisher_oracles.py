"""The Fisher criteria's formulas, restated with dense matrices."""

import numpy as np
import torch


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tensors(shape, count, *, seed=0, scale=1.0, dtype=torch.float32):
    generator = seeded(seed)
    return [(scale * torch.randn(*shape, generator=generator)).to(dtype) for _ in range(count)]


def observe_all(criterion, weight, gradients):
    state = criterion.init_state(weight)
    for gradient in gradients:
        criterion.observe(weight, gradient, state)
    return state


def dense_fisher(weight, gradients, block, damping):
    """F of the full tensor in float64: the mean of g gᵀ, zero outside the blocks."""
    size = weight.numel()
    rows = np.stack([g.double().numpy().ravel() for g in gradients])
    rows = rows * (weight.double().numpy().ravel() != 0)
    number = np.arange(size) // block
    fisher = rows.T @ rows / len(rows) * (number[:, None] == number[None, :])
    return fisher + damping * np.eye(size)


def score_oracle(weight, fisher):
    inverse = np.linalg.inv(fisher)
    values = weight.double().numpy()
    return values**2 / (2 * np.diag(inverse).reshape(values.shape))


def compensation_oracle(weight, dropped, fisher):
    """δ of min ½ δᵀFδ with δ_Q = −w_Q, from the full KKT system."""
    values = weight.double().numpy().ravel()
    fixed = np.flatnonzero(dropped.numpy().ravel() | (values == 0))
    size, many = len(values), len(fixed)
    system = np.zeros((size + many, size + many))
    system[:size, :size] = fisher
    system[fixed, size + np.arange(many)] = system[size + np.arange(many), fixed] = 1.0
    right = np.concatenate([np.zeros(size), -values[fixed]])
    return np.linalg.solve(system, right)[:size].reshape(tuple(weight.shape))


def paper_oracle(weight, dropped, fisher):
    """−F⁻¹ E_Q ([F⁻¹]_QQ)⁻¹ w_Q, as the paper has it."""
    values = weight.double().numpy().ravel()
    fixed = np.flatnonzero(dropped.numpy().ravel() | (values == 0))
    inverse = np.linalg.inv(fisher)
    change = -inverse[:, fixed] @ np.linalg.solve(inverse[np.ix_(fixed, fixed)], values[fixed])
    return change.reshape(tuple(weight.shape))
