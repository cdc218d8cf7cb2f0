"""How far a structure F̂ is from the exact Fisher F as a matrix, and how well it conditions it.

Up to 600 parameters all eigenvalues are computed; up to 4,096 matrices are formed and factored, and extreme eigenvalues
come from Lanczos; above, nothing is formed: norms come from products, inner products and traces.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.comparison.exact import ExactMatrix, Problem
from natgrad_lab.comparison.lanczos import ROUGH, Extreme, largest_eigenvalue
from natgrad_lab.comparison.products import LARGEST_DENSE, NotAvailableError, inner, inverse_trace, norm_squared
from natgrad_lab.comparison.rows import Numbers
from natgrad_lab.linalg import damped_cholesky
from natgrad_lab.metrics import condition_number
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    BlockTridiagonalInverse,
    Dense,
    DenseRows,
    Diagonal,
    Gram,
    LowRank,
    StructuredMatrix,
)

LARGEST_SPECTRUM = 600  # parameters up to which all eigenvalues are computed
SLOW = 0.5  # seconds of a solve above which condition numbers are not computed
_CANCELLATION = 1e-7  # of ‖F‖² - 2⟨F, M⟩ + ‖M‖², after the root
_CONDITION = ("condition", "condition_mean", "laplace_kl", "affine_distance", "condition_nonzero")


@dataclass(frozen=True)
class Restricted:
    """The block of a matrix that belongs to one layer, known by its products alone."""

    whole: StructuredMatrix
    where: slice

    def matmul(self, x: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """The layer's part of M applied to a vector that is 0 elsewhere."""
        padded = x.new_zeros(self.whole.dim)
        padded[self.where] = x
        return self.whole.matmul(padded)[self.where]

    def to_dense(self) -> Float[Tensor, "p p"]:
        """The block, by one product for each of its parameters."""
        identity = torch.eye(self.where.stop - self.where.start, dtype=self.whole.dtype, device=self.whole.device)
        return torch.stack([self.matmul(column) for column in identity], 1)


class Pair:
    """The exact matrix and one approximation of it; what is formed is kept as long as the pair."""

    def __init__(self, exact: ExactMatrix, approx: StructuredMatrix | Restricted, dense: Tensor | None = None):
        """Nothing is computed yet. Args: dense: the approximation, if it is formed already."""
        self.exact, self.approx, self._given = exact, approx, dense
        self.is_dense = exact.dim <= (LARGEST_SPECTRUM if isinstance(approx, Restricted) else LARGEST_DENSE)

    @cached_property
    def dense(self) -> Float[Tensor, "P P"]:
        """F̂, formed."""
        return (self.approx.to_dense() if self._given is None else self._given).double()

    @cached_property
    def difference(self) -> Float[Tensor, "P P"]:
        """F̂ - F, formed."""
        return self.dense - self.exact.matrix

    @property
    def like(self) -> Tensor:
        """A vector of the right length, dtype and device."""
        return next(self.exact.rows[0].tensors())[1].new_empty(self.exact.dim)

    def factor(self, damping: Real) -> Float[Tensor, "P P"]:
        """Cholesky factor of F̂ + damping I."""
        return damped_cholesky(self.dense, damping)

    def layer(self, index: int, where: slice, exact: ExactMatrix, sizes: list[int]) -> "Pair":
        """The same for the block of one layer."""
        whole = self.approx
        if self.is_dense:
            block = self.dense[where, where].contiguous()
            return Pair(exact, Dense(block), block)
        if isinstance(whole, BlockDiagonal) and [block.dim for block in whole.blocks] == sizes:
            return Pair(exact, whole.blocks[index])
        if isinstance(whole, BlockTridiagonalInverse):
            return Pair(exact, whole.kronecker_blocks[index])
        if isinstance(whole, Diagonal):
            return Pair(exact, Diagonal(whole.values[where]))
        if isinstance(whole, Gram) and [block.shape[1] for block in whole.blocks] == sizes:
            return Pair(exact, Gram((whole.blocks[index],)))
        if isinstance(whole, LowRank) and not whole.rest:
            rows = (whole.basis[where] * whole.eigenvalues.sqrt()).mT.contiguous()
            return Pair(exact, Gram((DenseRows(rows),)))
        return Pair(exact, Restricted(whole, where))


def error_numbers(numbers: Numbers, pair: Pair, *, spectral: bool = True) -> None:
    """Relative Frobenius and spectral errors."""
    if pair.exact.norm_squared == 0:
        numbers.refuse("the exact Fisher is zero", "frobenius_error", "spectral_error")
        return
    if isinstance(pair.approx, Restricted) and not pair.is_dense:
        numbers.refuse("the layer's block of this structure is known by its products only", "frobenius_error")
    else:
        numbers.attempt(lambda: _frobenius(numbers, pair), "frobenius_error")
    if spectral:
        numbers.attempt(lambda: _spectral(numbers, pair), "spectral_error")


def _frobenius(numbers: Numbers, pair: Pair) -> float:
    exact = pair.exact
    if pair.is_dense:
        return float(pair.difference.norm()) / math.sqrt(exact.norm_squared)
    squared = 1 + (norm_squared(pair.approx) - 2 * inner(exact.rows, pair.approx)) / exact.norm_squared
    if squared < (10 * _CANCELLATION) ** 2:
        numbers.notes.append(f"Frobenius error from norms and products: nothing below {_CANCELLATION:.0e} can be told from 0")
    return math.sqrt(max(squared, 0.0))


def _spectral(numbers: Numbers, pair: Pair) -> float:
    exact = pair.exact
    if exact.dim <= LARGEST_SPECTRUM:
        symmetric = (pair.difference + pair.difference.mT) / 2
        return float(torch.linalg.eigvalsh(symmetric).abs().max()) / exact.largest
    if pair.is_dense:
        extreme = largest_eigenvalue(lambda x: pair.difference @ x, pair.like)
    else:
        extreme = largest_eigenvalue(lambda x: exact.matmul(x) - pair.approx.matmul(x), pair.like, tolerance=ROUGH)
    _note(numbers, extreme, "spectral error")
    return abs(extreme.value) / exact.largest


def _note(numbers: Numbers, extreme: Extreme, what: str) -> None:
    if extreme.is_rough:
        numbers.notes.append(f"{what}: known to a relative {extreme.error / abs(extreme.value):.0e} only (Lanczos)")


def block_error_number(numbers: Numbers, problem: Problem, pair: Pair) -> None:
    """Relative Frobenius error to the exact block-diagonal."""
    numbers.attempt(lambda: _block_error(problem, pair), "block_frobenius_error")


def _block_error(problem: Problem, pair: Pair) -> float:
    total = sum(layer.norm_squared for layer in problem.layers)
    if total == 0:
        raise NotAvailableError("the exact Fisher is zero")
    layers = list(zip(problem.layout.layers, problem.layers, strict=True))
    if pair.is_dense:
        dense = pair.dense.clone()
        for layer, exact in layers:
            dense[layer.slice, layer.slice] -= exact.matrix
        return float(dense.norm()) / math.sqrt(total)
    sizes = [layer.size for layer, _ in layers]
    parts = [pair.layer(index, layer.slice, exact, sizes) for index, (layer, exact) in enumerate(layers)]
    if any(isinstance(part.approx, Restricted) for part in parts):
        raise NotAvailableError("the layers' blocks of this structure are known by their products only")
    squared = total + norm_squared(pair.approx) - 2 * sum(inner(part.exact.rows, part.approx) for part in parts)
    return math.sqrt(max(squared, 0.0) / total)


def condition_numbers(numbers: Numbers, pair: Pair, damping: Real) -> None:
    """What F̂_λ leaves of the spectrum of F_λ, and how far the two Gaussians with these precisions are apart."""
    if pair.exact.dim <= LARGEST_SPECTRUM:
        numbers.attempt(lambda: _from_spectrum(pair, damping), *_CONDITION)
        return
    numbers.refuse(f"needs all eigenvalues: computed up to {LARGEST_SPECTRUM} parameters", *_CONDITION[3:])
    if not pair.is_dense and (numbers.values.get("seconds_next") or 0) > SLOW:
        numbers.refuse(f"needs hundreds of solves, and one takes {numbers.values['seconds_next']:.1f} s", *_CONDITION[:3])
        return
    measure = _from_factors if pair.is_dense else _from_products
    numbers.attempt(lambda: measure(numbers, pair, damping), *_CONDITION[:3])


def _from_spectrum(pair: Pair, damping: Real) -> tuple[float, ...]:
    """From all eigenvalues of L⁻¹F_λL⁻ᵀ, L the Cholesky factor of F̂_λ."""
    factor = pair.factor(damping)
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
    undamped = inverse @ pair.exact.matrix @ inverse.mT
    spectrum = torch.linalg.eigvalsh(undamped + damping * inverse @ inverse.mT)
    values = torch.linalg.eigvalsh((undamped + undamped.mT) / 2).clamp(min=0)
    positive = bool(spectrum[0] > 0)
    return (
        float(spectrum[-1] / spectrum[0]) if positive else math.inf,
        float(spectrum[-1] / spectrum.mean()),
        float((spectrum - 1 - spectrum.log()).sum() / 2) if positive else math.inf,
        float(spectrum.log().norm()) if positive else math.inf,
        condition_number(values, "nonzero") if values[-1] > 0 else math.nan,
    )


def _from_factors(numbers: Numbers, pair: Pair, damping: Real) -> tuple[float, float, float]:
    """With F̂_λ = LLᵀ and F_λ = MMᵀ, L⁻¹F_λL⁻ᵀ is XXᵀ for the triangular X = L⁻¹M: trace, determinant and both ends of it."""
    factor = pair.factor(damping)
    X = torch.linalg.solve_triangular(factor, pair.exact.factor(damping), upper=False)
    largest = largest_eigenvalue(lambda x: X @ (X.mT @ x), pair.like)
    inverse = largest_eigenvalue(lambda x: _triangular(X.mT, _triangular(X, x, False), True), pair.like)
    return _summary(numbers, largest, inverse, len(X), float(X.square().sum()), -2 * float(X.diagonal().log().sum()))


def _triangular(X: Tensor, x: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(X, x.unsqueeze(1), upper=upper).squeeze(1)


def _from_products(numbers: Numbers, pair: Pair, damping: Real) -> tuple[float, float | None, float | None]:
    """The largest eigenvalue of F̂_λ⁻¹F_λ and of its inverse, both self-adjoint in the inner product F̂_λ; trace and logdet."""
    exact, approx = pair.exact, pair.approx

    def metric(x: Tensor) -> Tensor:
        return approx.matmul(x) + damping * x

    largest = largest_eigenvalue(lambda x: approx.solve(exact.matmul(x) + damping * x, damping), pair.like, metric, ROUGH)
    inverse = largest_eigenvalue(lambda x: exact.quick_solve(metric(x), damping), pair.like, metric, ROUGH)
    try:
        trace, logdet = inverse_trace(exact.rows, approx, damping)
    except NotAvailableError as error:
        _note(numbers, largest, "condition")
        numbers.refuse(str(error), *_CONDITION[1:3])
        return largest.value * inverse.value, None, None
    return _summary(numbers, largest, inverse, exact.dim, trace, logdet - exact.logdet(damping))


def _summary(
    numbers: Numbers, largest: Extreme, inverse: Extreme, dim: int, trace: float, logdet: float
) -> tuple[float, float, float]:
    """λmax / λmin, λmax / mean, and KL = ½(tr F̂_λ⁻¹F_λ - P + log det F̂_λ - log det F_λ)."""
    for extreme in (largest, inverse):
        _note(numbers, extreme, "condition")
    return largest.value * inverse.value, largest.value * dim / trace, (trace - dim + logdet) / 2
