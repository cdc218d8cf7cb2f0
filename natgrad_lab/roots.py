"""Square roots of symmetric positive definite matrices, and low-rank stand-ins for those too large to take the root of.

What local Fisher layers are made of: G^½ into the weights, G^−½ in front of them. Every result comes with the residual it
reached.
"""

import math
import warnings
from dataclasses import dataclass, field
from numbers import Real

import torch

from natgrad_lab.errors import NumericalWarning
from natgrad_lab.linalg import check_damping, check_finite, check_symmetric, damped_cholesky, not_positive_definite, zero_level
from natgrad_lab.shapes import Float, Int, Tensor
from natgrad_lab.structures import LowRank

_FLOOR = 1e-2  # below this, quadratic convergence more than halves ‖YZ − I‖, unless rounding stops it


@dataclass(frozen=True)
class SquareRoot:
    """M^½ and M^−½ of a damped matrix M, and what they are worth.

    Attributes:
        root, inverse_root: (m, m), symmetric.
        residuals: ‖Y_k² − M‖ / ‖M‖ (Frobenius) of the root after each iteration; the last one belongs to `root`.
        products: ‖Y_k Z_k − I‖ / √m after each iteration, which counts every eigenvalue alike and decides when to stop.
        inverse_residual: ‖Z M Z − I‖ / √m of `inverse_root` Z. Rounding alone makes it about κ eps, κ the condition number.
    """

    root: Float[Tensor, "m m"] = field(repr=False)
    inverse_root: Float[Tensor, "m m"] = field(repr=False)
    residuals: tuple[float, ...]
    products: tuple[float, ...]
    inverse_residual: float

    @property
    def residual(self) -> float:
        """‖Y² − M‖ / ‖M‖ of `root`."""
        return self.residuals[-1]


def denman_beavers(
    matrix: Float[Tensor, "m m"],
    damping: Real = 0.0,
    *,
    tolerance: float | None = None,
    max_steps: int = 50,
    scaled: bool = True,
) -> SquareRoot:
    """M^½ and M^−½ of M = matrix + damping I by the Denman-Beavers iteration, both at once.

    Y ← (μY + (μZ)⁻¹)/2 and Z ← (μZ + (μY)⁻¹)/2, both from the old pair, start at Y = M and Z = I: Newton's iteration for the
    sign of [[0, M], [I, 0]], so that Y → M^½ and Z → M^−½ quadratically. μ = (det Y det Z)^(−1/2m) brings the spectrum's
    geometric mean to 1 in every iteration; it tends to 1 by itself. All iterates commute and are positive definite, so
    inverses and determinants come from Cholesky factors. The product form (one inverse instead of two) is less exact
    in Y Z = I by the square root of the condition number, and is not used.

    Stops at `tolerance`, or where rounding lets ‖YZ − I‖ fall no further: about √κ eps. (‖Y² − M‖ / ‖M‖ is small long before
    the directions of small eigenvalues, which make the inverse root, have converged.)

    Args:
        tolerance: of ‖YZ − I‖ / √m; None: √m eps.
        max_steps: iterations at most. scaled: False leaves μ = 1, and one more iteration for every factor 4 in κ.
    Raises: NotPositiveDefiniteError where M is singular to working precision or indefinite; ValueError if not symmetric. No
        jitter is added: the root is of M, or there is none.
    Warns: NumericalWarning with the residual reached if `max_steps` end the iteration before either.
    Cost: per iteration two Cholesky inverses and two products, about 8 m³ flops; 5 to 17 iterations for κ from 10 to 1e8.
    References: [DenmanBeavers1976]; [Higham2008] sec. 6.3 and 6.5 for the product form and the scaling.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be a positive integer; got {max_steps}.")
    check_finite(matrix, "matrix")
    check_symmetric(matrix)
    if check_damping(damping) == 0:
        damped_cholesky(matrix)  # refuses what rounding alone keeps from being singular
    M = matrix.clone()
    M.diagonal().add_(damping)
    dim, size = len(M), M.diagonal().mean()
    M = M / size  # far from the ends of the exponent range
    tolerance = math.sqrt(dim) * torch.finfo(M.dtype).eps if tolerance is None else tolerance
    Y, Z, norm = M, torch.eye(dim, dtype=M.dtype, device=M.device), torch.linalg.matrix_norm(M)
    residuals, products = [], []
    for _ in range(max_steps):
        (Y_inverse, Y_logdet), (Z_inverse, Z_logdet) = (_inverse(each, float(damping)) for each in (Y, Z))
        mu = torch.exp(-(Y_logdet + Z_logdet) / (2 * dim)) if scaled else 1.0
        Y, Z = (mu * Y + Z_inverse / mu) / 2, (mu * Z + Y_inverse / mu) / 2
        residuals.append((torch.linalg.matrix_norm(Y @ Y - M) / norm).item())
        products.append(_distance_to_identity(Y @ Z))
        stalled = len(products) > 1 and products[-2] < _FLOOR and not products[-1] < products[-2] / 2
        if stalled or products[-1] <= tolerance:
            break
    else:
        warnings.warn(
            f"the Denman-Beavers iteration was ended after {max_steps} steps at ‖YZ − I‖ / √m = {products[-1]:.3g}; "
            f"{tolerance:.3g} was asked for. Allow more steps.",
            NumericalWarning,
            stacklevel=2,
        )
    inverse_residual = _distance_to_identity(Z @ M @ Z)
    return SquareRoot(Y * size.sqrt(), Z / size.sqrt(), tuple(residuals), tuple(products), inverse_residual)


def _distance_to_identity(matrix: Tensor) -> float:
    """‖matrix − I‖ / √m."""
    off = matrix.clone()
    off.diagonal().sub_(1)
    return (torch.linalg.matrix_norm(off) / math.sqrt(len(off))).item()


def _inverse(matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Inverse and logarithm of the determinant of an iterate, the first of which is M / size."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not torch.isfinite(factor).all():
        level = zero_level(len(matrix), matrix.diagonal().max())
        raise not_positive_definite(len(matrix), "it is indefinite, or its root is", damping, level)
    return torch.cholesky_inverse(factor), 2 * factor.diagonal().log().sum()


def nystrom(matrix: Float[Tensor, "m m"], landmarks: int | Int[Tensor, " l"]) -> tuple[LowRank, float]:
    """Low-rank stand-in C W⁺ Cᵀ for a psd matrix from some of its columns: C = matrix[:, I], W = matrix[I, I].

    Exact if the matrix has no larger rank than W: for a number of landmarks not below its rank, always. What is left out is
    psd, so the trace left out bounds every norm of the error. Computed as a pivoted Cholesky factorization that pivots only
    on landmarks, which needs no pseudo-inverse and skips landmarks that others already explain.

    As a `LowRank` with rest 0 it is damped exactly: solve(x, λ) is (Ĝ + λI)⁻¹ x and power(−½, λ) the inverse root of Ĝ + λI.

    Args: landmarks: indices I; or how many to choose, each the largest diagonal entry not yet explained (deterministic).
    Returns: the stand-in, and tr(matrix − stand-in) / tr(matrix): 0 is exact.
    Raises: NotPositiveDefiniteError if the matrix is not psd; ValueError for landmarks that do not exist.
    Cost: for l landmarks m l² flops for the factor and about 6 m l² for its singular vectors.
    References: [WilliamsSeeger2001]; [FineScheinberg2001] for the choice of landmarks.
    """
    check_finite(matrix, "matrix")
    check_symmetric(matrix)
    allowed, count = _landmarks(landmarks, len(matrix), matrix.device)
    L, rest = _partial_cholesky(matrix, allowed, count)
    U, s, _ = torch.linalg.svd(L, full_matrices=False)
    trace = matrix.trace().item()
    left_out = rest.clamp(min=0).sum().item() / trace if trace > 0 else 0.0
    return LowRank(U, s.square(), matrix.new_zeros(())), left_out


def _landmarks(landmarks: int | Tensor, dim: int, device: torch.device) -> tuple[Tensor, int]:
    """Which indices may be pivots, (m,) bool, and how many at most."""
    allowed = torch.ones(dim, dtype=torch.bool, device=device)
    if isinstance(landmarks, int):
        if landmarks < 1:
            raise ValueError(f"landmarks must be at least 1, or indices; got {landmarks}.")
        return allowed, min(landmarks, dim)
    if not len(landmarks) or landmarks.min() < 0 or landmarks.max() >= dim or len(landmarks.unique()) < len(landmarks):
        raise ValueError(f"landmarks must be different indices from 0 to {dim - 1}, at least one; got {landmarks.tolist()}.")
    allowed.zero_()[landmarks.to(device)] = True
    return allowed, len(landmarks)


def _partial_cholesky(matrix: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """L (m, r) with L Lᵀ = C W⁺ Cᵀ, and the diagonal of what is left out."""
    rest = matrix.diagonal().clone()
    level = zero_level(len(matrix), rest.abs().max())
    if (smallest := rest.min().item()) < -level:
        raise not_positive_definite(len(matrix), f"its smallest diagonal entry is {smallest:.3g}", 0.0, level)
    L, rank = matrix.new_zeros(len(matrix), count), 0
    for _ in range(count):
        pivot = int(rest.masked_fill(~allowed, -math.inf).argmax())
        if not rest[pivot] > level:
            break
        column = (matrix[:, pivot] - L[:, :rank] @ L[pivot, :rank]) / rest[pivot].sqrt()
        L[:, rank] = column
        rest = rest - column.square()
        rest[pivot] = 0.0
        rank += 1
        if (smallest := rest.min().item()) < -math.sqrt(level * matrix.diagonal().max().item()):
            raise not_positive_definite(len(matrix), f"what columns explain exceeds it by {-smallest:.3g}", 0.0, level)
    return L[:, :rank], rest
