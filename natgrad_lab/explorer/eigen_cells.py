"""Cells of an EigenKronecker: EKFAC, and the damped inverse of a Kronecker product.

The block of units u, v is Q diag(w) Qᵀ with Q the right eigenvectors and w_b = Σ_a L_ua L_va e_ab, L the left ones. Over
ranges I, J of inputs its sum is Σ_b w_b q_Ib q_Jb, q_I the sum of the rows I of Q, and its squared norm
wᵀ (Q_IᵀQ_I ∘ Q_JᵀQ_J) w.
"""

import numpy as np
import torch

from natgrad_lab.explorer.cells import add_strips, add_up, refined
from natgrad_lab.explorer.structure import cell_sums, spans_of
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import EigenKronecker

_WORKSPACE = 2**22  # numbers held at a time
_FORMED = 2**22  # entries up to which a region is formed to be squared


@cell_sums.register(EigenKronecker)
def _eigen_kronecker(matrix, rows, columns, f):
    width = len(matrix.right_vectors)
    if f is not torch.square:
        return _pieces(matrix, rows, columns, width, _sums)
    if float(rows[-1] - rows[0]) * float(columns[-1] - columns[0]) <= _FORMED:

        def entries(r: slice, c: slice) -> Tensor:
            return _pieces(matrix, np.arange(r.start, r.stop + 1), np.arange(c.start, c.stop + 1), width, _sums).square_()

        return add_strips(entries, rows, columns)
    return _pieces(matrix, rows, columns, width, _squares)


def _pieces(matrix: EigenKronecker, rows: np.ndarray, columns: np.ndarray, width: int, rule) -> Float[Tensor, "r c"]:
    """A rule's values of all pieces of units, a few units of the rows at a time, added up."""
    fine = refined(rows, width), refined(columns, width)
    (units, spans, kinds), (others, other_spans, other_kinds) = (spans_of(edges, width) for edges in fine)
    across = matrix.left_vectors[int(others[0]) : int(others[-1]) + 1]
    out = torch.empty(len(units), len(others), dtype=matrix.dtype, device=matrix.device)
    value = rule(matrix.right_vectors, spans, other_spans)
    step = max(1, _WORKSPACE // (len(across) * max(width, len(matrix.left_vectors))))
    for start in range(int(units[0]), int(units[-1]) + 1, step):
        inside = ((units >= start) & (units < start + step)).nonzero().flatten()
        down = matrix.left_vectors[start : int(units[inside[-1]]) + 1]
        w = (down[:, None] * across[None]) @ matrix.eigenvalues  # (u, v, n)
        for a in kinds[inside].unique().tolist():
            own = inside[kinds[inside] == a]
            for b in range(len(other_spans)):
                theirs = (other_kinds == b).nonzero().flatten()
                part = w[units[own] - start][:, others[theirs] - others[0]]
                out[own[:, None], theirs] = value(part, a, b)
    return add_up(out, fine, (rows, columns))


def _sums(right: Tensor, spans: list, other_spans: list):
    one, two = (torch.stack([right[a:b].sum(0) for a, b in each]) for each in (spans, other_spans))
    return lambda w, a, b: w @ (one[a] * two[b])


def _squares(right: Tensor, spans: list, other_spans: list):
    def value(w: Tensor, a: int, b: int) -> Tensor:
        (i, j), (k, m) = spans[a], other_spans[b]
        if (i, j) == (k, m) == (0, len(right)):
            return w.square().sum(2)
        return ((w @ ((right[i:j].mT @ right[i:j]) * (right[k:m].mT @ right[k:m]))) * w).sum(2)

    return value
