"""Norms and inner products of a Fisher F = RᵀR and its approximations, without forming what would not fit.

    ⟨F, M⟩ = Σ rows r of R: r M rᵀ        ‖F‖² = ‖R Rᵀ‖²        ‖F - M‖² = ‖F‖² - 2 ⟨F, M⟩ + ‖M‖²

Rows of product form (r = s ⊗ a) meet Kronecker products factor by factor; all else goes through chunks of formed rows.
"""

from functools import singledispatch

import torch

from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    Dense,
    Diagonal,
    EigenKronecker,
    Gram,
    KhatriRaoRows,
    Kronecker,
    LowRank,
    RowBlock,
    SharedRows,
    StructuredMatrix,
)

LARGEST_DENSE = 4096  # parameters up to which a whole matrix may be formed: 128 MiB in float64
_CHUNK = 2**24  # numbers of R formed at a time


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
    if len(rows) == 1 and (quick := _INNER.get((type(rows[0]), type(matrix)))):
        return quick(rows[0], matrix)
    if isinstance(matrix, Gram) and matrix.num_rows < rows[0].shape[0]:
        rows, matrix = matrix.blocks, Gram(rows)
    if isinstance(matrix, Gram):
        return sum(float(matrix.rows_matmul(part.mT.contiguous()).square().sum()) for part in _formed_rows(rows))
    return sum(float((matrix.matmul(part.mT.to(matrix.dtype)) * part.mT).sum()) for part in _formed_rows(rows))


def _formed_rows(rows: tuple[RowBlock, ...]):
    """The rows of R, a chunk at a time."""
    step = max(1, _CHUNK // sum(block.shape[1] for block in rows))
    for start in range(0, rows[0].shape[0], step):
        yield torch.cat([block.rows(start, start + step) for block in rows], dim=1)


def _khatri_rao_kronecker(rows: KhatriRaoRows, matrix: Kronecker) -> float:
    """Σ_kn (sᵀ G s)(aᵀ A a)."""
    left, right = matrix.left.to(rows.dtype), matrix.right.to(rows.dtype)
    per_score = ((rows.scores @ left) * rows.scores).sum((0, 2))  # (N,)
    return float(per_score @ ((rows.inputs @ right) * rows.inputs).sum(1))


def _khatri_rao_eigen(rows: KhatriRaoRows, matrix: EigenKronecker) -> float:
    """Σ_n (Σ_k s̃²)ᵀ E ã² in the eigenbasis."""
    turned = rotated(rows, matrix.left_vectors, matrix.right_vectors)
    squares = turned.scores.square().sum(0).mT @ turned.inputs.square()  # (C, D)
    return float((squares * matrix.eigenvalues).sum())


_INNER = {
    (KhatriRaoRows, Kronecker): _khatri_rao_kronecker,
    (KhatriRaoRows, EigenKronecker): _khatri_rao_eigen,
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
