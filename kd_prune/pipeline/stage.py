"""Stage: one fit whose outcome is a plain Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lightning.pytorch.callbacks import Callback

from kd_prune import hf
from kd_prune.distillation import Objective
from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback

TEACHER, STUDENT = "teacher", "student"
PRETRAINED = "pretrained"
"""Name of the job's pre-trained encoder; no stage may have this name."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Settings of one fit.

    Args:
        task: Task to learn; None: the job's. A stage that learns from labels alone leaves out the
            rows that have none (`hf.Task.augment`, `hf.Task.unlabelled`).
        init: Where the encoder's weights come from: ``pretrained`` (the job's model), the name of
            an earlier stage, or a folder or hub id.
        masks_from: Model whose zeros, among the weights that may be pruned, the initial model gets:
            the name of an earlier stage, or a folder or hub id; None: no masks.
        rounds: Number of fits; above 1, every one begins from `init` with the masks of the one
            before, and prunes at its end (see `kd_prune.pipeline.rounds`).
        layers: Encoder layers to keep: a number, a fraction of the encoder's, or a list of indices;
            None: all.
        layer_choice: Layers that a number or fraction keeps: the `first` ones, or `spaced` ones.
        hidden_size: Width of the encoder, or a fraction of the model's; all weights are then new.
            None: the model's.
        intermediate_size: Width of the feed-forward layers, or a fraction of the model's; all
            weights are then new. None: the model's.
        freeze: Parts that are not trained: ``embeddings``, ``layers`` or some of them as
            ``layers[:-1]``, ``head``, or globs over parameter names.
        teacher: Model to learn from: ``pretrained``, the name of an earlier stage, a folder or hub
            id, or None.
        objective: What is minimised; None: the loss on the task's hard labels.
        sparsity: Callback that prunes; None: nothing is pruned.
        callbacks: Name → further Lightning callback; one with a method `check_models(student,
            teacher)` is asked to refuse models before anything is trained.
        optimizer: Optimizer and learning-rate schedule; None: the job's.
        max_epochs: Epochs; None: the trainer's.
        max_steps: Highest number of optimizer steps; None: no such limit.
        batch_size: Rows per step; None: the task's.
        dropout: Probability of every dropout during the fit; None: the model's own.
        seed: Seed of the fit; None: the job's.
        path: Finished model that replaces the fit: a folder, a run folder or a hub id.
        min_retained: Of the student alone: the job fails if it has less than this share of its
            teacher's value of the task's `monitor`; 0: no such check.

    Raises:
        ConfigError: A value is out of range.
    """

    task: hf.Task | None = None
    init: str = PRETRAINED
    masks_from: str | None = None
    rounds: int = 1
    layers: int | float | Sequence[int] | None = None
    layer_choice: str = "first"
    hidden_size: int | float | None = None
    intermediate_size: int | float | None = None
    freeze: Sequence[str] = ()
    teacher: str | None = None
    objective: Objective | None = None
    sparsity: SparsityCallback | None = None
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    optimizer: hf.AdamWWithSchedule | None = None
    max_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    dropout: float | None = None
    seed: int | None = None
    path: str | None = None
    min_retained: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "max_steps", "batch_size", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, value, "expected a number above 0")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ConfigError("dropout", self.dropout, "expected a fraction in [0, 1)")
        if not 0.0 <= self.min_retained <= 1.0:
            raise ConfigError("min_retained", self.min_retained, "expected a share, 0 to 1")
        if self.sparsity and self.sparsity.name is not None:
            name = self.sparsity.name
            raise ConfigError("sparsity.name", name, "a fit prunes once, without a name")
        _ = self.encoder_change  # checks its settings
        if self.hidden_size is not None and "embeddings" in self.freeze:
            raise ConfigError(
                "freeze",
                list(self.freeze),
                f"with hidden_size={self.hidden_size} all weights are new: the embeddings would "
                "stay random",
                "set freeze=[]",
            )
        if not self.init:
            raise ConfigError("init", self.init, f"expected {PRETRAINED}, a stage or a folder")

    @property
    def references(self) -> set[str]:
        """Names, folders and hub ids that the stage begins from or learns from."""
        names = (self.init, self.masks_from, self.teacher)
        return set() if self.path else {name for name in names if name}

    @property
    def learns_outputs(self) -> bool:
        """Whether the stage learns from the outputs of its teacher's head."""
        terms = self.objective.terms.values() if self.objective else ()
        return any(term.needs_teacher and "logits" in term.requires for term in terms)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether a term of the objective reads the teacher, so that rows need no labels."""
        return self.objective is not None and self.objective.needs_teacher

    @property
    def encoder_change(self) -> hf.EncoderChange:
        """Change of the initial encoder's shape."""
        return hf.EncoderChange(
            layers=self.layers,
            layer_choice=self.layer_choice,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
        )


@dataclass(frozen=True, kw_only=True)
class ChainStage(Stage):
    """A named stage of a job's chain, with the job's settings filled in.

    Args:
        name: Name of the stage.
        task_key: Prefix of the task's settings in a command.
        named_in_command: Name under which a command has the stage's settings; of a round, that of
            the stage with the rounds.
    """

    name: str
    task_key: str
    named_in_command: str
    task: hf.Task
    optimizer: hf.AdamWWithSchedule
    seed: int

    @classmethod
    def of(
        cls, stage: Stage, name: str, *, named_in_command: str = "", **filled_in: Any
    ) -> ChainStage:
        """Make a chain's stage from `stage`, its name and the settings taken from the job."""
        own_task, in_command = stage.task is not None and name != STUDENT, named_in_command or name
        settings = {f.name: getattr(stage, f.name) for f in fields(Stage)} | filled_in
        without_labels = isinstance(settings["task"].kind, hf.Text)  # all rows are alike
        if not stage.learns_from_teacher and not without_labels:
            settings["task"] = settings["task"].labelled_only()
        if stage.batch_size:
            settings["task"] = replace(settings["task"], batch_size=stage.batch_size)
        task_key = f"{key_of_stage(in_command)}.task" if own_task else "task"
        return cls(name=name, task_key=task_key, named_in_command=in_command, **settings)

    @property
    def key(self) -> str:
        """Prefix of the stage's settings in a command."""
        return key_of_stage(self.named_in_command)

    @property
    def title(self) -> str:
        """Name of the stage in a sentence: ``the teacher``, ``stage base``."""
        return f"the {self.name}" if self.name in (TEACHER, STUDENT) else f"stage {self.name}"

    def setting_key(self, setting: str) -> str:
        """Return the full key of one of the stage's settings in a command.

        The student's `sparsity`, `optimizer`, `callbacks` and objective (`distillation`) are the
        job's own.
        """
        own = ("sparsity", "optimizer", "callbacks", "objective")
        if self.name == STUDENT and setting in own:
            return "distillation" if setting == "objective" else setting
        return f"{self.key}.{setting}"


def key_of_stage(name: str) -> str:
    """Return the prefix of a stage's settings in a command.

    >>> key_of_stage("teacher"), key_of_stage("base")
    ('teacher', 'stages.base')
    """
    return name if name in (TEACHER, STUDENT) else f"stages.{name}"


def dense(**_settings: Any) -> None:
    """Return None in the place of a `SparsityCallback`: nothing is pruned, whatever is set."""
