"""Large and sparse against small and dense: a depthwise net on scikit-learn's digits.

python examples/digits.py                  (five seeds, a few minutes; needs scikit-learn)

As Zhu & Gupta (arXiv 1710.01878) do with MobileNets. Writes digits.png.
"""

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Global, Scope

WIDTHS = (0.25, 0.5, 0.75, 1.0)


def separable(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Return a depthwise 3 x 3 convolution and a pointwise one, which holds most weights."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in), nn.ReLU(),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels), nn.ReLU(),
    )  # fmt: skip


class Digits(L.LightningModule):
    """A small MobileNet for 8 x 8 images; it contains no pruning code."""

    def __init__(self, width: float) -> None:
        super().__init__()
        a, b, c = (int(width * channels) for channels in (32, 64, 128))
        self.network = nn.Sequential(
            nn.Conv2d(1, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
            separable(a, b, 1), separable(b, c, 2), separable(c, c, 1), separable(c, c, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10),
        )  # fmt: skip

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


# The first convolution stays dense; one threshold for the others spares depthwise filters.
SCOPE = Scope(include=["network.*.0.weight", "network.*.3.weight", "network.9.weight"])


def fit(width: float, sparsity: float, seed: int, epochs: int) -> tuple[int, float]:
    """Train one net; return its non-zero weights and its accuracy on other images."""
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    train, test = train_test_split(range(len(labels)), test_size=0.4, random_state=seed)
    L.seed_everything(seed, verbose=False)
    rows = TensorDataset(images[train], labels[train])
    batches = BatchSampler(RandomSampler(rows), 64, drop_last=False)
    pruning = SparsityCallback(sparsity, end=0.6, scope=SCOPE, allocation=Global(), verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=[pruning][: sparsity > 0],
    )  # fmt: skip
    module = Digits(width)
    trainer.fit(module, DataLoader(rows, sampler=batches, batch_size=None))
    with torch.no_grad():
        predictions = module.eval().network(images[test]).argmax(1)
    nonzero = sum(int(parameter.count_nonzero()) for parameter in weights(module))
    return nonzero, float((predictions == labels[test]).float().mean())


def weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of convolutions and the linear layer; batch norms fold into them."""
    return [parameter for parameter in module.parameters() if parameter.ndim > 1]


def matching_sparsity(width: float) -> float:
    """Return the sparsity at which the widest net has as many weights as a dense one of `width`."""
    small, large = (sum(p.numel() for p in weights(Digits(w))) for w in (width, WIDTHS[-1]))
    prunable = sum(p.numel() for p in SCOPE.select(Digits(WIDTHS[-1])).values())
    return (large - small) / prunable


def main(seeds: int = 5, epochs: int = 40) -> list[tuple[float, float, int, float, float]]:
    """Train all nets; print and draw width, sparsity, non-zeros, mean accuracy, deviation."""
    settings = [(w, 0.0) for w in WIDTHS] + [(1.0, matching_sparsity(w)) for w in WIDTHS[2::-1]]
    rows = []
    for setting in settings:
        fits = torch.tensor([fit(*setting, seed, epochs) for seed in range(seeds)])
        deviation, mean = torch.std_mean(fits, 0, correction=min(seeds - 1, 1))
        rows.append((*setting, round(mean[0].item()), mean[1].item(), deviation[1].item()))
    print("width  sparsity  non-zeros  accuracy")
    for width, sparsity, nonzero, mean, spread in rows:
        print(f"{width:5}  {sparsity:8.1%}  {nonzero:9,}  {mean:.1%} ± {spread:.1%}")
    for label, part in (("dense, narrower", rows[:4]), ("sparse, width 1.0", rows[3:])):
        _, _, counts, values, spreads = zip(*part, strict=True)
        plt.errorbar(counts, values, spreads, marker="o", capsize=3, label=label)
    plt.gca().set(xscale="log", xlabel="non-zero weights", ylabel="accuracy")
    plt.legend()
    plt.savefig("digits.png", dpi=120)
    return rows


if __name__ == "__main__":
    main()
