"""One network's Fisher to look at: the matrices side by side, their tiles, their names, within a memory budget."""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from natgrad_lab.explorer.cells import add_up
from natgrad_lab.explorer.difference import Difference
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.places import describe, find
from natgrad_lab.explorer.pyramid import TILE, Pyramid
from natgrad_lab.explorer.source import REDUCTIONS, Source
from natgrad_lab.explorer.structure import Approximation
from natgrad_lab.fisher import ESTIMATORS, gram_fisher
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Gram, StructuredMatrix

MEMORY_BUDGET = int(1.5 * 2**30)  # bytes that all of an explorer's matrices, tables and tiles may take
_FIRST_CELLS = 256  # cells a side of the first picture
_POOLED_CELLS = 512  # cells a side of a picture that is kept for those of coarser levels


@dataclass(frozen=True)
class Region:
    """A rectangle of the matrix: parameters rows.start to rows.stop against columns.start to columns.stop."""

    rows: slice
    columns: slice


class TileStore:
    """The newest tiles within a budget of bytes; safe from any thread."""

    def __init__(self, budget: int):
        """Begin empty."""
        self.budget, self.num_bytes = budget, 0
        self._tiles: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: tuple) -> np.ndarray | None:
        """A kept tile, which now counts as new."""
        with self._guard:
            if key in self._tiles:
                self._tiles.move_to_end(key)
            return self._tiles.get(key)

    def put(self, key: tuple, tile: np.ndarray) -> None:
        """Keep a tile, and let the oldest go until the budget holds."""
        with self._guard:
            if key in self._tiles:
                self.num_bytes -= self._tiles.pop(key).nbytes
            self._tiles[key], self.num_bytes = tile, self.num_bytes + tile.nbytes
            while self.num_bytes > self.budget and len(self._tiles) > 1:
                self.num_bytes -= self._tiles.popitem(last=False)[1].nbytes


class Explorer:
    """Tiles of the exact Fisher of a batch, of approximations, and of their differences, at every level of one pyramid.

    A tile is up to 64 x 64 cells, float32 whatever the model's precision; it is computed when first asked for.
    Cost: the rows' factors, K N (Σ in + out) numbers, tables of units (4 bytes a pair), and tiles up to the rest of the
    budget. Workspace comes on top.
    """

    def __init__(
        self,
        gram: Gram,
        layout: ParameterLayout,
        approximations: Mapping[str, StructuredMatrix] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ):
        """Take matrices already estimated. Raises: ValueError if they alone exceed the budget, or differ in size."""
        if gram.dim != layout.dim:
            raise ValueError(f"the Fisher has {gram.dim} parameters and the layout {layout.dim}; take both of one model.")
        self.layout, self.pyramid = layout, Pyramid(layout)
        exact = ExactFisher(gram)
        self.sources: dict[str, Source] = {"exact": exact}
        for name, matrix in (approximations or {}).items():
            approximation = Approximation(matrix, name)
            self.sources |= {name: approximation, f"{name} − exact": Difference(exact, approximation)}
        held = sum(source.num_bytes for source in self.sources.values() if not isinstance(source, Difference))
        tables = sum(layer.shape[0] for layer in layout.layers) ** 2 * gram.blocks[0].diagonal().element_size()
        if held > memory_budget:
            raise ValueError(
                f"the matrices alone take {held / 2**30:.2f} GiB and the budget is {memory_budget / 2**30:.2f} GiB. Use fewer "
                "examples, fisher_type='monte_carlo', fewer approximations, or a larger memory_budget."
            )
        self.store = TileStore(max(2**24, memory_budget - held - tables))
        self._computing = threading.Lock()
        self._finest: dict[tuple[str, str], tuple[int, Tensor]] = {}

    def tile(self, source: str, level: int, row: int, column: int, reduce: str = "rms") -> np.ndarray:
        """Tile (row, column) of a level, float32, C-contiguous; ragged at the last row and column.

        At level 0 every reduction gives the signed entries.
        """
        known(source, self.sources, "matrix")
        known(reduce, REDUCTIONS, "way to sum up a cell")
        reduce = "entries" if level == 0 else reduce
        key = (source, level, row, column, reduce)
        if (tile := self.store.get(key)) is None:
            with self._computing:
                if (tile := self.store.get(key)) is None:
                    edges = self.pyramid.tile_edges(level, row), self.pyramid.tile_edges(level, column)
                    tile = _plain(self.sources[source].tile(*edges, reduce))
                    self.store.put(key, tile)
                    if row != column:
                        self.store.put((source, level, column, row, reduce), np.ascontiguousarray(tile.T))
        return tile

    def is_ready(self, source: str, level: int, row: int, column: int, reduce: str = "rms") -> bool:
        """Whether a tile is kept and costs nothing."""
        return self.store.get((source, level, row, column, "entries" if level == 0 else reduce)) is not None

    def overview(self, source: str = "exact", reduce: str = "rms") -> tuple[int, np.ndarray]:
        """(level, picture) of the whole matrix, at most 256 cells a side where the layers allow; its tiles are then kept."""
        level = self.pyramid.level_for(0, self.layout.dim, _FIRST_CELLS)
        return level, self.picture(source, level, reduce)

    def picture(self, source: str, level: int, reduce: str = "rms") -> np.ndarray:
        """All cells of a level at once, (cells, cells) float32, cheaper than its tiles one by one; they are then kept."""
        known(source, self.sources, "matrix")
        known(reduce, REDUCTIONS, "way to sum up a cell")
        reduce = "entries" if level == 0 else reduce
        count = self.pyramid.num_tiles(level)
        tiles = [[self.store.get((source, level, i, j, reduce)) for j in range(count)] for i in range(count)]
        if all(tile is not None for row in tiles for tile in row):
            return np.block(tiles)
        with self._computing:
            picture = _plain(self._cells(source, level, reduce))
        for i, j in np.ndindex(count, count):
            part = picture[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE]
            self.store.put((source, level, i, j, reduce), np.ascontiguousarray(part))
        return picture

    def has_picture(self, source: str) -> bool:
        """Whether an overview of root mean squares costs next to nothing, a finer picture being there."""
        finest = self._finest.get((source, "rms"))
        return finest is not None and finest[0] <= self.pyramid.level_for(0, self.layout.dim, _FIRST_CELLS)

    def _cells(self, source: str, level: int, reduce: str) -> Tensor:
        """All cells of a level: added up from the finest level that was made as a whole, for levels are nested."""
        edges, finest = self.pyramid.edges(level), self._finest.get((source, "rms" if reduce == "rms" else "mean"))
        if level and finest is not None and finest[0] <= level:
            fine = self.pyramid.edges(finest[0])
            total = add_up(finest[1], (fine, fine), (edges, edges)) / torch.from_numpy(np.outer(*2 * (np.diff(edges),)))
            return total.sqrt() if reduce == "rms" else total
        cells = self.sources[source].tile(edges, edges, reduce)
        if len(cells) <= _POOLED_CELLS:
            wide = cells.double().cpu()
            area = torch.from_numpy(np.outer(*2 * (np.diff(edges),)))
            for how in ("rms", "mean") if level == 0 else (reduce,):
                self._finest[source, how] = level, (wide.square() if how == "rms" else wide) * area
        return cells

    def limits(self, source: str = "exact") -> tuple[float, float]:
        """(low, high) of magnitudes for a map of colours, the same at all levels, from the whole matrix.

        High is ten times what 0.5 % of the overview's cells exceed, but no more than the largest entry, which a Fisher has on
        its diagonal; low a third of what 98 % of the cells exceed. Both are rounded outwards to half decades.
        """
        _, picture = self.overview(source)
        magnitudes = np.abs(picture[picture != 0])
        if not len(magnitudes):
            return 1e-3, 1.0
        top = float(magnitudes.max())
        high = min(10 * float(np.quantile(magnitudes, 0.995)), max(top, float(self.sources[source].diagonal().abs().max())))
        low = max(float(np.quantile(magnitudes, 0.02)) / 3, high * 1e-12)
        return 10 ** (math.floor(2 * math.log10(low)) / 2), 10 ** (math.ceil(2 * math.log10(high)) / 2)

    def region(self, text: str) -> Region:
        """The region that a text means, as "W2[3,5] x W1[0,2]"; see `places.find`."""
        return Region(*find(self.layout, text))

    def values(self, region: Region, source: str = "exact") -> Float[Tensor, "r c"]:
        """The entries of a region, in the model's precision. Raises: ValueError above 16 million."""
        rows, columns = (_span(each, self.layout.dim) for each in (region.rows, region.columns))
        if (rows.stop - rows.start) * (columns.stop - columns.start) > 2**24:
            raise ValueError(
                f"{rows.stop - rows.start:,} x {columns.stop - columns.start:,} entries are more than 16 million. Take a "
                "smaller region, or tiles."
            )
        return self.sources[known(source, self.sources, "matrix")].entries(rows, columns)

    def about(self) -> dict:
        """Plain data for a page: layers, levels, names of the matrices."""
        return {
            "dim": self.layout.dim, "tile": TILE, "levels": self.pyramid.num_levels, "layers": describe(self.layout),
            "sources": list(self.sources),
        }  # fmt: skip


def explorer(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    *,
    approximations: Iterable[str] = (),
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Explorer:
    """Estimate the exact Fisher of a batch, and approximations of it by name, and open them all in one `Explorer`.

    Args: approximations: keys of `fisher.ESTIMATORS`, as ("kfac", "unit_wise"); the rest as `dense_fisher`.
    Raises: as `gram_fisher` and `Explorer`.
    """
    chosen = {name: ESTIMATORS[known(name, ESTIMATORS, "approximation")] for name in approximations}
    given = (fisher_type, targets, num_samples, generator)
    gram = gram_fisher(model, likelihood, inputs, *given)
    made = {name: estimate(model, likelihood, inputs, *given) for name, estimate in chosen.items()}
    return Explorer(gram, ParameterLayout(model), made, memory_budget)


def _plain(tile: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tile.detach().to("cpu", torch.float32).numpy())


def _span(each: slice, dim: int) -> slice:
    start, stop, step = each.indices(dim)
    if step != 1 or stop <= start:
        raise ValueError(f"a region needs slices of step 1 that are not empty; got {each} of {dim}.")
    return slice(start, stop)
