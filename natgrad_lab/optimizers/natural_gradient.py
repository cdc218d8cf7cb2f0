"""Natural gradient descent: estimate a Fisher, invert it, step. The exact one, and one for every structured estimate."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from natgrad_lab.fisher.natural_gradient import ExactFisher
from natgrad_lab.fisher.scores import FISHER_TYPES, ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.optimizers.base import Direction, FlatOptimizer
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import StructuredMatrix, from_state


@dataclass(frozen=True)
class FisherEstimate:
    """How a running Fisher is made: from which scores, averaged how, refreshed how often.

    Attributes:
        from_scores: ScorePass → structure, as `fisher.kfac.kfac_from_scores`.
        fisher_type, num_samples: of the scores.
        ema_decay: weight of the old estimate, min(1 − 1/k, ema_decay) at the k-th refresh, so that the first counts fully.
        update_every, invert_every: steps between refreshes, and between inversions.
    """

    from_scores: Callable[[ScorePass], StructuredMatrix]
    fisher_type: str = "exact"
    num_samples: int = 1
    ema_decay: float = 0.0
    update_every: int = 1
    invert_every: int = 1

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        known(self.fisher_type, FISHER_TYPES, "fisher_type")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1); got {self.ema_decay}. 0 keeps only the newest Fisher.")
        for name in ("num_samples", "update_every", "invert_every"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}.")


class NaturalGradient(FlatOptimizer):
    """δ = −lr · P g with P the inverse of a damped running estimate of the Fisher.

    Args:
        model, likelihood, lr, damping, max_kl, seed: as `FlatOptimizer`.
        estimate: how the Fisher is estimated.
        invert: (Fisher, damping) → the structure whose `matmul` is P; which damping it means is its business, and its name.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        estimate: FisherEstimate,
        invert: Callable[[StructuredMatrix, float], StructuredMatrix],
        **choices,
    ):
        """See the class."""
        super().__init__(model, likelihood, **choices)
        self.estimate, self.invert = estimate, invert
        self.fisher_type, self.num_samples = estimate.fisher_type, estimate.num_samples
        self.fisher: StructuredMatrix | None = None
        self.inverse: StructuredMatrix | None = None
        self._refreshes, self._inverted_damping = 0, None

    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        started = time.perf_counter()
        if self.num_steps % self.estimate.update_every == 0:
            self._refresh(scores)
        phases["fisher"] = time.perf_counter() - started
        started = time.perf_counter()
        if self.num_steps % self.estimate.invert_every == 0 or damping != self._inverted_damping:
            self.inverse, self._inverted_damping = self.invert(self.fisher, damping), damping
        vector = self.inverse.matmul(gradient)
        phases["solve"] = time.perf_counter() - started
        return Direction(vector, self.fisher.matmul(vector))

    def _refresh(self, scores: ScorePass) -> None:
        new = self.estimate.from_scores(scores)
        self._refreshes += 1
        decay = min(1 - 1 / self._refreshes, self.estimate.ema_decay)
        self.fisher = new if decay == 0 else self.fisher.map(lambda old, now: now.lerp(old, decay), new)

    def _memory(self) -> tuple:
        return self.fisher, self.inverse, self._refreshes, self._inverted_damping

    def _remember(self, *memory: object) -> None:
        self.fisher, self.inverse, self._refreshes, self._inverted_damping = memory

    def _own_state(self) -> dict:
        structures = {"fisher": self.fisher, "inverse": self.inverse}
        saved = {name: matrix.state() for name, matrix in structures.items() if matrix is not None}
        return saved | {"refreshes": self._refreshes, "inverted_damping": self._inverted_damping}

    def _load_own_state(self, state: dict) -> None:
        self.fisher = from_state(state["fisher"]) if "fisher" in state else None
        self.inverse = from_state(state["inverse"]) if "inverse" in state else None
        self._refreshes, self._inverted_damping = state["refreshes"], state["inverted_damping"]


class ExactNaturalGradient(FlatOptimizer):
    """δ = −lr (F + λI)⁻¹ g with the exact Fisher of the step's own batch, by the cheapest exact route.

    Attributes:
        solution: the last step's `ExactDirection`, which says the route taken and the residual achieved.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, *, fisher_type: str = "exact", **choices):
        """See the class."""
        super().__init__(model, likelihood, **choices)
        FisherEstimate(ExactFisher, fisher_type)  # refuses a name that does not exist
        self.fisher_type = fisher_type
        self.solution = None

    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        started = time.perf_counter()
        self.solution = ExactFisher(scores, self.likelihood).solve(damping)
        phases["solve"] = time.perf_counter() - started
        return Direction(self.solution.direction, self.solution.fisher_product)
