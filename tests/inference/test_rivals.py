"""Rivals: those installed are built and compared; one that fails is named, and the others go on."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from kd_prune.errors import ConfigError
from kd_prune.export import onnx_format
from kd_prune.inference import benchmark, rivals
from kd_prune.inference.rivals import OnnxRuntime, OpenVino, SparseLab, base, openvino_runtime
from tests.inference.models import sparse_model

WORK = benchmark.batches([3, 9, 5, 7], 1, 100) + benchmark.batches([4, 12, 8], 3, 100)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx_format.PACKAGES),
    reason="needs onnx, onnxscript, onnxruntime",
)


def apart(model, engines):
    """Largest difference to the model's outputs, relative to the largest output, over `WORK`."""
    return {
        name: max(benchmark.differences({benchmark.BLAS: model} | engines, b)[name] for b in WORK)
        for name in engines
    }


def stand_in(monkeypatch, name, **content):
    """Make a module of this name importable."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


class Fake:
    """A rival made of functions."""

    install, reads_zeros = "fake", False

    def __init__(self, name, engines, packages=()):
        self.name, self.made, self.packages = name, engines, packages

    def engines(self, model, work, threads):
        for name, engine in self.made:
            if isinstance(engine, Exception):
                raise engine
            yield name, engine


def right(input_ids, attention_mask):
    return (torch.zeros(len(input_ids), 2),)


def too_few_rows(input_ids, attention_mask):
    return (torch.zeros(1, 2),)


def only_one_sentence(input_ids, attention_mask):
    if len(input_ids) > 1:
        raise ValueError("a batch of\nmore than one " + 300 * "x")
    return right(input_ids, attention_mask)


def test_rivals_that_fail_are_named_in_a_line_and_the_others_go_on():
    begun = []
    engines, failures = rivals.build(
        [
            Fake("one", [("one fp32", right), ("one int8", RuntimeError("no\nkernel"))]),
            Fake("two", [("two a", too_few_rows), ("two b", only_one_sentence), ("two c", right)]),
            Fake("three", [("", KeyError())]),
        ],
        None,
        WORK,
        1,
        begun.append,
    )
    assert list(engines) == ["one fp32", "two c"]
    assert begun == ["one", "two", "three"]
    lines = [str(failure) for failure in failures]
    assert lines[0] == "one is left out: no kernel"
    assert lines[1] == "two a is left out: it returns 1 rows for 3"
    assert lines[2].startswith("two b is left out: a batch of more than one xxx")
    assert lines[3] == "three is left out: KeyError"
    assert all("\n" not in line and len(line) < 250 for line in lines)


def test_rivals_are_found_by_their_packages():
    there, half = Fake("there", (), ("json",)), Fake("half", (), ("json", "no_such_package"))
    assert rivals.installed([there, half]) == [there]
    assert rivals.missing(half) == ["no_such_package"]
    assert {rival.name for rival in rivals.RIVALS} == {"onnxruntime", "openvino", "sparselab"}


@needs_onnx
def test_onnx_runtime_computes_what_the_model_does_on_the_given_threads():
    model = sparse_model("bert", 0.9)
    engines, failures = rivals.build([OnnxRuntime()], model, WORK, 1)
    assert not failures
    assert list(engines) == ["ONNX Runtime fp32", "ONNX Runtime int8"]
    found = apart(model, engines)
    assert found["ONNX Runtime fp32"] < 1e-5
    assert 1e-5 < found["ONNX Runtime int8"] < 0.2
    for engine in engines.values():
        options = engine.session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@needs_onnx
def test_onnx_runtime_returns_the_last_hidden_states_of_a_model_without_a_head():
    model = sparse_model("bert-eager", 0.9)
    engines, failures = rivals.build([OnnxRuntime()], model, WORK, 1)
    assert not failures
    assert apart(model, engines)["ONNX Runtime fp32"] < 1e-5


@needs_onnx
def test_onnx_runtime_that_cannot_quantize_stays_in_float32(monkeypatch):
    def broken(file):
        raise ValueError("no int8")

    monkeypatch.setattr(onnx_format, "quantize_int8", broken)
    engines, (failure,) = rivals.build([OnnxRuntime()], sparse_model("bert", 0.9), WORK, 1)
    assert list(engines) == ["ONNX Runtime fp32"]
    assert str(failure) == "onnxruntime is left out: no int8"


class OpenVinoStandIn:
    """What the rival uses of the packages openvino and nncf, computed by torch."""

    def __init__(self, model):
        self.model, self.compiled, self.calibrated = model, [], []

    def get_property(self, device, name):
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return ["FP32", "BF16", "INT8"]

    def compile_model(self, converted, device, settings):
        self.compiled.append((converted, settings))

        def run(inputs):
            with torch.no_grad():
                return [
                    self.model(**{k: torch.from_numpy(v) for k, v in inputs.items()})[0].numpy()
                ]

        return run

    def quantize(self, converted, dataset, *, model_type, subset_size):
        print("a progress bar")
        self.calibrated += dataset
        assert model_type == "transformer"
        assert subset_size == len(dataset)
        return f"{converted} in int8"

    def install(self, monkeypatch, *, nncf=True):
        stand_in(monkeypatch, "openvino", compile_model=self.compile_model, Core=lambda: self)
        monkeypatch.setattr(
            openvino_runtime.openvino_format, "convert", lambda model, names: "converted"
        )
        if nncf:
            kinds = type("ModelType", (), {"TRANSFORMER": "transformer"})
            stand_in(monkeypatch, "nncf", quantize=self.quantize, Dataset=list, ModelType=kinds)
        else:
            monkeypatch.setitem(sys.modules, "nncf", None)
            real = importlib.util.find_spec
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda name: None if name == "nncf" else real(name)
            )


def test_openvino_is_measured_in_three_precisions_on_the_given_threads(monkeypatch, capsys):
    model = sparse_model("bert", 0.9)
    openvino = OpenVinoStandIn(model)
    openvino.install(monkeypatch)
    engines, failures = rivals.build([OpenVino()], model, WORK, 3)
    assert not failures
    assert list(engines) == ["OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8 (nncf)"]
    assert set(apart(model, engines).values()) == {0.0}
    assert [made for made, _ in openvino.compiled] == [*["converted"] * 2, "converted in int8"]
    assert {settings["INFERENCE_NUM_THREADS"] for _, settings in openvino.compiled} == {3}
    hints = [settings.get("INFERENCE_PRECISION_HINT") for _, settings in openvino.compiled]
    assert hints == ["f32", "bf16", None]
    assert len(openvino.calibrated) == len(WORK)
    assert set(openvino.calibrated[0]) == {"input_ids", "attention_mask"}
    assert capsys.readouterr().out == ""


def test_openvino_without_nncf_is_measured_without_int8(monkeypatch):
    model = sparse_model("bert", 0.9)
    OpenVinoStandIn(model).install(monkeypatch, nncf=False)
    engines, (failure,) = rivals.build([OpenVino()], model, WORK, 1)
    assert list(engines) == ["OpenVINO fp32", "OpenVINO bf16"]
    assert "needs the package nncf; pip install nncf" in str(failure)


def test_openvino_that_is_installed_computes_what_the_model_does():
    pytest.importorskip("openvino")
    model = sparse_model("bert", 0.9)
    engines, _ = rivals.build([OpenVino()], model, WORK, 1)
    found = apart(model, engines)
    assert found["OpenVINO fp32"] < 1e-4
    assert all(value < 0.5 for value in found.values())


class Matrix:
    """Stand-in for SparseLab's matrix and product."""

    def __init__(self, weight):
        self.weight = weight

    @classmethod
    def from_dense(cls, weight, padding_ratio):
        assert padding_ratio == 0
        assert not weight.requires_grad
        return cls(weight.to_sparse_csr())

    @staticmethod
    def product(matrix, columns):
        assert columns.is_contiguous()
        return matrix.weight @ columns


def check_sparselab():
    model = sparse_model("roberta", 0.9)
    with torch.no_grad():
        dense = model.roberta.encoder.layer[0].output.dense
        dense.weight.normal_(std=0.02)
    engines, failures = rivals.build([SparseLab()], model, WORK, 1)
    assert not failures
    assert apart(model, engines)["SparseLab fp32"] < 1e-5
    made = engines["SparseLab fp32"].roberta.encoder.layer[0]
    assert type(made.output.dense) is torch.nn.Linear
    assert type(made.intermediate.dense).__name__ == "SparseLabLinear"
    assert made.output.dense.weight is dense.weight
    assert type(model.roberta.encoder.layer[0].intermediate.dense) is torch.nn.Linear


def test_sparselab_replaces_the_sparse_layers_of_a_copy(monkeypatch):
    stand_in(monkeypatch, "sparselab", PaddedCSR=Matrix, spmm=Matrix.product)
    check_sparselab()


def test_sparselab_that_is_installed_computes_what_the_model_does():
    pytest.importorskip("sparselab")
    check_sparselab()


def test_sparselab_is_left_out_where_no_layer_is_sparse(monkeypatch):
    stand_in(monkeypatch, "sparselab", PaddedCSR=Matrix, spmm=Matrix.product)
    engines, failures = rivals.build([SparseLab()], sparse_model("bert", 0.2), WORK, 1)
    assert (engines, failures) == ({}, [])


def test_a_reason_is_one_line():
    assert base.one_line(ConfigError("int8", expected="a\n b")).count("\n") == 0
    assert base.one_line(OSError()) == "OSError"
