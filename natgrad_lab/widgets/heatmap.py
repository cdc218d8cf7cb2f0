"""A live heatmap: a `Picture` goes to the page as one byte per cell and is painted there on a canvas."""

import threading
from collections import OrderedDict

import traitlets

from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.heatmap import Picture, grid_lines
from natgrad_lab.plots.style import colour_table
from natgrad_lab.widgets.png import png
from natgrad_lab.widgets.view import FlowView, source

_TABLES = ("sequential", "diverging")
_REMEMBERED = 4  # pictures that the page may still be asking about


class HeatmapCanvas(FlowView):
    """Shows the newest `Picture`; pointing at a cell, or moving there with the arrow keys, reads out its value.

    The read-out comes from the picture's floats in the kernel, not from the bytes on the page. On static pages the
    newest picture stands as a PNG.
    """

    _esm = source("flow.js", "heatmap.js")
    side = traitlets.Int(440, help="largest width and height, in CSS pixels").tag(sync=True)
    hint = traitlets.Unicode("Point at a cell, or focus the picture and use the arrow keys.").tag(sync=True)

    def __init__(self, **traits):
        """Begin empty; `show` brings the first picture."""
        self._pictures: OrderedDict[int, tuple[Picture, ParameterLayout]] = OrderedDict()
        self._guard = threading.RLock()
        self._decorated: tuple[tuple, dict] | None = None
        self._decorations = 0
        super().__init__(**traits)

    def show(self, picture: Picture, layout: ParameterLayout, *, stamp: str = "", alt: str = "") -> None:
        """Show `picture`, a part of a matrix over the parameters of `layout`. From any thread; the newest wins.

        Args:
            stamp: a text that the page puts on the canvas (data-stamp) once this picture is painted.
            alt: what the picture shows, in words.
        """
        pixels = picture.to_uint8()
        header = {"type": "frame", "stamp": stamp, "alt": alt or picture.title, **self._decoration(picture, layout)}
        with self._guard:
            number = self._frames.push(header, [pixels.tobytes()])
            self._pictures[number] = (picture, layout)
            while len(self._pictures) > _REMEMBERED:
                self._pictures.popitem(last=False)

    def _decoration(self, picture: Picture, layout: ParameterLayout) -> dict:
        """Everything around the pixels, made anew only when it changes; the page draws it anew only then, too."""
        edges = picture.row_edges, picture.column_edges
        key = (picture.title, picture.limits, repr(layout), *(each.tobytes() for each in edges))
        if self._decorated is None or self._decorated[0] != key:
            self._decorations += 1
            low, high = (f"{value:.0e}" if not 0.1 <= abs(value) < 1000 else f"{value:g}" for value in picture.limits)
            rows, columns = (grid_lines(layout, each) for each in edges)
            decoration = {
                "decoration": self._decorations, "rows": picture.values.shape[0], "columns": picture.values.shape[1],
                "colours": picture.scale.colours, "low": low, "high": high, "title": picture.title,
                "grid": {"rows": rows, "columns": columns},
            }  # fmt: skip
            self._decorated = key, decoration
        return self._decorated[1]

    @property
    def picture(self) -> Picture | None:
        """The newest picture."""
        with self._guard:
            return next(reversed(self._pictures.values()))[0] if self._pictures else None

    def greet(self) -> None:
        """Send the colour tables, once per page."""
        self._to_page({"type": "colours", "names": _TABLES}, [colour_table(name).tobytes() for name in _TABLES])

    def answer(self, message: dict) -> None:
        """Describe the cell that the page asks about."""
        if message.get("type") != "cell":
            return
        with self._guard:
            if not self._pictures:
                return
            shown = self._pictures.get(message.get("id")) or next(reversed(self._pictures.values()))
        row, column = int(message["row"]), int(message["column"])
        if 0 <= row < shown[0].values.shape[0] and 0 <= column < shown[0].values.shape[1]:
            text = describe_cell(*shown, row, column)
            self._to_page({"type": "text", "row": row, "column": column, "text": text}, [])

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        return with_png(bundle, self.picture)


def describe_cell(picture: Picture, layout: ParameterLayout, row: int, column: int) -> str:
    """Name the parameters, or groups of parameters, of a cell, and give its value."""
    names = [_group(layout, edges, at) for edges, at in ((picture.row_edges, row), (picture.column_edges, column))]
    value = f"{picture.values[row, column]:.6g}"
    what = "correlation" if picture.scale.name == "correlation" else "F"
    if not picture.is_pooled:
        sign = "" if picture.scale.signed else "|"
        return f"{names[0]} × {names[1]}: {sign}{what}{sign} = {value}"
    count = int((picture.row_edges[row + 1] - picture.row_edges[row]) * _width(picture.column_edges, column))
    how = "root mean square" if picture.scale.pooled == "rms" else "largest in magnitude"
    return f"{names[0]} × {names[1]}: {how} of {count} entries of {what} = {value}"


def with_png(bundle, picture: Picture | None):
    """Add the picture to a mime bundle (a dict, or a pair of data and metadata), for pages without a kernel."""
    if bundle is None or picture is None:
        return bundle
    image = png(colour_table(picture.scale.colours)[picture.to_uint8()])
    if isinstance(bundle, tuple):
        return ({**bundle[0], "image/png": image}, *bundle[1:])
    return {**bundle, "image/png": image}


def _width(edges, at: int) -> int:
    return int(edges[at + 1] - edges[at])


def _group(layout: ParameterLayout, edges, at: int) -> str:
    first, last = int(edges[at]), int(edges[at + 1]) - 1
    if first == last:
        return layout.parameter_name(first)
    return f"{layout.parameter_name(first)} … {layout.parameter_name(last)}"
