"""Speed of a model on this machine: dense and accelerated, taking turns in one process."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_prune.inference.convert import accelerate

OURS = "kd_prune"
BLAS, ONEDNN, BFLOAT16 = "torch fp32 (BLAS)", "torch fp32 (oneDNN)", "torch bf16"
FULL_PRECISION = (BLAS, ONEDNN)
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Timing:
    """Times of an engine.

    Attributes:
        engine: Its name.
        batch_size: Sentences per call; the last call of a list may have fewer.
        sentences: Sentences in all calls of a round.
        rounds: Seconds that every round took.
        calls: Seconds of every call.
    """

    engine: str
    batch_size: int
    sentences: int
    rounds: tuple[float, ...]
    calls: tuple[float, ...]

    @property
    def sentences_per_second(self) -> float:
        """Return the throughput of the median round."""
        return self.sentences / statistics.median(self.rounds)

    @property
    def median(self) -> float:
        """Return the median seconds of a call."""
        return statistics.median(self.calls)

    @property
    def p95(self) -> float:
        """Return the seconds that 95 % of the calls stay below."""
        return sorted(self.calls)[int(0.95 * (len(self.calls) - 1))]


def engines(model: nn.Module, bfloat16: bool | None = None) -> dict[str, nn.Module]:
    """Return the ways to run a model, by name, all in eval mode.

    Args:
        model: The model, dense or with zeros.
        bfloat16: Whether to include bfloat16; None: where the processor has instructions for it.
    """
    model = model.eval()
    shared = {id(tensor): tensor for tensor in model.parameters()}
    found = {BLAS: model, ONEDNN: with_onednn(copy.deepcopy(model, shared))}
    if torch.cpu._is_avx512_bf16_supported() if bfloat16 is None else bfloat16:
        found[BFLOAT16] = copy.deepcopy(model).to(torch.bfloat16)
    found[OURS] = accelerate(model)
    return found


class OneDNNLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own order."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs of oneDNN's product."""
        product = torch.ops.mkldnn._linear_pointwise
        output: Tensor = product(input, self.weight, self.bias, "none", [], "")
        return output


def with_onednn(model: nn.Module) -> nn.Module:
    """Replace a model's linear layers, in place, by oneDNN's, as torch.compile does."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Linear and torch._C._has_mkldnn:
                setattr(parent, name, OneDNNLinear(child))
    return model


def batches(lengths: Sequence[int], size: int, vocabulary: int) -> list[Batch]:
    """Draw batches of random tokens: sentences of similar length together, padded to the longest.

    Args:
        lengths: Tokens of every sentence.
        size: Sentences per batch.
        vocabulary: Number of tokens to draw from.
    """
    generator = torch.Generator().manual_seed(0)
    ordered = sorted(lengths)
    found = []
    for first in range(0, len(ordered), size):
        group = torch.tensor(ordered[first : first + size])
        longest = int(group.max())
        ids = torch.randint(
            min(5, vocabulary - 1), vocabulary, (len(group), longest), generator=generator
        )
        mask = (torch.arange(longest) < group[:, None]).long()
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def measure(
    models: dict[str, nn.Module],
    work: Sequence[Batch],
    rounds: int,
    progress: Callable[[Iterator[int]], Any] = iter,
) -> list[Timing]:
    """Time models on the same batches, by turns within every batch; the first round is not counted.

    Args:
        models: The models by name.
        work: The batches of a round.
        rounds: Rounds that count.
        progress: Shows the rounds as they pass.
    """
    calls: dict[str, list[list[float]]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in progress(iter(range(-1, rounds))):
            seconds: dict[str, list[float]] = {name: [] for name in models}
            for batch in work:
                for name, model in models.items():
                    start = time.perf_counter()
                    model(**batch)
                    seconds[name].append(time.perf_counter() - start)
            if number >= 0:
                for name, taken in seconds.items():
                    calls[name].append(taken)
    size = max(len(batch["input_ids"]) for batch in work)
    sentences = sum(len(batch["input_ids"]) for batch in work)
    return [
        Timing(
            name, size, sentences, tuple(map(sum, taken)), tuple(t for one in taken for t in one)
        )
        for name, taken in calls.items()
    ]


def speed_up(timings: Sequence[Timing], engine: str = OURS) -> float:
    """Return an engine's speed over the better of torch's two ways to compute in float32.

    The median over the rounds of the ratio within a round, so that what slows the machine down for
    a while slows both.
    """
    by_name = {timing.engine: timing for timing in timings}
    dense = min((by_name[name] for name in FULL_PRECISION), key=lambda timing: sum(timing.rounds))
    pairs = zip(dense.rounds, by_name[engine].rounds, strict=True)
    return statistics.median(other / own for other, own in pairs)


def linear_sparsity(model: nn.Module) -> float:
    """Return the share of zeros in the weights of a model's linear layers."""
    weights = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
    size = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / size if size else 0.0


def peak_multiply_adds(seconds: float = 0.2) -> float:
    """Return the multiply-adds per second of torch's product of two square matrices, all threads.

    oneDNN comes within a few percent of what the processor can do, so this stands for its peak.
    """
    size = 1024
    layer = OneDNNLinear(nn.Linear(size, size, bias=True).requires_grad_(False))
    inputs = torch.randn(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        layer(inputs)
        best = min(best, time.perf_counter() - start)
    return size**3 / best
