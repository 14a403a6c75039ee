"""Export of a model to a folder in one of the formats, with tokenizer, record and model card."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import atomic_io, hf
from kd_prune.errors import ConfigError
from kd_prune.export import card, dense, onnx_format, openvino_format, packed_folder, vocabulary
from kd_prune.export.card_facts import Facts
from kd_prune.export.packed_file import EMBEDDINGS, VALUES
from kd_prune.export.source import Source
from kd_prune.pruning.report import SparsityReport
from kd_prune.results import EXPORT_FILE, ModelResult, recorded_scope, run_of

FORMATS = ("packed", "fp16", "onnx", "openvino")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Settings of an export.

    Args:
        form: One of `FORMATS`.
        values: Of ``packed``: type of the weights besides embeddings, one of `VALUES`.
        embeddings: Of ``packed``: type of the embeddings, one of `EMBEDDINGS`.
        int8: Of ``onnx``: dynamic int8 quantization by ONNX Runtime.
        texts: Texts whose tokens are kept; None: the vocabulary stays whole.

    Raises:
        ConfigError: A setting is unknown or does not suit the format.
    """

    form: str
    values: str = "lossless"
    embeddings: str = "lossless"
    int8: bool = False
    texts: Sequence[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for key, value, known in (
            ("format", self.form, FORMATS),
            ("values", self.values, VALUES),
            ("embeddings", self.embeddings, EMBEDDINGS),
        ):
            if value not in known:
                raise ConfigError(key, value, f"expected one of {', '.join(known)}")
        for key in ("values", "embeddings"):
            if self.form != "packed" and getattr(self, key) != "lossless":
                raise ConfigError(key, getattr(self, key), "is a setting of --format packed")
        if self.int8 and self.form != "onnx":
            raise ConfigError("int8", True, "is a setting of --format onnx")
        if self.texts is not None and not self.texts:
            raise ConfigError(vocabulary.KEY, expected="there are no texts")

    @property
    def suffix(self) -> str:
        """Format and options, for the name of the folder.

        >>> Export(form="packed", values="fp16", embeddings="int8").suffix
        'packed-fp16-embeddings-int8'
        """
        options = {
            self.values: self.values != "lossless",
            f"embeddings-{self.embeddings}": self.embeddings != "lossless",
            "int8": self.int8,
            "trimmed": self.texts is not None,
        }
        return "-".join([self.form, *(name for name, given in options.items() if given)])

    @property
    def check(self) -> Callable[[], None]:
        """The check that the format's packages are installed, which raises `ConfigError`."""
        checks = {"onnx": onnx_format.check_installed, "openvino": openvino_format.check_installed}
        return checks.get(self.form, lambda: None)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export.

    Attributes:
        folder: The folder.
        bytes: Size of the weights before and after.
        tokens: Size of the vocabulary before and after.
        seconds: Time that it took.
    """

    folder: Path
    bytes: tuple[int, int]
    tokens: tuple[int, int]
    seconds: float


def export(source: Source, settings: Export, out: Path, *, replace: bool = False) -> Exported:
    """Export a model; the folder is written atomically.

    Args:
        source: The model.
        settings: Format and options.
        out: Folder to write.
        replace: Whether to replace an existing folder.

    Raises:
        ConfigError: The model cannot be read, does not suit the settings, or the folder exists and
            is not to be replaced, or is no export.
    """
    start = time.perf_counter()
    settings.check()
    if out.exists():
        check_replaceable(out, source, replace=replace)
    model, tokenizer = source.load(), source.tokenizer()
    before = token_rows(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    trimmed = None
    if settings.texts is not None:
        trimmed = vocabulary.trim_vocabulary(model, tokenizer, settings.texts)
    with atomic_io.folder(out, replace=replace) as scratch:
        tokenizer.save_pretrained(scratch)
        if trimmed is not None:
            vocabulary.replace_tokenizer(scratch, trimmed)
            check_reloaded(scratch, trimmed, settings.texts or ())
        write_weights(model, tokenizer, scratch, settings)
        record = record_of(source, settings)
        (scratch / EXPORT_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        facts = facts_of(source, settings, model, weight_bytes(scratch))
        (scratch / card.FILE).write_text(card.model_card(facts), encoding="utf-8")
        for file in filter(Path.is_file, scratch.iterdir()):  # safetensors lets only the owner read
            shutil.copymode(scratch / "config.json", file)
    return Exported(
        folder=out,
        bytes=(size, weight_bytes(out)),
        tokens=(before, token_rows(model)),
        seconds=time.perf_counter() - start,
    )


def check_replaceable(out: Path, source: Source, *, replace: bool) -> None:
    """Refuse to replace anything but an earlier export or an empty folder.

    Raises:
        ConfigError: As in `export`.
    """
    model = Path(source.path).resolve()
    if model.is_dir() and model.is_relative_to(out.resolve()):
        raise ConfigError("out", str(out), "is or contains the folder of the model itself")
    if not replace:
        raise ConfigError("out", str(out), "exists already", "replace it with --replace")
    if not out.is_dir() or (any(out.iterdir()) and not (out / EXPORT_FILE).is_file()):
        raise ConfigError("out", str(out), "is no exported folder", "name another one")


def token_rows(model: PreTrainedModel) -> int:
    """Return the rows of a model's token embeddings."""
    table: Any = model.get_input_embeddings()
    return len(table.weight)


def write_weights(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, settings: Export
) -> None:
    """Write config and weights of a model in the format of the settings."""
    if settings.form == "packed":
        packed_folder.save_packed(
            model, folder, values=settings.values, embeddings=settings.embeddings
        )
    elif settings.form == "fp16":
        dense.save_fp16(model, folder)
    elif settings.form == "onnx":
        onnx_format.save_onnx(model, tokenizer, folder, int8=settings.int8)
    else:
        openvino_format.save_openvino(model, tokenizer, folder)


def check_reloaded(folder: Path, trimmed: Any, texts: Sequence[str]) -> None:
    """Check that transformers reads the trimmed tokenizer from its folder as it was made.

    Raises:
        ConfigError: A text has other tokens.
    """
    reloaded = AutoTokenizer.from_pretrained(folder)
    for start in range(0, len(texts), vocabulary.BATCH):
        batch = list(texts[start : start + vocabulary.BATCH])
        found = reloaded(batch, verbose=False)["input_ids"]
        for text, ids, expected in zip(
            batch, found, vocabulary.encoded(trimmed, batch), strict=True
        ):
            if ids != expected:
                raise ConfigError(
                    vocabulary.KEY,
                    expected=f"{type(reloaded).__name__} gives {text[:60]!r} other tokens",
                )


def weight_bytes(folder: Path) -> int:
    """Return the bytes of the files of weights in a folder."""
    suffixes = {".safetensors", ".onnx", ".data", ".bin"}
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in suffixes)


def facts_of(source: Source, settings: Export, model: PreTrainedModel, size: int) -> Facts:
    """Return what the card of an exported folder says; the zeros are counted."""
    recorded = recorded_scope(run_of(Path(source.path)))
    names = {name for name, _ in model.named_parameters()}
    scope = recorded if recorded and recorded <= names else hf.encoder_weights(model)
    report = SparsityReport.count(model, scope)
    options = [
        f"{key} {value}"
        for key in ("values", "embeddings")
        if (value := getattr(settings, key)) != "lossless"
    ]
    trimmed = settings.texts is not None
    return Facts(
        form=settings.form,
        options=[*options, *(["int8"] if settings.int8 else [])],
        architecture=type(model).__name__,
        name=source.path,
        results=source.results,
        students=source.students,
        counted=ModelResult(
            metrics={},
            sparsity=report.sparsity if scope else 0.0,
            model_sparsity=report.model_sparsity,
            parameters=report.parameters,
            nonzero=report.nonzero,
        ),
        bytes=size,
        tokens=model.config.vocab_size if trimmed else None,
    )


def record_of(source: Source, settings: Export) -> dict[str, Any]:
    """Describe an export as plain data: its format, and what predictions need of the task."""
    known = {key: source.task.get(key) for key in ("name", "text", "label", "max_length")}
    return {
        "format": settings.form,
        "values": settings.values,
        "embeddings": settings.embeddings,
        "int8": settings.int8,
        "task": {key: value for key, value in known.items() if value is not None},
    }
