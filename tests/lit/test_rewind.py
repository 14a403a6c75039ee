"""RewindCallback: kept weights are restored, zeros stay, a resumed run does the same."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from kd_prune.lit import RewindCallback, SparsityCallback

from .networks import UserModule, make_trainer, mlp


class Watch(L.Callback):
    """The parameters after every step, and the optimizer's memory."""

    def __init__(self):
        self.after, self.memory = {}, {}

    def on_train_batch_end(self, trainer, module, *args):
        step = trainer.global_step
        self.after[step] = {n: p.detach().clone() for n, p in module.named_parameters()}
        self.memory[step] = len(trainer.optimizers[0].state)


def fit(tmp_path, *callbacks, **settings):
    torch.manual_seed(0)
    module = UserModule(mlp(), (8,))
    make_trainer(tmp_path, *callbacks, **settings).fit(module, module.batches())
    return module


@pytest.mark.parametrize("to", [0.0, 0.25])
def test_rewind_restores_kept_weights_and_keeps_zeros(tmp_path, to):
    watch = Watch()
    rewind = RewindCallback([0.5], to=to, exclude=["network.3.*"])
    torch.manual_seed(0)
    start = {n: p.detach().clone() for n, p in UserModule(mlp(), (8,)).named_parameters()}
    fit(tmp_path, SparsityCallback(0.9, end=0.5), rewind, watch)
    earlier = watch.after[3] if to else start
    now, before, earlier = (
        {name: weight.cpu() for name, weight in weights.items()}
        for weights in (watch.after[6], watch.after[5], earlier)
    )
    for name, weight in now.items():
        if name.startswith("network.3"):
            assert not torch.equal(weight, earlier[name])
        elif weight.ndim < 2:
            assert torch.equal(weight, earlier[name])
        else:
            assert int((weight == 0).sum()) == round(0.9 * weight.numel())
            assert torch.equal(weight[weight != 0], earlier[name][weight != 0])
            assert not torch.equal(before[name], earlier[name])
    assert (watch.memory[5], watch.memory[6], watch.memory[7]) == (6, 2, 6)


def test_with_a_time_limit_the_clock_of_the_first_process_counts(tmp_path, monkeypatch):
    """Else one process would rewind a batch before another, and their weights would differ."""
    monkeypatch.setattr("kd_prune.lit.progress.first_process_number", lambda step, device: 0)
    watch = Watch()
    with pytest.warns(UserWarning, match="1 of 1 rewinds were not made"):
        fit(tmp_path, RewindCallback([0.5]), watch, max_time={"hours": 1})
    assert all(watch.memory.values())


def test_every_rewind_happens_once(tmp_path):
    watch = Watch()
    fit(tmp_path, RewindCallback([0.25, 0.5]), watch)
    back = [s for s in watch.after if s > 1 and watch.memory[s] == 0]
    assert back == [3, 6]


def test_rewind_that_a_shorter_run_leaves_out_is_warned_of(tmp_path):
    """A loader without a length ends the run earlier than its limit of steps."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(UserModule(mlp(), (8,)).batches())

    module, watch = UserModule(mlp(), (8,)), Watch()
    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    callbacks = RewindCallback([0.2, 0.9]), watch
    with pytest.warns(UserWarning, match=r"1 of 2 rewinds were not made: the run ended after 6 of"):
        make_trainer(tmp_path, *callbacks, max_epochs=1, max_steps=20).fit(module, loader)
    assert [s for s in watch.after if watch.memory[s] == 0] == [4]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_resume(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    settings = {"max_epochs": 4, "enable_checkpointing": True}

    def callbacks():
        rewind = RewindCallback([0.5, 0.75], to=0.1)
        return SparsityCallback(0.9, end=0.5), rewind

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = fit(tmp_path, *callbacks(), keep, **settings)
    for epoch in range(3):
        module = UserModule(mlp(), (8,))
        trainer = make_trainer(tmp_path, *callbacks(), max_epochs=4)
        path = tmp_path / f"epoch={epoch}.ckpt"
        trainer.fit(module, module.batches(), ckpt_path=path, weights_only=True)
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, module.state_dict()[name]), (epoch, name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"at": [0.3], "to": 0.3}, r"at=0\.3: expected a fraction above to=0\.3"),
        ({"at": [50]}, r"at=50: .*did you mean 0\.5"),
        ({"at": [0.5], "to": 1.5}, r"to=1\.5: "),
    ],
)
def test_fraction_out_of_range_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        RewindCallback(**arguments)


@pytest.mark.parametrize("arguments", [{"at": 0.5}, {"at": [0.5], "exclude": "*head*"}])
def test_single_value_instead_of_a_list_is_refused(arguments):
    with pytest.raises(TypeError, match=r"expected a list, as \["):
        RewindCallback(**arguments)


def test_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"exclude: the pattern 'nothing' matches no parameter"):
        fit(tmp_path, RewindCallback([0.5], exclude=["nothing"]))


@pytest.mark.parametrize("to", [0.0, 0.25])
def test_resuming_a_run_without_the_callback_says_what_is_rewound_to(tmp_path, to):
    module = UserModule(mlp(), (8,))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, module.batches())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    rewind = RewindCallback([0.75], to=to)
    with pytest.warns(UserWarning, match="without RewindCallback: the weights of its step 6 of 12"):
        make_trainer(tmp_path, rewind).fit(
            module, module.batches(), ckpt_path=tmp_path / "x.ckpt", weights_only=True
        )


def test_a_tied_parameter_is_excluded_by_any_of_its_names(tmp_path):
    torch.manual_seed(0)
    module = UserModule(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)), (8,))
    module.network[1].weight = module.network[0].weight
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    rewind = RewindCallback([1.0], exclude=["network.1.*"])
    make_trainer(tmp_path, rewind).fit(module, module.batches())
    now = dict(module.named_parameters())
    assert not torch.equal(now["network.0.weight"], start["network.0.weight"])
    assert torch.equal(now["network.0.bias"], start["network.0.bias"])
