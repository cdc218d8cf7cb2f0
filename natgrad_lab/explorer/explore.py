"""One network's Fisher to look at: the matrices side by side, their tiles, their names, within a memory budget."""

import copy
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real

import numpy as np
import torch
from torch import nn

from natgrad_lab.explorer.analysis import analysis
from natgrad_lab.explorer.arrange import Arrangement
from natgrad_lab.explorer.cells import add_up
from natgrad_lab.explorer.matrices import Matrices
from natgrad_lab.explorer.places import describe, find, name_of
from natgrad_lab.explorer.pyramid import TILE, Pyramid
from natgrad_lab.explorer.source import REDUCTIONS as PLAIN_REDUCTIONS
from natgrad_lab.explorer.source import Source, TooDear
from natgrad_lab.explorer.structure import prepared
from natgrad_lab.fisher import ESTIMATORS, gram_fisher
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Gram, StructuredMatrix

MEMORY_BUDGET = int(1.5 * 2**30)  # bytes that all of an explorer's matrices, tables and tiles may take
_FIRST_CELLS = 256  # cells a side of the first picture
_ROUNDING = 1e-11  # of the largest value: below it are zeros as rounding leaves them
_VARIANTS = 3  # arrangements kept
_CORRELATIONS = {"correlation": "mean", "correlation size": "rms", "correlations": "entries"}
REDUCTIONS = (*PLAIN_REDUCTIONS, *_CORRELATIONS)
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
    """Tiles of the exact Fisher of a batch, of approximations, their differences and their damped inverses, at every level.

    A tile is up to 64 x 64 cells, float32 whatever the model's precision; it is computed when first asked for.
    `arranged` gives the same matrices in another order, in white coordinates or with another damping.
    Cost: the rows' factors, K N (Σ in + out) numbers, tables of units (4 bytes a pair), and tiles up to the rest of the
    budget. Workspace comes on top, tables of up to two other arrangements, and for inverses and spectra RRᵀ in float64 with its
    eigenvectors and its root.
    """

    def __init__(
        self,
        gram: Gram,
        layout: ParameterLayout,
        approximations: Mapping[str, StructuredMatrix] | None = None,
        memory_budget: int = MEMORY_BUDGET,
        arrangement: Arrangement | None = None,
    ):
        """Take matrices already estimated. Raises: ValueError if they alone exceed the budget, or differ in size."""
        if gram.dim != layout.dim:
            raise ValueError(f"the Fisher has {gram.dim} parameters and the layout {layout.dim}; take both of one model.")
        given = {name: prepared(matrix) for name, matrix in (approximations or {}).items()}
        for matrix in given.values():
            if matrix.dim != gram.dim:
                raise ValueError(f"a difference needs two matrices of one size; got {matrix.dim} and {gram.dim}.")
        held = sum(t.numel() * t.element_size() for matrix in (gram, *given.values()) for _, t in matrix.tensors())
        tables = sum(layer.shape[0] for layer in layout.layers) ** 2 * gram.blocks[0].diagonal().element_size()
        if held > memory_budget:
            raise ValueError(
                f"the matrices alone take {held / 2**30:.2f} GiB and the budget is {memory_budget / 2**30:.2f} GiB. Use fewer "
                "examples, fisher_type='monte_carlo', fewer approximations, or a larger memory_budget."
            )
        self.layout, self.store = layout, TileStore(max(2**24, memory_budget - held - tables))
        self._computing = threading.Lock()
        self._arrange(Matrices(gram, layout, given, arrangement or Arrangement()), (gram, given))
        self._variants: OrderedDict[tuple, Matrices] = OrderedDict()

    def _arrange(self, sources: Matrices, given: tuple) -> None:
        self.sources, self._given = sources, given
        self.pyramid = Pyramid(self.layout, by_layer=sources.order is None)
        self._finest: dict[tuple[str, str], tuple[int, Tensor]] = {}

    @property
    def arrangement(self) -> Arrangement:
        """The order, the coordinates and the damping shown."""
        return self.sources.arrangement

    def arranged(self, order: str | None = None, white: bool | None = None, damping: Real | None = None) -> "Explorer":
        """The same batch in another order ("layer", "unit", "eigenvector"), in white coordinates, or with another damping.

        What is not given stays. Tiles that are the same in both are shared. Raises: as `Arrangement`; ValueError or
        UnsupportedLayerError that says what cannot be arranged so.
        """
        now = self.arrangement
        wanted = Arrangement(
            now.order if order is None else order, now.white if white is None else white,
            now.damping if damping is None else float(damping),
        )  # fmt: skip
        other = copy.copy(self)
        gram, given = self._given
        with self._computing:
            if wanted not in self._variants:
                spectrum = None if self.sources.arrangement.white else self.sources.spectrum_or_none
                made = Matrices(gram, self.layout, given, wanted, spectrum)
                if (wanted.order, wanted.white) == (now.order, now.white) and not now.white:
                    made.take(self.sources)
                self._variants[wanted] = made
                self._variants[now] = self.sources
                while len(self._variants) > _VARIANTS:
                    self._variants.popitem(last=False)
            self._variants.move_to_end(wanted)
            other._arrange(self._variants[wanted], self._given)
        return other

    def tile(self, source: str, level: int, row: int, column: int, reduce: str = "rms") -> np.ndarray:
        """Tile (row, column) of a level, float32, C-contiguous; ragged at the last row and column.

        At level 0 every reduction gives the signed entries.
        """
        known(source, self.sources, "matrix")
        key = self._key(source, level, row, column, reduce)
        if (tile := self.store.get(key)) is None:
            with self._computing:
                if (tile := self.store.get(key)) is None:
                    edges = self.pyramid.tile_edges(level, row), self.pyramid.tile_edges(level, column)
                    tile = _plain(self._source(source, reduce).tile(*edges, _plain_reduction(level, reduce)))
                    self.store.put(key, tile)
                    if row != column:
                        self.store.put(self._key(source, level, column, row, reduce), np.ascontiguousarray(tile.T))
        return tile

    def is_ready(self, source: str, level: int, row: int, column: int, reduce: str = "rms") -> bool:
        """Whether a tile is kept and costs nothing."""
        return self.store.get(self._key(source, level, row, column, reduce)) is not None

    def overview(self, source: str = "exact", reduce: str = "rms") -> tuple[int, np.ndarray]:
        """(level, picture) of the whole matrix, at most 256 cells a side where the layers allow; its tiles are then kept."""
        level = self.pyramid.level_for(0, self.layout.dim, _FIRST_CELLS)
        return level, self.picture(source, level, reduce)

    def picture(self, source: str, level: int, reduce: str = "rms") -> np.ndarray:
        """All cells of a level at once, (cells, cells) float32, cheaper than its tiles one by one; they are then kept."""
        known(source, self.sources, "matrix")
        count = self.pyramid.num_tiles(level)
        tiles = [[self.store.get(self._key(source, level, i, j, reduce)) for j in range(count)] for i in range(count)]
        if all(tile is not None for row in tiles for tile in row):
            return np.block(tiles)
        with self._computing:
            picture = _plain(self._cells(source, level, reduce))
        for i, j in np.ndindex(count, count):
            part = picture[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE]
            self.store.put(self._key(source, level, i, j, reduce), np.ascontiguousarray(part))
        return picture

    def has_picture(self, source: str) -> bool:
        """Whether an overview of root mean squares costs next to nothing, a finer picture being there."""
        finest = self._finest.get((source, False, True))
        return finest is not None and finest[0] <= self.pyramid.level_for(0, self.layout.dim, _FIRST_CELLS)

    def _key(self, source: str, level: int, row: int, column: int, reduce: str) -> tuple:
        known(reduce, REDUCTIONS, "way to sum up a cell")
        if level == 0:
            reduce = "correlations" if reduce in _CORRELATIONS else "entries"
        return *self.sources.stamp(source), level, row, column, reduce

    def _source(self, name: str, reduce: str) -> Source:
        return self.sources.correlation(name) if reduce in _CORRELATIONS else self.sources[name]

    def _cells(self, source: str, level: int, reduce: str) -> Tensor:
        """All cells of a level: added up from the finest level that was made as a whole, for levels are nested."""
        plain, edges = _plain_reduction(level, reduce), self.pyramid.edges(level)
        kind, squared = (source, reduce in _CORRELATIONS), plain == "rms"
        finest = self._finest.get((*kind, squared))
        if level and finest is not None and finest[0] <= level:
            fine = self.pyramid.edges(finest[0])
            total = add_up(finest[1], (fine, fine), (edges, edges)) / torch.from_numpy(np.outer(*2 * (np.diff(edges),)))
            return total.sqrt() if squared else total
        cells = self._source(source, reduce).tile(edges, edges, plain)
        if len(cells) <= _POOLED_CELLS:
            wide, area = cells.double().cpu(), torch.from_numpy(np.outer(*2 * (np.diff(edges),)))
            for square in (True, False) if level == 0 else (squared,):
                self._finest[(*kind, square)] = level, (wide.square() if square else wide) * area
        return cells

    def limits(self, source: str = "exact") -> tuple[float, float]:
        """(low, high) of magnitudes for a map of colours, the same at all levels, from the whole matrix.

        High is ten times what 0.5 % of the overview's cells exceed, but no more than the largest entry, which a Fisher has on
        its diagonal; low a third of what 98 % of the cells exceed. Both are rounded outwards to half decades.
        """
        if source not in self.sources.limits:
            self.sources.limits[source] = self._limits(source)
        return self.sources.limits[source]

    def _limits(self, source: str) -> tuple[float, float]:
        try:
            _, picture = self.overview(source)
        except TooDear:
            _, picture = self.overview(source, "mean")
        top = float(np.abs(picture).max())
        if not top:
            return 1e-3, 1.0
        magnitudes = np.abs(picture[np.abs(picture) > _ROUNDING * top])
        high = min(10 * float(np.quantile(magnitudes, 0.995)), max(top, float(self.sources[source].diagonal().abs().max())))
        low = max(float(np.quantile(magnitudes, 0.02)) / 3, high * 1e-12)
        return 10 ** (math.floor(2 * math.log10(low)) / 2), 10 ** (math.ceil(2 * math.log10(high)) / 2)

    def region(self, text: str) -> Region:
        """The region that a text means, as "W2[3,5] x W1[0,2]"; see `places.find`. In another order: where it is shown.

        Raises: ValueError for what is no place, or not one place in this order.
        """
        return Region(*(self._shown_at(each, text) for each in find(self.layout, text)))

    def _shown_at(self, where: slice, text: str) -> slice:
        if self.sources.order is not None:
            if where.stop - where.start > 1:
                raise ValueError(f"{text!r} is spread over this order; only single parameters have a place in it.")
            at = int((self.sources.order == where.start).nonzero())
            return slice(at, at + 1)
        if self.sources.unit_orders is None:
            return where
        number = next(n for n, layer in enumerate(self.layout.layers) if where.start < layer.slice.stop)
        layer, order = self.layout.layers[number], self.sources.unit_orders[number]
        if where == layer.slice:
            return where
        unit, column = divmod(where.start - layer.start, layer.size // len(order))
        start = layer.start + int((order == unit).nonzero()) * (layer.size // len(order)) + column
        return slice(start, start + where.stop - where.start)

    def name_at(self, place: int) -> str:
        """The name of the parameter at a place of the order shown."""
        if self.sources.order is not None:
            return name_of(self.layout, int(self.sources.order[place]))
        if self.sources.unit_orders is None:
            return name_of(self.layout, place)
        pairs = zip(self.layout.layers, self.sources.unit_orders, strict=True)
        layer, order = next(pair for pair in pairs if place < pair[0].slice.stop)
        unit, column = divmod(place - layer.start, layer.size // len(order))
        return name_of(self.layout, layer.start + int(order[unit]) * (layer.size // len(order)) + column)

    def values(self, region: Region, source: str = "exact") -> Float[Tensor, "r c"]:
        """The entries of a region, in the model's precision. Raises: ValueError above 16 million."""
        rows, columns = (_span(each, self.layout.dim) for each in (region.rows, region.columns))
        if (rows.stop - rows.start) * (columns.stop - columns.start) > 2**24:
            raise ValueError(
                f"{rows.stop - rows.start:,} x {columns.stop - columns.start:,} entries are more than 16 million. Take a "
                "smaller region, or tiles."
            )
        return self.sources[known(source, self.sources, "matrix")].entries(rows, columns)

    def analysis(self) -> dict:
        """Eigenvalues, condition numbers, layers, and the same preconditioned: see `analysis.analysis`. Kept."""
        if self.sources.analysis is None:
            with self._computing:
                self.sources.analysis = analysis(self.sources)
        return self.sources.analysis

    def about(self) -> dict:
        """Plain data for a page: layers, levels, names of the matrices."""
        return {
            "dim": self.layout.dim, "tile": TILE, "levels": self.pyramid.num_levels, "layers": describe(self.layout),
            "sources": list(self.sources), "left_out": self.sources.left_out, "arrangement": asdict(self.arrangement),
            "units": None if self.sources.unit_orders is None else [order.tolist() for order in self.sources.unit_orders],
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


def _plain_reduction(level: int, reduce: str) -> str:
    return "entries" if level == 0 else _CORRELATIONS.get(reduce, reduce)


def _plain(tile: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tile.detach().to("cpu", torch.float32).numpy())


def _span(each: slice, dim: int) -> slice:
    start, stop, step = each.indices(dim)
    if step != 1 or stop <= start:
        raise ValueError(f"a region needs slices of step 1 that are not empty; got {each} of {dim}.")
    return slice(start, stop)
