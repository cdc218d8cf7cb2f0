"""Natural gradient descent: estimate a Fisher, invert it, step. The exact one, and one for every structured estimate."""

import time
from collections.abc import Callable
from functools import partial

from torch import nn

from natgrad_lab.fisher.natural_gradient import ExactFisher
from natgrad_lab.fisher.scores import FISHER_TYPES, ScorePass, loss_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.optimizers.base import Direction, Evaluation, FlatOptimizer
from natgrad_lab.optimizers.damping import USED_ONCE
from natgrad_lab.optimizers.estimate import FisherEstimate, Statistics
from natgrad_lab.optimizers.low_rank import layers_by_rows, preconditioned_gradient
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import StructuredMatrix, from_state

__all__ = ["ExactNaturalGradient", "FisherEstimate", "NaturalGradient"]


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
        self.estimate, self.invert = estimate, USED_ONCE.get(invert, invert) if estimate.invert_every == 1 else invert
        self.fisher_type, self.num_samples = estimate.fisher_type, estimate.num_samples
        self.statistics: Statistics = ()
        self.inverse: StructuredMatrix | None = None
        self._refreshes, self._inverted_damping, self._inverted_refreshes = 0, None, 0

    @property
    def fisher(self) -> StructuredMatrix | None:
        """The running Fisher; None before the first step."""
        return self.statistics[-1] if self.statistics else None

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        """Scores only where the Fisher is refreshed; from a pass of their own where they are those of a part of the batch."""
        due = self.estimate.is_update_due(self.num_steps)
        if due and self.estimate.fraction == 1:
            return super()._evaluate(inputs, targets)
        plain = self._loss_pass(inputs, targets, with_rows=not due)
        scores, gradient, loss = plain, plain.gradient(), float(plain.loss)
        if due:
            part = slice(self.estimate.num_examples(len(inputs)))
            scores = self._pass(inputs[part], self.fisher_type, targets[part] if self.fisher_type == "empirical" else None)
        return Evaluation(loss, loss, gradient, scores)

    def _loss_pass(self, inputs: Tensor, targets: Tensor, with_rows: bool) -> ScorePass:
        """Loss and gradient, and perhaps the rows that the direction will be taken from."""
        layout, recorded = self._present_layout(), ()
        if with_rows and isinstance(inputs, Tensor) and inputs.ndim:
            known = self._is_inverse_of_it
            recorded = layers_by_rows(layout.layers, len(inputs), self.inverse, self.fisher, is_inverse_of_it=known)
        return loss_pass(self.model, self.likelihood, layout, inputs, targets, recorded)

    @property
    def _is_inverse_of_it(self) -> bool:
        """Whether the inverse at hand was made from the present Fisher."""
        return self._inverted_refreshes == self._refreshes

    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        started = time.perf_counter()
        self._refresh(scores)
        phases["fisher"] = time.perf_counter() - started
        started = time.perf_counter()
        inverse = self._inverted(damping)
        known = self._is_inverse_of_it
        vector, curvature = preconditioned_gradient(scores, gradient, inverse, self.fisher, is_inverse_of_it=known)
        phases["solve"] = time.perf_counter() - started
        return Direction(vector, curvature, self.fisher.matmul)

    def _refresh(self, scores: ScorePass) -> None:
        """Average the batch's statistics in, where they are due."""
        if not self.estimate.is_update_due(self.num_steps):
            return
        self._refreshes += 1
        decay = self.estimate.decay(self._refreshes)
        self.statistics = self.estimate.refreshed(self.statistics, scores, decay, self.num_steps)

    def _inverted(self, damping: float) -> StructuredMatrix:
        """The inverse at this damping: the one at hand where it is that and not due."""
        if damping != self._inverted_damping or self.estimate.is_inverse_due(self.num_steps):
            self.inverse, self._inverted_damping = self.invert(self.fisher, damping), damping
            self._inverted_refreshes = self._refreshes
        return self.inverse

    def _memory(self) -> tuple:
        return self.statistics, self.inverse, self._refreshes, self._inverted_damping, self._inverted_refreshes

    def _remember(self, *memory: object) -> None:
        self.statistics, self.inverse, self._refreshes, self._inverted_damping, self._inverted_refreshes = memory

    def _own_state(self) -> dict:
        saved = {} if self.inverse is None else {"inverse": self.inverse.state()}
        saved["statistics"] = [matrix.state() for matrix in self.statistics]
        inverted = {"inverted_damping": self._inverted_damping, "inverted_refreshes": self._inverted_refreshes}
        return saved | {"refreshes": self._refreshes} | inverted

    def _load_own_state(self, state: dict) -> None:
        self.statistics = tuple(from_state(matrix) for matrix in state["statistics"])
        self.inverse = from_state(state["inverse"]) if "inverse" in state else None
        self._refreshes, self._inverted_damping = state["refreshes"], state["inverted_damping"]
        self._inverted_refreshes = state["inverted_refreshes"]


class ExactNaturalGradient(FlatOptimizer):
    """δ = −lr (F + λI)⁻¹ g with the exact Fisher of the step's own batch, by the cheapest exact route.

    Attributes:
        solution: the last step's `ExactDirection`, which says the route taken and the residual achieved.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, *, fisher_type: str = "exact", **choices):
        """See the class."""
        super().__init__(model, likelihood, **choices)
        self.fisher_type = known(fisher_type, FISHER_TYPES, "fisher_type")
        self.solution = None

    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        started = time.perf_counter()
        fisher = ExactFisher(scores, self.likelihood)
        self.solution = fisher.solve(damping)
        phases["solve"] = time.perf_counter() - started
        product = partial(_in_float64, fisher.rows.matmul)
        curvature = float(self.solution.direction @ self.solution.fisher_product)
        return Direction(self.solution.direction, curvature, product)


def _in_float64(product: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    return product(vector.double()).to(vector.dtype)
