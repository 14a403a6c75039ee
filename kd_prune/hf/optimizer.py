"""AdamW with a learning-rate schedule, as in common fine-tuning recipes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from kd_prune.errors import ConfigError

# The schedules of transformers that need nothing but the number of steps.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)


@dataclass(frozen=True, kw_only=True)
class AdamWWithSchedule:
    """AdamW and a learning-rate schedule for one fit.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay, not on biases and norms.
        betas: Decay rates of AdamW's two moments.
        eps: Added to AdamW's denominator.
        schedule: Course of the learning rate after the warm-up, as `transformers.get_scheduler`
            names it: one of `SCHEDULES`. `linear` falls to 0.
        warmup: Share of the steps during which the rate rises from 0.
        rewinds: Shares of the steps, increasing, after which the rate is back at its peak, from
            where `schedule` begins again and lasts until the next rewind or the end. As in GMP* and
            oBERT (arXiv 2210.06384, 2203.07259), with pruning in between.
        floor: Share of the peak to which the schedule falls instead of to 0.
        rates: Glob over names of the model's parameters → factor of their learning rate; the first
            pattern that matches counts, and 1 where none does. With 0 parameters stay as they are;
            they still have gradients, which criteria and gradient clipping see. Parameters of the
            objective (projections) always have the factor 1.

    Raises:
        ConfigError: A value is out of its range; when called: a pattern of `rates` matches nothing
            that earlier patterns leave over, or a rewind lies on no step of its own.
    """

    lr: float = 3e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = "linear"
    warmup: float = 0.0
    rewinds: Sequence[float] = ()
    floor: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 < self.lr < math.inf:
            raise ConfigError("lr", self.lr, "expected a finite number above 0")
        if not self.weight_decay >= 0:
            raise ConfigError("weight_decay", self.weight_decay, "expected a number from 0")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError("betas", list(self.betas), "expected two numbers in [0, 1)")
        if not self.eps > 0:
            raise ConfigError("eps", self.eps, "expected a number above 0")
        if self.schedule not in SCHEDULES:
            raise ConfigError("schedule", self.schedule, f"expected one of {', '.join(SCHEDULES)}")
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigError("warmup", self.warmup, "expected a fraction in [0, 1)")
        rewinds = list(self.rewinds)
        ascending = all(one < other for one, other in pairwise([self.warmup, *rewinds, 1.0]))
        if rewinds and not ascending:
            raise ConfigError(
                "rewinds", rewinds, f"expected ascending fractions between {self.warmup} and 1"
            )
        if not 0.0 <= self.floor <= 1.0:
            raise ConfigError("floor", self.floor, "expected a share of lr, 0 to 1")
        for pattern, factor in self.rates.items():
            if not 0.0 <= factor < math.inf:
                raise ConfigError(f"rates.{pattern}", factor, "expected a finite number from 0")

    def __call__(self, model: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """Make the optimizer over `model`'s parameters and its schedule over `total_steps`."""
        groups = self.groups(model)
        parameters = [parameter for group in groups for parameter in group["params"]]
        # The fused step ignores strides: of a slice of another tensor it would change the rest too.
        fusable = all(p.device.type == "cpu" and p.is_contiguous() for p in parameters)
        optimizer = AdamW(
            groups,
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            fused=fusable or None,  # None: PyTorch's choice, slow on a CPU (docs/cost.md)
        )
        # Lightning clips no gradients of an optimizer that unscales them itself, as a fused one
        # does by default.
        optimizer._step_supports_amp_scaling = False
        warmup = round(self.warmup * total_steps)
        if not self.rewinds and not self.floor:
            return optimizer, self._schedule(optimizer, warmup, total_steps)
        return optimizer, LambdaLR(optimizer, self._course(warmup, total_steps))

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the parameters in groups of equal weight decay and learning rate.

        Raises:
            ConfigError: A pattern of `rates` matches nothing that earlier patterns leave over.
        """
        used = set[str | None]()
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
        for name, parameter in model.named_parameters():
            pattern = self._pattern(name)
            used.add(pattern)
            if parameter.requires_grad:
                factor = 1.0 if pattern is None else float(self.rates[pattern])
                groups.setdefault((factor, parameter.ndim >= 2), []).append(parameter)
        if unused := [pattern for pattern in self.rates if pattern not in used]:
            raise ConfigError(
                "rates",
                unused[0],
                "the pattern matches no parameter that earlier patterns leave over",
            )
        return [
            {"params": parameters, "weight_decay": self.weight_decay if matrices else 0.0}
            | ({} if factor == 1.0 else {"lr": factor * self.lr})
            for (factor, matrices), parameters in groups.items()
        ]

    def _pattern(self, name: str) -> str | None:
        """Return the first pattern of `rates` that matches; of `DistillModule`, the student's."""
        if name.startswith("objective."):
            return None
        name = name.removeprefix("student.")
        return next((pattern for pattern in self.rates if fnmatchcase(name, pattern)), None)

    def _schedule(self, optimizer: Optimizer, warmup: int, steps: int) -> LambdaLR:
        schedule: LambdaLR = get_scheduler(
            # transformers' "constant" silently ignores the warm-up.
            "constant_with_warmup" if self.schedule == "constant" else self.schedule,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
        )
        return schedule

    def _course(self, warmup: int, total_steps: int) -> Callable[[int], float]:
        """Return step → share of the peak, with rewinds and floor."""
        rewinds = self.rewinds if total_steps > 1 else ()  # one step tries whether a fit runs
        starts = [0, *(round(share * total_steps) for share in rewinds)]
        if any(one >= other for one, other in pairwise([*starts, total_steps])):
            raise ConfigError(
                "rewinds",
                list(self.rewinds),
                f"two of them lie on one step of this run of {total_steps}",
                "train for more steps, or leave some out",
            )
        courses = []
        for start, end in pairwise([*starts, total_steps]):
            # Of a parameter that nothing trains: only the function of the step is used.
            unused = SGD([torch.zeros(1)], lr=self.lr)
            rising = 0 if start else warmup
            courses.append(self._schedule(unused, rising, end - start).lr_lambdas[0])

        def share(step: int) -> float:
            segment = bisect_right(starts, step) - 1
            value: float = courses[segment](step - starts[segment])
            return value if step < warmup else self.floor + (1.0 - self.floor) * value

        return share
