"""How fast a deep linear network learns: excess losses beside the theory's e^(−2t), and gradient flow's plateaus."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.plots import style

Curve = tuple[Any, Any]  # times, excess losses: arrays, tensors or lists


def rate_figure(
    runs: Mapping[str, Curve],
    contrast: Mapping[str, Curve] | None = None,
    *,
    slope: float = -2.0,
    title: str = "Natural gradient: one rate for all depths",
) -> go.Figure:
    """Excess losses over time, each relative to its first, log; the theory's line e^(slope · t) over all of them.

    Args:
        runs: by name (depth, conditioning, ...) the times and excess losses of natural gradient.
        contrast: likewise of plain gradient flow, dashed.
        slope: per unit of time, as `deep_linear.rate` predicts it.
    Raises: ValueError for a curve whose times and losses differ in length, or whose first loss is not positive.
    """
    dashes = {"exact_ngd": ("natural gradient", "solid", runs), "sgd": ("gradient flow", "dash", contrast or {})}
    traces, notes = [], []
    for method, (kind, dash, curves) in dashes.items():
        colour = style.method_colour(method)
        for name, curve in curves.items():
            times, losses = _relative(name, *curve)
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "name": f"{kind}, {name}", "x": times, "y": losses,
                    "line": {"color": colour, "width": 1.5, "dash": dash}, "opacity": 0.7,
                    "hovertemplate": f"{kind}, {name}: %{{y:.3g}} at t = %{{x:.3g}}<extra></extra>",
                }
            )  # fmt: skip
            if method == "sgd":
                notes.append(_end_label(name, times, losses, colour))
    ends = [trace["x"][-1] for trace in traces if len(trace["x"])] or [1.0]
    line = np.linspace(0, float(max(ends)), 101)
    theory = {
        "type": "scatter", "mode": "lines", "name": "theory", "x": line, "y": np.exp(slope * line),
        "line": {"color": style.EXACT, "width": 2.5, "dash": "dot"},
        "hovertemplate": "theory: %{y:.3g} at t = %{x:.3g}<extra></extra>",
    }  # fmt: skip
    notes.append(_end_label(f"e^({slope:g} t)".replace("-", "−"), line, theory["y"], style.EXACT))
    layout = style.template()
    layout |= {"title": layout["title"] | {"text": title}, "annotations": [note for note in notes if note]}
    layout["margin"] = layout["margin"] | {"r": 96}
    layout["xaxis"] |= {"rangemode": "tozero", "title": layout["xaxis"]["title"] | {"text": "time (lr · steps)"}}
    layout["yaxis"] |= {"type": "log", "title": layout["yaxis"]["title"] | {"text": "excess loss / that at t = 0 (log)"}}
    return go.Figure({"data": [*traces, theory], "layout": layout})


def _relative(name: str, times: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    times, losses = np.asarray(times, dtype=float), np.asarray(losses, dtype=float)
    if times.shape != losses.shape or times.ndim != 1:
        raise ValueError(f"{name!r} needs one loss for each time; got shapes {times.shape} and {losses.shape}.")
    if len(losses) and not losses[0] > 0:
        raise ValueError(f"{name!r} begins at an excess loss of {losses[0]:g}; it must be positive to compare rates.")
    return times, losses / losses[:1]


def _end_label(text: str, times: np.ndarray, values: np.ndarray, colour: str) -> dict | None:
    shown = np.flatnonzero(np.isfinite(values) & (values > 0))
    if not len(shown):
        return None
    x, y = float(times[shown[-1]]), float(np.log10(values[shown[-1]]))
    place = {"xanchor": "left", "yanchor": "middle", "xshift": 6, "showarrow": False}
    return {"text": text, "x": x, "y": y, "font": {"color": colour, "size": 12}} | place
