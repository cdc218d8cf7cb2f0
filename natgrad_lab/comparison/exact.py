"""The exact Fisher and the exact natural gradient of one batch in float64, whatever the model's dtype: the yardstick."""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.func import functional_call

from natgrad_lab.comparison.lanczos import largest_eigenvalue
from natgrad_lab.comparison.products import LARGEST_DENSE, formed, norm_squared
from natgrad_lab.fisher.natural_gradient import ExactDirection, ExactFisher
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import cholesky_solve, damped_cholesky, psd_eigh
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Dense, Gram, RowBlock, StructuredMatrix


class ExactMatrix:
    """RᵀR of some layers: products through the rows or the formed matrix, whichever is cheaper; solves with one factor kept."""

    def __init__(self, rows: tuple[RowBlock, ...]):
        """Nothing is computed yet. Args: rows: float64, already divided by √N."""
        self.rows = rows
        self.gram = Gram(rows)
        self.dim, self.num_rows = self.gram.dim, self.gram.num_rows
        self.is_small = self.dim <= LARGEST_DENSE and self.dim <= 4 * self.num_rows
        self._factor: tuple[float, Tensor] | None = None

    @cached_property
    def matrix(self) -> Float[Tensor, "P P"]:
        """The matrix, formed."""
        return formed(self.gram, "the exact Fisher")

    @cached_property
    def structure(self) -> StructuredMatrix:
        """The same as a structure."""
        return Dense(self.matrix) if self.is_small else self.gram

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """F x."""
        return self.matrix @ x if self.is_small else self.gram.matmul(x)

    def solve(self, x: Float[Tensor, "P *k"], damping: float) -> Float[Tensor, "P *k"]:
        """(F + damping I)⁻¹ x."""
        if self.num_rows < self.dim and not self.is_small:
            return self.gram.solve(x, damping)
        if self._factor is None or self._factor[0] != damping:
            self._factor = (damping, damped_cholesky(self.matrix, damping))
        solution = cholesky_solve(self._factor[1], x)
        return solution + cholesky_solve(self._factor[1], x - self.matmul(solution) - damping * solution)

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
        model, inputs, targets: as given; estimators see these. What is exact comes from a float64 copy.
        damping: λ. seed: of sampled targets.
        note: what a reader has to know about how the exact Fisher was made.
    """

    def __init__(
        self, model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor, damping: float, seed: int = 0
    ):
        """One pass. Raises: as `fisher.score_pass`."""
        self.model, self.likelihood, self.inputs, self.targets = model, likelihood, inputs, targets
        self.damping, self.seed = damping, seed
        self.layout = ParameterLayout(model)
        self._double, note = _in_double(model)
        self.scores: ScorePass = score_pass(self._double, likelihood, self._wide(inputs), loss_targets=self._wide(targets))
        self.note = "; ".join(each for each in (note, self.scores.note) if each)
        self.fisher = ExactFisher(self.scores, likelihood)
        self.gradient: Float[Tensor, " P"] = self.scores.gradient().double()
        self._solved: dict[float, ExactDirection] = {}

    def generator(self, offset: int = 0) -> torch.Generator:
        """A new generator with seed + offset."""
        return torch.Generator(device=self.layout.device).manual_seed(self.seed + offset)

    @cached_property
    def exact(self) -> ExactMatrix:
        """The whole Fisher."""
        return ExactMatrix(self.fisher.rows.blocks)

    @cached_property
    def layers(self) -> tuple[ExactMatrix, ...]:
        """Its diagonal blocks, layer by layer."""
        return tuple(ExactMatrix((rows,)) for rows in self.exact.rows)

    def natural_gradient(self, damping: float) -> ExactDirection:
        """The exact damped natural gradient, kept."""
        if damping not in self._solved:
            self._solved[damping] = self.fisher.solve(damping)
        return self._solved[damping]

    def layer_natural_gradient(self, index: int, damping: float) -> Tensor:
        """(F_l + damping I)⁻¹ g_l: the exact natural gradient if only layer l moved."""
        return self.layers[index].solve(self.gradient[self.layout.layers[index].slice], damping)

    def moved(self, update: Float[Tensor, " P"]) -> Moved:
        """Run the network at θ + update."""
        names = {id(parameter): name for name, parameter in self._double.named_parameters()}
        parts = self.scores.layout.split(update)
        parameters = {names[id(parameter)]: parameter.detach() + part for parameter, part in parts}
        with torch.no_grad():
            before, after = (
                functional_call(self._double, p, (self._wide(self.inputs),)) for p in ({}, parameters)
            )
        targets = self.likelihood.flat_targets(before, self._wide(self.targets))
        before, after = (self.likelihood.positions(each) for each in (before, after))
        N, flat_before, flat_after = len(before), before.flatten(0, 1), after.flatten(0, 1)
        losses = (self.likelihood.nll(flat, targets) for flat in (flat_before, flat_after))
        fall = next(losses) - next(losses)
        return Moved(float(fall.sum() / N), float(self.likelihood.kl(flat_before, flat_after).sum() / N))

    def _wide(self, data: Tensor) -> Tensor:
        dtype = next(self._double.parameters()).dtype
        return data.to(dtype) if data.is_floating_point() else data


def _in_double(model: nn.Module) -> tuple[nn.Module, str]:
    """A float64 copy with the same weights; the model itself, and why, if it cannot be copied."""
    if all(p.dtype == torch.float64 for p in model.parameters()):
        return model, ""
    try:
        return copy.deepcopy(model).double(), ""
    except (RuntimeError, TypeError, ValueError) as error:
        return model, f"the model cannot be copied to float64 ({error}), so the exact Fisher has its own precision"
