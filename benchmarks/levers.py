"""Changes of experiment=best that need code of their own, rows of bench-study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

from kd_prune.distillation import Activations
from kd_prune.hf import AdamWWithSchedule
from kd_prune.lit import DistillModule, SparsityCallback
from kd_prune.pruning import Pruner
from kd_prune.pruning.selection import kth_smallest, num_pruned


def attention_divergence(
    student: Activations, teacher: Activations, batch: Mapping[str, Tensor]
) -> Tensor:
    """Compute ``Σ_l mean_{h,q} KL(softmax(t_lhq) ‖ softmax(s_lhq))`` over real queries and keys."""
    real = batch["attention_mask"].bool()
    padding = ~real[:, None, None, :]
    losses = []
    for s, t in zip(student.attention_scores, teacher.attention_scores, strict=True):
        log_q, log_p = (
            x.float().masked_fill(padding, torch.finfo(torch.float32).min).log_softmax(-1)
            for x in (s, t)
        )
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # (batch, heads, queries)
        losses.append(divergence.mean(1)[real].mean())
    return torch.stack(losses).sum()


class FadingLayers(L.Callback):
    """Lets the weights of the layers' terms fall linearly to 0 at the end of the run."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the weights as they are."""
        terms = cast("DistillModule", pl_module).objective.terms.items()
        self._weights = [(term, term.weight) for name, term in terms if name != "soft_targets"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Set this step's weights."""
        left = 1.0 - trainer.global_step / trainer.estimated_stepping_batches
        for term, weight in self._weights:
            object.__setattr__(term, "weight", weight * left)  # some are frozen


class Repair(SparsityCallback):
    """After every mask update, fits what is left of each matrix to its outputs before the update.

    Minimizes ``Σ_n ‖(W' − W) x_n‖² + δ‖W' − W‖²`` over the weights that the masks keep, by five
    steps of conjugate gradients for each row of a matrix, on the inputs of the last batch.
    """

    def start_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last training inputs of every pruned layer."""
        super().start_fit(trainer, pl_module)
        assert self.pruner is not None
        model = self._model(pl_module)
        self._inputs: dict[str, Tensor] = {}
        self._handles = [
            model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(self._keep(name))
            for name in self.pruner.parameters
        ]

    def _keep(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            if layer.training:
                self._inputs[name] = args[0].detach()

        return keep

    def _update(self, pruner: Pruner, step: int) -> None:
        before = {}
        if step in pruner.update_schedule:
            before = {name: weight.detach().clone() for name, weight in pruner.parameters.items()}
        super()._update(pruner, step)
        for name, dense in before.items():
            weight = pruner.parameters[name].data
            repair(weight, pruner.masks[name], dense, self._inputs[name].flatten(0, -2))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hooks."""
        super().on_fit_end(trainer, pl_module)
        for handle in self._handles:
            handle.remove()


def repair(
    weight: Tensor,
    mask: Tensor,
    dense: Tensor,
    inputs: Tensor,
    steps: int = 5,
    damping: float = 0.01,
) -> None:
    """Bring the kept weights nearer to the least squares of the outputs, in place.

    Args:
        weight: W', (outputs, inputs), zero where not kept.
        mask: True where a weight is kept.
        dense: W.
        inputs: Rows x_n.
        steps: Steps of conjugate gradients.
        damping: δ over the mean of the inputs' squares.
    """
    second = inputs.T @ inputs / len(inputs)
    second.diagonal().add_(damping * second.diagonal().mean())
    residual = ((dense - weight) @ second) * mask
    direction = residual.clone()
    size = residual.square().sum(1, keepdim=True)
    tiny = torch.finfo(size.dtype).tiny
    for _ in range(steps):
        image = (direction @ second) * mask
        rate = size / (direction * image).sum(1, keepdim=True).clamp(min=tiny)
        weight += rate * direction
        residual -= rate * image
        size, last = residual.square().sum(1, keepdim=True), size
        direction = residual + size / last.clamp(min=tiny) * direction


class SharpnessAware(AdamW):
    """AdamW with the gradient at ``w + ρ g / ‖g‖``; zero weights stay (arXiv 2010.01412)."""

    rho = 0.05

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make a step; `closure` computes gradients, and is called twice."""
        with torch.enable_grad():
            loss = closure()
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [weight.grad.masked_fill(weight == 0, 0.0) for weight in weights]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        before = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, gradients, alpha=float(self.rho / norm.clamp(min=1e-12)))
        with torch.enable_grad():
            closure()
        torch._foreach_copy_(weights, before)
        super().step()
        return loss


class SharpnessAwareWithSchedule(AdamWWithSchedule):
    """The settings of `AdamWWithSchedule`, for `SharpnessAware`."""

    def __call__(self, model: nn.Module, total_steps: int) -> tuple[AdamW, LRScheduler]:
        """Make the optimizer and its schedule."""
        optimizer = SharpnessAware(
            self.groups(model), lr=self.lr, betas=tuple(self.betas), eps=self.eps, fused=True
        )
        optimizer._step_supports_amp_scaling = False  # as in AdamWWithSchedule
        return optimizer, self._schedule(optimizer, round(self.warmup * total_steps), total_steps)


class ADMM(L.Callback):
    """Pulls dense weights towards sparse ones along the ramp, at whose end masks are made.

    With multipliers U, targets Z (the largest ``|W + U|``, of all matrices together, at the ramp's
    sparsity) and learning rate η, after every optimizer step ``W ← W − η ρ (W − Z + U)``, and every
    `every` steps new ``Z`` and ``U ← U + W − Z``. Proximal, as AdamW would scale a penalty's
    gradient. Source: Zhang et al. 2018 (arXiv 1804.03294).
    """

    def __init__(self, rho: float = 10.0, every: int = 5) -> None:
        self.rho = rho
        self.every = every
        self._targets: dict[str, Tensor] = {}
        self._multipliers: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Pull the weights, as long as no mask is made."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        sparsity = next(found for found in callbacks if isinstance(found, SparsityCallback))
        pruner = sparsity.pruner
        assert pruner is not None
        assert pruner.schedule is not None
        step, end = trainer.global_step, pruner.schedule.end * pruner.total_steps
        if step >= end:
            return
        if step % self.every == 1 or not self._targets:
            self._renew(pruner, pruner.schedule.sparsity_at(step / end))
        pull = self.rho * trainer.optimizers[0].param_groups[0]["lr"]
        for name, weight in pruner.parameters.items():
            weight.sub_(weight - self._targets[name] + self._multipliers[name], alpha=pull)

    def _renew(self, pruner: Pruner, sparsity: float) -> None:
        """Project on the ramp's sparsity, and add what is off to the multipliers."""
        sums = {
            name: weight + self._multipliers.get(name, torch.zeros(()))
            for name, weight in pruner.parameters.items()
        }
        everything = {name: torch.ones_like(found, dtype=bool) for name, found in sums.items()}
        count = num_pruned(sparsity, sum(found.numel() for found in sums.values()))
        least = -1.0
        if count:
            least = kth_smallest(lambda: ((sums[n].abs(), everything[n]) for n in sums), count)
        self._targets = {n: found.where(found.abs() > least, 0.0) for n, found in sums.items()}
        self._multipliers = {name: found - self._targets[name] for name, found in sums.items()}
