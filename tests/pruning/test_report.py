import csv

import pytest
import torch
from torch import nn

from kd_prune.pruning.report import SparsityReport


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight[:, 0] = 0.0
        model[0].weight[:, 1] = -0.0
        model[1].bias[0] = 0.0
    return model


def test_report_counts(model):
    report = SparsityReport.count(model, ["0.weight", "1.weight"])
    assert [tensor.zeros for tensor in report.tensors] == [10, 0, 0, 1]
    assert report.sparsity == 10 / 30
    assert report.model_sparsity == 11 / 37
    assert report.parameters == 37
    assert report.nonzero == 26


def test_report_shared_parameters_count_once(model):
    model.append(model[1])
    assert SparsityReport.count(model, ["1.weight"]).parameters == 37


def test_report_buffers_do_not_count(model):
    model.register_buffer("zeros", torch.zeros(100))
    assert SparsityReport.count(model, []).model_sparsity == 11 / 37


def test_report_empty_scope_has_sparsity_0(model):
    assert SparsityReport.count(model, []).sparsity == 0.0


def test_report_empty_tensor_has_sparsity_0():
    model = nn.ParameterDict({"empty": nn.Parameter(torch.zeros(0, 3))})
    assert SparsityReport.count(model, ["empty"]).tensors[0].sparsity == 0.0


def test_report_unknown_name_in_scope_raises(model):
    with pytest.raises(ValueError, match=r"no parameter 'student.0.weight'"):
        SparsityReport.count(model, ["0.weight", "student.0.weight"])


def test_report_csv(model, tmp_path):
    SparsityReport.count(model, ["0.weight"]).write_csv(tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "name": "0.weight",
        "shape": "5x4",
        "in_scope": "True",
        "size": "20",
        "zeros": "10",
        "sparsity": "0.500000",
    }
    assert [row["name"] for row in rows] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_report_shows_the_model_without_its_moving_averages(model):
    both = nn.ModuleDict({"net": model})
    assert "averages" not in str(SparsityReport.count(both, ["net.0.weight"]))
    both["ema"] = torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(4, 5)))
    lines = str(SparsityReport.count(both, ["net.0.weight"])).splitlines()
    assert lines[-2:] == [
        "whole model        17.74 %",
        "without averages   29.73 %",
    ]  # 11 / 62, 11 / 37
