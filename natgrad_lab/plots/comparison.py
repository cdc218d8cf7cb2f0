"""Figures of a report on approximations: how good, what each assumption costs, how it depends on the damping, where.

All take a report (rows, ladder, sweep: plain numbers) and return a plotly Figure; none computes more than a layout.
"""

import html
import math

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.plots import style

ALL, EXACT = "all", "exact"
COLOURS = {
    EXACT: style.BLACK, "block_tridiagonal": style.PURPLE, "block_diagonal": style.BLUE, "kfac": style.GREEN,
    "ekfac": style.SKY, "unit_wise": style.VERMILLION, "diagonal": style.ORANGE,
}  # fmt: skip
_LINES = ("block_tridiagonal", "block_diagonal", "ekfac", "kfac", "unit_wise", "diagonal", "identity")  # labelled in the sweep


def colour(name: str) -> str:
    """Colour of an approximation; grey for those that have none."""
    return COLOURS.get(name, style.GREY)


def efficiency_figure(report) -> go.Figure:
    """Efficiency of every approximation, best on top."""
    rows = [row for row in report.totals if row.efficiency is not None][::-1]
    figure = go.Figure(layout=style.template())
    figure.add_bar(
        y=[_text(row.label) for row in rows], x=[row.efficiency for row in rows], orientation="h", name="efficiency",
        marker={"color": [colour(row.approximation) for row in rows]}, text=[f"{row.efficiency:.1%}" for row in rows],
        textposition="outside", cliponaxis=False, hovertemplate="%{y}: %{x:.2%} of the possible decrease<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(range=[0, 1.12], tickformat=".0%", title={"text": "efficiency: share of the decrease that is possible"})
    figure.update_layout(title={"text": f"How good is each direction? (λ = {report.about['damping']:.3g})"}, bargap=0.3)
    return _sized(figure, height=110 + 27 * max(len(rows), 3))


def ladder_figure(report) -> go.Figure:
    """The rungs from exact to identity: efficiency as bars, what each step down costs as labels, sampling noise as whiskers."""
    rungs = [rung for rung in report.ladder.rungs if rung.efficiency is not None]
    figure = go.Figure(layout=style.template())
    labels = [_text(rung.label).replace(" (", "<br>(") for rung in rungs]
    figure.add_bar(
        x=labels, y=[rung.efficiency for rung in rungs], name="efficiency", cliponaxis=False,
        marker={"color": [colour(rung.name) for rung in rungs]}, text=[_cost(rung) for rung in rungs],
        textposition="outside", customdata=[rung.assumption for rung in rungs],
        hovertemplate="%{x}: %{y:.1%}<br>assumes: %{customdata}<extra></extra>",
    )  # fmt: skip
    for noise in report.ladder.noise:
        if noise.name == "kfac" and (place := [label for r, label in zip(rungs, labels, strict=True) if r.name == "kfac"]):
            figure.add_scatter(
                x=place, y=[noise.efficiency], mode="markers", name="K-FAC, 1 sampled target",
                error_y={"type": "data", "array": [noise.efficiency_deviation], "thickness": 2},
                marker={"color": style.BLACK, "size": 8, "symbol": "diamond"},
                hovertemplate=f"1 sampled target, {noise.num_seeds} seeds: {noise.efficiency:.1%} ± "
                f"{noise.efficiency_deviation:.1%}<extra></extra>",
            )  # fmt: skip
    figure.update_yaxes(range=[0, 1.15], tickformat=".0%", title={"text": "efficiency"})
    figure.update_xaxes(title={"text": "one more assumption with every step to the right"})
    figure.update_layout(title={"text": "What does each assumption cost? (points of efficiency; ◆ one sampled target ± 1 sd)"})
    return _sized(figure, height=400)


def shares_figure(report) -> go.Figure:
    """K-FAC's squared Frobenius error split into its sources."""
    shares = report.ladder.shares
    figure = go.Figure(layout=style.template())
    palette = dict(zip(shares, (style.BLUE, style.ORANGE, style.GREEN), strict=False))
    for name, share in shares.items():
        figure.add_bar(
            y=["K-FAC"], x=[share], orientation="h", name=name, marker={"color": palette[name]}, text=f"{share:.1%}",
            insidetextanchor="middle", hovertemplate=f"{name}: %{{x:.2%}} of ‖F‖²<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(tickformat=".0%", title={"text": "‖F̂ - F‖² / ‖F‖²"}, rangemode="tozero")
    figure.update_layout(
        barmode="stack", showlegend=True, legend={"orientation": "h", "y": -0.75, "x": 0, "traceorder": "normal"},
        title={"text": "Where K-FAC's matrix error comes from"},
    )  # fmt: skip
    return _sized(figure, height=190)


def sweep_figure(report, metric: str = "efficiency") -> go.Figure:
    """One number of every approximation against the damping."""
    figure = go.Figure(layout=style.template())
    dampings = np.array(report.sweep.dampings)
    labels = {row.approximation: _text(row.label) for row in report.totals}
    ends = []
    for name, curves in report.sweep.curves.items():
        values = np.array([math.nan if value is None else value for value in curves[metric]])
        shown = dampings > 0
        main = name in _LINES or name not in COLOURS and name in _own(report)
        figure.add_scatter(
            x=dampings[shown], y=values[shown], mode="lines+markers" if main else "lines", name=labels.get(name, _text(name)),
            line={"color": colour(name), "width": 2.5 if main else 1, "dash": "solid" if main else "dot"}, marker={"size": 5},
            hovertemplate=f"{labels.get(name, _text(name))}: %{{y:.4g}} at λ = %{{x:.2g}}<extra></extra>",
        )  # fmt: skip
        finite = np.flatnonzero(shown & np.isfinite(values))
        if main and len(finite):
            ends.append((float(values[finite[0]]), dampings[finite[0]], labels.get(name, _text(name)), colour(name)))
    figure.update_xaxes(type="log", title={"text": "damping λ (log)"})
    percent = metric == "efficiency"
    figure.update_yaxes(title={"text": metric.replace("_", " ")}, tickformat=".0%" if percent else None)
    if percent:
        figure.update_yaxes(range=[-0.02, 1.05])
    if report.about["damping"] > 0:
        figure.add_vline(report.about["damping"], line={"color": style.GREY, "dash": "dash", "width": 1})
    for value, x, text, tint in _spread(ends, 0.05 if percent else 0.0):
        figure.add_annotation(
            x=math.log10(x), y=value, text=text, xanchor="right", xshift=-8, showarrow=False, font={"color": tint, "size": 11}
        )
    figure.update_layout(
        title={"text": f"{metric.replace('_', ' ').capitalize()} against damping (dashed: the λ of this report)"},
        margin={"l": 190, "r": 16, "t": 34, "b": 44}, yaxis={"side": "right"},
    )  # fmt: skip
    return _sized(figure, height=420)


def layers_figure(report, metric: str = "efficiency") -> go.Figure:
    """A table of colours: one number for every approximation (rows) and layer (columns)."""
    layers = list(dict.fromkeys(row.layer for row in report.rows if row.layer != ALL))
    order = [row for row in report.totals if row.approximation != EXACT][::-1]
    values = {(row.approximation, row.layer): getattr(row, metric) for row in report.rows}
    z = [[values.get((row.approximation, layer)) for layer in layers] for row in order]
    share = metric == "efficiency"
    numbers = np.array([[math.nan if each is None else each for each in line] for line in z], dtype=float).reshape(len(z), -1)
    figure = go.Figure(layout=style.template())
    figure.add_heatmap(
        z=numbers, x=[f"layer {_text(layer)}" for layer in layers], y=[_text(row.label) for row in order], xgap=2, ygap=2,
        colorscale=style.colorscale("sequential"), zmin=0, zmax=1 if share else None, reversescale=not share,
        text=[["-" if each is None else f"{each:.0%}" if share else f"{each:.2g}" for each in line] for line in z],
        texttemplate="%{text}", hovertemplate="%{y}, %{x}: %{z:.4g}<extra></extra>", name=metric,
        colorbar={"thickness": 12, "tickformat": ".0%" if share else None},
    )  # fmt: skip
    what = "Efficiency of each layer, as if it alone moved" if share else f"{metric.replace('_', ' ').capitalize()} by layer"
    figure.update_layout(title={"text": what})
    return _sized(figure, height=120 + 26 * max(len(order), 3))


def steps_figure(report) -> go.Figure:
    """What the quadratic model promises at α*, and what the loss then does."""
    rows = [row for row in report.totals if row.predicted_decrease is not None and row.achieved_decrease is not None][::-1]
    figure = go.Figure(layout=style.template())
    for name, field, tint, symbol in (
        ("predicted (quadratic model, λ included)", "predicted_decrease", style.GREY, "circle-open"),
        ("achieved on the batch", "achieved_decrease", style.BLUE, "circle"),
    ):
        figure.add_scatter(
            y=[_text(row.label) for row in rows], x=[getattr(row, field) for row in rows], mode="markers", name=name,
            marker={"color": tint, "size": 10, "symbol": symbol, "line": {"width": 2}},
            hovertemplate=f"%{{y}}: {name} %{{x:.4g}} nats<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title={"text": "fall of the loss (nats per example) at each method's best step length α*"})
    figure.update_layout(
        title={"text": "Promised and achieved"}, showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 56, "r": 16, "t": 74, "b": 44},
    )  # fmt: skip
    return _sized(figure, height=150 + 27 * max(len(rows), 3))


def matrix_figure(picture, limits: tuple[float, float], title: str) -> go.Figure:
    """A picture of a matrix on a log scale with given limits (of log₁₀), layers ruled."""
    low, high = limits
    values = np.log10(np.maximum(picture.values, 10.0**low)).astype(np.float32)
    figure = go.Figure(layout=style.template())
    figure.add_heatmap(
        z=values, zmin=low, zmax=high, colorscale=style.colorscale("sequential"), x0=0.5, y0=0.5, name=title,
        hovertemplate="cell %{y}, %{x}: 10^%{z:.2f}<extra></extra>",
        colorbar={"thickness": 8, "orientation": "h", "y": -0.12, "yanchor": "top", "title": {"text": "log₁₀ RMS"}},
    )  # fmt: skip
    ticks = {
        "tickvals": [(start + stop) / 2 for _, start, stop in picture.layers],
        "ticktext": [_text(name) for name, *_ in picture.layers], "showgrid": False, "tickangle": 0,
    }  # fmt: skip
    for _, start, _ in picture.layers[1:]:
        figure.add_vline(start, line={"color": "white", "width": 1})
        figure.add_hline(start, line={"color": "white", "width": 1})
    figure.update_xaxes(ticks | {"constrain": "domain"})
    figure.update_yaxes(ticks | {"autorange": "reversed", "scaleanchor": "x", "constrain": "domain"}, title={"text": "layer"})
    figure.update_layout(title={"text": title}, margin={"l": 40, "r": 8, "t": 34, "b": 60})
    return _sized(figure, height=440)


def matrix_limits(pictures: dict) -> tuple[float, float]:
    """Limits of log₁₀ that fit the exact picture: its largest cell, and at most six decades below."""
    values = pictures[EXACT]["approximation"].values
    positive = values[values > 0]
    if not len(positive):
        return -3.0, 0.0
    high = math.ceil(2 * math.log10(float(positive.max()))) / 2
    return max(high - 6.0, math.floor(2 * math.log10(float(np.quantile(positive, 0.02)))) / 2 - 0.5), high


FIGURES = {
    "efficiency": efficiency_figure,
    "ladder": ladder_figure,
    "shares": shares_figure,
    "sweep": sweep_figure,
    "layers": layers_figure,
    "steps": steps_figure,
}


def _own(report) -> set:
    """Approximations that are not of the package: drawn as strongly as the main ones."""
    return {name for name, text in report.texts.items() if text == "Given by you."}


def _cost(rung) -> str:
    if rung.cost is None:
        return f"{rung.efficiency:.0%}"
    sign = "−" if rung.cost >= 0 else "+"
    return f"{rung.efficiency:.0%}<br>({sign}{abs(100 * rung.cost):.1f})"


def _spread(ends: list, gap: float) -> list:
    """Move labels apart, from the lowest up, so that none covers another."""
    placed, last = [], -math.inf
    for value, *rest in sorted(ends):
        last = max(value, last + gap)
        placed.append((last, *rest))
    return placed


def _text(label: str) -> str:
    """A label that came from outside: plotly would read tags in it."""
    return html.escape(label, quote=False)


def _sized(figure: go.Figure, height: int) -> go.Figure:
    return figure.update_layout(height=height)
