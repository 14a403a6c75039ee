"""The study's own terms, callbacks and optimizer do what they are compared as."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kd_prune.distillation import Activations
from kd_prune.pruning import Schedule

from .conftest import FOLDER


@pytest.fixture
def levers(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import levers

    return levers


def test_the_divergence_of_attention_is_a_mean_over_heads_and_real_queries(levers):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 4).unbind()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).repeat(2, 1)[:2]
    student, teacher = student[:2], teacher[:2]
    batch = {"attention_mask": mask}
    found = levers.attention_divergence(
        Activations(attention_scores=(student, student)),
        Activations(attention_scores=(teacher, student)),
        batch,
    )
    total, count = 0.0, 0
    for row, length in enumerate((4, 2)):
        for head in range(3):
            for query in range(length):
                s, t = (
                    np.exp(x[row, head, query, :length].numpy().astype(float))
                    for x in (student, teacher)
                )
                p, q = t / t.sum(), s / s.sum()
                total, count = total + (p * np.log(p / q)).sum(), count + 1
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_repair_reaches_the_least_squares_on_the_kept_weights(levers):
    torch.manual_seed(0)
    inputs = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    dense = torch.randn(4, 6, dtype=torch.float64)
    mask = torch.rand(4, 6) > 0.4
    mask[3] = False
    weight = dense * mask
    levers.repair(weight, mask, dense, inputs, steps=30, damping=0.0)
    for row in range(4):
        kept = mask[row].numpy()
        wanted = (inputs @ dense[row]).numpy()
        expected = np.zeros(6)
        if kept.any():
            expected[kept] = np.linalg.lstsq(inputs.numpy()[:, kept], wanted, rcond=None)[0]
        np.testing.assert_allclose(weight[row].numpy(), expected, atol=1e-6)


def test_sharpness_aware_steps_take_the_gradient_uphill(levers):
    """Of w⁴, at w + ρ sign(w), a first step of AdamW without decay; a zero stays as it is there."""
    weight = nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = levers.SharpnessAware([weight], lr=0.1, weight_decay=0.0, fused=True)
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = (weight**4 + weight).sum()
        loss.backward()
        seen.append(weight.detach().clone())
        return loss

    optimizer.step(closure)
    assert torch.allclose(torch.stack(seen), torch.tensor([[1.0, 0.0], [1.05, 0.0]]))
    assert torch.allclose(weight.grad, torch.tensor([4 * 1.05**3 + 1, 1.0]))
    assert torch.allclose(weight, torch.tensor([0.9, -0.1]), atol=1e-6)


def test_admm_pulls_weights_to_the_ramps_sparsity(levers):
    """Without a loss, the smaller weights end near zero and most larger ones where they were."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(10, 10))
    before = weight.detach().clone()
    pruner = SimpleNamespace(
        schedule=Schedule(final=0.8, end=0.5), total_steps=400, parameters={"w": weight}
    )
    sparsity = object.__new__(levers.SparsityCallback)
    sparsity.pruner = pruner
    admm = levers.ADMM()
    optimizer = SimpleNamespace(param_groups=[{"lr": 2e-3}])
    for step in range(1, 401):
        trainer = SimpleNamespace(
            callbacks=[sparsity, admm], global_step=step, optimizers=[optimizer]
        )
        admm.on_train_batch_end(trainer, None)
    largest = before.abs() >= before.abs().flatten().topk(20).values[-1]
    assert weight[~largest].norm() < 0.2 * before[~largest].norm()
    assert (weight[largest] - before[largest]).abs().median() < 1e-3


@pytest.mark.slow
def test_rows_with_code_of_their_own(bench, data, model, tmp_path):
    rows = ("admm", "taylor_repair_20_updates", "taylor_attention_divergence",
            "taylor_fading_layers", "taylor_sharpness_aware")  # fmt: skip
    given = ["--data", data, "--model", model, "--work", tmp_path / "jobs", "--tasks", "mrpc"]
    given += ["--precision", "32-true", "--seeds", 1, "--rows", *rows]
    results = bench("study", *given) / "study"
    found = [json.loads(file.read_text()) for file in results.glob("*.json")]
    assert {run["row"] for run in found} == set(rows)
    assert all(run["sparsity"] == pytest.approx(0.95, abs=2e-3) for run in found)
