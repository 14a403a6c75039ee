"""ReweightedL1: its proximal step and its λ, by hand and against numpy; resumption; refusals."""

from __future__ import annotations

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.lit import ReweightedL1, SparsityCallback
from kd_prune.lit.progress import RunLength
from kd_prune.lit.reweighted_l1 import soft_threshold_, strength_for
from kd_prune.pruning import Global, Scope, last_update, linear

from .toy import fit, make_module, make_trainer

WEIGHT = [0.1, -0.2, 0.4, 0.0]


def test_one_round_by_hand():
    """ε = 0.1: products 0.02, 0.06, 0.2, 0; 3 of 4 in 2 steps → λ = 0.06 / 2; α = 5, 3⅓, 2, 10."""
    sizes = {"w": torch.tensor(WEIGHT).abs()}
    strength = strength_for(sizes, 0.75, steps=2, epsilon=0.1)
    assert strength == pytest.approx(0.03)
    weight = torch.tensor(WEIGHT)
    threshold = strength / (sizes["w"] + 0.1)
    soft_threshold_(weight, threshold)
    assert weight.tolist() == pytest.approx([0.0, -0.1, 0.34, 0.0])
    soft_threshold_(weight, threshold)
    assert weight.tolist() == pytest.approx([0.0, 0.0, 0.28, 0.0], abs=1e-8)


def test_soft_threshold_is_the_proximal_operator():
    """Against a search for the minimum of ½ (x − u)² + t·|x|."""
    grid = np.linspace(-2, 2, 40001)
    for u, t in [(0.7, 0.2), (-0.7, 0.2), (0.1, 0.2), (-0.2, 0.2), (1.5, 0.0)]:
        found = torch.tensor([u])
        soft_threshold_(found, torch.tensor([t]))
        best = grid[np.argmin(0.5 * (grid - u) ** 2 + t * np.abs(grid))]
        assert float(found) == pytest.approx(best, abs=1e-4)


class Vector(L.LightningModule):
    """A vector that AdamW pulls to a goal; `rate` 0: no gradient moves it."""

    def __init__(self, rate=0.02, size=200):
        super().__init__()
        draw = np.random.default_rng(0)
        self.start = draw.normal(size=(1, size)).astype(np.float32)
        self.goal = draw.normal(size=(1, size)).astype(np.float32)
        self.rate = rate
        self.w = nn.Parameter(torch.tensor(self.start))
        self.after = []

    def training_step(self, batch, index):
        return 0.5 * (self.w - torch.tensor(self.goal, device=self.w.device)).square().sum()

    def on_train_batch_start(self, *args):
        self.after.append(self.w.detach().cpu().numpy().copy())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.1)


def ramp(final=0.8, end=0.8, **settings):
    return SparsityCallback(
        final,
        scope=Scope(include=["w"]),
        end=end,
        allocation=Global(),
        update_schedule=last_update,
        ramp=linear,
        verbose=False,
        **settings,
    )


def fit_vector(tmp_path, module, *callbacks, steps=50):
    rows = torch.utils.data.DataLoader(torch.zeros(steps, 1), batch_size=1)
    make_trainer(tmp_path, *callbacks, max_epochs=1).fit(module, rows)
    module.on_train_batch_start()
    return module.after


def reference(start, goal, rate, *, steps, end, final, rounds, epsilon):
    """AdamW, the proximal step and the masks in float64, written anew; weights after every step."""
    w, m, v = start.astype(np.float64), 0.0, 0.0
    last, after, mask = round(end * steps) - 1, [], np.ones(start.shape, bool)
    ends = [last * k // rounds for k in range(1, rounds + 1)]
    for step in range(1, steps + 1):
        g = w - goal
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w * (1 - rate * 0.1)
        w = w - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        w = w * mask
        if step <= last:
            if step == 1 or step - 1 in ends:
                k = 1 if step == 1 else ends.index(step - 1) + 2
                size = np.abs(w)
                count = round(final * k / rounds * w.size)
                quantile = np.sort((size * (size + epsilon)).ravel())[count - 1]
                strength = quantile / (ends[k - 1] - step + 1)
            w = np.sign(w) * np.maximum(np.abs(w) - strength / (size + epsilon), 0)
        if step == last + 1:
            mask.ravel()[np.argsort(np.abs(w).ravel(), kind="stable")[: round(final * w.size)]] = 0
            w = w * mask
        after.append(w.copy())
    return after


def test_fit_is_that_of_a_plain_implementation(tmp_path):
    module = Vector()
    settings = {"rounds": 5, "epsilon": 0.05}
    callback = ReweightedL1(**settings)
    found = fit_vector(tmp_path, module, ramp(), callback)
    expected = reference(module.start, module.goal, 0.02, steps=50, end=0.8, final=0.8, **settings)
    for step, (ours, theirs) in enumerate(zip(found[1:], expected, strict=True), start=1):
        np.testing.assert_allclose(ours, theirs, atol=2e-4, err_msg=f"step {step}")
    assert (found[-1] == 0).mean() == 0.8
    by_steps = (expected[38] == 0).mean()  # before the masks complete them
    assert callback.state_dict()["zeros"] == pytest.approx(by_steps, abs=0.011)
    assert by_steps == pytest.approx(0.8, abs=0.05)


def test_rounds_follow_the_ramp_where_no_gradient_moves_the_weights(tmp_path):
    found = fit_vector(tmp_path, Vector(rate=1e-12), ramp(), ReweightedL1(4, epsilon=0.01))
    for k, step in enumerate([9, 19, 29, 39], start=1):
        assert (found[step] == 0).mean() == pytest.approx(0.2 * k, abs=0.011)
    assert (found[40] == 0).mean() == 0.8
    np.testing.assert_array_equal(found[-1], found[40])  # fixed masks, and no step any more


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_resumed_fit_is_the_same(tmp_path):
    def callbacks():
        sparsity = SparsityCallback(
            0.8,
            scope=Scope(include=["student.encoder.*.weight"]),
            allocation=Global(),
            update_schedule=last_update,
            end=0.9,
            verbose=False,
        )
        return sparsity, ReweightedL1(3)

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = make_module()
    fit(make_trainer(tmp_path, *callbacks(), keep, max_epochs=3), whole)
    for epoch in range(2):
        module = make_module()
        trainer = make_trainer(tmp_path, *callbacks(), max_epochs=3)
        fit(trainer, module, ckpt_path=tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        for name, weight in whole.student.state_dict().items():
            assert torch.equal(weight, module.student.state_dict()[name]), (epoch, name)


def test_accumulated_gradients_make_one_step(tmp_path):
    """Of every second batch; the vector is then the same as after half the batches."""
    found = []
    for accumulate in (1, 2):
        module, steps = Vector(), 50 * accumulate
        rows = torch.utils.data.DataLoader(torch.zeros(steps, 1), batch_size=1)
        trainer = make_trainer(
            tmp_path,
            ramp(),
            ReweightedL1(5, epsilon=0.05),
            max_epochs=1,
            accumulate_grad_batches=accumulate,
        )
        trainer.fit(module, rows)
        found.append(module.w.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_ramp_of_few_steps_has_a_round_per_step(tmp_path, steps):
    found = fit_vector(
        tmp_path, Vector(rate=1e-12), ramp(end=1.0), ReweightedL1(40, epsilon=0.01), steps=steps
    )
    for step in range(1, steps):
        expected = 0.8 * step / (steps - 1)
        assert (found[step] == 0).mean() == pytest.approx(expected, abs=0.011)
    assert (found[-1] == 0).mean() == 0.8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rounds": 0}, "rounds=0: at least 1 round"),
        ({"epsilon": 0.0}, "epsilon=0.0: a number > 0"),
    ],
)
def test_impossible_settings_are_refused(arguments, says):
    with pytest.raises(ConfigError) as error:
        ReweightedL1(**arguments)
    assert says.split(": ")[1] in str(error.value)


@pytest.mark.filterwarnings("ignore:no weight in scope is zero")
@pytest.mark.parametrize(
    ("callbacks", "says"),
    [
        (lambda: [ReweightedL1()], "name=null: no SparsityCallback of this name comes before"),
        (lambda: [ReweightedL1(2), ramp()], "name=null: no SparsityCallback of this name comes"),
        (lambda: [ramp(), ReweightedL1(name="a")], "name=a: no SparsityCallback of this name"),
        (lambda: [ramp(None), ReweightedL1()], "name=null: its SparsityCallback has no ramp"),
        (
            lambda: [SparsityCallback(0.5, scope=Scope(include=["w"])), ReweightedL1()],
            "name=null: its SparsityCallback prunes on the ramp itself, first at step 1",
        ),
    ],
)
def test_fit_without_a_ramp_is_refused(tmp_path, callbacks, says):
    with pytest.raises(ConfigError) as error:
        fit_vector(tmp_path, Vector(), *callbacks())
    assert str(error.value).startswith(says)


def test_fit_without_a_ramp_is_refused_before_it():
    callback = ReweightedL1(name="a")
    length = RunLength(steps=10)
    callback.check_sparsity(ramp(name="a"), length)
    for sparsity, says in (
        (None, "no SparsityCallback of this name"),
        (ramp(), "no SparsityCallback of this name"),
        (ramp(None, name="a"), "has no ramp"),
        (SparsityCallback(0.5, name="a"), "prunes on the ramp itself, first at step 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            callback.check_sparsity(sparsity, length)


def test_second_fit_with_the_same_callbacks_is_as_the_first(tmp_path):
    """The step that the earlier fit reached must not begin a late round before the first step."""

    def fitted(*callbacks):
        module = Vector()
        rows = torch.utils.data.DataLoader(torch.zeros(100, 1), batch_size=1)
        make_trainer(tmp_path, *callbacks, max_epochs=1, accumulate_grad_batches=2).fit(
            module, rows
        )
        return module.w.detach()

    used = ramp(), ReweightedL1(4)
    fit_vector(tmp_path, Vector(), *used, steps=20)
    assert torch.equal(fitted(*used), fitted(ramp(), ReweightedL1(4)))
