"""Kronecker products applied to a gradient through its rows: cheaper where a batch has fewer examples than a layer units."""

import torch

from natgrad_lab.fisher.layers import linear_rows, rule_for
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.parameters import Layer
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    FormedKroneckerInverse,
    KhatriRaoRows,
    Kronecker,
    KroneckerInverse,
    StructuredMatrix,
)

_CANCELLED = 1e-3  # a difference that has lost more than these digits is computed as a product
_FACTORED = Kronecker, KroneckerInverse
_DAMPED = FormedKroneckerInverse, KroneckerInverse  # inverses that say which damping they are for


def preconditioned_gradient(
    scores: ScorePass,
    gradient: Float[Tensor, " P"],
    inverse: StructuredMatrix,
    fisher: StructuredMatrix,
    *,
    is_inverse_of_it: bool = False,
) -> tuple[Float[Tensor, " P"], float]:
    """d = P g and dᵀF d, for the inverse P and the Fisher F.

    A layer's gradient is −(1/N) Σ_n s_n a_nᵀ, so that (G ⊗ A) g = −(1/N) Σ_n (G s_n)(A a_n)ᵀ: N rows are multiplied instead of
    a whole matrix where that is less work. Everything else takes the products of the structures.

    Args:
        is_inverse_of_it: whether P is the damped inverse of this very F, and not of an older one. Then G (G + d)⁻¹ s is
            s − d (G + d)⁻¹ s, known to rounding without another product.
    References: [MartensGrosse2015] sec. 8.
    """
    by_layer = isinstance(inverse, BlockDiagonal) and isinstance(fisher, BlockDiagonal)
    if not by_layer or len(fisher.blocks) != len(scores.layers):
        vector = inverse.matmul(gradient)
        return vector, float(vector @ fisher.matmul(vector))
    vector, curvatures = torch.empty_like(gradient), []
    sizes = [block.dim for block in inverse.blocks]
    parts = zip(gradient.split(sizes), vector.split(sizes), strict=True)
    for layer, (part, out), P, F in zip(scores.layers, parts, inverse.blocks, fisher.blocks, strict=True):
        rows = layer.loss_rows
        if isinstance(rows, KhatriRaoRows) and _is_cheaper(scores.num_examples, P, F, is_inverse_of_it):
            curvatures.append(_by_rows(rows, P, F, is_inverse_of_it, out))
        else:
            out.copy_(P.matmul(part))
            curvatures.append(out @ F.matmul(out))
    return vector, float(sum(curvatures))


def layers_by_rows(
    layers: tuple[Layer, ...],
    num_examples: int,
    inverse: StructuredMatrix | None,
    fisher: StructuredMatrix | None,
    *,
    is_inverse_of_it: bool = False,
) -> tuple[Layer, ...]:
    """Layers whose rows `preconditioned_gradient` would take for a batch of so many examples, if a pass recorded them."""
    if not (isinstance(inverse, BlockDiagonal) and isinstance(fisher, BlockDiagonal)) or len(fisher.blocks) != len(layers):
        return ()
    return tuple(
        layer
        for layer, P, F in zip(layers, inverse.blocks, fisher.blocks, strict=True)
        if rule_for(layer) is linear_rows and _is_cheaper(num_examples, P, F, is_inverse_of_it)
    )


def _is_cheaper(num_examples: int, inverse: StructuredMatrix, fisher: StructuredMatrix, is_inverse_of_it: bool) -> bool:
    """Fewer operations: for P and for F N (m² + n² + m n) each by rows, m n (m + n) by the matrix."""
    if not (isinstance(inverse, _FACTORED) and isinstance(fisher, Kronecker)):
        return False
    m, n = len(fisher.left), len(fisher.right)
    sides = 1 if is_inverse_of_it and isinstance(inverse, _DAMPED) else 2
    return num_examples * (sides * (m**2 + n**2) + 2 * m * n) < 2 * m * n * (m + n)


def _by_rows(
    rows: KhatriRaoRows,
    inverse: Kronecker | KroneckerInverse,
    fisher: Kronecker,
    is_inverse_of_it: bool,
    out: Float[Tensor, " p"],
) -> Tensor:
    """A layer's P g into `out`; returns its curvature."""
    inputs, scores = rows.inputs, rows.scores[0] / -len(rows.inputs)
    solved = inverse.left_rows(scores), inverse.right_rows(inputs)
    pushed = (None, None)
    if is_inverse_of_it and isinstance(inverse, _DAMPED):
        pushed = map(_undamped, (scores, inputs), solved, inverse.dampings.tolist())
    left, right = (
        multiplied(rows) if known is None else known
        for known, rows, multiplied in zip(pushed, solved, (fisher.left_rows, fisher.right_rows), strict=True)
    )
    (N, m), n = scores.shape, inputs.shape[1]
    torch.mm(solved[0].T, solved[1], out=out.view(m, n))
    if N * (m + n) < m * n:  # ⟨UᵀW, LᵀR⟩ = ⟨U Lᵀ, W Rᵀ⟩
        return (solved[0] @ left.T * (solved[1] @ right.T)).sum()
    return out @ (left.T @ right).flatten()


def _undamped(rows: Float[Tensor, "N m"], solved: Float[Tensor, "N m"], damping: float) -> Float[Tensor, "N m"] | None:
    """rows (M + damping I)⁻¹ M from solved = rows (M + damping I)⁻¹; None where the damping is so large that they cancel."""
    difference = torch.sub(rows, solved, alpha=damping)
    left, whole = torch.linalg.vector_norm(difference), torch.linalg.vector_norm(rows)
    return difference if left >= _CANCELLED * whole else None
