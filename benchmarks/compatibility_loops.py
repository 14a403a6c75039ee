"""Optimizers and training loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from compatibility_project import Batch, Case, Project, Supervised, classify, mlp, vectors
from compatibility_transformers import DECODERS, language_model
from torch import nn

from kd_prune import Scope


def optimized(make: Callable[[Iterable[nn.Parameter]], Any]) -> Project:
    """Make a small classifier with another optimizer."""
    return Project(Supervised(mlp(), classify, make), vectors())


def pytorch_optimizer(name: str) -> Project:
    """Make a small classifier with an optimizer of the package pytorch_optimizer."""
    import pytorch_optimizer as package

    return optimized(lambda parameters: getattr(package, name)(parameters, lr=1e-3))


def lookahead() -> Project:
    """Make a small classifier with an optimizer around another one."""
    from pytorch_optimizer import Lookahead

    return optimized(lambda p: Lookahead(torch.optim.AdamW(p, lr=1e-2), k=5))


def schedule_free() -> Project:
    """Make a small classifier with an optimizer that averages its own iterates."""
    from schedulefree import AdamWScheduleFree

    def make(parameters: Iterable[nn.Parameter]) -> Any:
        optimizer = AdamWScheduleFree(parameters, lr=1e-2)
        optimizer.train()
        return optimizer

    return optimized(make)


def lora() -> Project:
    """Make a frozen language model with adapters of the package peft."""
    from peft import LoraConfig, get_peft_model

    project = language_model("gpt2", DECODERS["gpt2"], masked=False)
    config = LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    project.module.network = get_peft_model(project.module.network, config)
    return project


class ManualLoop(Supervised):
    """Manual optimization: the loss is accumulated over two batches."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, index: int) -> None:  # type: ignore[override]
        """Make a step after every second batch."""
        self.manual_backward(self.loss(self.network, batch))
        if index % 2:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


def with_trainer(**settings: Any) -> Project:
    """Make a small classifier with other settings of the Trainer."""
    return Project(Supervised(mlp(nn.Dropout(0.1)), classify), vectors(), settings)


def averaged() -> Project:
    """Make a small classifier whose weights are averaged."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    return with_trainer(callbacks=[EMAWeightAveraging(decay=0.9)])


def muon(parameters: Iterable[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Return Muon for matrices, AdamW for the rest."""
    every = list(parameters)
    return [
        torch.optim.Muon([p for p in every if p.ndim == 2], lr=1e-2),
        torch.optim.AdamW([p for p in every if p.ndim != 2], lr=1e-2),
    ]


class TwoOptimizers(ManualLoop):
    """Manual optimization with one optimizer per kind of parameter."""

    def training_step(self, batch: Batch, index: int) -> None:  # type: ignore[override]
        """Make a step of each."""
        self.manual_backward(self.loss(self.network, batch))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def cases() -> list[Case]:
    """Return the cases, in the order of the table."""
    found = []
    for name in ("SGD", "Adam", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adafactor", "LBFGS"):
        optimizer = getattr(torch.optim, name)
        found.append(
            Case("optimizers", name, lambda o=optimizer: optimized(lambda p: o(p, lr=1e-2)))
        )
    found += [
        Case("optimizers", "Muon for matrices, AdamW for the rest",
             lambda: Project(TwoOptimizers(mlp(), classify, muon), vectors())),
        Case("optimizers", "Lion", lambda: pytorch_optimizer("Lion"), "pytorch_optimizer"),
        Case("optimizers", "Lookahead", lookahead, "pytorch_optimizer"),
        Case("optimizers", "AdamWScheduleFree", schedule_free, "schedulefree"),
        Case("loops", "manual optimization, two batches a step",
             lambda: Project(ManualLoop(mlp(), classify), vectors())),
        Case("loops", "accumulated gradients", lambda: with_trainer(accumulate_grad_batches=2)),
        Case("loops", "clipped gradients", lambda: with_trainer(gradient_clip_val=0.1)),
        Case("loops", "bf16-mixed", lambda: with_trainer(precision="bf16-mixed")),
        Case("loops", "bf16-true", lambda: with_trainer(precision="bf16-true")),
        Case("loops", "64-true", lambda: with_trainer(precision="64-true")),
        Case("loops", "exponential moving average", averaged),
        Case("loops", "LoRA on a frozen GPT-2", lora, "peft", Scope(include=("*lora_[AB]*",))),
    ]  # fmt: skip
    return found
