"""Curves: the loss of runs and the spectrum of a Fisher.

Each comes twice from one description: `*_spec` gives plotly's dict with numpy arrays (what a live view sends in binary),
`*_figure` the static Figure of it.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.plots import style


def loss_spec(runs: Mapping[str, Sequence], *, title: str = "Loss while training", uirevision: str = "loss") -> dict:
    """Loss against the steps taken, one line for each method.

    Args:
        runs: for each method its records, which have `step` and `loss`; the last run is the current one, drawn strongest.
    """
    traces, notes = [], []
    for number, (method, records) in enumerate(runs.items()):
        steps = np.array([record.step - 1 for record in records], dtype=np.float32)  # a record's loss is that before its step
        losses = np.array([record.loss for record in records], dtype=np.float32)
        is_current = number == len(runs) - 1
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": method, "x": steps, "y": losses,
                "line": {"color": style.method_colour(method), "width": 2.5 if is_current else 1.5},
                "opacity": 1.0 if is_current else 0.55,
                "hovertemplate": f"{method}: %{{y:.4g}} nats after %{{x}} steps<extra></extra>",
            }
        )  # fmt: skip
        finite = np.flatnonzero(np.isfinite(losses) & (losses > 0))
        if len(finite):
            end = float(steps[finite[-1]]), float(np.log10(losses[finite[-1]]))
            notes.append(_label(method, *end, style.method_colour(method)))
    layout = style.template()
    layout |= {"title": layout["title"] | {"text": title}, "annotations": notes, "uirevision": uirevision}
    layout["xaxis"] |= {"rangemode": "tozero"} | _titled(layout["xaxis"], "optimizer steps taken")
    layout["yaxis"] |= {"type": "log"} | _titled(layout["yaxis"], "loss (nats, log)")
    layout["margin"] = layout["margin"] | {"r": 84}
    drawn = np.concatenate([trace["y"] for trace in traces]) if traces else np.empty(0)
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    if len(drawn):
        layout["yaxis"] |= _full_numbers(drawn.min(), drawn.max())
    else:
        layout["xaxis"] |= {"range": [0, 10]}
        layout["yaxis"] |= {"range": [-1, 1]} | _full_numbers(0.1, 10)
        layout["annotations"] = [{"text": "no step yet", "x": 5, "y": 0, "showarrow": False, "font": {"color": style.GREY}}]
    return {"data": traces, "layout": layout}


def spectrum_spec(eigenvalues: np.ndarray, damping: Real | None = None, *, uirevision: str = "spectrum") -> dict:
    """Eigenvalues of the exact Fisher against their rank, both log, with a line at the damping.

    Args:
        eigenvalues: in any order; those that are not positive are zero to rounding and cannot be drawn.
        damping: λ; directions below this line are mostly held still by it.
    """
    values = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    values = values[values > 0]
    layout = style.template()
    layout |= {"title": layout["title"] | {"text": "Spectrum of the exact Fisher"}, "uirevision": uirevision}
    layout["xaxis"] |= {"type": "log", "dtick": 1} | _titled(layout["xaxis"], "rank (log)")
    layout["yaxis"] |= {"type": "log", "nticks": 6} | _titled(layout["yaxis"], "eigenvalue (nats, log)")
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": "eigenvalues", "y": values,
            "x": np.arange(1, len(values) + 1, dtype=np.float32), "line": {"color": style.EXACT, "width": 2.5},
            "hovertemplate": "eigenvalue %{x}: %{y:.3g}<extra></extra>",
        }
    ]  # fmt: skip
    if damping is not None and damping > 0:
        end = float(max(len(values), 2))
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": "damping", "x": np.array([1.0, end]),
                "y": np.array([damping, damping]), "line": {"color": style.GREY, "width": 1.5, "dash": "dash"},
                "hovertemplate": "damping λ = %{y:.3g}<extra></extra>",
            }
        )  # fmt: skip
        # Below the line on the left there is room, unless the damping is above every eigenvalue.
        side = "top" if len(values) and damping < values[0] else "bottom"
        note = {"text": f"damping λ = {damping:.1e}", "xanchor": "left", "yanchor": side, "showarrow": False}
        layout["annotations"] = [note | {"x": 0.0, "y": float(np.log10(damping)), "font": {"color": style.GREY}}]
    return {"data": traces, "layout": layout}


def loss_figure(records: Sequence | Mapping[str, Sequence], method: str = "loss", **options) -> go.Figure:
    """Loss against steps: of one run's records, or of several runs by method."""
    runs = records if isinstance(records, Mapping) else {method: records}
    return go.Figure(loss_spec(runs, **options))


def spectrum_figure(eigenvalues: np.ndarray, damping: Real | None = None) -> go.Figure:
    """Eigenvalues against rank, log-log, with the damping."""
    return go.Figure(spectrum_spec(eigenvalues, damping))


def _label(text: str, x: float, y: float, colour: str) -> dict:
    """Direct label to the right of a line's end; (x, y) in axis units, so log10 where the axis is log."""
    return {
        "text": text, "x": x, "y": y, "xanchor": "left", "yanchor": "middle", "xshift": 6,
        "showarrow": False, "font": {"color": colour, "size": 12},
    }  # fmt: skip


def _titled(axis: dict, text: str) -> dict:
    return {"title": axis["title"] | {"text": text}}


def _full_numbers(low: Real, high: Real) -> dict:
    """Ticks of a log axis as whole numbers at 1, 2, 5, or only at decades if there are many: 0.5, not a small 5."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    digits = (1, 2, 5) if high / low < 1e3 else (1,)
    values = [digit * 10.0**decade for decade in decades for digit in digits]
    return {"tickmode": "array", "tickvals": values, "ticktext": [f"{value:.4g}" for value in values]}
