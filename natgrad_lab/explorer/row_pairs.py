"""Sums of squares over cells of one block BᵀB' of RᵀR, B and B' two layers' rows, by three routes.

direct: the entries are formed, a strip at a time, and squared.
pieces: for two linear layers F[(u,i), (v,j)] = Σ_n m_n A_ni A'_nj with m_n = Σ_k S_knu S'_knv, so that a piece of one unit's
    inputs times a piece of another's has the squared norm mᵀ (A_I A_Iᵀ ∘ A'_J A'_Jᵀ) m: N² operations whatever its size.
grams: ‖B_rᵀ B'_c‖² = ⟨B_r B_rᵀ, B'_c B'_cᵀ⟩: (K N)² operations whatever the size, and for any layer.
"""

from functools import lru_cache

import numpy as np
import torch

from natgrad_lab.explorer.cells import add_strips, add_up, refined
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import KhatriRaoRows, RowBlock

ELEMENT = 50  # operations of a matrix product in the time of one element read, multiplied and written
_WORKSPACE = 2**23  # numbers held at a time
_CACHED = 2**18  # numbers of a temporary that stays in a cache
_STRIP = 2**21  # of Gram matrices: what a cache holds pays


def width_of(block: RowBlock) -> int:
    """Columns of one unit; of the whole block where its rows have no product form."""
    return block.inputs.shape[1] if isinstance(block, KhatriRaoRows) else block.shape[1]


# ---- direct


def direct_cost(left: RowBlock, right: RowBlock, rows: np.ndarray, columns: np.ndarray) -> float:
    """Operations of `direct_squares`."""
    entries = float(rows[-1] - rows[0]) * float(columns[-1] - columns[0])
    depth = len(left.inputs) if _contracts(left, right) else left.shape[0]
    return entries * (2 * depth + 2 * ELEMENT) + 2000 * ELEMENT


def direct_squares(left: RowBlock, right: RowBlock, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
    """Form, square and add up, a strip of rows at a time."""
    return add_strips(lambda r, c: rectangle(left, right, (r.start, r.stop), (c.start, c.stop)).square_(), rows, columns)


def rectangle(left: RowBlock, right: RowBlock, rows: tuple[int, int], columns: tuple[int, int]) -> Float[Tensor, "r c"]:
    """Entries of BᵀB', contracted over the K scores of an example first where that saves."""
    if not _contracts(left, right):
        return left.columns(*rows).mT @ right.columns(*columns)
    width, first = width_of(left), columns[0] // width_of(right)
    weights = pair_weights(left, right, range(rows[0] // width, -(-rows[1] // width)),
                           range(first, -(-columns[1] // width_of(right))))  # fmt: skip
    offset, out = first * width_of(right), []
    for place, unit in enumerate(range(rows[0] // width, -(-rows[1] // width))):
        weighted = (weights[:, place, :, None] * right.inputs[:, None, :]).flatten(1)
        inputs = left.inputs[:, max(rows[0] - unit * width, 0) : min(rows[1] - unit * width, width)]
        out.append(inputs.mT @ weighted[:, columns[0] - offset : columns[1] - offset])
    return torch.cat(out)


def pair_weights(left: KhatriRaoRows, right: KhatriRaoRows, units: range, others: range) -> Float[Tensor, "N u v"]:
    """m_n = Σ_k S_knu S'_knv for the given units of both layers."""
    one, two = left.scores[:, :, units.start : units.stop], right.scores[:, :, others.start : others.stop]
    return torch.bmm(one.permute(1, 2, 0), two.permute(1, 0, 2))


def _contracts(left: RowBlock, right: RowBlock) -> bool:
    both = isinstance(left, KhatriRaoRows) and isinstance(right, KhatriRaoRows)
    return both and left.scores.shape[0] > 1 and width_of(left) >= 16


# ---- pieces


class _Pieces:
    """Cells cut at units: per piece its unit and which of the distinct ranges of inputs it covers."""

    def __init__(self, width: int, edges: np.ndarray):
        self.width = width
        self.edges = refined(edges, self.width)
        starts, stops = self.edges[:-1], self.edges[1:]
        self.units = starts // self.width
        self.first, self.last = int(self.units[0]), int(self.units[-1]) + 1
        spans = list(zip((starts - self.units * self.width).tolist(), (stops - self.units * self.width).tolist(), strict=True))
        self.spans = list(dict.fromkeys(spans))
        number = {span: i for i, span in enumerate(self.spans)}
        self.kinds = np.array([number[span] for span in spans])

    @property
    def is_grid(self) -> bool:
        """Whether every unit is cut alike."""
        return len(self.units) == (self.last - self.first) * len(self.spans)

    def grams(self, block: KhatriRaoRows) -> Float[Tensor, "s N N"]:
        """Inner products of the examples' inputs within each range."""
        return torch.stack([block.inputs[:, start:stop] @ block.inputs[:, start:stop].mT for start, stop in self.spans])


def _pieces(block: KhatriRaoRows, edges: np.ndarray) -> _Pieces:
    return _cut(width_of(block), edges.astype(np.int64).tobytes())


@lru_cache(maxsize=32)  # the frames of a training are all cut alike
def _cut(width: int, edges: bytes) -> _Pieces:
    return _Pieces(width, np.frombuffer(edges, np.int64))


def pieces_cost(left: RowBlock, right: RowBlock, rows: np.ndarray, columns: np.ndarray) -> float:
    """Operations of `piece_squares`; infinite where it does not apply."""
    if not (isinstance(left, KhatriRaoRows) and isinstance(right, KhatriRaoRows)):
        return float("inf")
    counts = [len(edges) + (edges[-1] - edges[0]) / width_of(block) for block, edges in ((left, rows), (right, columns))]
    if max(counts) > 20_000:
        return float("inf")
    one, two = _pieces(left, rows), _pieces(right, columns)
    N, K = len(left.inputs), left.scores.shape[0]
    spans = sum(2 * N**2 * (stop - start) for each in (one, two) for start, stop in each.spans)
    pairs = float(one.last - one.first) * (two.last - two.first)
    return spans + pairs * N * (2 * K + ELEMENT) + min(_by_unit_cost(one, two, N), _by_span_cost(one, two, N))


def _by_unit_cost(one: _Pieces, two: _Pieces, N: int) -> float:
    a, b = len(one.units), len(two.units)
    pairs = float(one.last - one.first) * (two.last - two.first)
    formed = a * float(two.last - two.first) + b * float(one.last - one.first)
    return a * b * N**2 + (2 * formed + pairs) * N**2 / 2 * ELEMENT + pairs * 1000 * ELEMENT


def _by_span_cost(one: _Pieces, two: _Pieces, N: int) -> float:
    a, b = len(one.units), len(two.units)
    return a * b * (2.0 * N**2 + 2 * N * ELEMENT) + len(one.spans) * len(two.spans) * (N**2 + 1000) * ELEMENT


def piece_squares(left: KhatriRaoRows, right: KhatriRaoRows, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
    """By pieces of units; in products over many units of one pair of ranges, or over many ranges of one pair of units."""
    one, two = _pieces(left, rows), _pieces(right, columns)
    by_unit = _by_unit_cost(one, two, len(left.inputs)) < _by_span_cost(one, two, len(left.inputs))
    grid = len(left.inputs) * len(one.units) * len(two.units) <= _WORKSPACE and one.is_grid and two.is_grid
    values = (_by_unit if by_unit else _by_grid if grid else _by_span)(left, right, one, two)
    return add_up(values, (one.edges, two.edges), (rows, columns))


def _by_unit(left: KhatriRaoRows, right: KhatriRaoRows, one: _Pieces, two: _Pieces) -> Tensor:
    N = len(left.inputs)
    i, j = torch.triu_indices(N, N, device=left.device)
    twice = torch.where(i == j, 1.0, 2.0).to(left.inputs)
    grams = [_packed_grams(block.inputs, pieces.spans, i, j) for block, pieces in ((left, one), (right, two))]
    grams[0] = grams[0] * twice
    weights = pair_weights(left, right, range(one.first, one.last), range(two.first, two.last))
    out = left.inputs.new_empty(len(one.units), len(two.units))
    places = [[(unit, np.flatnonzero(each.units == unit)) for unit in range(each.first, each.last)] for each in (one, two)]
    for u, own in places[0]:
        for v, others in places[1]:
            m = weights[:, u - one.first, v - two.first]
            weighted = grams[0][one.kinds[own]] * (m[i] * m[j])
            values = weighted @ grams[1][two.kinds[others]].mT
            out[own[0] : own[-1] + 1, others[0] : others[-1] + 1] = values
    return out


def _packed_grams(inputs: Tensor, spans: list, i: Tensor, j: Tensor) -> Tensor:
    return torch.stack([(inputs[:, start:stop] @ inputs[:, start:stop].mT)[i, j] for start, stop in spans])


def _by_grid(left: KhatriRaoRows, right: KhatriRaoRows, one: _Pieces, two: _Pieces) -> Tensor:
    """All pairs of ranges for all pairs of units in a few large products."""
    mirrored = left is right and np.array_equal(one.edges, two.edges)
    weights = pair_weights(left, right, range(one.first, one.last), range(two.first, two.last))
    (_, u, v), m = weights.shape, weights.flatten(1)
    a, b = np.indices((len(one.spans), len(two.spans))).reshape(2, -1)
    if mirrored:
        a, b = a[a <= b], b[a <= b]
    grams = one.grams(left)
    products = grams[_index(a)] * (grams if mirrored else two.grams(right))[_index(b)]
    step = max(64, _CACHED // (len(products) * len(m)))  # large temporaries cost more in fresh pages than in arithmetic
    parts = ((products @ part).mul_(part).sum(1) for part in m.split(step, 1))
    values = torch.cat(list(parts), 1).view(-1, u, v)
    out = values.new_empty(u, len(one.spans), v, len(two.spans))
    out[:, _index(a), :, _index(b)] = values
    if mirrored:
        out[:, _index(b), :, _index(a)] = values.mT
    return out.reshape(len(one.units), len(two.units))


def _by_span(left: KhatriRaoRows, right: KhatriRaoRows, one: _Pieces, two: _Pieces) -> Tensor:
    N, mirrored = len(left.inputs), left is right and np.array_equal(one.edges, two.edges)
    out = left.inputs.new_empty(len(one.units), len(two.units))
    step = max(1, _WORKSPACE // (N * (two.last - two.first)))
    grams = one.grams(left), two.grams(right)
    for first in range(one.first, one.last, step):
        weights = pair_weights(left, right, range(first, min(first + step, one.last)), range(two.first, two.last))
        inside = (one.units >= first) & (one.units < first + step)
        for a in np.unique(one.kinds[inside]):
            own = np.flatnonzero(inside & (one.kinds == a))
            chosen = _take(weights, one.units[own] - first, 1)
            for b in range(a if mirrored else 0, len(two.spans)):
                others = np.flatnonzero(two.kinds == b)
                m = _take(chosen, two.units[others] - two.first, 2).reshape(N, -1)
                values = (((grams[0][a] * grams[1][b]) @ m) * m).sum(0).view(len(own), len(others))
                out[_index(own)[:, None], _index(others)] = values
                if mirrored and b > a:
                    out[_index(others)[:, None], _index(own)] = values.mT
    return out


def _take(values: Tensor, where: np.ndarray, axis: int) -> Tensor:
    return values if len(where) == values.shape[axis] else values.index_select(axis, _index(where).to(values.device))


def _index(where: np.ndarray) -> Tensor:
    return torch.from_numpy(where)


# ---- grams


def grams_cost(left: RowBlock, right: RowBlock, rows: np.ndarray, columns: np.ndarray) -> float:
    """Operations of `gram_squares`."""
    R, r, c = float(left.shape[0]), len(rows) - 1, len(columns) - 1
    form = sum(R**2 * _gram_width(block, edges) for block, edges in ((left, rows), (right, columns)))
    return R**2 * r * c + (r + c) * R**2 * ELEMENT + form


def _gram_width(block: RowBlock, edges: np.ndarray) -> float:
    """Columns that the Gram matrices of all cells are made from."""
    if not isinstance(block, KhatriRaoRows):
        return float(edges[-1] - edges[0])
    kind, size = _kind(block, edges), float(edges[-1] - edges[0])
    return {"units": size / width_of(block), "pieces": 2.0 * len(edges), "any": size}[kind]


def _kind(block: RowBlock, edges: np.ndarray) -> str:
    """Whether all cells are whole "units", or each a piece of one unit ("pieces"), or "any"."""
    if not isinstance(block, KhatriRaoRows):
        return "any"
    width = width_of(block)
    if not (edges % width).any():
        return "units"
    return "pieces" if (edges[:-1] // width == (edges[1:] - 1) // width).all() else "any"


def gram_squares(left: RowBlock, right: RowBlock, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
    """Inner products of the cells' Gram matrices, upper triangles only, a strip of rows at a time."""
    R, r, c = left.shape[0], len(rows) - 1, len(columns) - 1
    out = torch.zeros(r, c, dtype=left.dtype, device=left.device)
    height = max(1, min(R, _STRIP // ((r + c) * R)))
    one = _CellGrams(left, rows)
    two = one if left is right and np.array_equal(rows, columns) else _CellGrams(right, columns)
    for start in range(0, R, height):
        strip = one.strip(start, min(height, R - start))
        other = strip if two is one else two.strip(start, min(height, R - start))
        out.addmm_(strip.flatten(1), other.flatten(1).mT)
    return out


class _CellGrams:
    """B_r B_rᵀ of every cell r, strip by strip."""

    def __init__(self, block: RowBlock, edges: np.ndarray):
        self.block, self.kind = block, _kind(block, edges)
        self.cells = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        if self.kind == "any":
            formed = sum(stop - start for start, stop in self.cells) * block.shape[0]
            self.columns = [block.columns(*cell) for cell in self.cells] if formed <= _WORKSPACE else None
            return
        width, flat, pieces = width_of(block), block.scores.flatten(0, 1), _pieces(block, edges)
        if self.kind == "pieces":
            self.scores = flat[:, _index(pieces.units).to(block.device)].mT.unsqueeze(2)  # (cells, R, 1)
            self.kinds = _index(pieces.kinds).to(block.device)
            self.grams = pieces.grams(block)
            return
        parts = [flat[:, a // width : b // width] for a, b in self.cells]
        most = max(part.shape[1] for part in parts)
        self.scores = torch.stack([torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts])
        self.kinds, self.grams = None, (block.inputs @ block.inputs.mT).unsqueeze(0)

    def strip(self, start: int, height: int) -> Float[Tensor, "r h w"]:
        """Rows start to start + h, from column `start` on; right of the square they count √2."""
        if self.kind == "any":
            columns = self.columns or (self.block.columns(*cell) for cell in self.cells)
            out = torch.stack([rows[start : start + height] @ rows[start:].mT for rows in columns])
            out[:, :, height:] *= 2**0.5
            return out
        if self.grams.shape[1] == self.scores.shape[1]:  # one score per example: rows are examples
            products = self.grams[:, start : start + height, start:].clone()
        else:
            index = torch.arange(start, self.scores.shape[1], device=self.block.device) % self.grams.shape[1]
            products = self.grams[:, index[:height]][:, :, index]
        products[:, :, height:] *= 2**0.5
        one, two = self.scores[:, start : start + height], self.scores[:, start:].mT
        if self.kinds is None:
            return torch.bmm(one, two).mul_(products)
        return products[self.kinds].mul_(one).mul_(two)


ROUTES = {
    "direct": (direct_cost, direct_squares),
    "pieces": (pieces_cost, piece_squares),
    "grams": (grams_cost, gram_squares),
}


def squares(left: RowBlock, right: RowBlock, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
    """By the route of fewest operations."""
    route = min(ROUTES, key=lambda name: ROUTES[name][0](left, right, rows, columns))
    return ROUTES[route][1](left, right, rows, columns)


# ---- plain sums


def cell_sums(block: RowBlock, edges: np.ndarray) -> Float[Tensor, "R r"]:
    """Per row of B the sum over the columns of every cell: sums of BᵀB' over cells are products of two of these."""
    if isinstance(block, KhatriRaoRows):
        pieces = _pieces(block, edges)
        inputs = torch.stack([block.inputs[:, start:stop].sum(1) for start, stop in pieces.spans], 1)  # (N, spans)
        K = block.scores.shape[0]
        values = block.scores.flatten(0, 1)[:, _index(pieces.units).to(block.device)]
        values = values * inputs[:, _index(pieces.kinds).to(block.device)].repeat(K, 1)
        ends = (np.arange(len(values) + 1), pieces.edges)
        return add_up(values, ends, (ends[0], edges))
    parts = (block.columns(int(a), int(b)).sum(1) for a, b in zip(edges[:-1], edges[1:], strict=True))
    return torch.stack(list(parts), 1)


def scaled_cell_sums(block: RowBlock, scale: Float[Tensor, " C"], edges: np.ndarray) -> Float[Tensor, "R r"]:
    """`cell_sums` of B diag(scale)."""
    if not isinstance(block, KhatriRaoRows):
        parts = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        return torch.stack([block.columns(a, b) @ scale[a:b] for a, b in parts], 1)
    pieces, scales = _pieces(block, edges), scale.view(block.scores.shape[2], -1)
    units = _index(pieces.units).to(block.device)
    weighted = block.inputs.new_empty(len(block.inputs), len(units))
    for kind, (start, stop) in enumerate(pieces.spans):
        own = _index(np.flatnonzero(pieces.kinds == kind)).to(block.device)
        weighted[:, own] = block.inputs[:, start:stop] @ scales[units[own], start:stop].mT
    values = block.scores.flatten(0, 1)[:, units] * weighted.repeat(block.scores.shape[0], 1)
    ends = (np.arange(len(values) + 1), pieces.edges)
    return add_up(values, ends, (ends[0], edges))
