"""Norms and inner products of a Fisher F = RᵀR and its approximations, without forming what would not fit.

    ⟨F, M⟩ = Σ rows r of R: r M rᵀ        ‖F‖² = ‖R Rᵀ‖²        ‖F - M‖² = ‖F‖² - 2 ⟨F, M⟩ + ‖M‖²

Rows of product form (r = s ⊗ a) meet Kronecker products factor by factor; all else goes through chunks of formed rows.
"""

import math
import time
from collections.abc import Iterator
from functools import singledispatch

import torch

from natgrad_lab.linalg import damped_cholesky
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    BlockTridiagonalInverse,
    Dense,
    Diagonal,
    EigenKronecker,
    Gram,
    KhatriRaoRows,
    Kronecker,
    LowRank,
    QuasiDiagonal,
    RowBlock,
    SharedRows,
    StructuredMatrix,
    UnitWise,
)

LARGEST_DENSE = 4096  # parameters up to which a whole matrix may be formed: 128 MiB in float64
_CHUNK = 2**24  # numbers of R formed at a time
_PATIENCE = 120.0  # seconds that an inner product may take


class NotAvailableError(Exception):
    """A number that cannot be had exactly; the message is the reason that the report shows."""


def formed(matrix: StructuredMatrix, what: str) -> Float[Tensor, "P P"]:
    """The dense matrix, if it may be formed."""
    if matrix.dim > LARGEST_DENSE:
        raise NotAvailableError(
            f"{what} of a {type(matrix).__name__} needs the whole matrix, {matrix.dim:,} x {matrix.dim:,}; "
            f"formed only up to {LARGEST_DENSE:,}"
        )
    return matrix.to_dense().double()


def inner(rows: tuple[RowBlock, ...], matrix: StructuredMatrix) -> float:
    """⟨RᵀR, M⟩ = Σ r M rᵀ over the rows r of R, given in column blocks."""
    if isinstance(matrix, Diagonal):
        return float(torch.cat([block.diagonal() for block in rows]) @ matrix.values.to(rows[0].dtype))
    if isinstance(matrix, BlockDiagonal) and [b.dim for b in matrix.blocks] == [b.shape[1] for b in rows]:
        return sum(inner((block,), part) for block, part in zip(rows, matrix.blocks, strict=True))
    if isinstance(matrix, LowRank):
        squares = Gram(rows).rows_matmul(matrix.basis.to(rows[0].dtype)).square().sum(0)
        whole = sum(float(block.diagonal().sum()) for block in rows)
        return float(squares @ (matrix.eigenvalues - matrix.rest).to(squares)) + float(matrix.rest) * whole
    if isinstance(matrix, BlockTridiagonalInverse) and all(isinstance(block, KhatriRaoRows) for block in rows):
        return sum(_between(rows[i], rows[j], left, right) for i, j, left, right in chain_blocks(matrix))
    if len(rows) == 1 and (quick := _INNER.get((type(rows[0]), type(matrix)))):
        return quick(rows[0], matrix)
    if isinstance(matrix, Gram) and [b.shape[1] for b in matrix.blocks] == [b.shape[1] for b in rows]:
        return float(cross_gram(matrix.blocks, rows).square().sum())
    return sum(float((matrix.matmul(part.mT.to(matrix.dtype)) * part.mT).sum()) for part in _formed_rows(rows))


def cross_gram(rows: tuple[RowBlock, ...], others: tuple[RowBlock, ...]) -> Float[Tensor, "R S"]:
    """Inner products of two sets of rows in the same column blocks, Σ_l B_l B'_lᵀ.

    Outer products on both sides, one position each: (A_l A'_lᵀ) ∘ (G_l G'_lᵀ); all else in strips of columns, R S P_l flops.
    """
    return sum(_cross(one, two) for one, two in zip(rows, others, strict=True))


def _cross(one: RowBlock, two: RowBlock) -> Float[Tensor, "R S"]:
    if isinstance(one, KhatriRaoRows) and isinstance(two, KhatriRaoRows):
        (K, N, _), (L, M, _) = one.scores.shape, two.scores.shape
        products = (one.scores.flatten(0, 1) @ two.scores.flatten(0, 1).mT.to(one.dtype)).view(K, N, L, M)
        return (products * (one.inputs @ two.inputs.mT.to(one.dtype))[:, None, :]).view(K * N, L * M)
    (count, width), others = one.shape, two.shape[0]
    out, step = torch.zeros(count, others, dtype=one.dtype, device=one.device), max(1, _CHUNK // (count + others))
    for start in range(0, width, step):
        stop = min(start + step, width)
        out.addmm_(one.columns(start, stop), two.columns(start, stop).mT.to(one.dtype))
    return out


def inverse_trace(rows: tuple[RowBlock, ...], matrix: StructuredMatrix, damping: float) -> tuple[float, float]:
    """(tr M_λ⁻¹(F + λI), log det M_λ) for F = RᵀR and M_λ = M + λI, without forming either.

    For M = R'ᵀR' with few rows, K = R'R'ᵀ and C = R'Rᵀ: M_λ⁻¹ = (I - R'ᵀK_λ⁻¹R') / λ, so that
    tr M_λ⁻¹F = (tr F - tr K_λ⁻¹CCᵀ) / λ and tr M_λ⁻¹ = (P - R' + λ tr K_λ⁻¹) / λ.
    """
    if isinstance(matrix, BlockDiagonal) and [b.dim for b in matrix.blocks] == [b.shape[1] for b in rows]:
        each = [inverse_trace((block,), part, damping) for block, part in zip(rows, matrix.blocks, strict=True)]
        return sum(trace for trace, _ in each), sum(logdet for _, logdet in each)
    if isinstance(matrix, Gram) and matrix.num_rows < matrix.dim:
        cross = cross_gram(matrix.blocks, rows)
        factor = damped_cholesky(matrix.row_gram, damping)
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        inverse = float(torch.cholesky_inverse(factor).trace())
        whole = sum(float(block.diagonal().sum()) for block in rows)
        left = matrix.dim - matrix.num_rows
        logdet = 2 * float(factor.diagonal().log().sum()) + left * math.log(damping)
        return (whole - float(half.square().sum())) / damping + left + damping * inverse, logdet
    small = isinstance(matrix, Dense) and matrix.dim <= LARGEST_DENSE
    if not (small or isinstance(matrix, Diagonal | Kronecker | EigenKronecker | LowRank)):
        raise NotAvailableError(f"needs the inverse of a {type(matrix).__name__} as a matrix, which is not formed at this size")
    inverse = matrix.power(-1, damping)
    return inner(rows, inverse) + damping * float(inverse.trace()), float(matrix.logdet(damping))


def _formed_rows(rows: tuple[RowBlock, ...]) -> Iterator[Tensor]:
    """The rows of R, a chunk at a time; given up if what was done so far shows that it would take too long."""
    count, step = rows[0].shape[0], max(1, _CHUNK // sum(block.shape[1] for block in rows))
    started = time.monotonic()
    for start in range(0, count, step):
        expected = (time.monotonic() - started) * count / max(start, 1)
        if start and expected > _PATIENCE:
            raise NotAvailableError(f"would take about {expected:,.0f} s; given up above {_PATIENCE:.0f} s")
        yield torch.cat([block.rows(start, start + step) for block in rows], dim=1)


def chain_blocks(matrix: BlockTridiagonalInverse) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(i, j, left, right): every block of the chain's matrix is one Kronecker product."""
    for j, (left, right) in enumerate(zip(matrix.left, matrix.right, strict=True)):
        yield j, j, left, right
        for i in reversed(range(j)):
            left, right = (psi @ factor for psi, factor in zip(matrix._regressions[i], (left, right), strict=True))
            yield i, j, left, right
            yield j, i, left.mT, right.mT


def _between(one: KhatriRaoRows, two: KhatriRaoRows, left: Tensor, right: Tensor) -> float:
    """Σ_kn (s_iᵀ left s_j)(a_iᵀ right a_j)."""
    per_score = ((one.scores @ left.to(one.dtype)) * two.scores).sum((0, 2))  # (N,)
    return float(per_score @ ((one.inputs @ right.to(one.dtype)) * two.inputs).sum(1))


def _khatri_rao_kronecker(rows: KhatriRaoRows, matrix: Kronecker) -> float:
    """Σ_kn (sᵀ G s)(aᵀ A a)."""
    return _between(rows, rows, matrix.left, matrix.right)


def _khatri_rao_eigen(rows: KhatriRaoRows, matrix: EigenKronecker) -> float:
    """Σ_n (Σ_k s̃²)ᵀ E ã² in the eigenbasis."""
    turned = rotated(rows, matrix.left_vectors, matrix.right_vectors)
    squares = turned.scores.square().sum(0).mT @ turned.inputs.square()  # (C, D)
    return float((squares * matrix.eigenvalues).sum())


def _khatri_rao_units(rows: KhatriRaoRows, matrix: UnitWise) -> float:
    """Σ_c Σ_n (Σ_k s_knc²) aᵀ M_c a, unit by unit."""
    weights = rows.scores.square().sum(0)  # (N, C)
    pairs = zip(weights.unbind(1), matrix.blocks.unbind(0), strict=True)
    return sum(float(weight @ ((rows.inputs @ block.to(rows.dtype)) * rows.inputs).sum(1)) for weight, block in pairs)


def _khatri_rao_quasi(rows: KhatriRaoRows, matrix: QuasiDiagonal) -> float:
    """Σ_c Σ_n (Σ_k s_knc²) (aᵀ diag(rest) a + (vᵀa)²), the unit being diag(rest) + v vᵀ."""
    weights, (v, rest) = rows.scores.square().sum(0), _rank_one(matrix)
    along = (rows.inputs @ v.mT.to(rows.dtype)).square()  # (N, C)
    return float((weights * along).sum() + ((weights.mT @ rows.inputs.square())[:, :-1] * rest).sum())


def _rank_one(matrix: QuasiDiagonal) -> tuple[Float[Tensor, "m a"], Float[Tensor, "m n"]]:
    """Each unit as v vᵀ + diag(rest, 0), v = [cross / √bias, √bias]."""
    root = matrix.bias.sqrt()[:, None]
    beside = torch.where(root > 0, matrix.cross / root.where(root > 0, torch.ones_like(root)), 0)
    return torch.cat([beside, root], 1), matrix.weights - beside.square()


_INNER = {
    (KhatriRaoRows, Kronecker): _khatri_rao_kronecker,
    (KhatriRaoRows, EigenKronecker): _khatri_rao_eigen,
    (KhatriRaoRows, UnitWise): _khatri_rao_units,
    (KhatriRaoRows, QuasiDiagonal): _khatri_rao_quasi,
}


@singledispatch
def norm_squared(matrix: StructuredMatrix) -> float:
    """‖M‖², Frobenius."""
    return float(formed(matrix, "the norm").square().sum())


@norm_squared.register
def _(matrix: Diagonal) -> float:
    return float(matrix.values.double().square().sum())


@norm_squared.register
def _(matrix: Dense) -> float:
    return float(matrix.matrix.double().square().sum())


@norm_squared.register
def _(matrix: Kronecker) -> float:
    return float(matrix.left.double().square().sum() * matrix.right.double().square().sum())


@norm_squared.register
def _(matrix: EigenKronecker) -> float:
    return float(matrix.eigenvalues.double().square().sum())


@norm_squared.register
def _(matrix: LowRank) -> float:
    rest = matrix.basis.shape[0] - matrix.basis.shape[1]
    return float(matrix.eigenvalues.double().square().sum() + rest * matrix.rest.double().square())


@norm_squared.register
def _(matrix: UnitWise) -> float:
    return float(matrix.blocks.double().square().sum())


@norm_squared.register
def _(matrix: QuasiDiagonal) -> float:
    v, rest = (part.double() for part in _rank_one(matrix))  # ‖v vᵀ + diag(r)‖² = |v|⁴ + 2 rᵀv² + |r|²
    lengths = v.square().sum(1).square().sum()
    return float(lengths + 2 * (rest * v[:, :-1].square()).sum() + rest.square().sum())


@norm_squared.register
def _(matrix: BlockTridiagonalInverse) -> float:
    factors = ((left.double(), right.double()) for _, _, left, right in chain_blocks(matrix))
    return sum(float(left.square().sum() * right.square().sum()) for left, right in factors)


@norm_squared.register
def _(matrix: Gram) -> float:
    return float(matrix.row_gram.double().square().sum())


@norm_squared.register
def _(matrix: BlockDiagonal) -> float:
    return sum(norm_squared(block) for block in matrix.blocks)


@singledispatch
def rotated(rows: RowBlock, left: Tensor, right: Tensor) -> RowBlock | None:
    """Rows in the basis left ⊗ right (orthonormal columns); None where they have no product form."""
    return None


@rotated.register
def _(rows: KhatriRaoRows, left: Tensor, right: Tensor) -> KhatriRaoRows:
    return KhatriRaoRows(rows.inputs @ right.to(rows.dtype), rows.scores @ left.to(rows.dtype))


@rotated.register
def _(rows: SharedRows, left: Tensor, right: Tensor) -> SharedRows:
    return SharedRows(rows.inputs @ right.to(rows.dtype), rows.scores @ left.to(rows.dtype))


def in_double(matrix: StructuredMatrix) -> StructuredMatrix:
    """The same matrix in float64, so that comparing it adds no rounding; itself if it cannot be converted."""
    if matrix.dtype == torch.float64:
        return matrix
    if isinstance(matrix, Gram):
        return Gram(tuple(block.map(lambda t: t.double()) for block in matrix.blocks), note=matrix.note)
    try:
        return matrix.map(lambda t: t.double())
    except ValueError:
        return matrix
