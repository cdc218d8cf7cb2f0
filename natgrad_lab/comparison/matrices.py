"""How far a structure F̂ is from the exact Fisher F as a matrix, and how well it conditions it.

Up to 600 parameters all eigenvalues are computed; above, norms come from products (Lanczos), inner products and traces.
"""

import math
from dataclasses import dataclass

import torch

from natgrad_lab.comparison.exact import ExactMatrix, Problem
from natgrad_lab.comparison.lanczos import largest_eigenvalue
from natgrad_lab.comparison.products import LARGEST_DENSE, NotAvailableError, inner, norm_squared
from natgrad_lab.comparison.rows import Numbers
from natgrad_lab.linalg import damped_cholesky
from natgrad_lab.metrics import condition_number
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    Dense,
    Diagonal,
    EigenKronecker,
    Kronecker,
    LowRank,
    StructuredMatrix,
)

LARGEST_SPECTRUM = 600  # parameters up to which all eigenvalues are computed
_CANCELLATION = 1e-7  # of ‖F‖² - 2⟨F, M⟩ + ‖M‖², after the root


@dataclass(frozen=True)
class Restricted:
    """The block of a matrix that belongs to one layer, known by its products alone."""

    whole: StructuredMatrix
    where: slice

    @property
    def dim(self) -> int:
        """Parameters of the layer."""
        return self.where.stop - self.where.start

    def matmul(self, x: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """The layer's part of M applied to a vector that is 0 elsewhere."""
        padded = x.new_zeros(self.whole.dim)
        padded[self.where] = x
        return self.whole.matmul(padded)[self.where]


def layer_part(matrix: StructuredMatrix, index: int, where: slice, sizes: list[int]) -> StructuredMatrix | Restricted:
    """The block of layer `index`, as a structure where there is one."""
    if isinstance(matrix, BlockDiagonal) and [block.dim for block in matrix.blocks] == sizes:
        return matrix.blocks[index]
    if isinstance(matrix, Diagonal):
        return Diagonal(matrix.values[where])
    if matrix.dim <= LARGEST_DENSE:
        dense = matrix.matrix if isinstance(matrix, Dense) else matrix.to_dense()
        return Dense(dense[where, where].contiguous())
    return Restricted(matrix, where)


def error_numbers(
    numbers: Numbers, exact: ExactMatrix, approx: StructuredMatrix | Restricted, *, spectral: bool = True
) -> None:
    """Relative Frobenius and spectral errors."""
    if exact.norm_squared == 0:
        numbers.refuse("the exact Fisher is zero", "frobenius_error", "spectral_error")
    elif isinstance(approx, Restricted):
        numbers.refuse("the layer's block of this structure is known by its products only", "frobenius_error")
        numbers.attempt(lambda: _spectral(numbers, exact, approx), "spectral_error")
    else:
        numbers.attempt(lambda: _frobenius(numbers, exact, approx), "frobenius_error")
        if spectral:
            numbers.attempt(lambda: _spectral(numbers, exact, approx), "spectral_error")


def _frobenius(numbers: Numbers, exact: ExactMatrix, approx: StructuredMatrix) -> float:
    if exact.dim <= LARGEST_DENSE:
        return float((approx.to_dense() - exact.matrix).norm()) / math.sqrt(exact.norm_squared)
    squared = 1 + (norm_squared(approx) - 2 * inner(exact.rows, approx)) / exact.norm_squared
    if squared < (10 * _CANCELLATION) ** 2:
        numbers.notes.append(f"Frobenius error from norms and products: nothing below {_CANCELLATION:.0e} can be told from 0")
    return math.sqrt(max(squared, 0.0))


def _spectral(numbers: Numbers, exact: ExactMatrix, approx: StructuredMatrix | Restricted) -> float:
    if exact.dim <= LARGEST_SPECTRUM:
        difference = approx.to_dense() - exact.matrix
        return float(torch.linalg.eigvalsh((difference + difference.mT) / 2).abs().max()) / exact.largest
    if exact.dim <= LARGEST_DENSE:
        difference = approx.to_dense() - exact.matrix
        extreme = largest_eigenvalue(lambda x: difference @ x, exact.matrix[0])
    else:
        like = next(exact.rows[0].tensors())[1].new_empty(exact.dim)
        extreme = largest_eigenvalue(lambda x: exact.matmul(x) - approx.matmul(x), like)
    if not extreme.converged:
        numbers.notes.append(f"spectral error known to {extreme.error / exact.largest:.0e} only (Lanczos not converged)")
    return abs(extreme.value) / exact.largest


def block_error_number(numbers: Numbers, problem: Problem, approx: StructuredMatrix) -> None:
    """Relative Frobenius error to the exact block-diagonal."""
    numbers.attempt(lambda: _block_error(problem, approx), "block_frobenius_error")


def _block_error(problem: Problem, approx: StructuredMatrix) -> float:
    total = sum(layer.norm_squared for layer in problem.layers)
    if total == 0:
        raise NotAvailableError("the exact Fisher is zero")
    if problem.layout.dim <= LARGEST_DENSE:
        dense = approx.to_dense().clone()
        for layer, exact in zip(problem.layout.layers, problem.layers, strict=True):
            dense[layer.slice, layer.slice] -= exact.matrix
        return float(dense.norm()) / math.sqrt(total)
    sizes = [layer.size for layer in problem.layout.layers]
    parts = [layer_part(approx, i, layer.slice, sizes) for i, layer in enumerate(problem.layout.layers)]
    if any(isinstance(part, Restricted) for part in parts):
        raise NotAvailableError("the layers' blocks of this structure are known by their products only")
    squared = total + norm_squared(approx)
    squared -= 2 * sum(inner(exact.rows, part) for exact, part in zip(problem.layers, parts, strict=True))
    return math.sqrt(max(squared, 0.0) / total)


def condition_numbers(numbers: Numbers, exact: ExactMatrix, approx: StructuredMatrix, damping: float) -> None:
    """What F̂_λ leaves of the spectrum of F_λ."""
    if exact.dim <= LARGEST_SPECTRUM:
        names = ("condition", "condition_mean", "laplace_kl", "affine_distance", "condition_nonzero")
        numbers.attempt(lambda: _from_spectrum(exact, approx, damping), *names)
        return
    reason = f"needs all eigenvalues: computed up to {LARGEST_SPECTRUM} parameters"
    numbers.refuse(reason, "affine_distance", "condition_nonzero")
    largest = None
    try:
        largest = _pencil(numbers, exact, approx, damping, inverse=False)
    except Exception as error:  # stated by the attempts below
        numbers.attempt(lambda e=error: _raise(e), "condition")
    else:
        numbers.attempt(lambda: largest * _pencil(numbers, exact, approx, damping, inverse=True), "condition")
    numbers.attempt(lambda: _from_traces(exact, approx, damping, largest), "condition_mean", "laplace_kl")


def _raise(error: Exception):
    raise error


def _from_spectrum(exact: ExactMatrix, approx: StructuredMatrix, damping: float) -> tuple[float | None, ...]:
    factor = damped_cholesky(approx.to_dense(), damping)
    half = torch.linalg.solve_triangular(factor, exact.matrix, upper=False)
    undamped = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    spectrum = torch.linalg.eigvalsh(undamped + damping * inverse @ inverse.mT)
    positive = bool(spectrum[0] > 0)
    values = torch.linalg.eigvalsh((undamped + undamped.mT) / 2).clamp(min=0)
    return (
        float(spectrum[-1] / spectrum[0]) if positive else None,
        float(spectrum[-1] / spectrum.mean()),
        float((spectrum - 1 - spectrum.log()).sum() / 2) if positive else None,
        float(spectrum.log().norm()) if positive else None,
        condition_number(values, "nonzero") if values[-1] > 0 else None,
    )


def _pencil(numbers: Numbers, exact: ExactMatrix, approx: StructuredMatrix, damping: float, inverse: bool) -> float:
    """λmax of F̂_λ⁻¹F_λ, or of F_λ⁻¹F̂_λ; both are self-adjoint in the inner product F̂_λ."""

    def metric(x: Tensor) -> Tensor:
        return approx.matmul(x) + damping * x

    def apply(x: Tensor) -> Tensor:
        if inverse:
            return exact.solve(metric(x), damping)
        return approx.solve(exact.matmul(x) + damping * x, damping)

    extreme = largest_eigenvalue(apply, next(exact.rows[0].tensors())[1].new_empty(exact.dim), metric)
    if not extreme.converged:
        numbers.notes.append(f"condition known to a relative {extreme.error / abs(extreme.value):.0e} only (Lanczos not converged)")
    return extreme.value


def _from_traces(exact: ExactMatrix, approx: StructuredMatrix, damping: float, largest: float | None) -> tuple:
    if exact.dim > LARGEST_DENSE and not _power_is_cheap(approx):
        raise NotAvailableError(f"needs the inverse of a {type(approx).__name__} as a matrix, which is not formed at this size")
    inverse = approx.power(-1, damping)
    trace = inner(exact.rows, inverse) + damping * float(inverse.trace())
    logdet = float(approx.logdet(damping)) - float(exact.structure.logdet(damping))
    return None if largest is None else largest * exact.dim / trace, (trace - exact.dim + logdet) / 2


def _power_is_cheap(matrix: StructuredMatrix) -> bool:
    if isinstance(matrix, BlockDiagonal):
        return all(map(_power_is_cheap, matrix.blocks))
    return isinstance(matrix, Diagonal | Kronecker | EigenKronecker | LowRank | Dense)
