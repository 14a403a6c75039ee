"""LayerReplacement (BERT-of-Theseus): what runs in a step, what trains, how often, refusals."""

from __future__ import annotations

import copy

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.lit import LayerReplacement, ResumePoint


class Add(nn.Module):
    """Adds a number, and in training mode what it is told to."""

    def __init__(self, value, noise=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([float(value)]))
        self.noise = noise

    def forward(self, hidden, scale=1.0):
        return hidden + scale * self.value + (self.noise if self.training else 0.0)


class Chain(nn.Module):
    def __init__(self, *values, noise=0.0):
        super().__init__()
        self.layers = nn.ModuleList([Add(value, noise) for value in values])

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden, scale=1.0)
        return hidden


class Module(L.LightningModule):
    """Learns the sum of its student's layers; keeps every output."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student = student
        self.teacher_of = [teacher]  # no child of the module
        self.outputs, self.validated = [], []

    @property
    def teacher(self):
        return self.teacher_of[0]

    def training_step(self, batch, batch_idx):
        output = self.student(batch)
        self.outputs.append(output.detach().sum().item())
        return output.square().sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.student(batch).sum().item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=self.lr)

    lr = 0.0


def fit(callback, student, teacher, *, steps=8, lr=0.0, epochs=1, ckpt=None, **settings):
    module = Module(student, teacher)
    module.lr = lr
    rows = torch.zeros(steps, 1)
    trainer = L.Trainer(
        **{
            "max_epochs": epochs,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        | settings
        | {"callbacks": [callback, *settings.get("callbacks", ())]}
    )
    loaders = [torch.utils.data.DataLoader(rows, num_workers=0) for _ in range(2)]
    trainer.fit(module, *loaders, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module, trainer


quiet = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*litlogger.*", "ignore:.*tips.*"
)
pytestmark = [quiet, pytest.mark.filterwarnings("ignore:The number of training batches")]


def test_probability_is_its_formula():
    """``min(1, k t + b)`` with ``k = (1 - b) / (end · steps)``."""
    callback = LayerReplacement(initial=0.3, end=0.5)
    for step in range(101):
        k = (1 - 0.3) / (0.5 * 100)
        assert callback.probability(step, 100) == pytest.approx(min(1.0, k * step + 0.3))
    assert LayerReplacement(initial=1.0, end=0.0).probability(0, 100) == 1.0
    assert LayerReplacement(initial=0.0, end=0.0).probability(0, 100) == 1.0


def test_step_by_hand():
    """Predecessors 1, 10, 100, 1000 for successors 2 and 3: every sum, by who takes part."""
    callback = LayerReplacement(initial=0.5, end=1.0, seed=1)
    student, teacher = Chain(2, 3), Chain(1, 10, 100, 1000)
    taken = []

    class Keep(L.Callback):
        def on_train_batch_end(self, *args):
            taken.append(tuple(callback._takes_part))

    module, _ = fit(callback, student, teacher, steps=32, callbacks=[Keep()])
    sums = {(True, True): 5, (True, False): 1102, (False, True): 14, (False, False): 1111}
    assert module.outputs == [sums[parts] for parts in taken]
    assert set(taken) == set(sums)
    assert set(module.validated) == {5}


def test_teacher_that_the_module_holds_before_its_student_is_left_alone():
    class TeacherFirst(Module):
        def __init__(self, student, teacher):
            super().__init__(student, teacher)
            self.held = teacher
            self._modules["student"] = self._modules.pop("student")  # now after the teacher

    callback = LayerReplacement(initial=0.0, end=1.0)
    student, teacher = Chain(2, 3), Chain(1, 10)
    module = TeacherFirst(student, teacher)
    theirs, ours = callback._find_layers(teacher, module)
    assert theirs is teacher.layers
    assert ours is student.layers


def test_layers_take_part_as_often_as_their_probability_says():
    callback = LayerReplacement(initial=0.2, end=1.0)
    student, teacher = Chain(*[0] * 20), Chain(*[1] * 20)
    module, _ = fit(callback, student, teacher, steps=200)
    shares = 1 - np.array(module.outputs) / 20
    halves = shares[:100].mean(), shares[100:].mean()
    assert halves == pytest.approx((0.4, 0.8), abs=0.03)


@pytest.mark.parametrize(("begin", "expected"), [(1.0, 5), (0.0, 1111)])
def test_probability_one_is_the_successor_and_zero_the_predecessor(begin, expected):
    callback = LayerReplacement(initial=begin, end=1.0)
    module, _ = fit(callback, Chain(2, 3), Chain(1, 10, 100, 1000), steps=1)
    assert module.outputs == [expected]


def test_only_successors_that_take_part_learn_and_the_predecessor_never():
    student, teacher = Chain(2.0, 3.0), Chain(1.0, 10.0)
    before = copy.deepcopy(teacher.state_dict())
    gradients = []

    class Keep(L.Callback):
        def on_before_optimizer_step(self, *args):
            gradients.extend(layer.value.grad.item() for layer in student.layers)

    none = LayerReplacement(initial=0.0, end=1.0)
    fit(none, student, teacher, steps=1, lr=0.1, callbacks=[Keep()])
    assert gradients == [0.0, 0.0]  # not None: DDP waits for every gradient
    assert [layer.value.item() for layer in student.layers] == [2.0, 3.0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    fit(LayerReplacement(initial=1.0, end=1.0), student, teacher, steps=1, lr=0.1)
    # d/dv of (2 + 3)² is 10
    assert [layer.value.item() for layer in student.layers] == pytest.approx([1.0, 2.0])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_gradient_reaches_a_successor_through_a_predecessor():
    callback = LayerReplacement(initial=0.5, end=1.0)
    student, teacher = Chain(1.0, 1.0), Chain(1.0, 1.0)

    class First(L.Callback):
        def on_train_batch_start(self, *args):
            callback._takes_part[:] = [True, False]

    fit(callback, student, teacher, steps=1, lr=0.1, callbacks=[First()])
    assert [layer.value.item() for layer in student.layers] == pytest.approx([0.6, 1.0])


def test_predecessor_runs_in_training_mode_and_the_teacher_stays_in_its_own():
    teacher = Chain(1, 1, noise=100).eval()
    module, _ = fit(LayerReplacement(initial=0.0, end=1.0), Chain(0, 0), teacher, steps=1)
    assert module.outputs == [202]
    assert not any(part.training for part in teacher.modules())


def test_module_is_as_before_after_the_fit():
    student = Chain(2, 3)
    names = set(student.state_dict())
    fit(LayerReplacement(), student, Chain(1, 10, 100), steps=2)
    assert set(student.state_dict()) == names
    assert all("forward" not in vars(layer) for layer in student.layers)
    assert student.train()(torch.zeros(1)).item() == 5


def test_layers_are_divided_as_evenly_as_possible():
    """Three predecessors for two successors: two for the first, one for the second."""
    callback = LayerReplacement(initial=0.5, end=1.0)

    class First(L.Callback):
        def on_train_batch_start(self, *args):
            callback._takes_part[:] = [False, True]

    module, _ = fit(callback, Chain(0, 0), Chain(1, 10, 100), steps=1, callbacks=[First()])
    assert module.outputs == [11]


class Stop(L.Callback):
    """Ends the fit after its first epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_resumed_fit_draws_as_an_uninterrupted_one(tmp_path):
    def run(name, *further, ckpt=None):
        (tmp_path / name).mkdir(exist_ok=True)
        resume_point = ResumePoint(tmp_path / name / "last.ckpt")
        module, _ = fit(
            LayerReplacement(initial=0.3, end=0.9),
            Chain(2.0, 3.0),
            Chain(1.0, 10.0),
            lr=0.01,
            epochs=2,
            ckpt=ckpt,
            enable_checkpointing=True,
            callbacks=[resume_point, *further],
        )
        return module.outputs

    everything = run("whole")
    first = run("parts", Stop())
    second = run("parts", ckpt=str(tmp_path / "parts" / "last.ckpt"))
    assert len(first) == len(second) == 8
    assert first + second == everything


@pytest.mark.parametrize(
    ("settings", "student", "teacher", "says"),
    [
        ({}, Chain(1), None, "predecessor=null: no finished model is given"),
        ({}, Chain(1, 2), Chain(1), "predecessor: it has 1 layers, the module 2"),
        ({"layers": "blocks"}, Chain(1), Chain(1), "layers=blocks: module and .* in common"),
        ({}, nn.Linear(1, 1), Chain(1), "layers=null: module and .* in common"),
    ],
)
def test_replacement_that_cannot_work_is_refused(settings, student, teacher, says):
    with pytest.raises(ConfigError, match=says):
        fit(LayerReplacement(**settings), student, teacher)


def test_parts_of_layers_in_several_lists_are_refused():
    """XLM has attentions, norms and feed-forward blocks in a list each."""

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.attentions = nn.ModuleList([Add(1), Add(2)])
            self.blocks = nn.ModuleList([Add(1), Add(2)])

    with pytest.raises(ConfigError, match="layers=null: module and predecessor have no list"):
        LayerReplacement().check_models(Parallel(), Parallel())


@pytest.mark.parametrize("settings", [{"initial": 1.5}, {"end": -0.1}])
def test_fractions_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}="):
        LayerReplacement(**settings)


def test_predecessor_may_be_given():
    callback = LayerReplacement(initial=0.0, end=1.0, predecessor=Chain(7, 8), layers="layers")
    module, _ = fit(callback, Chain(0, 0), None, steps=1)
    assert module.outputs == [15]


def test_run_too_short_for_all_layers_is_warned_of():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(4, 1))

    trainer = L.Trainer(
        max_steps=100,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LayerReplacement(initial=0.3, end=0.5)],
    )
    module = Module(Chain(2, 3), Chain(1, 10, 100, 1000))
    loaders = [torch.utils.data.DataLoader(Stream(), batch_size=None) for _ in range(2)]
    with pytest.warns(UserWarning, match="ended after 4 of the 100 .* before all layers took part"):
        trainer.fit(module, *loaders)


@pytest.mark.filterwarnings("ignore:Found 4 module")
def test_layers_in_eval_mode_are_replaced_too_by_layers_in_that_mode():
    """As Hugging Face models are loaded; Lightning leaves the mode as it is."""
    student, teacher = Chain(2, 3, noise=0.5).eval(), Chain(1, 10, noise=0.5)
    module, _ = fit(LayerReplacement(initial=0.0, end=1.0), student, teacher, steps=8)
    assert module.outputs[0] == 11
    assert set(module.validated) == {5}
