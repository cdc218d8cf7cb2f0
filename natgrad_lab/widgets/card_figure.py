"""A card's figure as plain data: for a live view (arrays in binary), and for a page without a kernel (compact JSON)."""

import base64
from typing import Any

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.plots.style import template

HEIGHT = 380  # CSS pixels, of figures that do not say


def figure_data(figure: go.Figure) -> dict[str, Any]:
    """{"data": [...], "layout": {...}} without plotly's own template: numbers as 1-D arrays, matrices as lists of rows."""
    plain = figure.to_plotly_json()
    layout = {key: _plain(value) for key, value in plain["layout"].items() if key not in ("template", "width")}
    base = template()
    for key in ("font", "paper_bgcolor", "plot_bgcolor", "margin", "hoverlabel"):
        layout.setdefault(key, base[key])
    return {"data": [_plain(trace) for trace in plain["data"]], "layout": layout}


def height_of(layout: dict[str, Any]) -> int:
    """CSS pixels that a figure with this layout takes."""
    return int(layout.get("height") or HEIGHT)


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and "bdata" in value:  # how plotly writes arrays into plain data
        return _plain(_decoded(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            return [_plain(row) for row in value]
        is_numeric = value.dtype.kind in "iuf"
        return value if is_numeric and value.ndim == 1 else value.tolist()
    return value


def _decoded(packed: dict[str, str]) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(packed["bdata"]), np.dtype(packed["dtype"]).newbyteorder("<"))
    return array.reshape([int(size) for size in packed["shape"].split(",")]) if "shape" in packed else array
