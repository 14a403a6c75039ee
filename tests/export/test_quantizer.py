"""Packed folders in transformers: plain models, bit-equal, for every family."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from hf.families import FAMILIES, OTHERS, batch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

import kd_prune  # noqa: F401  reads packed folders
from kd_prune.export.packed_file import FILE, PackedFileError, metadata
from kd_prune.export.packed_folder import save_packed

from .models import same_bits, save_student, sparse_model, tokenizer


@pytest.fixture
def packed(tmp_path):
    model = sparse_model()
    tokenizer().save_pretrained(tmp_path)
    save_packed(model, tmp_path)
    return tmp_path


def load(folder, **settings):
    found, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, **settings
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS, "xlm"])
def test_packed_model_is_read_back_to_the_bit(family, dtype, tmp_path):
    model = sparse_model(family, dtype=dtype)
    save_packed(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    found = load(tmp_path, dtype="auto")
    assert type(found) is type(model)
    state, expected = found.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in state if not same_bits(state[name], expected[name])] == []
    kinds = {type(module) for module in found.modules() if hasattr(module, "weight")}
    assert kinds == {type(module) for module in model.modules() if hasattr(module, "weight")}
    assert nn.Linear in kinds
    dense = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (tmp_path / FILE).stat().st_size < 0.7 * dense


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_argument_casts_as_for_a_dense_folder(dtype, packed, tmp_path_factory):
    dense = tmp_path_factory.mktemp("dense")
    sparse_model().save_pretrained(dense)
    one, other = load(packed, dtype=dtype).state_dict(), load(dense, dtype=dtype).state_dict()
    assert all(same_bits(one[name], other[name]) for name in other)


SPLIT = {
    "bert.embeddings": "cpu",
    "bert.encoder": "disk",
    "bert.pooler": "cpu",
    "classifier": "cpu",
}


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, SPLIT])
def test_device_map_argument_places_the_dense_weights(device_map, packed, tmp_path_factory):
    """On the disk too, where transformers writes the unpacked matrices."""
    pytest.importorskip("accelerate")
    offload = tmp_path_factory.mktemp("offload")
    model = load(packed, device_map=device_map, offload_folder=offload)
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, sparse_model()(**inputs).logits)


def test_outputs_are_those_of_the_dense_model(packed):
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    with torch.no_grad():
        found = load(packed)(**inputs).logits
        assert torch.equal(found, sparse_model()(**inputs).logits)


def test_loaded_model_is_a_plain_one_and_saves_densely(packed, tmp_path_factory):
    model = load(packed)
    config = model.config.to_dict()
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert not {"quantization_config", "transformers_weights"} & config.keys()
    assert not hasattr(model, "hf_quantizer")
    assert not model.is_quantized
    again = tmp_path_factory.mktemp("again")
    model.save_pretrained(again)
    assert load_file(again / "model.safetensors").keys() == dict(model.named_parameters()).keys()
    assert "kd_prune" not in (again / "config.json").read_text()
    pairs = zip(load(again).parameters(), model.parameters(), strict=True)
    assert all(same_bits(a, b) for a, b in pairs)
    model.train()
    model(**batch()).loss.backward()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_encoder_without_its_head_is_read(packed):
    found = AutoModel.from_pretrained(packed)
    expected = sparse_model().base_model.state_dict()
    assert all(same_bits(found.state_dict()[name], expected[name]) for name in expected)


def test_pipeline_reads_a_packed_folder(packed):
    classify = pipeline("text-classification", model=str(packed), device="cpu")
    assert classify("abc")[0]["label"] in ("LABEL_0", "LABEL_1")


def test_fp16_values_and_int8_rows_are_near(tmp_path):
    model = sparse_model()
    save_packed(model, tmp_path, values="fp16", embeddings="int8")
    found = load(tmp_path, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        other = found.get_parameter(name)
        assert other.dtype == torch.float32
        assert (other == 0).sum() >= (parameter == 0).sum()
        limit = parameter.abs().amax() / (127 if "embeddings" in name else 1000)
        assert bool(((other - parameter).abs() <= limit).all()), name


def tamper(folder, change):
    packed = load_file(folder / FILE)
    change(packed)
    save_file(packed, folder / FILE, metadata=metadata())


def swap_shape(packed):
    name = next(name for name in packed if name.endswith("intermediate.dense.weight_shape"))
    packed[name] = packed[name].flip(0).contiguous()


def drop_values(packed):
    del packed[next(name for name in packed if name.endswith("_values"))]


@pytest.mark.parametrize("change", [swap_shape, drop_values])
def test_tampered_folder_is_refused_in_one_line_before_loading(change, packed, caplog):
    tamper(packed, change)
    with caplog.at_level(logging.WARNING), pytest.raises(PackedFileError) as error:
        load(packed)
    assert "\n" not in str(error.value)
    assert "LOAD REPORT" not in caplog.text


def test_truncated_folder_is_refused(packed):
    content = (packed / FILE).read_bytes()
    (packed / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(PackedFileError, match="damaged"):
        load(packed)


def test_folder_of_another_version_is_refused(packed):
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["version"] = "99"
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(PackedFileError, match="format '99', this version reads 1"):
        load(packed)


def test_dense_file_under_the_packed_name_is_refused(packed, tmp_path_factory):
    dense = save_student(tmp_path_factory.mktemp("dense"))
    (dense / "model.safetensors").replace(packed / FILE)
    with pytest.raises(PackedFileError, match="no file that kd_prune packed"):
        load(packed)
