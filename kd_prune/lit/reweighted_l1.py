"""ReweightedL1: a proximal step after the optimizer's, which makes weights zero along a ramp."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from typing import Any, cast

import lightning.pytorch as L
import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.lit.callback import SparsityCallback
from kd_prune.lit.progress import RunLength
from kd_prune.lit.resumable import Resumable
from kd_prune.pruning.checks import check
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.selection import kth_smallest, num_pruned
from kd_prune.pruning.sharding import any_sharded


class ReweightedL1(Resumable):
    """Shrinks weights after every optimizer step, the smaller ones by more, until they are zero.

    The penalty is ``λ Σ α_i |w_i|`` with ``α_i = 1 / (|w_i| + ε)``, taken at the beginning of every
    round. It is no part of the loss, whose gradient AdamW would scale for every weight differently:
    after the optimizer's step ``u`` the weights are those of its proximal operator::

        w_i ← sign(u_i) · max(|u_i| − λ α_i, 0)

    The ramp is that of the `SparsityCallback` in the same fit, which prunes once, where the ramp
    ends (``update_schedule=last_update``), keeps the zeros from there on, and completes them to
    exactly `final`. `rounds` rounds of equal length divide the ramp. At the beginning of a round of
    ``n`` steps, λ is the one at which the share of zeros would be the ramp's at the round's end if
    the loss had no gradient: without it, weight ``i`` is zero after ``|w_i| / (λ α_i)`` steps, so

        λ = q / n,   q: the quantile of |w_i| · (|w_i| + ε) at the share of zeros that is asked for.

    The loss moves weights meanwhile; the next round's λ makes up for the difference.

    Source: Guo et al. 2019 (arXiv 1909.12486), reweighted proximal pruning; Candès et al. 2008
    (arXiv 0711.1612), section 2, for the reweighting. In both λ is set by hand.

    Args:
        rounds: Rounds of the ramp, in each of which α and λ are constant; in a ramp of fewer steps
            one per step.
        epsilon: ε, in the unit of the weights: the smaller, the sooner weights near zero become
            zero, and the longer they stay zero.
        name: `name` of the `SparsityCallback`, where a fit has several.

    Raises:
        ConfigError: `rounds` below 1, `epsilon` not above 0; at the start of a fit: no such
            `SparsityCallback` with a ramp comes before this callback, or it prunes on its ramp.
    """

    def __init__(self, rounds: int = 20, *, epsilon: float = 1e-3, name: str | None = None) -> None:
        check("rounds", rounds, rounds >= 1, "at least 1 round")
        check("epsilon", epsilon, 0 < epsilon < torch.inf, "a number > 0; try 1e-3")
        self.rounds = rounds
        self.epsilon = epsilon
        self.name = name
        self.strength = 0.0
        """λ of the current round."""
        self._zeros = 0.0  # share at the end of the last finished round
        self._round = 0  # rounds that have begun
        self._step = 0  # optimizer steps at the last call
        self._thresholds: dict[str, Tensor] = {}  # λα of the current round

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that make an equal callback."""
        return {"rounds": self.rounds, "epsilon": self.epsilon, "name": self.name}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Drop the state left by a previous fit."""
        if stage == "fit":
            self.strength, self._zeros, self._round, self._step = 0.0, 0.0, 0, 0
            self._thresholds = {}

    def start_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the ramp, and restore the checkpoint's state if the fit resumes.

        Raises:
            ConfigError: The weights are sharded, or masks are updated before the ramp ends.
        """
        pruner = self._pruner(trainer)
        self._refuse_early_updates(pruner.update_schedule, self._steps(pruner)[1])
        if any_sharded(pruner.parameters.values()):
            raise ConfigError(
                "trainer.strategy",
                type(trainer.strategy).__name__,
                "weights that are sharded get no reweighted penalty",
                "take strategy='ddp'",
            )
        if resumed := self.take_resumed():
            self.strength, self._round = resumed["strength"], resumed["round"]
            self._thresholds, self._zeros = dict(resumed["thresholds"]), resumed["zeros"]

    def check_sparsity(self, sparsity: SparsityCallback | None, length: RunLength) -> None:
        """Refuse a fit whose `SparsityCallback` is missing or does not suit, before it begins.

        Args:
            sparsity: The callback that prunes in the fit; None: there is none.
            length: Length of the fit.

        Raises:
            ConfigError: As at the start of a fit.
        """
        if sparsity is None or sparsity.name != self.name:
            raise self._missing()
        if sparsity.schedule is None:
            raise self._without_ramp()
        settings, total = sparsity.arguments(), length.total
        plan = settings["update_schedule"](
            sparsity.schedule, total_steps=total, updates=settings["updates"]
        )
        self._refuse_early_updates(plan, round(sparsity.schedule.end * total) - 1)

    def _refuse_early_updates(self, plan: Collection[int], last: int) -> None:
        """Raise ConfigError for a mask update at the last proximal step or before."""
        if early := [step for step in plan if step <= last]:
            raise ConfigError(
                "name",
                self.name,
                f"its SparsityCallback prunes on the ramp itself, first at step {min(early)}",
                "give it update_schedule=last_update (sparsity=rpp)",
            )

    def _sparsity(self, trainer: L.Trainer) -> SparsityCallback:
        """Return the callback whose ramp is followed."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
        for callback in callbacks[: callbacks.index(self)]:
            if isinstance(callback, SparsityCallback) and callback.name == self.name:
                return callback
        raise self._missing()

    def _missing(self) -> ConfigError:
        return ConfigError(
            "name",
            self.name,
            "no SparsityCallback of this name comes before this callback",
            "add one, with update_schedule=last_update (sparsity=rpp)",
        )

    def _without_ramp(self) -> ConfigError:
        return ConfigError("name", self.name, "its SparsityCallback has no ramp", "set its final")

    def _pruner(self, trainer: L.Trainer) -> Pruner:
        pruner = self._sparsity(trainer).pruner
        if pruner is None or pruner.schedule is None:
            raise self._without_ramp()
        return pruner

    @staticmethod
    def _steps(pruner: Pruner) -> tuple[int, int]:
        """Return the step before the first proximal step, and the last; then masks are used."""
        schedule = cast("Schedule", pruner.schedule)
        begin, end = (round(at * pruner.total_steps) for at in (schedule.begin, schedule.end))
        return begin, end - 1

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Make the proximal step after an optimizer step on the ramp.

        λ is logged as ``sparsity/strength``, the share of zeros that the last step of the latest
        round left as ``sparsity/zeros``.
        """
        pruner, step = self._pruner(trainer), self._sparsity(trainer).step
        if step == self._step:
            return  # gradients are being accumulated
        self._step = step
        begin, end = self._steps(pruner)
        if begin < step <= end:
            rounds = min(self.rounds, end - begin)
            ends = [begin + (end - begin) * k // rounds for k in range(1, rounds + 1)]
            due = bisect_left(ends, step)
            if due >= self._round:
                self._round = due + 1
                self._begin_round(pruner, self._round / rounds, ends[due] - step + 1)
            shrink(pruner.parameters, self._thresholds)
            if step in ends:
                self._zeros = pruner.sparsity
        else:
            self.strength, self._thresholds = 0.0, {}
        prefix = f"sparsity/{self.name}" if self.name else "sparsity"
        pl_module.log(f"{prefix}/strength", self.strength)
        pl_module.log(f"{prefix}/zeros", self._zeros)

    def _begin_round(self, pruner: Pruner, u: float, steps: int) -> None:
        """Take α from the weights, and the λ for the sparsity at ramp progress `u`."""
        sizes = {name: weight.detach().abs() for name, weight in pruner.parameters.items()}
        wanted = cast("Schedule", pruner.schedule).sparsity_at(u)
        self.strength = strength_for(sizes, wanted, steps, self.epsilon)
        self._thresholds = {
            name: (self.strength / (size + self.epsilon)).to(size.dtype)
            for name, size in sizes.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return round, λ and every weight's threshold: plain tensors and numbers."""
        return {
            "strength": self.strength,
            "round": self._round,
            "zeros": self._zeros,
            "thresholds": dict(self._thresholds),
        }


def strength_for(sizes: Mapping[str, Tensor], sparsity: float, steps: int, epsilon: float) -> float:
    """Return the λ at which a share of weights is zero after some steps without a gradient.

    >>> sizes = {"w": torch.tensor([0.25, 0.5, 0.75, 1.0])}
    >>> strength_for(sizes, 0.5, steps=2, epsilon=0.5)
    0.25
    """
    count = num_pruned(sparsity, sum(size.numel() for size in sizes.values()))
    if not count:
        return 0.0
    products = {name: size * (size + epsilon) for name, size in sizes.items()}
    masks = {name: torch.ones_like(size, dtype=torch.bool) for name, size in sizes.items()}
    found = kth_smallest(lambda: ((products[name], masks[name]) for name in sizes), count)
    return float(found) / steps


def shrink(parameters: Mapping[str, Tensor], thresholds: dict[str, Tensor]) -> None:
    """Move every weight towards zero by its threshold, at most to zero, in place."""
    for name, weight in parameters.items():
        thresholds[name] = thresholds[name].to(weight.device)  # checkpoints load onto the CPU
        soft_threshold_(weight, thresholds[name])


def soft_threshold_(weight: Tensor, threshold: Tensor) -> None:
    """Replace ``w`` by ``sign(w) · max(|w| − threshold, 0)`` in place.

    >>> weight = torch.tensor([0.5, -0.5, 0.2, -0.2])
    >>> soft_threshold_(weight, torch.tensor([0.3, 0.3, 0.3, 0.1]))
    >>> weight
    tensor([ 0.2000, -0.2000,  0.0000, -0.1000])
    """
    weight.sub_(weight.clamp(-threshold, threshold))
