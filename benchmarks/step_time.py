"""Cost of distillation and pruning per training step: ``make bench-steps MODEL=<folder>``.

All variants run the same batches in one process, in turn, for several rounds. The figure of a
variant is the median over rounds of its ratio to plain fine-tuning in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from common import machine, print_table, save
from torch import Tensor
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.distillation import (
    AttentionScores,
    Embeddings,
    HardLabels,
    HiddenStates,
    Objective,
    SoftTargets,
)
from kd_prune.pruning import Pruner, Schedule

UNFUSED = "plain fine-tuning, AdamW as PyTorch makes it by default"
VARIANTS = {
    "plain fine-tuning": {"hard_labels": HardLabels()},
    UNFUSED: {"hard_labels": HardLabels()},
    "logits": {"soft_targets": SoftTargets()},
    "logits + hidden states": {
        "soft_targets": SoftTargets(),
        "embeddings": Embeddings(),
        "hidden_states": HiddenStates(),
    },
    "logits + hidden states + attention scores": {
        "soft_targets": SoftTargets(),
        "embeddings": Embeddings(),
        "hidden_states": HiddenStates(),
        "attention_scores": AttentionScores(),
    },
}


def stepper(
    path: str, name: str, batch: dict[str, Tensor], autocast: torch.dtype | None
) -> tuple[Callable[[], None], PreTrainedModel]:
    """Return a function that takes one optimizer step of a variant on `batch`, and its student."""
    encoder = hf.PretrainedEncoder(path=path)
    student, teacher = (encoder.load(kind=hf.Classification(), num_outputs=2) for _ in range(2))
    objective = Objective(VARIANTS[name])
    for model in (student.train(), teacher.eval()):
        if "attention_scores" in objective.requires:
            hf.enable_attention_scores(model)
    device = batch["labels"].device
    student.to(device), teacher.to(device)
    optimizer, _ = hf.AdamWWithSchedule()(student, 1000)
    if name == UNFUSED:
        for group in optimizer.param_groups:
            group["fused"] = None

    def step() -> None:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            ours = hf.forward(student, batch, objective.requires)
            theirs = None
            if objective.needs_teacher:
                with torch.no_grad():
                    theirs = hf.forward(teacher, batch, objective.requires)
            total, _ = objective(ours, theirs, batch)
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, student


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Measure the wall time of one call."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure all variants, projection and mask updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument(
        "--length", type=int, default=56, help="tokens per row (MRPC: 53 on average)"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    shape = (arguments.batch_size, arguments.length)
    words = len(hf.PretrainedEncoder(path=arguments.model).tokenizer())
    lengths = torch.randint(arguments.length - 6, arguments.length + 1, shape[:1])
    batch = {
        "input_ids": torch.randint(words, shape),
        "attention_mask": (torch.arange(arguments.length) < lengths[:, None]).long(),
        "labels": torch.randint(0, 2, shape[:1]),
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    autocast = torch.bfloat16 if arguments.bf16 else None
    steppers = {name: stepper(arguments.model, name, batch, autocast) for name in VARIANTS}
    student = steppers["plain fine-tuning"][1]
    scope = hf.encoder_scope(student).select(student)
    total = 100 * arguments.rounds  # every round has a mask update
    pruner = Pruner(scope, Schedule(final=0.95), total_steps=total, updates=total)
    times: dict[str, list[float]] = {name: [] for name in [*steppers, "projection", "mask update"]}
    for step, _ in steppers.values():
        step()
    for round_ in range(1, arguments.rounds + 1):
        for name, (step, _) in steppers.items():
            times[name].append(seconds(step, device))
        times["mask update"].append(seconds(partial(pruner.update, round_ * 100), device))
        times["projection"].append(seconds(pruner.project, device))
    plain = times["plain fine-tuning"]
    ratios = {
        name: statistics.median(t / p for t, p in zip(taken, plain, strict=True))
        for name, taken in times.items()
    }
    for steps in (920, 10_000):  # steps of a run with 100 updates
        share = ratios["projection"] + ratios["mask update"] * 100 / steps
        ratios[f"pruning, 100 updates in {steps} steps"] = share
    print_table(
        "median ratio to a plain fine-tuning step of the same student",
        ("", "ratio", "median ms"),
        [
            (
                name,
                f"{ratio:.3f}",
                f"{1e3 * statistics.median(times[name]):.0f}" if name in times else "",
            )
            for name, ratio in ratios.items()
        ],
    )
    save(
        {
            "ratios": ratios,
            "seconds": times,
            "settings": vars(arguments) | {"model": "-"},
            "machine": machine(),
        },
        "step_time",
    )


if __name__ == "__main__":
    main()
