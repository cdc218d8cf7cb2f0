"""The exact Fisher, of which only the rows' factors are held: any cells of it, at any number of parameters."""

import numpy as np
import torch

from natgrad_lab.explorer.cells import add_up, within
from natgrad_lab.explorer.row_pairs import ELEMENT, cell_sums, pair_weights, rectangle, squares, width_of
from natgrad_lab.explorer.source import Source
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Gram, KhatriRaoRows

_ONCE = 6e10  # operations that a table of two layers' units may cost, once
_STEP = 2**22  # numbers of weights held while it is made


class ExactFisher(Source):
    """Cells of RᵀR, from a Gram of one batch.

    Every pair of layers goes by its cheapest route (`row_pairs`). Where all cells hold whole units, and the table of squared
    norms of all pairs of units costs at most 6e10 operations, it is made once and kept: pictures down to single units are
    then sums over it.
    """

    label = "exact F"

    def __init__(self, gram: Gram):
        """Keep the rows; nothing is computed."""
        self.gram = gram
        starts = np.cumsum([0] + [block.shape[1] for block in gram.blocks])
        self.spans = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        self._tables: dict[tuple[int, int], Tensor] = {}

    @property
    def dim(self) -> int:
        """P."""
        return self.gram.dim

    @property
    def num_bytes(self) -> int:
        """Memory held: the rows' factors and the tables of units."""
        tensors = [tensor for _, tensor in self.gram.tensors()] + list(self._tables.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def squares(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Layer pair by layer pair; of a tile that is symmetric, one half."""
        mirrored = np.array_equal(rows, columns)
        out = self.gram.blocks[0].diagonal().new_zeros(len(rows) - 1, len(columns) - 1)
        for i, row, row_edges in self._layers(rows):
            for j, column, column_edges in self._layers(columns):
                if mirrored and j < i:
                    continue
                part = self._pair(i, j, row_edges, column_edges)
                out[row : row + part.shape[0], column : column + part.shape[1]] += part
                if mirrored and j > i:
                    out[column : column + part.shape[1], row : row + part.shape[0]] += part.mT
        return out

    def sums(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Products of the sums of rows over cells."""
        left = self.row_sums(rows)
        return left.mT @ (left if np.array_equal(rows, columns) else self.row_sums(columns))

    def entries(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """The rectangle, layer pair by layer pair."""
        out = [
            torch.cat([
                rectangle(self.gram.blocks[i], self.gram.blocks[j], _ends(one), _ends(two))
                for j, _, two in self._layers(np.array([columns.start, columns.stop]))
            ], 1)
            for i, _, one in self._layers(np.array([rows.start, rows.stop]))
        ]  # fmt: skip
        return torch.cat(out)

    def diagonal(self) -> Float[Tensor, " P"]:
        """Squared norms of the columns of R."""
        return self.gram.diagonal()

    def _layers(self, edges: np.ndarray):
        """(layer, first cell, edges from the layer's start) of every layer that the cells touch."""
        for number, span in enumerate(self.spans):
            if (part := within(edges, *span)) is not None:
                yield number, *part

    def columns(self, where: slice) -> Float[Tensor, "R w"]:
        """Columns of R, formed."""
        edges = np.array([where.start, where.stop])
        return torch.cat([self.gram.blocks[number].columns(*_ends(inside)) for number, _, inside in self._layers(edges)], 1)

    def row_sums(self, edges: np.ndarray) -> Float[Tensor, "R r"]:
        """Sums of the columns of R over cells."""
        out = torch.zeros(self.gram.num_rows, len(edges) - 1, dtype=self.gram.dtype, device=self.gram.device)
        for number, first, inside in self._layers(edges):
            out[:, first : first + len(inside) - 1] += cell_sums(self.gram.blocks[number], inside)
        return out

    def _pair(self, i: int, j: int, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        left, right = self.gram.blocks[i], self.gram.blocks[j]
        if (table := self._table(i, j, rows, columns)) is None:
            return squares(left, right, rows, columns)
        units = [edges // width_of(block) for block, edges in ((left, rows), (right, columns))]
        part = table[units[0][0] : units[0][-1], units[1][0] : units[1][-1]]
        every = tuple(np.arange(each[0], each[-1] + 1) for each in units)
        return add_up(part, every, tuple(units))

    def _table(self, i: int, j: int, rows: np.ndarray, columns: np.ndarray) -> Tensor | None:
        """The units' table if it applies to these cells and is not too dear."""
        left, right = self.gram.blocks[i], self.gram.blocks[j]
        if not (isinstance(left, KhatriRaoRows) and isinstance(right, KhatriRaoRows)):
            return None
        if (rows % width_of(left)).any() or (columns % width_of(right)).any():
            return None
        if j < i:
            table = self._table(j, i, columns, rows)
            return None if table is None else table.mT
        if (i, j) not in self._tables:
            N, pairs = len(left.inputs), float(left.scores.shape[2]) * right.scores.shape[2]
            if pairs * (2 * N**2 + 2 * N * ELEMENT) > _ONCE:
                return None
            self._tables[i, j] = unit_table(left, right)
        return self._tables[i, j]


def unit_table(left: KhatriRaoRows, right: KhatriRaoRows) -> Float[Tensor, "u v"]:
    """Σ of squares over every pair of units: mᵀ (A Aᵀ ∘ A' A'ᵀ) m, in products over many pairs."""
    gram = (left.inputs @ left.inputs.mT) * (right.inputs @ right.inputs.mT)
    N, U, V = len(gram), left.scores.shape[2], right.scores.shape[2]
    out = gram.new_empty(U, V)
    step = max(1, min(U, _STEP // (N * V)))
    for start in range(0, U, step):
        from_unit = start if left is right else 0  # symmetric: the rest is mirrored
        m = pair_weights(left, right, range(start, min(start + step, U)), range(from_unit, V))
        m = m.reshape(N, -1)
        values = ((gram @ m) * m).sum(0).view(-1, V - from_unit)
        out[start : start + step, from_unit:] = values
        if left is right:
            out[from_unit:, start : start + step] = values.mT
    return out


def _ends(edges: np.ndarray) -> tuple[int, int]:
    return int(edges[0]), int(edges[-1])
