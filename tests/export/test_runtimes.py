"""ONNX and OpenVINO: the same outputs for any number and length of rows."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from hf.families import FAMILIES, VOCABULARY

from kd_prune.errors import ConfigError
from kd_prune.export import onnx_format, openvino_format
from kd_prune.export.folders import Export, export
from kd_prune.export.source import Source

from .models import save_student, sparse_model, tokenizer
from .runs import make_run

SIZES = [(1, 1), (1, 7), (5, 20)]
needs_onnx = pytest.mark.skipif(
    any(onnx_format.importlib.util.find_spec(name) is None for name in onnx_format.PACKAGES),
    reason="needs onnx, onnxscript, onnxruntime",
)


def inputs_of(names, rows, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, len(VOCABULARY), (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, max(1, length // 2) :] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: known[name] for name in names}


def expected(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def check_onnx(model, folder, tolerance=1e-4):
    from onnxruntime import InferenceSession

    session = InferenceSession(str(folder / onnx_format.FILE), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for rows, length in SIZES:
        inputs = inputs_of(names, rows, length)
        found = session.run(["logits"], {name: t.numpy() for name, t in inputs.items()})[0]
        assert np.abs(found - expected(model, inputs)).max() < tolerance
    return session


def test_difference_of_large_outputs_is_relative_to_the_largest():
    model = sparse_model()
    names = onnx_format.input_names(model, tokenizer())
    inputs = onnx_format.example_inputs(names, len(VOCABULARY), rows=3, length=11)
    with torch.no_grad():
        model.classifier.bias.add_(1000.0)
        logits = model(**inputs).logits
    assert onnx_format.largest_difference(model, names, logits) == 0.0
    moved = onnx_format.largest_difference(model, names, logits + 0.5)
    assert moved == pytest.approx(0.5 / 1000, rel=0.01)


@needs_onnx
def test_onnx_export_has_the_models_outputs_and_an_int8_form(tmp_path):
    import onnx

    source = Source.find(str(make_run(tmp_path / "run")))
    out = export(source, Export(form="onnx"), tmp_path / "out").folder
    graph = onnx.load(out / onnx_format.FILE)
    onnx.checker.check_model(graph)
    assert {opset.version for opset in graph.opset_import if not opset.domain} == {23}
    dimensions = [d.dim_param for d in graph.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["batch", "length"]
    session = check_onnx(sparse_model(), out)
    assert [given.name for given in session.get_outputs()] == ["logits"]
    assert "onnxruntime" in (out / "README.md").read_text()
    int8 = export(source, Export(form="onnx", int8=True), tmp_path / "int8").folder
    before, after = ((folder / onnx_format.FILE).stat().st_size for folder in (out, int8))
    assert after < 0.9 * before
    kinds = {node.op_type for node in onnx.load(int8 / onnx_format.FILE).graph.node}
    assert kinds & {"MatMulInteger", "DynamicQuantizeLinear"}
    check_onnx(sparse_model(), int8, tolerance=0.1)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "modernbert"])
def test_onnx_export_of_every_family_has_the_models_outputs(family, tmp_path):
    model = sparse_model(family)
    onnx_format.save_onnx(model, tokenizer(), tmp_path, int8=False)
    check_onnx(model, tmp_path)


@needs_onnx
def test_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "export_graph", lambda *args: None)
    for found, said in (
        (torch.zeros(3, 2), "differs from it by "),
        (torch.full((3, 2), torch.nan), "nan"),
    ):
        monkeypatch.setattr(onnx_format, "run_graph", lambda *args, found=found: found)
        with pytest.raises(ConfigError, match=said):
            onnx_format.save_onnx(sparse_model(), tokenizer(), tmp_path)


@needs_onnx
@pytest.mark.parametrize("found", [None, torch.full((3, 2), torch.nan)])
def test_int8_graph_that_does_not_run_is_refused(found, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "write_graph", lambda *args: None)
    monkeypatch.setattr(onnx_format, "quantize_int8", lambda file: None)
    monkeypatch.setattr(onnx_format, "run_graph", lambda *args: found)
    with pytest.raises(ConfigError, match="int8=true: the int8 graph of "):
        onnx_format.save_onnx(sparse_model(), tokenizer(), tmp_path, int8=True)


@needs_onnx
def test_graph_that_is_no_graph_cannot_be_run(tmp_path):
    """As the quantizer made one: an operator with an attribute that it does not have."""
    import onnx

    model = sparse_model()
    names = onnx_format.input_names(model, tokenizer())
    onnx_format.export_graph(model, names, tmp_path / "x.onnx", 23)
    graph = onnx.load(tmp_path / "x.onnx")
    (first, *_) = (node for node in graph.graph.node if node.op_type == "Attention")
    first.op_type, first.domain = "QAttention", "com.microsoft"
    onnx.save(graph, tmp_path / "x.onnx")
    assert onnx_format.run_graph(model, names, tmp_path / "x.onnx") is None


@needs_onnx
def test_model_without_logits_is_refused(tmp_path):
    from transformers import BertForQuestionAnswering

    model = BertForQuestionAnswering(sparse_model().config)
    said = "format=onnx: BertForQuestionAnswering has no logits, but start_logits, end_logits"
    with pytest.raises(ConfigError, match=said):
        onnx_format.save_onnx(model, tokenizer(), tmp_path)


@needs_onnx
def test_newest_operator_set_that_runs_is_taken(tmp_path, monkeypatch):
    tried, model = [], sparse_model()
    names = onnx_format.input_names(model, tokenizer())
    inputs = onnx_format.example_inputs(names, len(VOCABULARY), rows=3, length=11)
    found = {23: None, 22: torch.from_numpy(expected(model, inputs))}
    monkeypatch.setattr(onnx_format, "export_graph", lambda *args: tried.append(args[-1]))
    monkeypatch.setattr(onnx_format, "run_graph", lambda *args: found[tried[-1]])
    onnx_format.save_onnx(model, tokenizer(), tmp_path)
    assert tried == [23, 22]
    found[22] = None
    with pytest.raises(ConfigError, match="does not run"):
        onnx_format.save_onnx(model, tokenizer(), tmp_path)


def test_openvino_export_has_the_models_outputs(tmp_path):
    openvino = pytest.importorskip("openvino")
    source = Source.find(str(save_student(tmp_path / "model")))
    out = export(source, Export(form="openvino"), tmp_path / "out").folder
    model = sparse_model()
    compiled = openvino.compile_model(
        out / openvino_format.FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    names = [port.any_name for port in compiled.inputs]
    for rows, length in SIZES:
        inputs = inputs_of(names, rows, length)
        found = compiled({name: t.numpy() for name, t in inputs.items()})["logits"]
        assert np.abs(found - expected(model, inputs)).max() < 1e-4
    assert "openvino_model.xml" in (out / "README.md").read_text()


def test_model_that_openvino_cannot_convert_is_refused_in_one_line(monkeypatch):
    def convert_model(*given, **named):
        raise RuntimeError("no such op\nadvice")

    made = ModuleType("openvino")
    made.convert_model, made.PartialShape = convert_model, list
    monkeypatch.setitem(sys.modules, "openvino", made)
    with pytest.raises(ConfigError, match=r"cannot convert BertForSequence.* \(no such op\)$"):
        openvino_format.convert(sparse_model(), ("input_ids", "attention_mask"))
