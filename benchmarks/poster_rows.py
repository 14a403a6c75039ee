"""Rows of the poster's table: which experiment, how much it keeps, and what the poster says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Two learning rates for every row: those of rows that learn layers from a teacher, or that begin
# with new weights, are higher; labels or logits alone learn nothing there (docs/decisions.md).
FROM_LABELS = ("1e-4", "5e-4")
FROM_LAYERS = ("5e-4", "2e-3")
LABELS_RATE = "1e-4"
"""Rate of a stage on labels before the student's, that of the teacher."""
TARGET = 0.05
"""Share of the encoder's weights that every row keeps besides its own."""


class Row(NamedTuple):
    """One system.

    Attributes:
        kept: Share of the encoder's weights that it keeps in the poster's table; by task where it
            differs.
        final: Key of its target sparsity; None: a smaller student, which is pruned by SparseBERT's
            schedule where it has to keep less.
        rates: Learning rates of the student to choose from.
        text: Its stages on plain text.
        halved: Stage on the task before the student, which then have half of the steps each. It
            has a rate of its own (`at_rate`).
        settings: Further overrides.
        poster: The poster's figure of MRPC and QNLI.
    """

    kept: float | dict[str, float]
    final: str | None = "sparsity.final"
    rates: tuple[str, str] = FROM_LABELS
    text: Sequence[str] = ()
    halved: str | None = None
    settings: Sequence[str] = ()
    poster: tuple[float | None, float | None] = (None, None)

    def own(self, task: str) -> float:
        """Return the share that it keeps in the poster's table."""
        return self.kept.get(task, 0.5) if isinstance(self.kept, dict) else self.kept

    def pruned_to(self, task: str, kept: float) -> list[str]:
        """Return the overrides with which the row keeps this share of the encoder's weights."""
        if self.final is not None:
            return [f"{self.final}={1 - kept:g}"]
        if kept == self.own(task):
            return []
        sparsity = round(1 - kept / self.own(task), 4)
        return ["sparsity=sparsebert", f"sparsity.final={sparsity:g}"]


PRUNED_BEFORE = "stages.pruned.sparsity.final"
GENERAL = ("general",)
WORDS_THEN_GENERAL = ("head", "words", "general")
PRUNED = ("head", "words", "pruned")
PHASES = ("head", "words", "pretraining")
# The shape that keeps 18 % of all-MiniLM-L6-v2's encoder: a third of the layers, narrower ones.
NARROW = [f"stages.general.{k}" for k in ("hidden_size=0.75", "intermediate_size=0.71875")]

# Tickets rank the encoder alone: all-MiniLM-L6-v2's pooler is untrained, so small that one ranking
# with it would remove it, and with it all that the classifier sees (docs/results.md).
ROWS = {
    "poster/bert": Row(1.0, None, poster=(88.6, 91.8)),
    "poster/pkd6": Row(0.5, None, poster=(85.0, 89.0)),
    "poster/theseus6": Row(0.5, None, poster=(89.0, 89.5)),
    "poster/distilbert6": Row(0.5, None, text=WORDS_THEN_GENERAL, poster=(87.5, 89.2)),
    "poster/minilm6": Row(0.5, None, text=GENERAL, poster=(88.4, 91.0)),
    "poster/tinybert6": Row(0.5, None, text=GENERAL, halved="intermediate", poster=(87.3, 90.4)),
    "poster/tinybert4": Row(
        0.182,
        None,
        text=GENERAL,
        halved="intermediate",
        settings=NARROW,
        poster=(86.8, 88.7),
    ),
    "poster/bert_tickets": Row(
        {"mrpc": 0.5, "qnli_style": 0.3, "stsb": 0.5, "sst2": 0.4},
        "stages.tickets.sparsity.final",
        settings=["stages.tickets.sparsity.scope=null"],
        poster=(84.9, 88.9),
    ),
    "poster/bert_tickets_oneshot": Row(0.5, settings=["sparsity.scope=null"]),
    "poster/compressbert": Row(0.1, PRUNED_BEFORE, text=PRUNED, poster=(None, 76.8)),
    "poster/compressbert_downstream": Row(0.1),
    "poster/rpp": Row(0.116, PRUNED_BEFORE, text=PRUNED, poster=(81.9, 88.0)),
    "poster/rpp_downstream": Row(0.116),
    # Its LSTM layers have 4.9 % of all-MiniLM-L6-v2's encoder weights. All of its weights are new.
    "poster/elmo": Row(
        TARGET,
        None,
        FROM_LAYERS,
        text=("language_model",),
        settings=["pretraining.optimizer.lr=1e-3"],
        poster=(76.6, 71.1),
    ),
    "poster/sparsebert": Row(TARGET, rates=FROM_LAYERS),
    "poster/sparsebert_augmented": Row(TARGET, rates=FROM_LAYERS, poster=(88.5, 90.6)),
    "later/gmp_star": Row(TARGET, rates=FROM_LAYERS),
    "later/movement": Row(TARGET, rates=FROM_LAYERS),
    "later/soft_movement": Row(TARGET, rates=FROM_LAYERS),
    "later/platon": Row(TARGET),
    "later/obert": Row(TARGET, rates=FROM_LAYERS),
    "later/spd": Row(TARGET, rates=FROM_LAYERS),
    "later/smp": Row(TARGET, rates=FROM_LAYERS),
    "paradigm/prune_at_pretraining": Row(
        TARGET, "stages.pretraining.sparsity.final", FROM_LAYERS, text=PHASES, halved="finetuning"
    ),
    "paradigm/prune_at_finetuning": Row(
        TARGET, "stages.finetuning.sparsity.final", FROM_LAYERS, text=PHASES, halved="finetuning"
    ),
    "paradigm/prune_at_distilling": Row(
        TARGET, rates=FROM_LAYERS, text=PHASES, halved="finetuning"
    ),
}


def shares(row: str, task: str) -> list[float]:
    """Return the shares of the encoder's weights that a row keeps: its own, and `TARGET`."""
    own = ROWS[row].own(task)
    return [own] if own in (1.0, TARGET) else [own, TARGET]


def overrides(row: str, task: str, kept: float, steps: int, pretraining_steps: int) -> list[str]:
    """Return the overrides of a row: its experiment, what it keeps, and its part of the budget."""
    system = ROWS[row]
    part = steps // 2 if system.halved else 0
    found = [
        f"experiment={row}",
        *system.settings,
        *system.pruned_to(task, kept),
        "trainer.max_epochs=-1",
        f"trainer.max_steps={steps - part}",
    ]
    if system.halved:
        found.append(f"stages.{system.halved}.max_steps={part}")
    if system.text:
        found.append(f"pretraining.max_steps={pretraining_steps}")
    if row == "poster/bert_tickets":  # a tenth of all weights per round
        rounds = round(10 * (1 - kept))
        found += [f"stages.tickets.rounds={rounds}", f"+stages.tickets.max_steps={steps}"]
    return found


def at_rate(row: str, rate: str) -> list[str]:
    """Return the overrides of a row's learning rates.

    TinyBERT learns layers before it learns logits, so its two rates are the lower or the higher one
    of both kinds. The paradigm's rows learn labels before layers, at the teacher's rate.
    """
    stage = ROWS[row].halved
    before = LABELS_RATE
    if stage == "intermediate":
        before = FROM_LAYERS[FROM_LABELS.index(rate)]
    key = f"stages.{stage}.optimizer"
    own = [f"+optimizer@{key}=adamw", f"{key}.lr={before}", f"{key}.warmup=0.05"]
    return [*(own if stage else ()), f"optimizer.lr={rate}"]
