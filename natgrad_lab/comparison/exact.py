"""The exact Fisher and the exact natural gradient of one batch in float64, whatever the model's dtype: the yardstick."""

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch
from torch.func import functional_call

from natgrad_lab.comparison.batch import Batch
from natgrad_lab.comparison.lanczos import largest_eigenvalue
from natgrad_lab.comparison.products import LARGEST_DENSE, norm_squared
from natgrad_lab.fisher.natural_gradient import ExactDirection, ExactFisher
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.linalg import cholesky_solve, damped_cholesky, psd_eigh
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Dense, Gram, RowBlock, StructuredMatrix


class ExactMatrix:
    """RᵀR of some layers: products through the rows or the formed matrix, whichever is cheaper; solves with one factor kept."""

    def __init__(self, rows: tuple[RowBlock, ...]):
        """Nothing is computed yet. Args: rows: float64, already divided by √N."""
        self.rows = rows
        self.gram = Gram(rows)
        self.dim, self.num_rows = self.gram.dim, self.gram.num_rows
        self.is_small = self.dim <= LARGEST_DENSE or self.dim <= self.num_rows
        self._factor: tuple[float, Tensor] | None = None

    @cached_property
    def matrix(self) -> Float[Tensor, "P P"]:
        """The matrix, formed."""
        return self.gram.to_dense()

    @cached_property
    def structure(self) -> StructuredMatrix:
        """The same as a structure."""
        return Dense(self.matrix) if self.is_small else self.gram

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """F x."""
        return self.matrix @ x if self.is_small else self.gram.matmul(x)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real) -> Float[Tensor, "P *k"]:
        """(F + damping I)⁻¹ x."""
        if not self.is_small:
            return self.gram.solve(x, damping)
        factor = self.factor(damping)
        solution = cholesky_solve(factor, x)
        return solution + cholesky_solve(factor, x - self.matmul(solution) - damping * solution)

    def quick_solve(self, x: Float[Tensor, " P"], damping: Real) -> Float[Tensor, " P"]:
        """The same without correcting what rounding takes: enough inside an iteration, at half the cost."""
        factor = self.factor(damping)
        if self.is_small:
            return cholesky_solve(factor, x)
        return (x - self.gram.rmatmul(cholesky_solve(factor, self.gram.rows_matmul(x)))) / damping

    def factor(self, damping: Real) -> Float[Tensor, "m m"]:
        """Cholesky factor of F + damping I, or of R Rᵀ + damping I where that is used; the newest is kept."""
        if self._factor is None or self._factor[0] != damping:
            self._factor = (damping, damped_cholesky(self.matrix if self.is_small else self.gram.row_gram, damping))
        return self._factor[1]

    def logdet(self, damping: Real) -> float:
        """log det(F + damping I)."""
        inside = 2 * float(self.factor(damping).diagonal().log().sum())
        return inside if self.is_small else inside + (self.dim - self.num_rows) * math.log(damping)

    @cached_property
    def norm_squared(self) -> float:
        """‖F‖², Frobenius."""
        return float(self.matrix.square().sum()) if self.is_small else norm_squared(self.gram)

    @cached_property
    def largest(self) -> float:
        """‖F‖₂, the largest eigenvalue."""
        return largest_eigenvalue(self.matmul, next(self.rows[0].tensors())[1].new_empty(self.dim)).value

    @cached_property
    def eigen(self) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
        """Eigenvalues and vectors of F, or of R Rᵀ where that is smaller; kept."""
        return psd_eigh(self.matrix if self.dim <= self.num_rows else self.gram.row_gram)


@dataclass(frozen=True)
class Moved:
    """What a step did on the batch: the fall of the mean loss and KL(before ‖ after), nats per example."""

    decrease: float
    kl: float


class Problem:
    """One model, likelihood and batch, with everything exact that approximations are judged by.

    Attributes:
        batch: as given. wide: the same in float64, from which everything exact comes.
        damping: λ. layout: the flat order. scores, fisher, gradient: of the wide batch.
        note: what a reader has to know about how the exact Fisher was made.
    """

    def __init__(self, batch: Batch, damping: Real):
        """One pass. Raises: as `fisher.score_pass`."""
        self.batch, self.damping, self.layout = batch, damping, batch.layout
        self.wide, note = batch.in_double()
        self.scores: ScorePass = score_pass(self.wide.model, batch.likelihood, self.wide.inputs, loss_targets=self.wide.targets)
        self.note = "; ".join(each for each in (note, self.scores.note) if each)
        self.fisher = ExactFisher(self.scores, batch.likelihood)
        self.gradient: Float[Tensor, " P"] = self.scores.gradient().double()
        self._solved: dict[float, ExactDirection] = {}
        self._solved_alone: dict[int, Tensor] = {}

    @cached_property
    def exact(self) -> ExactMatrix:
        """The whole Fisher."""
        return ExactMatrix(self.fisher.rows.blocks)

    @cached_property
    def layers(self) -> tuple[ExactMatrix, ...]:
        """Its diagonal blocks, layer by layer."""
        return tuple(ExactMatrix((rows,)) for rows in self.exact.rows)

    def natural_gradient(self, damping: Real) -> ExactDirection:
        """The exact damped natural gradient, kept."""
        if damping not in self._solved:
            self._solved[damping] = self.fisher.solve(damping)
        return self._solved[damping]

    def layer_natural_gradient(self, index: int) -> Tensor:
        """(F_l + damping I)⁻¹ g_l: the exact natural gradient if only layer l moved, kept."""
        if index not in self._solved_alone:
            gradient = self.gradient[self.layout.layers[index].slice]
            self._solved_alone[index] = self.layers[index].solve(gradient, self.damping)
        return self._solved_alone[index]

    def moved(self, update: Float[Tensor, " P"]) -> Moved:
        """Run the network at θ + update."""
        model, likelihood, inputs = self.wide.model, self.wide.likelihood, self.wide.inputs
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        parts = self.scores.layout.split(update.to(self.scores.layout.dtype))
        parameters = {names[id(parameter)]: parameter.detach() + part for parameter, part in parts}
        with torch.no_grad():
            after = likelihood.positions(functional_call(model, parameters, (inputs,))).flatten(0, 1).double()
        before, targets = self._before
        fall = likelihood.nll(before, targets) - likelihood.nll(after, targets)
        N = len(inputs)
        return Moved(float(fall.sum() / N), float(likelihood.kl(before, after).sum() / N))

    @cached_property
    def _before(self) -> tuple[Float[Tensor, "NS C"], Tensor]:
        """Outputs and targets at θ, by position."""
        with torch.no_grad():
            outputs = self.wide.model(self.wide.inputs)
        flat = self.wide.likelihood.positions(outputs).flatten(0, 1).double()
        return flat, self.wide.likelihood.flat_targets(outputs, self.wide.targets)
