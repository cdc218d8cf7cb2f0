"""Correlations M_ij / √(M_ii M_jj) of any source; 0 where a diagonal entry is 0, as of a dead unit."""

from functools import cached_property

import numpy as np
import torch

from natgrad_lab.explorer.cells import add_strips, within
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.inverse import formed_squares
from natgrad_lab.explorer.row_pairs import scaled_cell_sums
from natgrad_lab.explorer.source import Source, TooDear
from natgrad_lab.explorer.structure import Approximation
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Dense, DenseRows, Diagonal, Gram, Kronecker, StructuredMatrix

_FORMED = 2**25  # numbers of R up to which its scaled columns are kept


class Correlation(Source):
    """D M D of another source, D = diag(M)^-½."""

    def __init__(self, source: Source):
        """Keep the source; nothing is computed."""
        self.source, self.label = source, f"correlations of {source.label}"

    @property
    def dim(self) -> int:
        """P."""
        return self.source.dim

    @cached_property
    def scale(self) -> Float[Tensor, " P"]:
        """M_ii^-½, or 0."""
        return inverse_roots(self.source.diagonal())

    @cached_property
    def _exact(self) -> ExactFisher | None:
        """The same as a Gram of scaled rows, where these fit in memory."""
        gram = self.source.gram if isinstance(self.source, ExactFisher) else None
        if gram is None or gram.num_rows * gram.dim > _FORMED:
            return None
        scales = self.scale.split([block.shape[1] for block in gram.blocks])
        return ExactFisher(Gram(tuple(DenseRows(b.to_dense() * s) for b, s in zip(gram.blocks, scales, strict=True))))

    @cached_property
    def _structure(self) -> Source | None:
        made = correlations(self.source.matrix) if isinstance(self.source, Approximation) else None
        return None if made is None else Approximation(made)

    def squares(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Of scaled rows or factors; else entry by entry. Raises: TooDear where neither can be had."""
        other = self._exact or self._structure
        return formed_squares(self, rows, columns) if other is None else other.squares(rows, columns)

    def sums(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Of scaled rows or factors; of a larger exact Fisher by sums of scaled columns, cell by cell."""
        if (other := self._exact or self._structure) is not None:
            return other.sums(rows, columns)
        if isinstance(self.source, ExactFisher):
            left = self._row_sums(rows)
            return left.mT @ (left if np.array_equal(rows, columns) else self._row_sums(columns))
        if float(rows[-1] - rows[0]) * float(columns[-1] - columns[0]) > 2**26:
            raise TooDear(f"the {self.label} are formed entry by entry, and this region has more than 67 million. Zoom in.")
        return add_strips(self.entries, rows, columns)

    def entries(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """The entries, scaled."""
        return self.source.entries(rows, columns) * self.scale[rows, None] * self.scale[columns]

    def diagonal(self) -> Float[Tensor, " P"]:
        """1, or 0 where the diagonal is 0."""
        return (self.scale > 0).to(self.scale)

    def _row_sums(self, edges: np.ndarray) -> Tensor:
        out = self.scale.new_zeros(self.source.gram.num_rows, len(edges) - 1)
        for (start, stop), block in zip(self.source.spans, self.source.gram.blocks, strict=True):
            if (inside := within(edges, start, stop)) is not None:
                first, own = inside
                out[:, first : first + len(own) - 1] += scaled_cell_sums(block, self.scale[start:stop], own)
        return out


def inverse_roots(diagonal: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """d^-½ where d is above 0, else 0."""
    positive = diagonal > 0
    return torch.where(positive, diagonal, 1.0).rsqrt() * positive


def correlations(matrix: StructuredMatrix) -> StructuredMatrix | None:
    """The structure of the correlations: of a Kronecker product that of the factors' correlations. None if there is none."""
    if isinstance(matrix, BlockDiagonal):
        blocks = tuple(correlations(block) for block in matrix.blocks)
        return None if any(block is None for block in blocks) else BlockDiagonal(blocks)
    if isinstance(matrix, Kronecker):
        return Kronecker(*(_scaled(factor) for factor in (matrix.left, matrix.right)))
    if isinstance(matrix, Dense):
        return Dense(_scaled(matrix.matrix))
    return Diagonal((matrix.values > 0).to(matrix.values)) if isinstance(matrix, Diagonal) else None


def _scaled(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    scale = inverse_roots(matrix.diagonal())
    return matrix * scale[:, None] * scale
