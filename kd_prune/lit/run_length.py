"""How long a run is and how far it has come: what begin, end and updates are fractions of."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as L
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader

TICKS = 10_000
"""Steps that a run is cut into where more than one limit may end it."""


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """The limits that end a run; progress is that of the limit which is nearest to its end.

    With automatic optimization a run is counted in optimizer steps. With manual optimization how
    many steps a batch takes is the module's own affair, so batches are counted.

    Attributes:
        steps: Optimizer steps.
        batches: Batches.
        seconds: Seconds of training (`Trainer(max_time=…)`).
    """

    steps: int | None = None
    batches: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, trainer: L.Trainer) -> RunLength:
        """The limits of a trainer whose fit has begun.

        Raises:
            ValueError: Nothing ends the run at a time that can be known.
        """
        estimate = trainer.estimated_stepping_batches
        steps = int(estimate) if 0 < estimate < math.inf else None
        batches = None
        if not trainer.lightning_module.automatic_optimization:
            steps = trainer.max_steps if trainer.max_steps > 0 else None
            batches = _times(trainer.max_epochs, trainer.num_training_batches)
        return cls._known(steps, batches, trainer)

    @classmethod
    def ahead(cls, trainer: L.Trainer, per_epoch: float, *, automatic: bool = True) -> RunLength:
        """The limits of a fit yet to come, as `of` would find them.

        Args:
            trainer: Its trainer.
            per_epoch: Batches that the training loader has; infinite where it has no length.
            automatic: Whether the module leaves optimization to Lightning.

        Raises:
            ValueError: As in `of`.
        """
        limit = trainer.limit_train_batches
        per_epoch = limited(per_epoch, limit)
        if per_epoch == 0:
            raise ValueError(
                f"trainer.limit_train_batches={limit}: leaves no batch of an epoch; raise it"
            )
        steps = trainer.max_steps if trainer.max_steps > 0 else None
        if not automatic:
            return cls._known(steps, _times(trainer.max_epochs, per_epoch), trainer)
        if per_epoch < math.inf:
            per_epoch = math.ceil(per_epoch / trainer.accumulate_grad_batches)
        whole = _times(trainer.max_epochs, per_epoch)
        return cls._known(min(filter(None, (steps, whole)), default=None), None, trainer)

    @classmethod
    def _known(cls, steps: int | None, batches: int | None, trainer: L.Trainer) -> RunLength:
        timer = _timer(trainer)
        seconds = timer.time_elapsed() + timer.time_remaining() if timer else None
        length = cls(steps=steps, batches=batches, seconds=seconds)
        if not length.limits:
            raise ValueError(
                f"trainer.max_epochs={trainer.max_epochs}: a run needs an end for a ramp to fit "
                "it; set it, or max_steps or max_time; a loader without a length needs one of "
                "the latter two"
            )
        return length

    @property
    def limits(self) -> dict[str, float]:
        """Unit → limit, of those that there are."""
        return {unit: limit for unit, limit in asdict(self).items() if limit is not None}

    @property
    def total(self) -> int:
        """The run's end, in `unit`."""
        return TICKS if self._mixed else int(self.steps or self.batches or 0)

    @property
    def unit(self) -> str:
        """What `total` and `position` count."""
        if self._mixed:
            return f"1/{TICKS} of the run"
        return "optimizer steps" if self.steps else "batches"

    @property
    def _mixed(self) -> bool:
        return len(self.limits) > 1 or self.seconds is not None

    def position(self, trainer: L.Trainer) -> int:
        """How far the run has come, in `unit`, the batch under way included; at most `total`."""
        done = {"steps": trainer.global_step, "batches": trainer.fit_loop.total_batch_idx + 1}
        if not self._mixed:
            return min(done["steps" if self.steps else "batches"], self.total)
        timer = _timer(trainer)
        elapsed = timer.time_elapsed() if timer else 0.0
        return math.floor(TICKS * self.progress(**done, seconds=elapsed))

    def progress(self, **done: float) -> float:
        """Progress by the limit that is nearest to its end, in [0, 1].

        >>> RunLength(steps=100, seconds=60.0).progress(steps=10, batches=10, seconds=30.0)
        0.5
        """
        return min(max(done[unit] / limit for unit, limit in self.limits.items()), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The limits, as plain numbers."""
        return asdict(self)


def limited(batches: float, limit: float) -> float:
    """What is left of an epoch's batches: a share of them, or so many at most.

    >>> limited(10, 0.5), limited(10, 4), limited(math.inf, 0.5)
    (5, 4, inf)
    """
    if isinstance(limit, int):
        return min(batches, limit)
    return batches if math.isinf(batches) else int(batches * limit)


def batches_of(loaders: Any) -> float:
    """Batches in an epoch of what is given to ``trainer.fit``; infinite where that is not known.

    >>> batches_of([range(3), range(5)]), batches_of(iter([]))
    (5, inf)
    """
    if loaders is None:
        return math.inf
    if hasattr(loaders, "train_dataloader"):  # a data module
        loaders.prepare_data()
        loaders.setup("fit")
        loaders = loaders.train_dataloader()
    if not isinstance(loaders, CombinedLoader):
        loaders = CombinedLoader(loaders, "max_size_cycle")  # as fit does
    lengths = [sized_len(loader) for loader in loaders.flattened]
    ends = min if loaders._mode == "min_size" else max
    return ends(math.inf if length is None else length for length in lengths)


def _timer(trainer: L.Trainer) -> Any:
    """The callback behind `Trainer(max_time=…)`, of whichever package the trainer is."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set in its __init__
        if type(callback).__name__ == "Timer" and callback.time_remaining() is not None:
            return callback
    return None


def _times(epochs: int | None, per_epoch: float) -> int | None:
    """Batches or steps of so many epochs, where both are known."""
    return epochs * int(per_epoch) if epochs and epochs > 0 and per_epoch < math.inf else None
