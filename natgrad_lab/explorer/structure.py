"""Cells of an approximation, by a rule per kind of structure: sums of f(entry) over cells without forming the matrix.

f is the square or the entry itself; for a Kronecker product f(G_uv A_ij) = f(G_uv) f(A_ij) in both cases.
"""

from collections.abc import Callable
from functools import singledispatch

import numpy as np
import torch

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.explorer.cells import add_strips, add_up, refined, within
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.source import Source
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Dense, Diagonal, Gram, Kronecker, StructuredMatrix, UnitWise

DENSE_LIMIT = 6000  # parameters of a block that is formed because its structure has no rule
_PAIRS = 2**26  # pieces of a Kronecker product looked at in one call

Part = Callable[[Tensor], Tensor]


class Approximation(Source):
    """Cells of a structure: BlockDiagonal, Kronecker, Diagonal, UnitWise, Dense, Gram; others are formed up to 6,000 a block.

    Raises: UnsupportedLayerError for a larger block of a structure without a rule.
    """

    def __init__(self, matrix: StructuredMatrix, label: str = ""):
        """Keep the structure, blocks without a rule formed."""
        self.matrix = prepared(matrix)
        self.label = label or type(matrix).__name__

    @property
    def dim(self) -> int:
        """P."""
        return self.matrix.dim

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.matrix.tensors())

    def squares(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """By the structure's rule."""
        return cell_sums(self.matrix, rows, columns, torch.square)

    def sums(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """By the structure's rule."""
        return cell_sums(self.matrix, rows, columns, _same)

    def entries(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """Cells of one parameter each."""
        return self.sums(np.arange(rows.start, rows.stop + 1), np.arange(columns.start, columns.stop + 1))

    def diagonal(self) -> Float[Tensor, " P"]:
        """The structure's own."""
        return self.matrix.diagonal()


def prepared(matrix: StructuredMatrix) -> StructuredMatrix:
    """The same matrix out of structures that have a rule."""
    if isinstance(matrix, BlockDiagonal):
        return BlockDiagonal(tuple(prepared(block) for block in matrix.blocks), note=matrix.note)
    if isinstance(matrix, UnitWise):
        return BlockDiagonal(tuple(Dense(block) for block in matrix.blocks), note=matrix.note)
    if cell_sums.dispatch(type(matrix)) is not cell_sums.dispatch(object):
        return matrix
    if matrix.dim > DENSE_LIMIT:
        kinds = "BlockDiagonal, Kronecker, Diagonal, UnitWise, Dense and Gram"
        raise UnsupportedLayerError(
            f"a {type(matrix).__name__} of {matrix.dim:,} parameters has no rule for cells and is too large to form (the limit "
            f"is {DENSE_LIMIT:,} a block). There are rules for {kinds}; take one of these approximations, or a smaller layer."
        )
    return Dense(matrix.to_dense())


def _same(values: Tensor) -> Tensor:
    return values


@singledispatch
def cell_sums(matrix: object, rows: np.ndarray, columns: np.ndarray, f: Part) -> Float[Tensor, "r c"]:
    """Sum of f(entry) over every cell."""
    raise TypeError(f"no rule for the cells of a {type(matrix).__name__}; `prepared` turns it into one that has.")


@cell_sums.register(BlockDiagonal)
def _block_diagonal(matrix, rows, columns, f):
    out = torch.zeros(len(rows) - 1, len(columns) - 1, dtype=matrix.dtype, device=matrix.device)
    start = 0
    for block in matrix.blocks:
        inside = within(rows, start, start + block.dim), within(columns, start, start + block.dim)
        if all(inside):
            (row, own), (column, others) = inside
            out[row : row + len(own) - 1, column : column + len(others) - 1] += cell_sums(block, own, others, f)
        start += block.dim
        if start >= min(rows[-1], columns[-1]):
            break
    return out


@cell_sums.register(Dense)
def _dense(matrix, rows, columns, f):
    return add_strips(lambda r, c: f(matrix.matrix[r, c]), rows, columns)


@cell_sums.register(Gram)
def _gram(matrix, rows, columns, f):
    source = ExactFisher(matrix)
    return source.squares(rows, columns) if f is torch.square else source.sums(rows, columns)


@cell_sums.register(Diagonal)
def _diagonal(matrix, rows, columns, f):
    return diagonal_cells(f(matrix.values), rows, columns)


@cell_sums.register(Kronecker)
def _kronecker(matrix, rows, columns, f):
    width = len(matrix.right)
    fine = refined(rows, width), refined(columns, width)
    if float(len(fine[0])) * len(fine[1]) > _PAIRS:
        raise ValueError(f"{len(fine[0])} x {len(fine[1])} pieces of a Kronecker product in one tile; ask for fewer cells.")
    (units, spans, kinds), (others, other_spans, other_kinds) = (spans_of(edges, width) for edges in fine)
    right = f(matrix.right)
    across = torch.stack([right[:, a:b].sum(1) for a, b in other_spans], 1)  # (n, spans)
    small = torch.stack([across[a:b].sum(0) for a, b in spans])  # (spans, spans)
    values = f(matrix.left)[units][:, others] * small[kinds][:, other_kinds]
    return add_up(values, fine, (rows, columns))


def spans_of(edges: np.ndarray, width: int) -> tuple[Tensor, list, Tensor]:
    """Pieces of units: their units, the distinct ranges of inputs, and which of them each piece has."""
    units = edges[:-1] // width
    spans = list(zip((edges[:-1] - units * width).tolist(), (edges[1:] - units * width).tolist(), strict=True))
    distinct = list(dict.fromkeys(spans))
    number = {span: i for i, span in enumerate(distinct)}
    return torch.from_numpy(units), distinct, torch.tensor([number[span] for span in spans])


def diagonal_cells(values: Float[Tensor, " P"], rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
    """Sum of a diagonal's values over every cell."""
    out = torch.zeros(len(rows) - 1, len(columns) - 1, dtype=values.dtype, device=values.device)
    low, high = max(rows[0], columns[0]), min(rows[-1], columns[-1])
    if low >= high:
        return out
    fine = np.union1d(rows, columns)
    fine = fine[(fine >= low) & (fine <= high)]
    place = [torch.from_numpy(np.searchsorted(edges, fine[:-1], side="right") - 1) for edges in (rows, columns)]
    added = np.add.reduceat(values[low:high].cpu().numpy(), fine[:-1] - low)
    out[place[0], place[1]] = torch.from_numpy(added).to(values)
    return out
