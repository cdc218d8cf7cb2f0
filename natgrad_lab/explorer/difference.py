"""Approximation minus exact Fisher, over cells: Σ (M − F)² = Σ M² − 2 Σ M F + Σ F², or entry by entry where that is little."""

from functools import singledispatch

import numpy as np
import torch

from natgrad_lab.explorer.cells import add_strips, add_up, refined, within
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.row_pairs import pair_weights, width_of
from natgrad_lab.explorer.source import Source
from natgrad_lab.explorer.structure import Approximation, diagonal_cells, spans_of
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Diagonal, KhatriRaoRows, Kronecker, StructuredMatrix

_FORMED = 2**22  # entries up to which a region is formed
_WEIGHTS = 2**23  # numbers held at a time


class Difference(Source):
    """approximation − exact.

    A large cell's mean square is a difference of sums: right to about eps times the mean squares of both matrices in it,
    so in float32 a difference below 1e-3 of the entries drowns in rounding at coarse levels, not at fine ones.
    """

    def __init__(self, exact: ExactFisher, approximation: Approximation):
        """Refuse two matrices of different size."""
        if exact.dim != approximation.dim:
            raise ValueError(f"a difference needs two matrices of one size; got {approximation.dim} and {exact.dim}.")
        self.exact, self.approximation = exact, approximation
        self.label = f"{approximation.label} − exact F"

    @property
    def dim(self) -> int:
        """P."""
        return self.exact.dim

    def squares(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Entry by entry up to 4 million entries, else by the sum of three."""
        if float(rows[-1] - rows[0]) * float(columns[-1] - columns[0]) <= _FORMED:
            return add_strips(lambda r, c: self.entries(r, c).square_(), rows, columns)
        cross = cross_sums(self.approximation.matrix, self.exact, 0, rows, columns)
        return self.exact.squares(rows, columns) - 2 * cross + self.approximation.squares(rows, columns)

    def sums(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """The difference of the sums."""
        return self.approximation.sums(rows, columns) - self.exact.sums(rows, columns)

    def entries(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """The difference of the entries."""
        return self.approximation.entries(rows, columns) - self.exact.entries(rows, columns)

    def diagonal(self) -> Float[Tensor, " P"]:
        """The difference of the diagonals."""
        return self.approximation.diagonal() - self.exact.diagonal()


@singledispatch
def cross_sums(
    matrix: StructuredMatrix, exact: ExactFisher, start: int, rows: np.ndarray, columns: np.ndarray
) -> Float[Tensor, "r c"]:
    """Sum of M_ij F_ij over every cell of a structure that begins at parameter `start`; formed strip by strip."""
    source = Approximation(matrix)

    def products(r: slice, c: slice) -> Tensor:
        return source.entries(r, c) * exact.entries(*(slice(each.start + start, each.stop + start) for each in (r, c)))

    return add_strips(products, rows, columns)


@cross_sums.register(BlockDiagonal)
def _block_diagonal(matrix, exact, start, rows, columns):
    out = torch.zeros(len(rows) - 1, len(columns) - 1, dtype=matrix.dtype, device=matrix.device)
    place = 0
    for block in matrix.blocks:
        inside = within(rows, place, place + block.dim), within(columns, place, place + block.dim)
        if all(inside):
            (row, own), (column, others) = inside
            part = cross_sums(block, exact, start + place, own, others)
            out[row : row + part.shape[0], column : column + part.shape[1]] += part
        place += block.dim
    return out


@cross_sums.register(Diagonal)
def _diagonal(matrix, exact, start, rows, columns):
    return diagonal_cells(matrix.values * exact.diagonal()[start : start + matrix.dim], rows, columns)


@cross_sums.register(Kronecker)
def _kronecker(matrix, exact, start, rows, columns):
    """Σ_uv G_uv Σ_n m_n t_n with t_n = A_nIᵀ right_IJ A_nJ: no entry is formed."""
    whole = [number for number, span in enumerate(exact.spans) if span == (start, start + matrix.dim)]
    block = exact.gram.blocks[whole[0]] if whole else None
    if not isinstance(block, KhatriRaoRows) or width_of(block) != len(matrix.right):
        return cross_sums.dispatch(StructuredMatrix)(matrix, exact, start, rows, columns)
    width, inputs = width_of(block), block.inputs
    fine = refined(rows, width), refined(columns, width)
    (units, spans, kinds), (others, other_spans, other_kinds) = (spans_of(edges, width) for edges in fine)
    t = torch.stack([
        torch.stack([((inputs[:, a:b] @ matrix.right[a:b, c:d]) * inputs[:, c:d]).sum(1) for c, d in other_spans])
        for a, b in spans
    ])  # (spans, spans, N)  # fmt: skip
    out = torch.empty(len(units), len(others), dtype=matrix.dtype, device=matrix.device)
    first, last = int(others[0]), int(others[-1]) + 1
    step = max(1, _WEIGHTS // (len(inputs) * max(last - first, len(others))))
    for unit in range(int(units[0]), int(units[-1]) + 1, step):
        inside = ((units >= unit) & (units < unit + step)).nonzero().flatten()
        m = pair_weights(block, block, range(unit, min(unit + step, int(units[-1]) + 1)), range(first, last))  # (N, u, v)
        weights = m[:, units[inside] - unit][:, :, others - first]
        chosen = t[kinds[inside]][:, other_kinds]  # (u, v, N)
        out[inside] = torch.einsum("nuv,uvn->uv", weights, chosen) * matrix.left[units[inside]][:, others]
    return add_up(out, fine, (rows, columns))
