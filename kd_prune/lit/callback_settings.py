"""CallbackSettings: base of SparsityCallback that knows its arguments, its name and its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import lightning.pytorch as L

from kd_prune.errors import ConfigError
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.scope import Scope


class CallbackSettings(L.Callback):
    """The constructor arguments of a callback, and its place among others of its kind.

    Attributes:
        schedule: Sparsity over the run; None: the masks stay as they are.
        scope: Parameters that may be pruned; None: the default scope.
        submodule: Attribute of the module that holds the pruned model; None: the module itself.
        on_milestone: Called at the end of each pause.
        verbose: Whether preview and report are printed.
        name: Distinguishes several callbacks in one Trainer.
        pruner: Holds the masks; None before the first fit.
    """

    schedule: Schedule | None
    scope: Scope | None
    submodule: str | None
    on_milestone: Callable[[L.LightningModule, float], None] | None
    verbose: bool
    name: str | None
    pruner: Pruner | None
    _schedule_settings: dict[str, Any]
    _pruner_settings: dict[str, Any]
    _in_trainer = False

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints: the class's name, and the callback's if it has one.

        Until a Trainer sets the callback up the key is unlike any other's: ``Trainer(…)`` compares
        keys, and its message about equal ones does not say what to do. `setup` does.
        """
        key = f"{super().state_key}[{self.name}]" if self.name else super().state_key
        return key if self._in_trainer else f"{key} at {id(self)}"

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that make an equal callback."""
        return {
            "final": self.schedule.final if self.schedule else None,
            **self._schedule_settings,
            **self._pruner_settings,
            "scope": self.scope,
            "submodule": self.submodule,
            "on_milestone": self.on_milestone,
            "verbose": self.verbose,
            "name": self.name,
        }

    def replace(self, **changes: Any) -> Self:
        """Make a callback with some arguments changed, without any state of a fit."""
        return type(self)(**(self.arguments() | changes))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a Trainer with another callback of this kind and name.

        Raises:
            ConfigError: There is one.
        """
        self._in_trainer = True
        if any(other.name == self.name for other in self._others(trainer)):
            kind = type(self).__name__
            raise ConfigError(
                "name",
                self.name,
                f"the Trainer has two {kind}s of this name"
                if self.name
                else f"the Trainer has two {kind}s without a name",
                f"give each its own, as {kind}(name='encoder', …)",
            )
        super().setup(trainer, pl_module, stage)

    def refuse_overlap(self, trainer: L.Trainer, pruner: Pruner) -> None:
        """Raise ConfigError where another callback of the fit prunes one of the same parameters.

        Two masks on one weight keep what neither of two ramps asked for.
        """
        own = {id(weight): name for name, weight in pruner.parameters.items()}
        for other in self._others(trainer):
            theirs = other.pruner.parameters.values() if other.pruner else ()
            if shared := [own[id(weight)] for weight in theirs if id(weight) in own]:
                more = f" and {len(shared) - 1} more" if shared[1:] else ""
                raise ConfigError(
                    "scope",
                    expected=f"{shared[0]}{more}: pruned by {self.label} and by {other.label}",
                    hint="give each a scope of its own, as scope=Scope(include=['encoder.*'])",
                )

    @property
    def label(self) -> str:
        """The callback as messages call it."""
        return f"{type(self).__name__}(name={self.name!r})" if self.name else type(self).__name__

    def labelled(self, text: object) -> str:
        """Return a text that says whose it is, where the callback has a name."""
        return f"{self.name}: {text}" if self.name else str(text)

    def _others(self, trainer: L.Trainer) -> list[CallbackSettings]:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
        return [c for c in callbacks if isinstance(c, CallbackSettings) and c is not self]
