"""Rewind: kept weights go back to what they were at an earlier step."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from kd_prune.lit.resumable import Resumable
from kd_prune.lit.run_length import RunLength
from kd_prune.pruning.schedule import check_fraction
from kd_prune.pruning.scope import named_parameters


class RewindCallback(Resumable):
    """Sets weights back to their earlier values and starts the optimizer's memory anew.

    Zeros of tensors of two or more dimensions stay zeros: whatever pruned them, only kept weights
    go back. Put it after the callback that prunes, so that an update of the same step comes first.

    Source: Frankle et al. 2019 (arXiv 1903.01611), weight rewinding; Chen et al. 2020 (arXiv
    2007.12223) for BERT, where ``to=0`` and the head is not rewound.

    Args:
        at: When to rewind, as fractions of the run, each above `to`.
        to: Which weights to go back to: those after this fraction of the run, 0 = as it began.
        exclude: Globs over parameter names that are not rewound, for example ``["*classifier*"]``.
        forget: Whether the optimizers lose their state (momentum) of what is rewound.

    Raises:
        TypeError: `at` or `exclude` is no list.
        ValueError: A fraction is out of range or not above `to`; at the start of a fit: an
            `exclude` pattern matches nothing.
    """

    def __init__(
        self,
        at: Sequence[float],
        *,
        to: float = 0.0,
        exclude: Sequence[str] = (),
        forget: bool = True,
    ) -> None:
        for argument, given in (("at", at), ("exclude", exclude)):
            if isinstance(given, str | float | int):
                raise TypeError(f"{argument}={given!r}: expected a list, as [{given!r}]")
        check_fraction("to", to, closed=False)
        for fraction in at:
            check_fraction("at", fraction, closed=True)
            if fraction <= to:
                raise ValueError(f"at={fraction}: expected a fraction above to={to}")
        self.at = sorted(at)
        self.to = to
        self.exclude = exclude
        self.forget = forget
        self._length = RunLength()
        self._earlier: dict[str, Tensor] = {}
        self._done = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier fit: what it left is not this one's to save."""
        if stage == "fit":
            self._length, self._earlier, self._done = RunLength(), {}, 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew, or go on with the state of the checkpoint."""
        names = named_parameters(pl_module)
        for pattern in self.exclude:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"exclude: the pattern {pattern!r} matches no parameter")
        resumed = self.take_resumed()
        self._length = RunLength(**resumed["length"]) if resumed else RunLength.of(trainer)
        self._done = resumed["done"] if resumed else 0
        self._earlier = dict(resumed["earlier"]) if resumed else {}
        if not self.to and not resumed:
            self._remember(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Remember the weights if it is time, or go back to them."""
        position, total = self._length.position(trainer), self._length.total
        if not self._earlier and position >= max(1, round(self.to * total)):
            self._remember(pl_module)
        due = sum(position >= round(fraction * total) for fraction in self.at)
        if due > self._done:
            self._done = due
            self._rewind(trainer, pl_module)

    def _remember(self, module: L.LightningModule) -> None:
        self._earlier = {
            name: parameter.detach().clone()
            for name, parameter in named_parameters(module).items()
            if parameter.requires_grad and not self._excluded(name)
        }

    def _excluded(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)

    @torch.no_grad()
    def _rewind(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        parameters = named_parameters(module)
        for name, earlier in self._earlier.items():
            weight = parameters[name]
            earlier = earlier.to(weight.device)
            weight.copy_(earlier if weight.ndim < 2 else earlier.where(weight != 0, 0.0))
            for optimizer in trainer.optimizers if self.forget else ():
                optimizer.state.pop(weight, None)

    def state_dict(self) -> dict[str, Any]:
        """The weights to go back to, and how often it was done: plain tensors and numbers."""
        if not self._length.limits:
            return {}
        return {
            "length": self._length.state_dict(),
            "done": self._done,
            "earlier": dict(self._earlier),
        }
