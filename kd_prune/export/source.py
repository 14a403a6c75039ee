"""Source of an export: a saved model, and the record of the run that made it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.errors import UNSET, ConfigError
from kd_prune.export.quantizer import ARCHITECTURE
from kd_prune.json_schema import SchemaError, read_json
from kd_prune.results import (
    EXPORT_FILE,
    RESULT_FILE,
    ModelResult,
    RunResult,
    run_of,
    target_sparsity,
)
from kd_prune.sweep.differences import find_differences
from kd_prune.sweep.schema import Run


@dataclass(frozen=True, kw_only=True)
class Source:
    """A saved model with the results of its run.

    Attributes:
        path: Folder or hub id of the model.
        results: Results of the run that made it, then of runs with other seeds; empty for a model
            of another origin.
        students: The model's metrics and counts in these runs, in the same order.
        record: Content of the `EXPORT_FILE` of an exported folder; empty for other folders.
    """

    path: str
    results: Sequence[RunResult] = ()
    students: Sequence[ModelResult] = ()
    record: Mapping[str, Any]

    @classmethod
    def find(cls, path: str, others: Sequence[str] = ()) -> Source:
        """Find a model by its run folder, its folder or hub id, with runs of other seeds.

        Raises:
            ConfigError: There is no such model, a result cannot be read, or another run is not one
                of the same job.
        """
        folder = Path(os.path.abspath(Path(path).expanduser()))  # its name tells a milestone
        if folder.is_file():
            raise ConfigError("folder", path, "a file", "name the folder that holds it")
        if not folder.is_dir():
            if not hf.may_be_hub_id(path):
                raise ConfigError("folder", path, "no such folder")
            return cls(path=path, record={})
        if (folder / "student").is_dir():
            folder = folder / "student"
        if not (folder / "config.json").is_file():
            raise ConfigError(
                "folder", path, "contains no model", "name a run folder or a model folder"
            )
        record = read_record(folder / EXPORT_FILE)
        result = read_result(run_of(folder))
        if result is None:
            if others:
                raise ConfigError(
                    "seeds", list(others), f"{folder} is no student of a run to compare them with"
                )
            return cls(path=str(folder), record=record)
        target = folder.name.partition("-")[0] if folder.parent.name == "milestones" else None
        results = [result]
        for other in others:
            results.append(result_of_other_seed(other, results))
        students = [student_of(each, target) for each in results]
        return cls(path=str(folder), results=results, students=students, record=record)

    @property
    def task(self) -> Mapping[str, Any]:
        """Settings of the task that the run recorded; empty where they are not known."""
        config = self.results[0].config.get("task") if self.results else self.record.get("task")
        return config if isinstance(config, dict) else {}

    def load(self) -> PreTrainedModel:
        """Load the model with its head, in the type that it was saved in.

        Raises:
            ConfigError: It cannot be read, or its architecture is unknown.
        """
        try:
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
            names = [name.removeprefix(ARCHITECTURE) for name in config.architectures or ()]
            found: list[Any] = [
                hf.OWN_ARCHITECTURES.get(name) or getattr(transformers, name, None)
                for name in names[:1]
            ]
            if not (found and isinstance(found[0], type) and issubclass(found[0], PreTrainedModel)):
                raise ConfigError(
                    "folder",
                    self.path,
                    f"its config names the architecture {', '.join(names) or 'none'}, which "
                    "transformers does not have",
                )
            dtype = config.dtype or torch.float32
            load: Any = found[0].from_pretrained
            model: PreTrainedModel
            model, info = load(self.path, dtype=dtype, output_loading_info=True)
        except ConfigError:
            raise
        except Exception as error:  # of any type: each kind of damage raises another
            raise hf.load_error("folder", self.path, error) from error
        if missing := sorted(info["missing_keys"]):  # transformers only warns, and invents them
            raise ConfigError("folder", self.path, f"its weights lack {missing[0]}")
        return model  # in evaluation mode, as `from_pretrained` leaves it

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that comes with the model.

        Raises:
            ConfigError: There is none.
        """
        return hf.PretrainedEncoder(path=self.path).tokenizer("folder")

    def default_out(self, suffix: str) -> Path:
        """Return the folder next to the model with a suffix added to its name.

        Raises:
            ConfigError: The model is on the hub.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            raise ConfigError("out", UNSET, "a model from the hub", "name a folder: --out <folder>")
        return folder.with_name(f"{folder.name}-{suffix}")


def read_record(file: Path) -> Mapping[str, Any]:
    """Read the record of an exported folder; empty where there is none.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        return read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, SchemaError) as error:
        raise ConfigError("folder", str(file), f"cannot be read ({error})") from error


def read_result(run: Path) -> RunResult | None:
    """Read the result of a run; None where there is none.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        return RunResult.read(run)
    except FileNotFoundError:
        return None
    except (OSError, SchemaError) as error:
        raise ConfigError("folder", str(run / RESULT_FILE), f"cannot be read ({error})") from error


def result_of_other_seed(path: str, others: Sequence[RunResult]) -> RunResult:
    """Read the result of a run that differs from others in its seed only.

    Raises:
        ConfigError: It has no result, is not one of the same job, or has the seed of another one.
    """
    first, result = others[0], read_result(run_of(Path(os.path.abspath(path))))
    if result is None:
        raise ConfigError("seeds", path, "contains no result.json", "name finished run folders")
    for what, ours, theirs in (
        ("task", first.task, result.task),
        ("data", first.data, result.data),
        ("sparsity", target_sparsity(first.config), target_sparsity(result.config)),
    ):
        if ours != theirs:
            raise ConfigError("seeds", path, f"a run with another {what} than the exported one")
    runs = [Run(folder=Path(), state="finished", result=each) for each in (first, result)]
    if found := [*find_differences(runs)[1], *find_differences(runs)[0]]:
        key = found[0].key
        raise ConfigError("seeds", path, f"a run with another {key} than the exported one")
    if result.seed in (other.seed for other in others):
        raise ConfigError("seeds", path, f"a run of seed {result.seed} is among them already")
    return result


def student_of(result: RunResult, target: str | None) -> ModelResult:
    """Return a run's student, or the one saved at the milestone that a folder is named after.

    Raises:
        ConfigError: The run has no such milestone.
    """
    if target is None:
        return result.student
    for milestone in result.milestones:
        if Path(milestone.path).name == target:
            return milestone
    raise ConfigError("folder", target, f"no milestone of the run of seed {result.seed}")
