"""Rounds: a stage that is fitted several times, each time with more weights pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline.stage import Stage, key_of_stage
from kd_prune.pruning import Schedule, last_update

ROUND = "{stage}_round_{number}"
"""Name of a round's stage; that of the last one is the name of the stage."""


def is_round(name: str) -> bool:
    """Return whether a stage of this name is one of several rounds, and not the last.

    >>> is_round("tickets_round_1"), is_round("tickets")
    (True, False)
    """
    stage, _, number = name.rpartition("_round_")
    return bool(stage) and number.isdigit()


def with_rounds(stages: Mapping[str, Stage]) -> tuple[dict[str, Stage], dict[str, str]]:
    """Replace every stage of several rounds by a stage per round.

    The zeros that a stage takes from another model stay zero (`keep_zeros`), unless it says
    otherwise.

    Returns:
        Name → stage, and name → name of the stage that a command has the settings of.

    Raises:
        ConfigError: See `rounds_of`; or a round would have the name of another stage.
    """
    found: dict[str, Stage] = {}
    named_in_command: dict[str, str] = {}
    for name, stage in stages.items():
        for one, round_ in rounds_of(name, stage).items():
            if one in found or (one in stages and one != name):
                raise ConfigError(f"stages.{one}", expected=f"the name of a round of {name}")
            found[one], named_in_command[one] = _keeping_zeros(round_), name
    return found, named_in_command


def rounds_of(name: str, stage: Stage) -> dict[str, Stage]:
    """Return the fits of a stage, name → stage of one round; the last one has the stage's name.

    Every round is a fit of its own, from the stage's `init`, with a fresh optimizer and
    learning-rate schedule. Round ``k`` of ``n`` begins with the masks of round ``k − 1`` and prunes
    once, at its end, to ``schedule.sparsity_at(k / n)``: the ramp is one over rounds. With
    ``ramp=linear`` every round removes the same number of weights, with the `final` that the last
    one reaches.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), iterative magnitude pruning; Chen et al. 2020
    (arXiv 2007.12223) for BERT: a linear ramp, weights rewound to the pre-trained ones.

    Raises:
        ConfigError: The stage prunes nothing, or its ramp has a beginning, an end or milestones.
    """
    if stage.rounds == 1 or stage.path:
        return {name: stage}
    key, sparsity = key_of_stage(name), stage.sparsity
    if sparsity is None or sparsity.schedule is None:
        raise ConfigError(
            f"{key}.rounds",
            stage.rounds,
            "nothing is pruned at the end of a round",
            f"set {key}.sparsity, and its final",
        )
    schedule = sparsity.schedule
    for setting, expected in {"begin": 0.0, "end": 1.0, "milestones": ()}.items():
        if (value := getattr(schedule, setting)) != expected:
            raise ConfigError(
                f"{key}.sparsity.{setting}",
                value,
                "the ramp is one over rounds, each of which prunes at its end",
                "leave it out",
            )
    fits: dict[str, Stage] = {}
    for k in range(1, stage.rounds + 1):
        fits[name if k == stage.rounds else ROUND.format(stage=name, number=k)] = replace(
            stage,
            rounds=1,
            masks_from=ROUND.format(stage=name, number=k - 1) if k > 1 else stage.masks_from,
            sparsity=_of_round(sparsity, schedule, k / stage.rounds),
        )
    return fits


def _of_round(sparsity: SparsityCallback, schedule: Schedule, u: float) -> SparsityCallback:
    """Return the callback that prunes at the end of the round with ramp progress `u`."""
    return sparsity.replace(final=schedule.sparsity_at(u), initial=0.0, update_schedule=last_update)


def _keeping_zeros(stage: Stage) -> Stage:
    """Return the stage with a callback that keeps the zeros of its masks."""
    sparsity = stage.sparsity
    if stage.masks_from is None or sparsity is None or sparsity.schedule is None:
        return stage
    if sparsity.arguments()["keep_zeros"] is not None:
        return stage
    return replace(stage, sparsity=sparsity.replace(keep_zeros=True))
