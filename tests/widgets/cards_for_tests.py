"""A card of one line, with every kind of control, for tests."""

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.plots.style import template

CHOICE = Prediction("Which?", lambda r: "b <x>", "So: {answer}.", options=("a", "b <x>"))


def draw(result):
    figure = go.Figure(layout=template())
    figure.add_scatter(x=np.arange(3), y=np.arange(3) * result["x"], name="line")
    figure.add_heatmap(z=np.eye(2) * result["x"], name="map")
    return figure


def toy(compute=lambda state: {"x": float(state["slope"]), **state}, **changes):
    values = {
        "name": "toy", "title": "A <b>toy</b>", "message": "One line & one map.",
        "controls": (
            Control("slope", "slope <i>s</i>", (0.5, 1.0, 2.0), 1.0), Control("kind", "kind", ("plain", "odd"), "plain"),
            Control("on", "on", (False, True), False),
        ),
        "compute": compute, "draw": draw, "headline": lambda r: (f"{r['x']:.2f} <m>", "the slope"),
        "caption": "Height against place: a straight line, with the slope as its steepness.",
        "presets": {"optimal": {"slope": 2.0}, "break it": {"slope": 0.5, "kind": "odd"}},
        "prediction": Prediction("How steep is it?", lambda r: r["x"], "It is {answer:.1f}.", unit="m"),
    }  # fmt: skip
    return Card(**values | changes)
