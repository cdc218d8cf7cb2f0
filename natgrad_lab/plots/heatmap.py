"""A Fisher matrix as a picture: which part, pooled to how many cells, on which scale, with which limits.

A cell stands for a rectangle of entries. Its value stays a float in the matrix' own units (`Picture.values`); the bytes
that a screen gets (`Picture.to_uint8`) are derived from it last. Colour limits are quantiles of the entries themselves,
not of the pooled cells, and are rounded outwards, so that a picture at another resolution has the same colours and the
colour bar does not flicker from frame to frame.
"""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots import style
from natgrad_lab.plots.pooling import pool, sample_entries


@dataclass(frozen=True)
class Scale:
    """How entries become colours. `pooled` names how a cell sums up its entries: "rms" or "peak"."""

    name: str
    label: str
    title: str
    pooled: str
    colours: str
    signed: bool


SCALES = {
    scale.name: scale
    for scale in (
        Scale("log", "log |F|", "|F|, log scale", "rms", "sequential", signed=False),
        Scale("signed", "signed F", "F, linear scale", "peak", "diverging", signed=True),
        Scale("correlation", "correlation", "F_ij / √(F_ii F_jj)", "peak", "diverging", signed=True),
    )
}
_POOLED_AS = {"rms": "root mean square per cell", "peak": "largest |entry| per cell, with its sign"}
_MOST_DECADES = 8


@dataclass(frozen=True, eq=False)
class Picture:
    """Pooled values (R, C) of a part of a matrix; `row_edges` (R+1,) and `column_edges` (C+1,) are matrix indices."""

    values: np.ndarray
    scale: Scale
    limits: tuple[float, float]
    row_edges: np.ndarray
    column_edges: np.ndarray

    @property
    def is_pooled(self) -> bool:
        """Whether some cell stands for more than one entry."""
        rows, columns = (edges[-1] - edges[0] for edges in (self.row_edges, self.column_edges))
        return bool(rows > self.values.shape[0] or columns > self.values.shape[1])

    @property
    def title(self) -> str:
        """What the colour bar shows."""
        return f"{self.scale.title}; {_POOLED_AS[self.scale.pooled]}" if self.is_pooled else self.scale.title

    def normalized(self) -> np.ndarray:
        """Values as places 0..1 on the colour table, clipped at the limits."""
        low, high = self.limits
        if self.scale.signed:
            return ((self.values - low) / (high - low)).clip(0, 1)
        with np.errstate(divide="ignore"):
            return ((np.log10(self.values) - np.log10(low)) / np.log10(high / low)).clip(0, 1)

    def to_uint8(self) -> np.ndarray:
        """Colour numbers (R, C)."""
        return (255 * np.nan_to_num(self.normalized()) + 0.5).astype(np.uint8)


def fisher_picture(
    matrix: np.ndarray, kind: str = "log", *, rows: slice | None = None, columns: slice | None = None, size: int = 300
) -> Picture:
    """Picture of `matrix[rows, columns]` on the scale `kind`, of at most `size` cells a side.

    Args:
        matrix: (P, P) symmetric, float32 or float64; only the correlation scale uses entries outside of the part.
        kind: a key of `SCALES`.
    Cost: one or two passes over the part.
    """
    if kind not in SCALES:
        raise ValueError(f"there is no scale {kind!r}; choose one of {', '.join(SCALES)}.")
    if size < 1:
        raise ValueError(f"size must be at least 1; got {size}.")
    scale, P = SCALES[kind], len(matrix)
    row_edges, column_edges = _edges(rows, P, size), _edges(columns, P, size)
    part = matrix[row_edges[0] : row_edges[-1], column_edges[0] : column_edges[-1]]
    weights = None
    if kind == "correlation":
        deviation = np.sqrt(np.diagonal(matrix).clip(0))
        inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        weights = (inverse[row_edges[0] : row_edges[-1]], inverse[column_edges[0] : column_edges[-1]])
    values = pool(part, row_edges - row_edges[0], column_edges - column_edges[0], scale.pooled, weights)
    limits = (-1.0, 1.0) if kind == "correlation" else colour_limits(sample_entries(part), scale.signed)
    return Picture(values, scale, limits, row_edges, column_edges)


def colour_limits(entries: np.ndarray, signed: bool) -> tuple[float, float]:
    """Limits from the 5 % and 99.9 % quantiles of the magnitudes that are not 0, rounded outwards (half decades; 1, 2, 5)."""
    magnitudes = np.abs(entries)
    magnitudes = magnitudes[(magnitudes > 0) & np.isfinite(magnitudes)]
    if not len(magnitudes):
        return (-1.0, 1.0) if signed else (1e-3, 1.0)
    low, high = np.log10(np.quantile(magnitudes.astype(np.float64), [0.05, 0.999]))
    if signed:
        steps = np.floor(high) + np.log10([1, 2, 5, 10])
        limit = float(10 ** steps[np.searchsorted(steps, high - 1e-9)])
        return -limit, limit
    top = np.ceil(2 * high) / 2
    bottom = np.clip(np.floor(2 * low) / 2, top - _MOST_DECADES, top - 1)
    return float(10**bottom), float(10**top)


def grid_lines(layout: ParameterLayout, edges: np.ndarray) -> dict[str, list]:
    """Where to rule an axis whose cells have these edges, in cells from its start.

    "layers": (start, stop, name) of each layer's visible part. "units": the places between two rows of [W | b].
    "biases": the middle of each bias column. The last two are there for the page to draw when they are far enough apart.
    """
    place = lambda index: float(np.interp(index, edges, np.arange(len(edges))))  # noqa: E731
    lines: dict[str, list] = {"layers": [], "units": [], "biases": []}
    for layer in layout.layers:
        start, stop = max(layer.start, edges[0]), min(layer.slice.stop, edges[-1])
        if start >= stop:
            continue
        lines["layers"].append([place(start), place(stop), layer.name or "model"])
        ends = layer.start + layer.shape[1] * np.arange(1, layer.shape[0] + 1)
        lines["units"] += [place(end) for end in ends if start < end < stop]
        if layer.has_bias and layer.has_rows:
            lines["biases"] += [place(end - 0.5) for end in ends if start < end <= stop]
    return lines


def fisher_heatmap_figure(picture: Picture, layout: ParameterLayout) -> go.Figure:
    """Draw the static twin of the live heatmap: the same cells, colours, limits and layer lines."""
    low, high = picture.limits
    figure = go.Figure(layout=style.template())
    z = picture.values.astype(np.float64)
    if not picture.scale.signed:
        z = np.log10(np.maximum(z, low))
        low, high = np.log10(low), np.log10(high)
    title = f"log₁₀ of {picture.title}" if not picture.scale.signed else picture.title
    figure.add_heatmap(
        z=z, zmin=low, zmax=high, colorscale=style.colorscale(picture.scale.colours), name="fisher", x0=0.5, y0=0.5,
        colorbar={"title": {"text": title, "side": "right"}, "thickness": 14},
        hovertemplate="row cell %{y}, column cell %{x}: %{z:.4g}<extra></extra>",
    )  # fmt: skip
    for axis, edges in (("x", picture.column_edges), ("y", picture.row_edges)):
        layers = grid_lines(layout, edges)["layers"]
        ticks = {
            "tickvals": [(start + stop) / 2 for start, stop, _ in layers],
            "ticktext": [f"layer {name}" for *_, name in layers],
            "title": {"text": "parameter j, layer by layer" if axis == "x" else "parameter i, layer by layer"},
            "showgrid": False,
        }
        figure.update_layout({f"{axis}axis": ticks})
        for start, *_ in layers[1:]:
            (figure.add_vline if axis == "x" else figure.add_hline)(start, line={"color": "white", "width": 1})
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
    figure.update_xaxes(constrain="domain")
    figure.update_layout(title={"text": "Exact Fisher"}, width=640, height=560)
    return figure


def _edges(part: slice | None, P: int, size: int) -> np.ndarray:
    """Cut an axis into at most `size` cells of nearly equal length."""
    start, stop, step = (part or slice(None)).indices(P)
    if step != 1 or stop <= start:
        raise ValueError(f"rows and columns must be slices of step 1 that are not empty; got {part} of {P}.")
    cells = min(size, stop - start)
    return start + np.arange(cells + 1) * (stop - start) // cells
