"""The panel without a kernel: the static twins of its three figures, together or in one HTML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from natgrad_lab.plots.curves import loss_figure, spectrum_figure
from natgrad_lab.plots.heatmap import fisher_heatmap_figure
from natgrad_lab.plots.style import template
from natgrad_lab.widgets.text import scientific

CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}


def panel_figure(arrays: Mapping[str, Any], runs: Mapping[str, tuple], damping: float) -> go.Figure:
    """Heatmap on the left, spectrum above the loss on the right; the condition number in the title."""
    parts = _parts(arrays, runs, damping)
    places = [(1, 1), (1, 2), (2, 2)]
    figure = make_subplots(
        2, 2, specs=[[{"rowspan": 2}, {}], [None, {}]], column_widths=[0.55, 0.45], horizontal_spacing=0.2,
        vertical_spacing=0.2, subplot_titles=[part.layout.title.text for part in parts],
    )  # fmt: skip
    keep = {key: value for key, value in template().items() if key not in ("xaxis", "yaxis", "title")}
    figure.update_layout(keep)
    for number, (part, (row, column)) in enumerate(zip(parts, places, strict=True), start=1):
        figure.add_traces(part.data, rows=row, cols=column)
        for axis, update in (("xaxis", figure.update_xaxes), ("yaxis", figure.update_yaxes)):
            settings = part.layout[axis].to_plotly_json() | ({} if number > 1 else {"scaleanchor": None})
            update(settings, row=row, col=column)
        for shape in part.layout.shapes:
            figure.add_shape(shape, row=row, col=column, exclude_empty_subplots=False)
        for note in part.layout.annotations:
            figure.add_annotation(note, row=row, col=column)
    figure.update_yaxes(scaleanchor="x", row=1, col=1)
    figure.update_traces(colorbar={"x": 0.47, "len": 1.0, "title": {"side": "right"}}, selector={"type": "heatmap"})
    figure.update_layout(title={"text": _title(arrays), "font": {"size": 20}}, width=1200, height=640)
    figure.update_layout(margin={"l": 70, "r": 90, "t": 90, "b": 50})
    return figure


def write_html(path: str | Path, arrays: Mapping[str, Any], runs: Mapping[str, tuple], damping: float) -> Path:
    """Write the figure and plotly.js into one file. Raises: OSError if it cannot be written."""
    path = Path(path)
    page = pio.to_html(panel_figure(arrays, runs, damping), config=CONFIG, include_plotlyjs=True, full_html=True)
    path.write_text(page, encoding="utf-8")
    return path


def _parts(arrays: Mapping[str, Any], runs: Mapping[str, tuple], damping: float) -> list[go.Figure]:
    return [
        fisher_heatmap_figure(arrays["picture"], arrays["layout"]),
        spectrum_figure(arrays["eigenvalues"][: arrays["rank"]], damping),
        loss_figure(runs),
    ]


def _title(arrays: Mapping[str, Any]) -> str:
    kind = "largest / smallest nonzero eigenvalue"
    return f"κ = {scientific(arrays['condition_number'])}, condition number of the exact Fisher ({kind})"
