"""Levels of a zoomable picture: fixed cells at every level, each made of whole cells of the level below.

Level l has cells of 2^l parameters. Below the size of a unit, every unit is cut from its first input on, and its last cell
is what is left; above it, cells hold 1, 2, 4, ... whole units. Cells never cross layers.
"""

from bisect import bisect_right

import numpy as np
from torch import nn

from natgrad_lab.parameters import Layer, ParameterLayout

TILE = 64  # cells a side


class Pyramid:
    """The cells of every level over one layout."""

    def __init__(self, layout: ParameterLayout, by_layer: bool = True):
        """Choose as many levels as bring the picture to one tile, or every layer to one cell.

        With `by_layer` False, for parameters in an order of their own, there are neither layers nor units.
        """
        self.layout = layout
        self._layers = layout.layers if by_layer else (_one_layer(layout.dim),)
        self._cache: dict[int, np.ndarray] = {}
        level = 0
        while len(self.edges(level)) - 1 > max(TILE, len(self._layers)) and 2**level < layout.dim:
            level += 1
        self.num_levels = level + 1

    def edges(self, level: int) -> np.ndarray:
        """The edges of all cells of a level, (cells + 1,)."""
        if not 0 <= level <= 40:
            raise ValueError(f"levels count from 0, single entries, to the coarsest; got {level}.")
        if level not in self._cache:
            parts = [layer.start + _layer_edges(layer, 2**level)[:-1] for layer in self._layers]
            self._cache[level] = np.concatenate([*parts, [self.layout.dim]]).astype(np.int64)
        return self._cache[level]

    def num_cells(self, level: int) -> int:
        """Cells a side."""
        return len(self.edges(level)) - 1

    def num_tiles(self, level: int) -> int:
        """Tiles a side."""
        return -(-self.num_cells(level) // TILE)

    def tile_edges(self, level: int, number: int) -> np.ndarray:
        """The edges of one tile's cells along an axis; the last tile may have fewer."""
        if not 0 <= number < self.num_tiles(level):
            raise ValueError(f"level {level} has {self.num_tiles(level)} tiles a side, from 0 on; got {number}.")
        return self.edges(level)[number * TILE : (number + 1) * TILE + 1]

    def level_for(self, start: int, stop: int, cells: int) -> int:
        """The finest level at which start .. stop has at most so many cells."""
        for level in range(self.num_levels):
            edges = self.edges(level)
            if np.searchsorted(edges, stop) - np.searchsorted(edges, start, side="right") + 1 <= cells:
                return level
        return self.num_levels - 1

    def cell_at(self, level: int, index: int) -> int:
        """The cell that holds a parameter."""
        return bisect_right(self.edges(level), index) - 1


def _one_layer(dim: int) -> Layer:
    return Layer("", nn.Identity(), 0, (1, dim), False, (), has_rows=False)


def _layer_edges(layer: Layer, size: int) -> np.ndarray:
    """Edges of a layer's cells of `size` parameters, from its start."""
    units, width = layer.shape
    if size < width:
        cuts = np.arange(0, width, size)
        return np.append((np.arange(units)[:, None] * width + cuts).ravel(), layer.size)
    group = 2 ** (size // width).bit_length() // 2
    return np.append(np.arange(0, units, group) * width, layer.size)
