"""Reading of packed folders in transformers, by its own hooks for quantized models.

`register` makes ``AutoModel….from_pretrained`` read a packed folder into a plain model:
``nn.Linear`` and ``nn.Embedding`` with dense weights, the same as before packing.
`import kd_prune` registers it (`kd_prune.transformers_hook`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kd_prune.export import coding
from kd_prune.export.packed_file import FILE, VERSION, WEIGHT, PackedFileError, check_file

METHOD = "kd_prune"
ARCHITECTURE = "KdPrunePacked"
"""Prefix of the architecture in the config, so that no other program takes it for the dense one."""


class PackedConfig(QuantizationConfigMixin):
    """The entry ``quantization_config`` of a packed folder's ``config.json``.

    Args:
        version: Version of the format.
        values: See `kd_prune.export.packed_file.pack`.
        embeddings: Likewise.

    Raises:
        PackedFileError: The folder was packed in another version of the format.
    """

    def __init__(
        self,
        version: str = VERSION,
        values: str = "lossless",
        embeddings: str = "lossless",
        **_: Any,
    ) -> None:
        if version != VERSION:
            raise PackedFileError(
                f"packed by another version of kd_prune (format {str(version)[:16]!r}, this "
                f"version reads {VERSION})"
            )
        self.quant_method: Any = METHOD
        self.dequantize = True  # transformers then expects plain modules and cleans the config
        self.version = version
        self.values = values
        self.embeddings = embeddings


class Unpack(ConversionOps):
    """Conversion of the parts of one tensor to a dense ``weight`` of the model's type."""

    def __init__(self, hf_quantizer: HfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **names: Any,
    ) -> dict[str, Any]:
        """Return the full name → the dense tensor, on the device of the parts."""
        parts = {
            name.removeprefix(WEIGHT): part[0] if isinstance(part, list) else part
            for name, part in input_dict.items()
        }
        full_layer_name: str = names["full_layer_name"]
        parameter: Tensor = names["model"].get_parameter(full_layer_name)
        if set(parts) == {""}:  # stored as it is
            return {full_layer_name: parts[""].to(parameter.dtype)}
        return {full_layer_name: coding.decode(parts, parameter.dtype)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The conversion when the loaded model is saved: it is dense, and saved like that."""
        return _Unchanged()


class _Unchanged(ConversionOps):
    def convert(self, input_dict: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        return input_dict


class PackedQuantizer(HfQuantizer):
    """Reader of packed folders, as transformers calls it."""

    requires_calibration = True  # models are packed by kd_prune, not while they are loaded
    serialized_names = {  # noqa: RUF012  the base class's declaration
        # First the dense weight: the model is saved under this name.
        WEIGHT: [WEIGHT, *(WEIGHT + suffix for suffix in coding.SUFFIXES)]
    }

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        """Return the operation that makes dense weights."""
        return {"dequantize": Unpack}

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file of weights and the dense architecture; called before files are sought."""
        config.transformers_weights = FILE
        names = getattr(config, "architectures", None) or []
        config.architectures = [name.removeprefix(ARCHITECTURE) for name in names]
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> Any:
        prefix = f"{model.base_model_prefix}."
        shapes: dict[str, torch.Size] = {}
        for name, parameter in model.named_parameters():
            for known in (name, prefix + name, name.removeprefix(prefix)):
                shapes[known] = parameter.shape
        for file in checkpoint_files or ():
            check_file(Path(file), shapes)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        return model

    def is_serializable(self) -> bool:
        """Return True: a loaded model is dense and saved as such."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the loaded model can be trained: it is a plain one."""
        return True


def register() -> None:
    """Make transformers read packed folders; nothing happens the second time.

    Called as this module is imported: an import of it before transformers makes the hook run while
    the module is still incomplete, so the hook only imports it.
    """
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(PackedConfig)
        register_quantizer(METHOD)(PackedQuantizer)


register()
