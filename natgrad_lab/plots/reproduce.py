"""Figures of reproductions: plain results of the seeds in, plotly Figures out. A dot is a seed, a bar a median."""

import math
import statistics
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

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


def matrices_figure(seeds: Sequence[dict]) -> go.Figure:
    """Six matrices as mean |entry| over cells, log scale: F, F̃ and their difference share one scale, so do the inverses."""
    pictures = next(seed["pictures"] for seed in seeds if "pictures" in seed)
    figure = make_subplots(2, 3, subplot_titles=list(pictures), horizontal_spacing=0.04, vertical_spacing=0.12)
    figure.update_layout(style.template())
    for row, names in enumerate((list(pictures)[:3], list(pictures)[3:]), 1):
        logs = [[[math.log10(max(x, 1e-30)) for x in line] for line in pictures[name]] for name in names]
        high = max(max(map(max, one)) for one in logs[:1])
        for column, (name, one) in enumerate(zip(names, logs, strict=True), 1):
            figure.add_heatmap(
                row=row, col=column, z=one, zmin=high - 3, zmax=high, colorscale=style.colorscale("sequential"), name=name,
                showscale=column == 3, hovertemplate=name + ", cell %{y}, %{x}: 10^%{z:.2f}<extra></extra>",
                colorbar={"thickness": 10, "len": 0.42, "y": 0.79 if row == 1 else 0.21, "title": {"text": "log₁₀"}},
            )  # fmt: skip
    size = len(next(iter(pictures.values())))
    ticks = {"tickvals": [size * (i + 0.5) / 4 - 0.5 for i in range(4)], "ticktext": ["2", "3", "4", "5"], "showgrid": False}
    figure.update_xaxes(ticks | {"constrain": "domain"})
    figure.update_yaxes(ticks | {"autorange": "reversed", "constrain": "domain"})
    for axis in range(1, 7):
        figure.update_yaxes({"scaleanchor": f"x{axis}"}, row=(axis + 2) // 3, col=(axis - 1) % 3 + 1)
    figure.update_layout(
        title={"text": "Mean |entry| between layers 2 to 5: the Fisher and K-FAC's F̃ (top), inverses (bottom)"},
        height=760, margin={"l": 40, "r": 20, "t": 84, "b": 40},
    )  # fmt: skip
    return figure


def deep_linear_figure(seeds: Sequence[dict]) -> go.Figure:
    """Excess loss relative to the first against time: a line per network and seed, a colour per depth, e^(−2t) dashed."""
    figure, times = go.Figure(layout=style.template()), seeds[0]["times"]
    depths = sorted({each["depth"] for each in seeds[0]["networks"]})
    colours = dict(zip(depths, (style.SKY, style.GREEN, style.VERMILLION, style.PURPLE, style.BLUE), strict=False))
    shown = set()
    for seed in seeds:
        for each in seed["networks"]:
            depth, line = each["depth"], {"color": colours.get(each["depth"], style.GREY), "width": 1.5}
            figure.add_scatter(
                x=times, y=[value / each["excess"][0] for value in each["excess"]], mode="lines", name=f"{depth} layers",
                legendgroup=str(depth), showlegend=depth not in shown, line=line, opacity=0.6,
                hovertemplate=f"{depth} layers, condition {each['condition']:g}: %{{y:.2g}}<extra></extra>",
            )  # fmt: skip
            shown.add(depth)
    figure.add_scatter(
        x=times, y=[math.exp(-2 * t) for t in times], mode="lines", name="e⁻²ᵗ, the theory",
        line={"color": style.BLACK, "dash": "dash", "width": 2},
    )  # fmt: skip
    conditions = ", ".join(f"{c:g}" for c in sorted({each["condition"] for each in seeds[0]["networks"]}))
    figure.update_xaxes(title={"text": "time: learning rate × updates"})
    figure.update_yaxes(type="log", dtick=1, title={"text": "excess loss / excess loss at the start (log)"})
    figure.update_layout(title={"text": f"Natural gradient on deep linear networks; inputs of condition number {conditions}"})
    return _finished(figure, height=460).update_layout(margin={"l": 70})


def whitening_figure(seeds: Sequence[dict]) -> go.Figure:
    """Two pictures of the Fisher, and λ_max / mean λ while training: median over seeds strong, every seed thin."""
    pictures = next(seed["pictures"] for seed in seeds if "pictures" in seed)
    titles = ["Fisher, three units of layer 2", "after whitening their inputs", "conditioning while training"]
    figure = make_subplots(1, 3, subplot_titles=titles, column_widths=[0.27, 0.27, 0.46], horizontal_spacing=0.09)
    figure.update_layout(style.template())
    logs = {name: [[math.log10(max(x, 1e-30)) for x in line] for line in one] for name, one in pictures.items()}
    for column, (name, one) in enumerate(logs.items(), 1):  # each relative to its own largest cell: the units differ
        high = max(map(max, one))
        figure.add_heatmap(
            row=1, col=column, z=[[x - high for x in line] for line in one], zmin=-3, zmax=0, name=name, showscale=False,
            colorscale=style.colorscale("sequential"),
            hovertemplate="entry %{y}, %{x}: 10^%{z:.2f} of the largest<extra></extra>",
        )  # fmt: skip
    colours = {"None": style.ORANGE, "1": style.BLACK, "10": style.BLUE, "100": style.SKY}
    first = [seed["training"]["None"]["mean"][0] for seed in seeds]
    for period, colour in colours.items():
        lines = [[x / base for x in seed["training"][period]["mean"]] for seed, base in zip(seeds, first, strict=True)]
        places = seeds[0]["training"][period]["steps"]
        for line in lines:
            figure.add_scatter(row=1, col=3, x=places, y=line, mode="lines", line={"color": colour, "width": 0.5}, opacity=0.4,
                               showlegend=False, hoverinfo="skip")  # fmt: skip
        figure.add_scatter(
            row=1, col=3, x=places, y=[_median(column) for column in zip(*lines, strict=True)], mode="lines",
            name="gradient descent" if period == "None" else f"PRONG, T = {period}", line={"color": colour, "width": 2.5},
        )  # fmt: skip
    for column in (1, 2):
        figure.update_yaxes({"autorange": "reversed", "scaleanchor": f"x{column}", "constrain": "domain"}, row=1, col=column)
        figure.update_xaxes({"constrain": "domain"}, row=1, col=column)
    ticks = {"tickvals": [0.05, 0.1, 0.2, 0.5, 1, 2, 5], "ticktext": ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"]}
    figure.update_yaxes(ticks | {"type": "log", "title": {"text": "λ_max / mean λ, relative to the start (log)"}}, row=1, col=3)
    figure.update_xaxes(title={"text": "updates"}, row=1, col=3)
    figure.update_layout(
        title={"text": "Whitening the layers' inputs (|entries| on a log scale of three decades)"}, height=460, showlegend=True,
        margin={"l": 40, "r": 20, "t": 84, "b": 80},
        legend={"orientation": "h", "y": -0.16, "yanchor": "top", "x": 1, "xanchor": "right"},
    )  # fmt: skip
    return figure
