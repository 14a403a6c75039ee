"""RunLength: how long a run is and which step it has reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning.pytorch as L
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from kd_prune.errors import ConfigError
from kd_prune.lit.distributed import first_process_number

UNITS = {"steps": "optimizer steps", "batches": "batches", "seconds": "seconds"}


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """The limits that end a run, counted in the unit of the first known limit.

    With automatic optimization the unit is optimizer steps. With manual optimization the module
    itself decides how many steps a batch takes, so batches are counted. If several limits are
    known, the current step is computed from the one of which the largest share is used up.

    Attributes:
        steps: Optimizer steps.
        batches: Batches.
        seconds: Seconds of training (`Trainer(max_time=…)`).
        replanned: Where the run turned out shorter (see `replan`): the `limit` concerned, `done` of
            it and the `step` at that point, and the `end` that it will reach.
    """

    steps: int | None = None
    batches: int | None = None
    seconds: float | None = None
    replanned: Mapping[str, Any] | None = None

    @classmethod
    def from_fit(cls, trainer: L.Trainer) -> RunLength:
        """Read the limits of a trainer whose fit has begun.

        Raises:
            ConfigError: No limit is known.
        """
        if trainer.limit_train_batches == 0:
            raise _no_batch(0)
        estimate = trainer.estimated_stepping_batches
        steps = int(estimate) if 0 < estimate < math.inf else None
        if (trainer.max_epochs or 0) > 0 and trainer.num_training_batches < math.inf:
            # Lightning takes the accumulation of the first epoch for that of all.
            in_epochs = steps_in_epochs(trainer, int(trainer.num_training_batches))
            steps = min(in_epochs, trainer.max_steps) if trainer.max_steps > 0 else in_epochs
        batches = None
        if not trainer.lightning_module.automatic_optimization:
            steps = trainer.max_steps if trainer.max_steps > 0 else None
            batches = _product(trainer.max_epochs, trainer.num_training_batches)
        return cls._with_max_time(steps, batches, trainer)

    @classmethod
    def from_trainer_config(
        cls, trainer: L.Trainer, per_epoch: float, *, automatic: bool = True
    ) -> RunLength:
        """Compute the limits of a fit before it begins; `from_fit` will find the same.

        Args:
            trainer: The trainer of the fit.
            per_epoch: Batches of the training loader; infinite if it has no length.
            automatic: Whether Lightning does the optimization.

        Raises:
            ConfigError: As in `from_fit`, or an epoch has no batch.
        """
        limit = trainer.limit_train_batches
        per_epoch = limited(per_epoch, limit)
        if per_epoch == 0:
            raise _no_batch(limit)
        steps = trainer.max_steps if trainer.max_steps > 0 else None
        if not automatic:
            batches = _product(trainer.max_epochs, per_epoch)
            return cls._with_max_time(steps, batches, trainer)
        in_epochs = None
        if (trainer.max_epochs or 0) > 0 and per_epoch < math.inf:
            in_epochs = steps_in_epochs(trainer, int(per_epoch))
        steps = min(filter(None, (steps, in_epochs)), default=None)
        return cls._with_max_time(steps, None, trainer)

    @classmethod
    def _with_max_time(
        cls, steps: int | None, batches: int | None, trainer: L.Trainer
    ) -> RunLength:
        """Add the trainer's `max_time`, if it has one, to the other limits of a run."""
        timer = _timer(trainer)
        seconds = timer.time_elapsed() + timer.time_remaining() if timer else None
        length = cls(steps=steps, batches=batches, seconds=seconds)
        if not length.limits:
            raise ConfigError(
                "trainer.max_epochs",
                trainer.max_epochs,
                "a run needs an end for a ramp to fit it",
                "set it, or max_steps or max_time; a loader without a length needs one of the "
                "latter two",
            )
        return length

    def check_measurable(self, trainer: L.Trainer) -> None:
        """Refuse a trainer that does not measure the only limit of a saved length.

        Raises:
            ConfigError: The length is in seconds, and the trainer has no `max_time`.
        """
        if [*self.limits] == ["seconds"] and not _timer(trainer):
            raise ConfigError(
                "trainer.max_time",
                None,
                f"the run that is resumed has its length in seconds, {self.seconds:g} in all",
                "set it again",
            )

    @property
    def limits(self) -> dict[str, float]:
        """Limits that are known, by attribute name."""
        limits = {name: getattr(self, name) for name in UNITS}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def total(self) -> int:
        """Length of the run, in `unit`."""
        return math.ceil(next(iter(self.limits.values()), 0))

    @property
    def unit(self) -> str:
        """Unit of `total` and `step`."""
        return UNITS[next(iter(self.limits), "steps")]

    def step(self, trainer: L.Trainer) -> int:
        """Return the step that the run has reached, the current batch included, in `unit`."""
        timer = _timer(trainer)
        return self.step_after(
            steps=trainer.global_step,
            batches=trainer.fit_loop.total_batch_idx + 1,
            seconds=timer.time_elapsed() if timer else 0.0,
        )

    def synchronized_step(self, trainer: L.Trainer) -> int:
        """Return `step`, the same in all processes, each of which has to call this."""
        step = self.step(trainer)
        if self.seconds:  # clocks differ between processes
            step = first_process_number(step, trainer.strategy.root_device)
        return step

    def step_after(self, **done: float) -> int:
        """Return the step for completed work: ``⌊total · max_l done_l / limit_l⌋``, ≤ `total`.

        Args:
            **done: Completed `steps`, `batches` and `seconds`.

        >>> length = RunLength(steps=100, seconds=60.0)
        >>> length.step_after(steps=10, seconds=3.0), length.step_after(steps=10, seconds=30.0)
        (10, 50)
        """
        reached = (self._step_after(name, done[name]) for name in self.limits)
        return min(int(max(reached, default=0)), self.total)

    def _step_after(self, name: str, done: float) -> float:
        # Multiplied before divided: whole numbers stay exact.
        if not self.replanned or self.replanned["limit"] != name:
            return self.total * done // self.limits[name]
        begin, since, end = (float(self.replanned[key]) for key in ("step", "done", "end"))
        return begin + (self.total - begin) * max(done - since, 0) // (end - since)

    def replan(self, trainer: L.Trainer) -> RunLength:
        """Return this length, fitted to the steps that the trainer is going to make.

        Called at the end of an epoch, whose batches are taken for those of each later one. Where
        they add up to less than the limit (a loader without a length, training steps that give
        None), the steps of the rest of the run are spread over what will be made: `total` stays,
        and the run's last step reaches it. A run that is as long as planned, or longer, keeps its
        length.

        Args:
            trainer: The trainer, in ``on_train_epoch_end``.
        """
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        name = next(iter(self.limits), "seconds")
        step = self.step(trainer)
        if epoch >= epochs or step >= self.total or name == "seconds":
            return self
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        automatic = trainer.lightning_module.automatic_optimization
        if name == "batches":
            done = trainer.fit_loop.total_batch_idx + 1
            end = done + batches * (epochs - epoch)
        elif automatic:
            done = trainer.global_step
            end = done + steps_in_epochs(trainer, batches, begin=epoch)
        else:  # as many steps in every epoch as on average so far
            done = trainer.global_step
            end = done + done * (epochs - epoch) // epoch
        planned = self.replanned["end"] if self.replanned else self.limits[name]
        if not done < end < planned:
            return self
        return replace(self, replanned={"limit": name, "done": done, "step": step, "end": end})

    def state_dict(self) -> dict[str, Any]:
        """Return the limits as plain numbers."""
        return asdict(self)


def _no_batch(limit: float) -> ConfigError:
    return ConfigError(
        "trainer.limit_train_batches", limit, "leaves no batch of an epoch", "raise it"
    )


def limited(batches: float, limit: float) -> float:
    """Apply `limit_train_batches` to an epoch: a float is a fraction of it, an int a maximum.

    >>> limited(10, 0.5), limited(10, 4), limited(math.inf, 0.5)
    (5, 4, inf)
    """
    if isinstance(limit, int):
        return min(batches, limit)
    return batches if math.isinf(batches) else int(batches * limit)


def batches_of(loaders: Any, processes: int = 1) -> float:
    """Count the batches in an epoch of the loaders given to ``trainer.fit``; infinite if unknown.

    Args:
        loaders: The loaders, or a data module.
        processes: Among how many Lightning divides the rows; the batches are those of one process.

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
    lengths = [_batches_of_process(loader, processes) for loader in loaders.flattened]
    ends = min if loaders._mode == "min_size" else max
    return ends(math.inf if length is None else length for length in lengths)


def _batches_of_process(loader: Any, processes: int) -> int | None:
    """Count a loader's batches; divide its rows as the sampler that Lightning inserts does."""
    batches = sized_len(loader)
    if batches is None or processes == 1 or not isinstance(loader, DataLoader):
        return batches
    is_divided = isinstance(loader.sampler, DistributedSampler)
    if is_divided or isinstance(loader.dataset, IterableDataset):
        return batches
    if loader.batch_size is None:  # batches of a sampler of the user's own
        return math.ceil(batches / processes)
    rows = math.ceil(len(loader.sampler) / processes)  # type: ignore[arg-type]  # it is sized
    return rows // loader.batch_size if loader.drop_last else math.ceil(rows / loader.batch_size)


_ACCUMULATION = "get_accumulate_grad_batches"  # of Lightning's and pytorch_lightning's scheduler


def _callbacks(trainer: L.Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
    return callbacks


def _timer(trainer: L.Trainer) -> Any:
    """Find the callback of `Trainer(max_time=…)`; Lightning and pytorch_lightning have one each."""
    for callback in _callbacks(trainer):
        if type(callback).__name__ == "Timer" and callback.time_remaining() is not None:
            return callback
    return None


def steps_in_epochs(trainer: L.Trainer, batches: int, begin: int = 0) -> int:
    """Count the optimizer steps of the epochs from `begin` to ``max_epochs``.

    Args:
        trainer: The trainer. Its `GradientAccumulationScheduler`, if it has one, says how many
            batches make a step in each epoch; a last, smaller group makes one too.
        batches: Batches of an epoch.
        begin: First epoch.
    """
    scheduled = next((c for c in _callbacks(trainer) if hasattr(c, _ACCUMULATION)), None)
    if not scheduled:
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        return per_epoch * max((trainer.max_epochs or 0) - begin, 0)
    return sum(
        math.ceil(batches / getattr(scheduled, _ACCUMULATION)(epoch))
        for epoch in range(begin, trainer.max_epochs or 0)
    )


def _product(epochs: int | None, per_epoch: float) -> int | None:
    """Return the batches or steps of all epochs; None if their number or length is unknown."""
    return epochs * int(per_epoch) if epochs and epochs > 0 and per_epoch < math.inf else None
