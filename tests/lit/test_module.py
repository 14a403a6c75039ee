"""DistillModule: its teacher is no part of it, and a diverged run saves nothing."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torchmetrics import MetricCollection

from kd_prune.distillation import HardLabels, SoftTargets
from kd_prune.errors import ConfigError
from kd_prune.lit import NonFiniteError, ResumePoint

from .toy import (
    STEPS_PER_EPOCH,
    WIDTH,
    Toy,
    adamw,
    collate,
    fit,
    forward,
    make_module,
    make_trainer,
    rows,
    train_loader,
    validation_loader,
)


def test_teacher_is_no_part_of_the_module(tmp_path):
    teacher = Toy(seed=7, dropout=0.5)
    module = make_module(teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    trainer = make_trainer(tmp_path, ResumePoint(tmp_path / "last.ckpt"), max_epochs=1)
    fit(trainer, module)

    assert not any(child is teacher for child in module.modules())
    ours = {id(p) for p in teacher.parameters()}
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert ours.isdisjoint(id(p) for p in module.parameters())
    assert ours.isdisjoint(optimized)
    assert optimized == {id(p) for p in module.student.parameters()}
    assert all(name.startswith("student.") for name in module.state_dict())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == module.state_dict().keys()
    assert teacher.calls == STEPS_PER_EPOCH
    assert all(
        torch.equal(tensor.cpu(), before[name]) for name, tensor in teacher.state_dict().items()
    )


def test_teacher_is_in_eval_mode_without_gradient(tmp_path):
    teacher = Toy(seed=7, dropout=0.5).train()
    module = make_module(teacher=teacher)
    fit(make_trainer(tmp_path, max_epochs=1), module)
    module.train()
    assert module.student.training
    assert not any(child.training for child in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    "terms",
    [
        {"hard_labels": HardLabels()},
        {"hard_labels": HardLabels(), "soft_targets": SoftTargets(weight=0.0)},
    ],
)
def test_teacher_that_no_term_reads_is_not_run(tmp_path, terms):
    teacher = Toy(seed=7)
    fit(make_trainer(tmp_path, max_epochs=1), make_module(teacher=teacher, terms=terms))
    assert teacher.calls == 0


def test_module_can_be_pickled_with_its_teacher():
    module = pickle.loads(pickle.dumps(make_module()))  # noqa: S301 (of our own making)
    assert torch.equal(module._teacher.model.head.weight, Toy(seed=7).head.weight)


def test_deepcopy_of_the_module_shares_the_teacher():
    teacher = Toy(seed=7)
    module = make_module(teacher=teacher)
    averaged = copy.deepcopy(module)
    assert averaged._teacher.model is teacher
    assert averaged.student is not module.student


def test_a_missing_teacher_is_refused():
    module = make_module()
    with pytest.raises(ValueError, match="learns from a teacher, and none was given"):
        type(module)(
            Toy(),
            objective=module.objective,
            forward=module._forward,
            optimizer=module._optimizer,
            metrics=module.metrics[0],
        )


@dataclass(frozen=True, kw_only=True)
class BreaksAt:
    """A term that is NaN at its n-th call."""

    calls: list[int]
    at: int
    weight: float = 1.0
    requires = frozenset({"logits"})
    needs_teacher = False

    def __call__(self, student, teacher, batch):
        self.calls.append(1)
        loss = student.logits.square().mean()
        return loss * float("nan") if len(self.calls) == self.at else loss


def test_nan_loss_names_step_and_term_and_leaves_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    breaks = BreaksAt(calls=[], at=STEPS_PER_EPOCH + 3)
    module = make_module(terms={"hard_labels": HardLabels(), "fragile": breaks})
    trainer = make_trainer(tmp_path, ResumePoint(path), max_epochs=3)
    with pytest.raises(
        NonFiniteError, match=rf"at step {STEPS_PER_EPOCH + 3} \(fragile=nan\); try a lower"
    ):
        fit(trainer, module)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == STEPS_PER_EPOCH
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())

    again = make_module(terms={"hard_labels": HardLabels()})
    trainer = make_trainer(tmp_path, ResumePoint(path), max_epochs=2)
    fit(trainer, again, ckpt_path=path)
    assert trainer.global_step == 2 * STEPS_PER_EPOCH


def test_nan_weights_are_not_saved(tmp_path):
    """The loss of the epoch's last batch was still finite, the step after it broke a weight."""

    class Poison(torch.nn.Module):
        """Never read in training: only saving can notice."""

        def __init__(self):
            super().__init__()
            self.never_read = torch.nn.Parameter(torch.zeros(WIDTH))

    path = tmp_path / "last.ckpt"
    module = make_module()
    module.student.extra = Poison()
    point = ResumePoint(path)
    fit(make_trainer(tmp_path, point, max_epochs=1), module)
    good = path.read_bytes()
    with torch.no_grad():
        module.student.extra.never_read[3] = float("inf")
    with pytest.raises(NonFiniteError, match=r"extra\.never_read is not finite at step 7"):
        fit(make_trainer(tmp_path, point, max_epochs=1), module)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_teacher_runs_in_the_trainers_precision(tmp_path, precision):
    teacher = Toy(seed=7)
    module = make_module(teacher=teacher)
    fit(make_trainer(tmp_path, max_epochs=1, precision=precision), module)
    kinds = {parameter.dtype for parameter in (*teacher.parameters(), *module.parameters())}
    assert kinds == {torch.bfloat16 if precision == "bf16-true" else torch.float64}


def test_a_schedule_without_a_number_of_steps_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=None, max_time={"minutes": 1})
    with pytest.raises(
        ValueError, match=r"max_steps=-1: optimizer.model, total_steps. needs the number"
    ):
        fit(trainer, make_module())


def test_every_validation_loader_needs_a_name(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"^validation: 1 names for 2 validation loaders"):
        trainer.fit(make_module(), train_loader(), [validation_loader(), validation_loader()])
    trainer = make_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=1)
    fit(trainer, module := make_module())
    with pytest.raises(ValueError, match=r"^validation: 1 names for 2 validation loaders"):
        trainer.validate(module, [validation_loader(), validation_loader()])


def without_labels(loader):
    """The same batches without labels, and with something in front that is no tensor."""
    inner = loader.collate_fn
    loader.collate_fn = lambda rows: {
        "texts": ["…"] * len(rows),
        **{key: value for key, value in inner(rows).items() if key != "labels"},
    }
    return loader


def test_module_without_labels_and_metrics_learns_and_logs_its_validation_loss(tmp_path):
    module = make_module(
        terms={"soft_targets": SoftTargets(weight=0.5)},
        metrics=MetricCollection({}),
        validation_loss=True,
    )
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, without_labels(train_loader()), without_labels(validation_loader()))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(logged) == {"train/loss", "train/soft_targets", "val/loss", "val/loss/soft_targets"}
    assert logged["val/loss"] == pytest.approx(0.5 * logged["val/loss/soft_targets"])


def test_module_without_metrics_and_validation_loss_validates_nothing(tmp_path):
    module = make_module(terms={"hard_labels": HardLabels()}, metrics=MetricCollection({}))
    trainer = make_trainer(tmp_path)
    assert trainer.validate(module, validation_loader(), verbose=False) == [{}]
    assert module.student.calls == 0


def test_validation_loss_is_the_objective_over_all_rows(tmp_path):
    """Batches of 8 and 5 rows, two loaders, before any fit: the teacher is in eval mode there."""
    teacher, student = Toy(seed=7, dropout=0.5).train(), Toy()
    terms = {"soft_targets": SoftTargets(), "hard_labels": HardLabels(weight=2.0)}
    module = make_module(
        student=student,
        teacher=teacher,
        terms=terms,
        validation=("validation", "other"),
        validation_loss=True,
    )
    data = [rows()[:13], rows()[13:21]]
    loaders = [torch.utils.data.DataLoader(part, batch_size=8, collate_fn=collate) for part in data]
    trainer = make_trainer(tmp_path)
    trainer.validate(module, loaders, verbose=False)
    assert not teacher.training
    logged = trainer.callback_metrics
    for part, prefix in zip(data, ("val/", "val/other/"), strict=True):
        batch = {key: value.to(module.device) for key, value in collate(part).items()}
        with torch.no_grad():
            pair = (forward(model.eval(), batch, frozenset()) for model in (student, teacher))
            total, losses = module.objective(*pair, batch)
        assert float(logged[f"{prefix}loss"]) == pytest.approx(float(total), rel=1e-5)
        for name, loss in losses.items():
            assert float(logged[f"{prefix}loss/{name}"]) == pytest.approx(float(loss), rel=1e-5)
        assert f"{prefix}accuracy" in logged


def test_predictions_can_be_of_another_kind(tmp_path):
    def wrong(activations, batch):
        return (activations.logits.argmax(-1) + 1) % 3, activations.logits.argmax(-1)

    trainer = make_trainer(tmp_path)
    (logged,) = trainer.validate(make_module(predict=wrong), validation_loader(), verbose=False)
    assert logged == {"val/accuracy": 0.0}


def test_student_that_shares_trained_parameters_with_its_teacher_is_refused():
    teacher, student = Toy(seed=7), Toy()
    student.embeddings, student.head = teacher.embeddings, teacher.head
    with pytest.raises(ConfigError, match=r"teacher=Toy: shares embeddings\.weight and 2 more"):
        make_module(student=student, teacher=teacher)
    teacher.requires_grad_(False)
    assert make_module(student=student, teacher=teacher).teacher is teacher


def test_metrics_and_schedule_may_be_left_out(tmp_path):
    def only(model, total_steps):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    module = make_module(optimizer=only, metrics=None, validation_loss=True)
    before = module.student.head.weight.detach().clone()
    trainer = make_trainer(tmp_path, max_epochs=1)
    fit(trainer, module)
    assert not torch.equal(module.student.head.weight.cpu(), before)
    assert trainer.callback_metrics.keys() >= {"val/loss", "val/loss/soft_targets"}


def test_schedule_has_the_length_of_a_run_with_scheduled_accumulation(tmp_path):
    given = []

    def noting(model, total_steps):
        given.append(total_steps)
        return adamw(model, total_steps)

    module = make_module(optimizer=noting)
    trainer = make_trainer(tmp_path, GradientAccumulationScheduler({0: 1, 1: 4}), max_epochs=3)
    fit(trainer, module)
    assert given == [trainer.global_step] == [7 + 2 + 2]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"forward": lambda m, b, r: m(b["input_ids"])}, "forward=Tensor: returned no Activations"),
        ({"collate": lambda rows: tuple(collate(rows).values())}, "batch=tuple: expected a map"),
        ({"collate": lambda rows: {k: v for k, v in collate(rows).items() if k != "labels"}},
         "labels: the batch has no such key; it has input_ids, attention_mask; add the targets"),
    ],
    ids=["forward", "batch", "labels"],
)  # fmt: skip
def test_what_a_user_forgot_is_said(tmp_path, settings, says):
    collated = settings.pop("collate", collate)
    loader = torch.utils.data.DataLoader(rows(), batch_size=8, collate_fn=collated)
    module = make_module(**settings)
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path, max_epochs=1).fit(module, loader, validation_loader())
