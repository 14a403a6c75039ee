"""A packed file: smaller, complete, and refused in one line where it is not what it says."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kd_prune.errors import ConfigError
from kd_prune.export import coding
from kd_prune.export.packed_file import (
    PackedFileError,
    check_file,
    coded_tensors,
    is_packed,
    metadata,
    pack,
    size_of,
)

from .models import same_bits


def tensors():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 96, generator=generator)
    matrix[torch.rand(matrix.shape, generator=generator) < 0.95] = 0.0
    half = torch.randn(64, 96, generator=generator)
    half[torch.rand(half.shape, generator=generator) < 0.5] = 0.0
    return {
        "layer.0.weight": matrix,
        "layer.0.bias": torch.randn(64, generator=generator),
        "layer.1.weight": half,
        "words.weight": torch.randn(30, 16, generator=generator),
        "head.weight": torch.randn(2, 16, generator=generator),
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "packed.safetensors"
    save_file(pack(tensors()), path, metadata=metadata())
    return path


def test_pack_codes_what_gets_smaller(file):
    dense, packed = tensors(), load_file(file)
    coded = {name for name, _ in coded_tensors(file)}
    assert coded == {"layer.0.weight", "layer.1.weight"}
    assert size_of(packed) < 0.6 * size_of(dense)
    for name, parts in coded_tensors(file):
        assert same_bits(coding.decode(parts), dense[name])
    for name in dense.keys() - coded:
        assert same_bits(packed[name], dense[name])
    assert {"layer.0.weight_gaps", "layer.1.weight_bitmask"} <= packed.keys()
    assert is_packed(file)
    check_file(file, {name: tensor.shape for name, tensor in dense.items()})


def test_pack_with_half_precision_and_int8_rows_rounds_what_it_says():
    dense = tensors()
    packed = pack(dense, tables=["words.weight"], values="fp16", embeddings="int8")
    assert packed["layer.0.weight_values"].dtype == torch.float16
    assert packed["layer.0.bias"].dtype == torch.float16
    assert packed["words.weight_int8"].dtype == torch.int8
    packed = pack(dense, tables=["words.weight"], embeddings="fp16")
    assert packed["words.weight"].dtype == torch.float16
    assert packed["layer.0.weight_values"].dtype == torch.float32


@pytest.mark.parametrize("key", ["values", "embeddings"])
def test_value_beyond_half_precision_is_refused(key):
    name = {"values": "layer.0.bias", "embeddings": "words.weight"}[key]
    dense = tensors()
    dense[name].view(-1)[3] = 1e6
    with pytest.raises(ConfigError, match=f"{key}=fp16: {name} has a value beyond"):
        pack(dense, tables=["words.weight"], **{key: "fp16"})
    dense[name].view(-1)[3] = torch.inf  # infinite in both
    pack(dense, tables=["words.weight"], **{key: "fp16"})


def refusal(path, shapes=None):
    with pytest.raises(PackedFileError) as error:
        check_file(path, shapes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.999])
def test_truncated_file_is_refused(file, kept):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    assert "damaged" in refusal(file)
    assert not is_packed(file)


def test_foreign_file_is_refused(file):
    save_file(tensors(), file, metadata={"format": "pt"})
    assert "no file that kd_prune packed" in refusal(file)
    file.write_text("hello")
    assert "damaged" in refusal(file)


def test_missing_file_is_refused(tmp_path):
    assert "damaged" in refusal(tmp_path / "none.safetensors")


def test_file_of_another_version_is_refused(file):
    save_file(pack(tensors()), file, metadata=metadata() | {"kd_prune_packed": "2" * 99})
    assert "another version of kd_prune" in refusal(file)


def test_tampered_tensor_is_refused(file):
    packed = load_file(file)
    del packed["layer.0.weight_values"]
    save_file(packed, file, metadata=metadata())
    assert "layer.0.weight has the parts" in refusal(file)


def test_shape_other_than_the_models_is_refused(file):
    shapes = {"layer.0.weight": torch.Size([64, 97])}
    assert "has the shape [64, 96], the model [64, 97]" in refusal(file, shapes)


def test_claim_of_a_huge_matrix_allocates_nothing(file):
    """A header of a few bytes that claims 2⁶⁰ elements."""
    packed = load_file(file)
    packed["layer.0.weight_shape"] = torch.tensor([2**30, 2**30])
    save_file(packed, file, metadata=metadata())
    assert "elements" in refusal(file)


def outcome(path) -> str:
    """The refusal of a file; empty if there is none. Any other error is raised."""
    try:
        check_file(path)
    except PackedFileError as error:
        return str(error)
    return ""


def header_of(content: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@given(st.data())
@settings(max_examples=150)
def test_fuzzed_file_is_refused_in_one_line_or_unchanged(tmp_path_factory, data):
    """Bytes of header and body changed at random: never another error, never other values."""
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    save_file(pack(tensors()), path, metadata=metadata())
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, length + 100))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    message = outcome(path)
    assert "\n" not in message
    if not message:
        for _, parts in coded_tensors(path):
            assert coding.decode(parts).numel() <= 300 * len(content)


@given(st.data())
@settings(max_examples=150)
def test_fuzzed_entry_of_the_header_is_refused_or_consistent(tmp_path_factory, data):
    """Entries of the header replaced by others of the right syntax."""
    path = tmp_path_factory.getbasetemp() / "fuzz2.safetensors"
    save_file(pack(tensors()), path, metadata=metadata())
    header, body = header_of(path.read_bytes())
    name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    entry = header[name]
    match data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "drop"])):
        case "dtype":
            kinds = ["U8", "I8", "F16", "BF16", "F32", "I64", "F64", "BOOL", "XX"]
            entry["dtype"] = data.draw(st.sampled_from(kinds))
        case "shape":
            entry["shape"] = data.draw(st.lists(st.integers(0, 2**40), max_size=4))
        case "data_offsets":
            limit = len(body) + 64
            entry["data_offsets"] = [data.draw(st.integers(0, limit)) for _ in range(2)]
        case "name":
            header[name + data.draw(st.sampled_from([*coding.SUFFIXES, "x"]))] = header.pop(name)
        case "drop":
            del header[name]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    assert "\n" not in outcome(path)
