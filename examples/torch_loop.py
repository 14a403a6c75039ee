"""Pruning in a plain PyTorch loop: two lines, no Lightning.

python examples/torch_loop.py
"""

import torch
from torch import nn

from kd_prune.pruning import Pruner, Schedule, default_scope


def main(steps: int = 600) -> float:
    """Fit a curve with a network that loses 90 % of its weights; returns the squared error."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    x = torch.linspace(-1, 1, 256)[:, None]
    y = torch.sin(6 * x)

    # Weights to prune (all layers but the last), how much and when, and the length of training.
    pruner = Pruner(
        default_scope(model).included, Schedule(final=0.9, end=0.7), total_steps=steps, updates=50
    )
    # From now on every optimizer.step() updates the masks on schedule and zeroes pruned weights.
    pruner.attach(optimizer)
    print(pruner.preview())  # the updates to come

    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # For a checkpoint save pruner.state_dict() with those of the model and the optimizer: plain
    # tensors and numbers, which torch.load(…, weights_only=True) reads.
    print(f"sparsity as counted: {pruner.sparsity:.4f}")
    return nn.functional.mse_loss(model(x), y).item()


if __name__ == "__main__":
    print(f"mean squared error: {main():.4f}")
