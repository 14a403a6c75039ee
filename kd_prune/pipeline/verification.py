"""Verification: a finished model has the zeros that were planned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kd_prune.pruning import Pruner, SparsityReport
from kd_prune.pruning.selection import count_pruned
from kd_prune.results import is_loss


class VerificationError(RuntimeError):
    """A finished model has fewer zeros, or a lower metric, than required."""


@dataclass(frozen=True)
class ExpectedSparsity:
    """Expected zeros of a model, as plain numbers that a checkpoint can contain.

    Attributes:
        target: Planned sparsity of the last mask update.
        masked: Weights that each tensor's mask prunes.
        counts: Weights that allocation and granularity planned to prune; empty if not known
            (`Pruner.expected_pruned`).
    """

    target: float
    masked: list[int]
    counts: list[int]

    @classmethod
    def of(cls, pruner: Pruner) -> ExpectedSparsity:
        """Read the expected zeros from a Pruner's current masks."""
        return cls(
            target=pruner.target,
            masked=[count_pruned(mask) for mask in pruner.masks.values()],
            counts=list(pruner.expected_pruned.values()),
        )


def verify_sparsity(expected: ExpectedSparsity, report: SparsityReport, folder: Path) -> None:
    """Check the zeros of a model that was loaded from `folder`.

    Every tensor must have the zeros of its mask, and every mask must prune exactly the number of
    weights planned for the last update (if not known, the target within 0.1 % of the scope). At
    most 0.1 % of the scope may be kept weights that are zero.

    Raises:
        VerificationError: A condition does not hold.
    """
    tensors = [tensor for tensor in report.tensors if tensor.in_scope]
    zeros, size = [tensor.zeros for tensor in tensors], sum(tensor.size for tensor in tensors)
    masked, counts = expected.masked, expected.counts or [round(expected.target * size)]
    slack = 1e-3 * size
    as_planned = masked == counts if expected.counts else abs(sum(masked) - sum(counts)) <= slack
    survived = len(zeros) == len(masked) and all(z >= m for z, m in zip(zeros, masked, strict=True))
    if not (as_planned and survived and sum(zeros) - sum(masked) <= slack):
        raise VerificationError(
            f"the model in {folder} has {sum(zeros)} zeros in scope where the masks prune "
            f"{sum(masked)} and {sum(counts)} of {size} were to be pruned"
        )


def verify_final_sparsity(pruner: Pruner, out: Path) -> None:
    """Check that a fit made the last planned mask update.

    Raises:
        VerificationError: The fit ended earlier.
    """
    end = max(pruner.update_schedule.items(), default=(0, pruner.target))[1]
    if pruner.target != end:
        raise VerificationError(
            f"the fit in {out} ended on the ramp, at sparsity {pruner.target:.4g} of {end:g}; let "
            "it train until sparsity.end (its last.ckpt can be resumed)"
        )


def verify_retained(
    min_retained: float, monitor: str, student: float, teacher: float, out: Path
) -> None:
    """Compare the student's metric with its teacher's.

    Raises:
        VerificationError: The metric is below the share `min_retained` of the teacher's; for one
            that is better if lower, the teacher's is below that share of the student's.
    """
    value, reference = (teacher, student) if is_loss(monitor) else (student, teacher)
    if min_retained and value < min_retained * reference:
        raise VerificationError(
            f"student.min_retained={min_retained}: the student in {out} has {monitor} "
            f"{student:.4f}, the teacher {teacher:.4f}; it did not learn enough"
        )
