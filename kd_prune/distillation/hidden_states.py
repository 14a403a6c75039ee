"""Terms over hidden states, with a learned projection where student and teacher differ in width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.distillation.layer_map import Pairs, layer_pairs
from kd_prune.distillation.losses import cosine_distance, hidden_state_mse, patient_mse
from kd_prune.errors import ConfigError


class Projected(nn.Module):
    """Base of the terms that compare hidden states through an optional projection.

    Args:
        weight: Coefficient of the term.
        projection: Maps (batch, length, student width) to (batch, length, teacher width); None
            compares the student's hidden states as they are, which needs equal widths.
    """

    requires = frozenset({"hidden_states"})
    needs_teacher = True

    def __init__(self, *, weight: float = 1.0, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.projection = projection

    def match_widths(self, student_width: int, teacher_width: int) -> None:
        """Make a linear projection without bias if the widths differ and there is none yet."""
        if self.projection is None and student_width != teacher_width:
            self.projection = nn.Linear(student_width, teacher_width, bias=False)

    def projected(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the student's states, through the projection if there is one.

        Raises:
            ConfigError: The result is not as wide as the teacher's states.
        """
        width, kind = student.shape[-1], "the student"
        if self.projection is not None:
            student = self.projection(student)
            kind = "the projected student"
        if student.shape[-1] != teacher.shape[-1]:
            raise ConfigError(
                "projection",
                self.projection,
                f"{kind} is {student.shape[-1]} wide, the teacher {teacher.shape[-1]}",
                f"give a projection from {width} to {teacher.shape[-1]} features, or set the "
                "term's weight to 0",
            )
        return student

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Compute `hidden_state_mse` of the projected student states and the teacher's.

        Raises:
            ConfigError: The widths differ.
        """
        return hidden_state_mse(self.projected(student, teacher), teacher, batch["attention_mask"])

    def extra_repr(self) -> str:
        """Format the weight, for ``print(module)``."""
        return f"weight={self.weight:g}"


class Embeddings(Projected):
    """Squared error of the embedding output.

    ``MSE(E_S · W_e, E_T)``, a masked mean (`hidden_state_mse`), with ``E_S``: (tokens, d'),
    ``E_T``: (tokens, d) and the learned ``W_e``: (d', d); without a projection ``W_e`` is the
    identity and d' = d.

    Source: TinyBERT (arXiv 1909.10351) eq. 9.

    Args:
        weight: Coefficient of the term.
        projection: ``W_e`` as a module, for example ``nn.Linear(d', d, bias=False)``; None: no
            projection, unless `Objective.match_widths` makes one.
    """

    def forward(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar."""
        return self.compare(student.hidden_states[0], teacher.hidden_states[0], batch)


class HiddenStates(Projected):
    """Squared error of every layer's output, summed over layers.

    ``Σ_l MSE(H_S,l · W_h, H_T,map(l))``, masked means (`hidden_state_mse`), with ``H_S``:
    (tokens, d'), ``H_T``: (tokens, d) and the learned ``W_h``: (d', d), one for all layers; without
    a projection ``W_h`` is the identity and d' = d.

    Source: TinyBERT (arXiv 1909.10351) eq. 8, summed over the layers of eq. 11 with layer weights
    of 1; SparseBERT's L_rep where d' = d.

    Args:
        weight: Coefficient of the term.
        layer_map: Student layer → teacher layer; it may name layer 0, the embeddings. None spreads
            the layers evenly.
        projection: ``W_h`` as a module, for example ``nn.Linear(d', d, bias=False)``; None: no
            projection, unless `Objective.match_widths` makes one.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        layer_map: Mapping[int, int] | None = None,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__(weight=weight, projection=projection)
        self.layer_map = layer_map

    def forward(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar."""
        s, t = student.hidden_states, teacher.hidden_states
        pairs = layer_pairs(len(s) - 1, len(t) - 1, self.layer_map)
        return torch.stack([self.compare(s[i], t[j], batch) for i, j in pairs]).sum()


class LastHiddenStateCosine(Projected):
    """Cosine distance of the last layer's output (`cosine_distance`).

    Source: DistilBERT (arXiv 1910.01108).

    Args:
        weight: Coefficient of the term.
        projection: As of `HiddenStates`.
    """

    def forward(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar."""
        s, t = student.hidden_states[-1], teacher.hidden_states[-1]
        return cosine_distance(self.projected(s, t), t, batch["attention_mask"])


class PatientStates(Projected):
    """Squared error of the first token's normalised states in intermediate layers (`patient_mse`).

    The last layer of both models is left out, as the soft targets teach it; a student of one layer,
    which has no other, compares that one.

    Source: PKD (arXiv 1908.09355).

    Args:
        weight: Coefficient of the term.
        strategy: Teacher layers of a student of fewer: ``skip``, evenly spaced ones (of 12
            and 6: 2, 4, 6, 8, 10), or ``last``, the last ones but one (7, 8, 9, 10, 11).
        projection: As of `HiddenStates`.

    Raises:
        ConfigError: The strategy is unknown.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        strategy: str = "skip",
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__(weight=weight, projection=projection)
        if strategy not in ("skip", "last"):
            raise ConfigError("strategy", strategy, "expected skip or last")
        self.strategy = strategy

    def pairs(self, student: int, teacher: int) -> Pairs:
        """Pair student layers with teacher layers, counted from 1.

        >>> PatientStates().pairs(6, 12), PatientStates(strategy="last").pairs(3, 6)
        ([(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)], [(1, 4), (2, 5)])
        """
        spread = layer_pairs(student, teacher)
        if self.strategy == "last":
            spread = [(layer, teacher - student + layer) for layer, _ in spread]
        return spread[:-1] or spread

    def forward(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar."""
        s, t = student.hidden_states, teacher.hidden_states
        pairs = self.pairs(len(s) - 1, len(t) - 1)
        theirs = torch.stack([t[j][:, 0] for _, j in pairs], dim=1)
        ours = self.projected(torch.stack([s[i][:, 0] for i, _ in pairs], dim=1), theirs)
        return patient_mse(ours, theirs)
