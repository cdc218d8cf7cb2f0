"""The exact damped natural gradient (F + λI)⁻¹ ∇loss, by whichever exact route is cheapest, with the residual it achieved.

Three routes to the same vector, chosen by counting operations and memory:

    dense  form F (P, P), Cholesky                        few parameters
    gram   form R Rᵀ (KN, KN), Cholesky                   few examples, any number of parameters
    cg     conjugate gradients on v ↦ Rᵀ(R v), float64    neither matrix fits

The matrix is formed and factorized in the model's precision; the solution is then corrected with residuals taken in
float64 through the rows R, so that float32 loses little where λ is small. On the gram route a gradient g = Rᵀu takes the
range form Rᵀ(R Rᵀ + λ)⁻¹u, in which nothing is subtracted.
"""

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from natgrad_lab.errors import NumericalWarning
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import cg, check_damping, cholesky_solve, damped_cholesky, shifted_cholesky
from natgrad_lab.names import known
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Gram, KhatriRaoRows

ROUTES = ("dense", "gram", "cg")
_LARGEST = 2**29  # numbers in a matrix that is formed: 2 GiB in float32
_CORRECTIONS = 10
_ENOUGH = {torch.float32: 1e-9, torch.float64: 1e-14}  # relative residual at which corrections stop
_ACCEPTED = 1e-8  # relative residual up to which a factor in float32 will do: below the rounding of the gradient
_PROMISED = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative residual above which the caller is warned


@dataclass(frozen=True)
class ExactDirection:
    """A solution of (F + damping I) direction = gradient, and how it was found.

    Attributes:
        direction: (P,) flat order, the model's dtype; points uphill, so a step is −lr · direction.
        gradient: (P,) of the mean loss.
        loss: mean nll, nats.
        damping: λ added to every eigenvalue of F (exact Tikhonov).
        route: "dense", "gram (range form)", "gram" or "cg".
        fisher_product: (P,) F direction, so that direction · fisher_product / 2 is the KL it moves, to second order.
        residual: ‖(F + λI) direction − gradient‖ / ‖gradient‖ of what is returned, products taken in float64. Rounding
            the direction to its dtype alone gives up to eps · λ_max / λ.
        corrections: steps of iterative refinement (dense) or of conjugate gradients (cg).
    """

    direction: Float[Tensor, " P"] = field(repr=False)
    gradient: Float[Tensor, " P"] = field(repr=False)
    fisher_product: Float[Tensor, " P"] = field(repr=False)
    loss: float
    damping: float
    route: str
    residual: float
    corrections: int


def natural_gradient(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    targets: Tensor,
    damping: float,
    fisher_type: str = "exact",
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    route: str | None = None,
) -> ExactDirection:
    """The exact natural gradient of the mean loss on (inputs, targets), damped by λ = `damping`.

    Args:
        inputs, targets: N examples; the Fisher and the gradient are means over the same ones.
        damping: λ ≥ 0. With 0 the Fisher itself must be invertible, which needs K·N ≥ P rows at least.
        fisher_type, num_samples, generator: as in `output_scores`.
        route: one of `ROUTES` to insist on; the cheapest is taken otherwise.
    Raises: NotPositiveDefiniteError for damping 0 and a singular Fisher; as `score_pass`.
    Warns: NumericalWarning with the residual if it is above 1e-4 (float32) or 1e-8 (float64) and above what rounding the
        direction to its dtype explains.
    Cost: dense N P² + P³/3, gram (KN)² Σ_l out_l + (KN)³/3 operations; `ExactDirection.route` says which was taken.
    """
    check_damping(damping)
    scores = score_pass(model, likelihood, inputs, fisher_type, targets, num_samples, generator, loss_targets=targets)
    return ExactFisher(scores, likelihood, route).solve(damping)


class ExactFisher:
    """The exact Fisher of one pass, ready to be inverted at any damping: what is formed is kept."""

    def __init__(self, scores: ScorePass, likelihood: Likelihood, route: str | None = None):
        """Choose the route; nothing is computed yet."""
        if route is not None:
            known(route, ROUTES, "route")
        self.scores = scores
        self.gradient = scores.gradient()
        self.route = route or cheapest_route(scores)
        self._likelihood = likelihood

    @cached_property
    def gram(self) -> Gram:
        """F = RᵀR by its rows, in the model's precision."""
        return gram_from_scores(self.scores)

    @cached_property
    def rows(self) -> Gram:
        """The same in float64, for products and residuals."""
        if self.gram.dtype == torch.float64:
            return self.gram
        return Gram(tuple(block.map(lambda tensor: tensor.double()) for block in self.gram.blocks))

    @cached_property
    def matrix(self) -> Float[Tensor, "P P"]:
        """F, formed (dense route)."""
        return contract([layer.rows for layer in self.scores.layers], self.scores.num_examples)

    @cached_property
    def coordinates(self) -> Float[Tensor, " R"] | None:
        """u with gradient = Rᵀu, in float64; None where the gradient is outside the range of Rᵀ or u overflows."""
        num_examples, root = self.scores.num_examples, self.scores.num_examples**0.5
        outputs = self.scores.outputs.double()  # (N, S, C)
        if self.scores.fisher_type == "empirical":
            return outputs.new_full((num_examples,), -1.0 / root)
        if self.scores.fisher_type == "monte_carlo":
            return None
        loss_scores = self.scores.loss_scores.double().flatten(0, 1)
        coordinates = self._likelihood.root_coordinates(outputs.flatten(0, 1), loss_scores).unflatten(0, outputs.shape[:2])
        u = -coordinates.permute(1, 2, 0).flatten() / root  # score k = (position, column of the root), k-major
        if not torch.isfinite(u).all():
            return None
        off = torch.linalg.vector_norm(self.rows.rmatmul(u) - self.gradient.double())
        # the gradient itself carries rounding of its dtype; a sum of N terms, a factor 100 above one rounding
        bound = 100 * torch.finfo(self.gradient.dtype).eps * torch.linalg.vector_norm(self.gradient.double())
        return u if off <= bound else None

    def solve(self, damping: float) -> ExactDirection:
        """(F + damping I)⁻¹ gradient."""
        damping = check_damping(damping)
        solvers = {"dense": self._dense_solve, "gram": self._gram_solve, "cg": self._cg_solve}
        if not self.gradient.any():
            return self._result(self.route, self.gradient.double(), damping, 0)
        found = None
        if self.route == "gram" and damping > 0 and self.coordinates is not None:
            found = self._result("gram (range form)", self.gram.range_solve(self.coordinates, damping), damping, 0)
        if found is None or not found.residual <= self._allowed(found):
            # coordinates are large where the model is all but certain of another target, or rows are dependent
            other = self._result(self.route, *solvers[self.route](damping))
            found = other if found is None or not found.residual <= other.residual else found
        if not found.residual <= self._allowed(found):
            warnings.warn(
                f"the natural gradient has a relative residual of {found.residual:.1e} (route {found.route}, damping "
                f"{damping:g}, {self.gradient.dtype}). Raise the damping or use float64.",
                NumericalWarning,
                stacklevel=2,
            )
        return found

    def _gram_solve(self, damping: float) -> tuple[Tensor, float, int]:
        return self.gram.solve(self.gradient, damping), damping, 0

    def _cg_solve(self, damping: float) -> tuple[Tensor, float, int]:
        direction, _, steps = cg(self.rows.matmul, self.gradient.double(), damping, tolerance=1e-8, max_steps=2000)
        return direction, damping, steps

    def _dense_solve(self, damping: float) -> tuple[Tensor, float, int]:
        """Factor in the working precision; in float64 where corrections do not make up for it."""
        if self.matrix.dtype == torch.float32 and damping > 0:
            factor, failed = shifted_cholesky(self.matrix, damping)
            if not failed:
                direction, residual, corrections = self._refined(factor, damping)
                if residual <= _ACCEPTED:
                    return direction, damping, corrections
            blocks = [layer.rows.map(Tensor.double) for layer in self.scores.layers]
            factor = damped_cholesky(contract(blocks, self.scores.num_examples), damping)
        else:
            factor = damped_cholesky(self.matrix, damping)
        direction, _, corrections = self._refined(factor, damping)
        return direction, damping, corrections

    def _refined(self, factor: Tensor, damping: float) -> tuple[Tensor, float, int]:
        """Solve by `factor`, corrected by float64 residuals while they halve; with the relative residual and their number."""
        gradient = self.gradient.double()
        best, smallest, corrections = torch.zeros_like(gradient), math.inf, -1
        direction, residual = best, gradient
        while corrections < _CORRECTIONS and smallest > _ENOUGH[self.gradient.dtype]:
            direction = direction + cholesky_solve(factor, residual.to(factor.dtype)).double()
            residual = gradient - self.rows.matmul(direction) - damping * direction
            size = float(torch.linalg.vector_norm(residual) / torch.linalg.vector_norm(gradient))
            if not size < smallest / 2:
                break
            best, smallest, corrections = direction, size, corrections + 1
        return best, smallest, max(corrections, 0)

    def _result(self, route: str, direction: Tensor, damping: float, corrections: int) -> ExactDirection:
        dtype, gradient = self.gradient.dtype, self.gradient.double()
        rounded = direction.to(dtype).double()
        product = self.rows.matmul(rounded)
        size = float(torch.linalg.vector_norm(gradient)) or 1.0
        residual = float(torch.linalg.vector_norm(gradient - product - damping * rounded)) / size
        loss = float(self.scores.loss)
        return ExactDirection(rounded.to(dtype), self.gradient, product.to(dtype), loss, damping, route, residual, corrections)

    def _allowed(self, found: ExactDirection) -> float:
        """The residual promised, or what rounding δ of the direction explains: ‖(F + λI) δ‖ ≤ (tr F + λ) eps ‖direction‖."""
        promised, eps = _PROMISED[self.gradient.dtype], torch.finfo(self.gradient.dtype).eps
        if found.residual <= promised or not self.gradient.any():
            return promised
        moved = (float(self.rows.trace()) + found.damping) * eps * float(torch.linalg.vector_norm(found.direction))
        return max(promised, moved / float(torch.linalg.vector_norm(self.gradient)))


def cheapest_route(scores: ScorePass) -> str:
    """Of the routes whose matrix may be formed, the one with the fewest operations; "cg" if there is none."""
    num_examples, rows = scores.num_examples, scores.num_examples * scores.num_scores
    dim = scores.layout.dim
    single = all(isinstance(layer.rows, KhatriRaoRows) for layer in scores.layers)
    gram = sum(layer.rows.gram_flops for layer in scores.layers)
    operations = {"dense": (num_examples if single else 2 * rows) * dim**2 + dim**3 / 3, "gram": gram + rows**3 / 3}
    sizes = {"dense": dim**2, "gram": rows**2}
    feasible = [route for route in operations if sizes[route] <= _LARGEST]
    return min(feasible, key=operations.get) if feasible else "cg"
