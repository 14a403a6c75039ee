"""Context: data shared by the stages of one run, such as tokens and outcomes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.errors import ConfigError, key_prefix
from kd_prune.pipeline.job import Job
from kd_prune.pipeline.stage import PRETRAINED, TEACHER, ChainStage, key_of_stage
from kd_prune.results import StageResult


@dataclass(frozen=True)
class Outcome:
    """Outcome of a finished stage.

    Attributes:
        path: Folder or hub id of the model.
        result: Metrics and counted weights of the model.
    """

    path: str
    result: StageResult


@dataclass(frozen=True)
class Inputs:
    """Tokens of a stage's task, and the tokenizer that made them."""

    tokenizer: PreTrainedTokenizerBase
    data: hf.TaskData


@dataclass(frozen=True)
class GivenModel:
    """A model that no stage of the run makes.

    Attributes:
        path: Folder or hub id; for a run folder, its student's folder.
        key: The option that named the model.
    """

    path: str
    key: str

    @classmethod
    def of(cls, path: str, key: str) -> GivenModel:
        """Find the model that an option names: a folder, a run folder or a hub id."""
        student = Path(path).expanduser() / "student"
        return cls(str(student) if student.is_dir() else hf.folder_or_id(path), key)


@dataclass
class Context:
    """State of a run: its stages, their tokens and the outcomes so far.

    Attributes:
        job: The job.
        cache: The job's cache folder.
        chain: Name → stage, in the order in which they run.
        inputs: Name → tokens.
        outcomes: Name → outcome, of the finished stages.
        first_process: Whether this is the first of the job's processes. It fits the stages before
            the student; the others wait for their outcomes.
    """

    job: Job
    cache: Path
    chain: dict[str, ChainStage]
    first_process: bool = True
    inputs: dict[str, Inputs] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def encoder(self, source: str) -> hf.PretrainedEncoder:
        """Return the encoder of `source`: a folder, a hub id, or `PRETRAINED` for the job's."""
        if source == PRETRAINED:
            return self.job.model
        return hf.PretrainedEncoder(path=source, scope=self.job.model.scope)

    def given_source(self, stage: ChainStage) -> GivenModel | None:
        """Return a stage's initial model; None if it is the job's or an earlier stage's."""
        return self._given(stage.init, f"{stage.key}.init")

    def given_teacher(self, stage: ChainStage) -> GivenModel | None:
        """Return a stage's teacher; None if it is the job's, an earlier stage's or missing."""
        return self._given(stage.teacher, f"{stage.key}.teacher")

    def given_masks(self, stage: ChainStage) -> GivenModel | None:
        """Return the model with a stage's masks; None if a stage of the run makes it, or none."""
        return self._given(stage.masks_from, f"{stage.key}.masks_from")

    def _given(self, source: str | None, key: str) -> GivenModel | None:
        """Return the model that a command gives as `source`; None if it is the run's own."""
        if source is None or source == PRETRAINED:
            return None
        if source in self.chain:
            earlier = self.chain[source]
            return GivenModel.of(earlier.path, f"{earlier.key}.path") if earlier.path else None
        return GivenModel.of(source, key)

    def load_inputs(self) -> None:
        """Read and tokenise the data of every stage.

        Raises:
            ConfigError: As in `hf.load_data`, with the key of the stage's task.
        """
        tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        loaded: list[tuple[tuple[hf.Task, str, bool], Inputs]] = []
        for name, stage in self.chain.items():
            source, key = self._tokenizer_source(stage)
            with self.stage_names():
                if source not in tokenizers:
                    tokenizers[source] = self.encoder(source).tokenizer(key=key)
                segments = self._needs_segments(stage)
            if hf.SEGMENTS in tokenizers[source].model_input_names:
                segments = False  # they are there anyway
            wanted = (stage.task, source, segments)
            inputs = next((inputs for made_of, inputs in loaded if made_of == wanted), None)
            if inputs is None:
                with key_prefix(stage.task_key):
                    data = hf.load_data(
                        stage.task,
                        tokenizers[source],
                        self.cache,
                        segments=segments,
                        encoder=self.encoder(source),
                    )
                inputs = Inputs(tokenizers[source], data)
                loaded.append((wanted, inputs))
            self.inputs[name] = inputs

    def teacher_tokenizer(self, stage: ChainStage) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of a stage's teacher; None if the teacher was saved without one."""
        if given := self.given_teacher(stage):
            return saved_tokenizer(given.path)
        if stage.teacher in self.inputs:
            return self.inputs[stage.teacher].tokenizer
        return self.job.model.tokenizer()

    @contextmanager
    def stage_names(self) -> Iterator[None]:
        """Add the stages' names to the error of a missing model that may be a misspelt stage."""
        try:
            yield
        except ConfigError as error:
            setting, given = error.key.rpartition(".")[2], str(error.value)
            if (
                setting not in ("init", "masks_from", "teacher")
                or "/" in given
                or Path(given).exists()
            ):
                raise
            own = error.key.rpartition(".")[0]
            stages = [name for name in (TEACHER, *self.job.stages) if key_of_stage(name) != own]
            names = [PRETRAINED, *stages]
            expected, hint = error.expected, f"the stages are {', '.join(names)}"
            if meant := difflib.get_close_matches(given, names, n=1):
                expected = "there is no such stage, folder or hub id"
                hint = f"there are {', '.join(names)}; did you mean {meant[0]}?"
            raise ConfigError(error.key, error.value, expected, hint) from error

    def _tokenizer_source(self, stage: ChainStage) -> tuple[str, str]:
        """Return the source of a stage's tokenizer, and the option that names the source.

        The source is a folder, a hub id, or `PRETRAINED` for the job's model.
        """
        if stage.path or stage.init == PRETRAINED:
            return PRETRAINED, "model.path"
        if stage.init in self.chain:
            return self._tokenizer_source(self.chain[stage.init])
        key = f"{stage.key}.init"
        return GivenModel.of(stage.init, key).path, key

    def _needs_segments(self, stage: ChainStage) -> bool:
        """Return whether a stage's teacher reads ``token_type_ids``.

        Raises:
            ConfigError: The config or the tokenizer of the teacher cannot be read.
        """
        given, kind = self.given_teacher(stage), stage.task.kind
        if stage.path:
            given = GivenModel.of(stage.path, f"{stage.key}.path")
            if stage.objective is not None:  # it may have no head
                kind = hf.Text()
        if given is None:
            if stage.path or stage.teacher not in self.chain:
                return False
            source, key = self._tokenizer_source(self.chain[stage.teacher])
            return hf.SEGMENTS in self.encoder(source).tokenizer(key=key).model_input_names
        config = hf.PretrainedEncoder(path=given.path).fine_tuned_config(kind, given.key)
        tokenizer = saved_tokenizer(given.path)
        if tokenizer is None:
            return bool(getattr(config, "type_vocab_size", 0) > 1)
        return hf.SEGMENTS in tokenizer.model_input_names


def saved_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model; None for a model that was saved without one."""
    try:
        return hf.PretrainedEncoder(path=path).tokenizer()
    except ConfigError:
        return None
