"""Figures of reproductions: plain results of the seeds in, plotly Figures out. A dot is a seed, a bar a median."""

import math
import statistics
from collections.abc import Sequence

import plotly.graph_objects as go

from natgrad_lab.plots import style

LABELS = {
    "sgd": "gradient descent", "momentum": "SGD with momentum", "adam": "Adam", "kfac": "K-FAC",
    "exact_ngd": "exact natural gradient",
    "prong": "PRONG", "prong_plus": "PRONG+", "sngd": "SNGD", "online_ngd": "online natural gradient", "ekfac": "EKFAC",
    "kfac_block_tridiagonal": "K-FAC, tridiagonal", "rngd": "RNGD", "rmsprop": "RMSprop", "batch_norm": "SGD + BatchNorm",
}  # fmt: skip
_MARKS = ("circle", "diamond", "square", "cross", "x")


def method_label(key: str) -> str:
    """How a figure names `kfac 1e-2`: the method in words, and its damping."""
    method, _, damping = key.partition(" ")
    suffix = "" if not damping else ", undamped" if float(damping) == 0 else f", λ = {float(damping):g}"
    return LABELS.get(method, method) + suffix


def invariance_figure(seeds: Sequence[dict]) -> go.Figure:
    """Relative gap between two ways of writing the same network, after one step: a dot a seed, one row a method."""
    keys = list(seeds[0]["gaps"]["affine inputs"])
    order = sorted(keys, key=lambda key: _median(_column(seeds, key)))[::-1]
    figure = go.Figure(layout=style.template())
    for mark, change in zip(_MARKS, seeds[0]["gaps"], strict=False):
        points = [(key, seed["gaps"][change][key]) for key in order for seed in seeds]
        figure.add_scatter(
            x=[value for _, value in points], y=[method_label(key) for key, _ in points], mode="markers", name=change,
            marker={
                "symbol": mark, "size": 9, "opacity": 0.75,
                "color": [style.method_colour(key.split()[0]) for key, _ in points],
            },
            hovertemplate=f"%{{y}}, {change}: %{{x:.2g}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(
        type="log", dtick=2, title={"text": "difference of the two functions after one step, relative to the step (log)"}
    )
    figure.update_yaxes(categoryorder="array", categoryarray=[method_label(key) for key in order][::-1])
    figure.update_layout(title={"text": "The same network written twice: whose step depends on the way it is written?"})
    return _finished(figure, height=130 + 34 * len(order))


def _column(seeds: Sequence[dict], key: str) -> list:
    return [change[key] for seed in seeds for change in seed["gaps"].values()]


def _median(values: Sequence[float | None]) -> float:
    """Of the seeds; runs that diverged count as infinite."""
    return statistics.median(math.inf if value is None else value for value in values)


def _finished(figure: go.Figure, height: int) -> go.Figure:
    """A legend above the plot for what the marks mean, and the size."""
    return figure.update_layout(
        height=height, showlegend=True, legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        margin={"l": 190, "r": 20, "t": 74, "b": 48},
    )  # fmt: skip
