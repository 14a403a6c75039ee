"""RewindCallback: sets kept weights back to their values at an earlier step."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from kd_prune.errors import ConfigError, ConfigTypeError
from kd_prune.lit.progress import RunLength
from kd_prune.lit.resumable import Resumable
from kd_prune.pruning.checks import check_fraction
from kd_prune.pruning.scope import named_parameters
from kd_prune.pruning.sharding import any_sharded


class RewindCallback(Resumable):
    """Sets weights back to their earlier values and resets the optimizer's state for them.

    Zeros of tensors of two or more dimensions stay zero, whatever pruned them: only kept weights
    are rewound. Parameters that are never pruned (an objective's projections) are not rewound. Put
    it after the callback that prunes, so that a mask update of the same step comes first.

    Source: Frankle et al. 2019 (arXiv 1903.01611), weight rewinding; Chen et al. 2020 (arXiv
    2007.12223) for BERT, with ``to=0`` and the head not rewound.

    Args:
        at: When to rewind, as fractions of the run, each above `to`.
        to: Fraction of the run whose weights are restored; 0 = the initial weights.
        exclude: Globs over names of parameters that are not rewound, such as ``["*classifier*"]``.
        forget: Whether to drop the optimizers' state (momentum) of rewound parameters.

    Raises:
        ConfigTypeError: `at` or `exclude` is no list.
        ConfigError: A fraction is out of range or not above `to`; at the start of a fit: an
            `exclude` pattern matches nothing, or the strategy shards parameters.
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
                raise ConfigTypeError(argument, given, f"expected a list, as [{given!r}]")
        check_fraction("to", to, closed=False)
        for fraction in at:
            check_fraction("at", fraction, closed=True)
            if fraction <= to:
                raise ConfigError("at", fraction, f"expected a fraction above to={to}")
        self.at = sorted(at)
        self.to = to
        self.exclude = exclude
        self.forget = forget
        self._length = RunLength()
        self._earlier: dict[str, Tensor] = {}
        self._done = 0
        self._is_new = True

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that make an equal callback."""
        return {name: getattr(self, name) for name in ("at", "to", "exclude", "forget")}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Drop the state left by a previous fit."""
        if stage == "fit":
            self._length, self._earlier, self._done = RunLength(), {}, 0

    def start_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check `exclude`, and restore the checkpoint's state if the fit resumes."""
        names = named_parameters(pl_module)
        if any_sharded(names.values()):
            raise ConfigError(
                "trainer.strategy",
                type(trainer.strategy).__name__,
                "weights are not rewound where they are sharded",
                "take strategy='ddp'",
            )
        self._check_patterns(names)
        resumed = self.take_resumed()
        self._length = RunLength(**resumed["length"]) if resumed else RunLength.from_fit(trainer)
        self._is_new = resumed is None
        self._done = resumed["done"] if resumed else 0
        self._earlier = dict(resumed["earlier"]) if resumed else {}
        if not self.to and not resumed:
            self._keep_weights(pl_module)

    def check_models(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Refuse `exclude` patterns that match no parameter of a student, before it is trained.

        Args:
            student: The student of a `DistillModule`, below whose attribute its names begin.
            teacher: Not used.

        Raises:
            ConfigError: As at the start of a fit.
        """
        self._check_patterns([f"student.{name}" for name in named_parameters(student)])

    def _check_patterns(self, names: Collection[str]) -> None:
        for pattern in self.exclude:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    "exclude", expected=f"the pattern {pattern!r} matches no parameter"
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn when resuming from a checkpoint without this callback's state."""
        super().on_train_start(trainer, pl_module)
        total = self._length.total
        if self._is_new and trainer.global_step > round(self.to * total):
            warnings.warn(
                "the checkpoint is of a run without RewindCallback: the weights of its step "
                f"{trainer.global_step} of {total} take the place of those to rewind to (to="
                f"{self.to:g})",
                stacklevel=2,
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Copy the weights at the step `to`, and rewind to the copy at the steps `at`."""
        step, total = self._length.synchronized_step(trainer), self._length.total
        if not self._earlier and step >= max(1, round(self.to * total)):
            self._keep_weights(pl_module)
        due = sum(step >= round(fraction * total) for fraction in self.at)
        if due > self._done:
            self._done = due
            self._rewind(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn of rewinds that were not made because the run was shorter than planned."""
        if (left := len(self.at) - self._done) and not trainer.should_stop:
            step, length = self._length.step(trainer), self._length
            warnings.warn(
                f"{left} of {len(self.at)} rewinds were not made: the run ended after {step} of "
                f"the {length.total} {length.unit} planned; set its length (max_steps)",
                stacklevel=2,
            )

    def _keep_weights(self, module: L.LightningModule) -> None:
        named = named_parameters(module)
        # A tied parameter is excluded by any of its names.
        excluded = {id(parameter) for name, parameter in named.items() if self._excluded(name)}
        self._earlier = {
            name: parameter.detach().clone()
            for name, parameter in named.items()
            if parameter.requires_grad and id(parameter) not in excluded
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
        """Return the kept weights and how many rewinds are done: plain tensors and numbers."""
        if not self._length.limits:
            return {}
        return {
            "length": self._length.state_dict(),
            "done": self._done,
            "earlier": dict(self._earlier),
        }
