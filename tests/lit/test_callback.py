"""SparsityCallback: exact counts, on schedule, within the scope."""

from __future__ import annotations

import copy
import re

import lightning.pytorch as L
import pytest
import torch

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import (
    ERK,
    NM,
    BlockFisher,
    Movement,
    RigL,
    Schedule,
    Scope,
    cubic,
    ramp_updates,
)

from .toy import (
    ROWS,
    SCOPE,
    STEPS_PER_EPOCH,
    Toy,
    adamw,
    fit,
    make_module,
    make_trainer,
    sgd,
)

IN_SCOPE = ("student.encoder.0.weight", "student.encoder.3.weight")


class Watch(L.Callback):
    """Notes, after every batch, the step, the sparsity counted and whether pruned weights are 0."""

    def __init__(self, pruning: SparsityCallback) -> None:
        self.pruning = pruning
        self.counted: dict[int, float] = {}
        self.leaks: list[int] = []
        self.logged: dict[int, tuple[float, float]] = {}

    def on_train_batch_end(self, trainer, pl_module, *args):
        parameters = dict(pl_module.named_parameters())
        zeros = sum(int((parameters[name] == 0).sum()) for name in IN_SCOPE)
        step = trainer.global_step
        if step not in self.counted:
            self.counted[step] = zeros / sum(parameters[name].numel() for name in IN_SCOPE)
        for name, mask in self.pruning.pruner.masks.items():
            if parameters[name][~mask].any():
                self.leaks.append(step)
        values = trainer.callback_metrics
        if "sparsity/target" in values:
            self.logged[step] = tuple(float(values[f"sparsity/{k}"]) for k in ("target", "counted"))


def expected(plan: dict[int, float], total: int) -> dict[int, float]:
    """Sparsity after each step, from the plan and exact counts of the two matrices."""
    reached, trace = 0.0, {}
    for step in range(1, total + 1):
        reached = plan.get(step, reached)
        trace[step] = 2 * round(reached * 512) / 1024
    return trace


@pytest.mark.parametrize("optimizer", [adamw, sgd])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_sparsity_follows_the_update_schedule_in_optimizer_steps(tmp_path, optimizer, accumulate):
    pruning = SparsityCallback(0.9, scope=SCOPE, updates=5, begin=0.2, end=0.8)
    watch = Watch(pruning)
    module = make_module(optimizer=optimizer)
    trainer = make_trainer(
        tmp_path, pruning, watch, max_epochs=3, accumulate_grad_batches=accumulate
    )
    fit(trainer, module)

    total = 3 * -(-STEPS_PER_EPOCH // accumulate)
    assert trainer.global_step == total
    plan = ramp_updates(
        Schedule(final=0.9, begin=0.2, end=0.8, ramp=cubic), total_steps=total, updates=5
    )
    assert len(plan) >= 3
    watch.counted.pop(0, None)  # batches before the first optimizer step
    assert watch.counted == expected(plan, total)
    assert watch.leaks == []
    for step, sparsity in plan.items():
        assert watch.logged[step] == pytest.approx((sparsity, watch.counted[step]))
    assert pruning.pruned == 2 * round(0.9 * 512)


def test_pruned_weights_stay_zero_in_mixed_precision(tmp_path):
    pruning = SparsityCallback(0.5, scope=SCOPE, updates=2)
    watch = Watch(pruning)
    trainer = make_trainer(tmp_path, pruning, watch, max_epochs=1, precision="bf16-mixed")
    fit(trainer, make_module())
    assert watch.leaks == []
    assert watch.counted[STEPS_PER_EPOCH] == 0.5


def test_pruning_leaves_parameters_out_of_scope_unchanged(tmp_path):
    """With a learning rate of 0 only pruning changes anything."""
    teacher = Toy(seed=7)
    taught = copy.deepcopy(teacher.state_dict())
    module = make_module(teacher=teacher, optimizer=lambda m, n: sgd_at_rest(m))
    before = copy.deepcopy(module.student.state_dict())
    trainer = make_trainer(tmp_path, SparsityCallback(0.9, scope=SCOPE))
    fit(trainer, module)
    for name, tensor in module.student.state_dict().items():
        if f"student.{name}" in IN_SCOPE:
            kept = tensor != 0
            assert int(kept.sum()) == 512 - round(0.9 * 512)
            assert torch.equal(tensor[kept], before[name][kept])
        else:
            assert torch.equal(tensor, before[name]), name
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor.cpu(), taught[name]), name


def sgd_at_rest(model):
    optimizer, schedule = sgd(model, 1)
    schedule.lr_lambdas = [lambda step: 0.0]
    optimizer.param_groups[0]["lr"] = 0.0
    return optimizer, schedule


def test_one_callback_serves_two_fits(tmp_path):
    pruning = SparsityCallback(0.75, scope=SCOPE, updates=4)
    watches = []
    for epochs in (1, 2):
        watches.append(Watch(pruning))
        module = make_module(student=Toy(seed=epochs))
        fit(make_trainer(tmp_path, pruning, watches[-1], max_epochs=epochs), module)
        assert pruning.pruner.sparsity == 0.75
    first, second = (watch.counted for watch in watches)
    assert 0 < first[2] < 0.75
    assert 0 < second[STEPS_PER_EPOCH] < 0.75  # half-way on a ramp of its own
    assert second[2 * STEPS_PER_EPOCH] == 0.75


def test_a_plain_lightning_module_is_pruned(tmp_path):
    """Plug-in use: no DistillModule, manual optimization, two optimizer steps in five batches."""

    class Plain(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.layer = torch.nn.Linear(10, 10)

        def training_step(self, batch, index):
            self.manual_backward(self.layer(batch).square().mean())
            if index % 2:
                self.optimizers().step()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    pruning = SparsityCallback(0.9, scope=Scope(include=["layer.weight"]), end=0.4)
    module = Plain()
    data = torch.utils.data.DataLoader(torch.ones(5, 10), batch_size=1)
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module, data)
    assert int((module.layer.weight == 0).sum()) == 90
    assert module.layer.bias.count_nonzero() == 10


def test_without_a_scope_all_layers_but_the_head_are_pruned(tmp_path):
    pruning = SparsityCallback(0.5)
    fit(make_trainer(tmp_path, pruning), make_module())
    assert tuple(pruning.pruner.parameters) == IN_SCOPE


def test_a_ramp_without_a_step_is_refused_before_training(tmp_path):
    module = make_module()
    pruning = SparsityCallback(0.5, scope=SCOPE, begin=0.01, end=0.02)
    with pytest.raises(ValueError, match=r"begin=0\.01: .*end=0\.02.*train for more steps"):
        fit(make_trainer(tmp_path, pruning), module)
    assert module.student.calls == 0


def test_toy_has_the_sizes_that_the_counts_assume():
    assert -(-ROWS // 8) == STEPS_PER_EPOCH
    assert list(SCOPE.select(make_module())) == list(IN_SCOPE)
    assert all(p.numel() == 512 for p in SCOPE.select(make_module()).values())


def test_on_milestone_is_called_at_the_end_of_each_rest(tmp_path):
    """With the module as sparse as asked for, every process, once, also over a resume."""
    calls = []

    def note(module, sparsity):
        parameters = dict(module.named_parameters())
        zeros = [int((parameters[name] == 0).sum()) for name in IN_SCOPE]
        calls.append((module.global_step, sparsity, zeros))

    pruning = SparsityCallback(
        0.9,
        scope=SCOPE,
        updates=5,
        milestones=[0.25, 0.75],
        milestone_length=0.2,
        on_milestone=note,
    )
    fit(make_trainer(tmp_path, pruning, max_epochs=3), make_module())
    plan = pruning.pruner.update_schedule
    leaves = [min(s for s, value in plan.items() if value > at) for at in (0.25, 0.75)]
    assert calls == [(leaves[0], 0.25, [128, 128]), (leaves[1], 0.75, [384, 384])]


def test_update_schedule_without_a_milestone_is_refused(tmp_path):
    pruning = SparsityCallback(
        0.9, scope=SCOPE, milestones=[0.25], update_schedule=lambda *_, **__: {1: 0.1, 2: 0.9}
    )
    with pytest.raises(ValueError, match=r"milestones=\[0\.25\]: .* plans no update at 0\.25"):
        fit(make_trainer(tmp_path, pruning, max_epochs=1), make_module())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ramp": "cubic"}, "ramp='cubic': expected a function or an object, for example cubic"),
        ({"criterion": "movement"}, "criterion='movement': .* for example magnitude or Movement()"),
        ({"allocation": "erk"}, "allocation='erk': .* for example uniform or Global()"),
        ({"granularity": None}, "granularity=None: .* for example unstructured or NM()"),
        ({"update_schedule": "steady"}, "update_schedule='steady': .* for example ramp_updates"),
        ({"criterion": Movement}, "criterion=Movement: .* not its class; write Movement()"),
        ({"allocation": ERK}, "allocation=ERK: .* not its class; write ERK()"),
        ({"granularity": NM}, "granularity=NM: .* not its class; write NM()"),
        ({"regrow": RigL}, "regrow=RigL: expected True, False or RigL()"),
        ({"scope": ["enc.*"]}, "scope=[enc.*]: expected a Scope; write Scope(include=['enc.*'])"),
        ({"scope": "enc.*"}, "scope=enc.*: expected a Scope; write Scope(include=['enc.*'])"),
        ({"submodule": torch.nn.Linear(1, 1)}, "submodule=Linear(…): expected a name"),
        ({"name": 3}, "name=int(…): expected a name"),
        ({"final": "0.9"}, "final='0.9': expected a number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_argument_of_a_wrong_type_is_refused_by_the_constructor(options, says):
    pattern = ".*".join(map(re.escape, says.split(" .* "))).replace("'", "'?")
    with pytest.raises(TypeError, match=f"^{pattern}") as caught:
        SparsityCallback(**options)
    assert "\n" not in str(caught.value)


def test_a_way_to_regrow_that_the_criterion_cannot_use_is_refused_by_the_constructor():
    with pytest.raises(ValueError, match=r"^regrow=true: .*BlockFisher takes them for zeros"):
        SparsityCallback(criterion=BlockFisher(block=4), regrow=True)


def test_unknown_submodule_is_refused_before_training(tmp_path):
    module = make_module()
    trainer = make_trainer(tmp_path, SparsityCallback(0.5, submodule="studnet"))
    with pytest.raises(
        ValueError, match=r"submodule=studnet: DistillModule has no .* are student, objective"
    ):
        fit(trainer, module)
    assert module.student.calls == 0


def test_two_named_callbacks_prune_two_parts_and_resume(tmp_path):
    """Each to a sparsity of its own; a checkpoint holds both."""

    def callbacks():
        return [
            SparsityCallback(0.9, scope=Scope(include=["student.encoder.0.weight"]), updates=5),
            SparsityCallback(
                0.5, submodule="student", scope=Scope(include=["encoder.3.weight"]), name="second"
            ),
        ]

    def zeros(module):
        return [int((dict(module.named_parameters())[name] == 0).sum()) for name in IN_SCOPE]

    pair, whole = callbacks(), make_module()
    trainer = make_trainer(tmp_path, *pair, max_epochs=2)
    fit(trainer, whole)
    assert zeros(whole) == [round(0.9 * 512), 256]
    assert [callback.state_key for callback in pair] == [
        "SparsityCallback", "SparsityCallback[second]",
    ]  # fmt: skip
    counted = [f"sparsity/{of}counted" for of in ("", "second/")]
    assert [float(trainer.callback_metrics[k]) for k in counted] == pytest.approx([461 / 512, 0.5])
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    again, module = callbacks(), make_module()
    fit(
        make_trainer(tmp_path, *again, max_epochs=3), module,
        ckpt_path=tmp_path / "both.ckpt", weights_only=True,
    )  # fmt: skip
    assert zeros(module) == [round(0.9 * 512), 256]
    for one, other in zip(pair, again, strict=True):
        for name, mask in one.pruner.masks.items():
            assert torch.equal(mask, other.pruner.masks[name])
