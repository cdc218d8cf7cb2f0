"""Figures of training races: error against updates and against seconds, a row a problem, a colour an entrant."""

import math
import statistics
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from natgrad_lab.plots import style

_OTHERS = (style.BLUE, style.GREEN, style.VERMILLION, style.SKY, style.BLACK, style.YELLOW)
_KNOWN = {"momentum": style.PURPLE, "sgd": style.ORANGE, "adam": style.SKY, "SGD + BatchNorm": style.GREY}


def race_figure(seeds: Sequence[dict]) -> go.Figure:
    """Every seed as a thin line; the median over seeds, at the checkpoints that all of them have, as a strong one."""
    problems = list(seeds[0]["curves"])
    titles = [f"{problem}: {axis}" for problem in problems for axis in ("by updates", "by seconds")]
    figure = make_subplots(len(problems), 2, subplot_titles=titles, horizontal_spacing=0.08, shared_yaxes=True)
    figure.update_layout(style.template())
    labels = list(dict.fromkeys(label for problem in problems for label in seeds[0]["curves"][problem]))
    colours = race_colours(labels)
    for row, problem in enumerate(problems, 1):
        for label in seeds[0]["curves"][problem]:
            curves = [seed["curves"][problem][label] for seed in seeds]
            for column, axis in enumerate(("updates", "seconds"), 1):
                for curve in curves:
                    figure.add_scatter(
                        row=row, col=column, x=curve[axis][1:], y=_drawn(curve["errors"][1:]), mode="lines", name=label,
                        line={"color": colours[label], "width": 0.7}, opacity=0.4, showlegend=False, hoverinfo="skip",
                    )  # fmt: skip
                x, y = median_curve(curves, axis)
                figure.add_scatter(
                    row=row, col=column, x=x[1:], y=y[1:], mode="lines", name=label, legendgroup=label,
                    showlegend=row == column == 1, line={"color": colours[label], "width": 2.5},
                    hovertemplate=f"{label}: %{{y:.4g}} at %{{x:.4g}} {axis}<extra></extra>",
                )  # fmt: skip
    axis = {name: value for name, value in style.template()["xaxis"].items() if name != "title"}
    figure.update_xaxes(axis | {"type": "log", "dtick": 1})
    figure.update_yaxes(axis | {"type": "log", "nticks": 6})
    for column, text in ((1, "updates (log)"), (2, "seconds of the steps (log)")):
        figure.update_xaxes(title={"text": text}, row=len(problems), col=column)
    figure.update_yaxes(title={"text": "training error or loss (log)"}, col=1)
    return figure.update_layout(
        height=150 + 290 * len(problems), showlegend=True, margin={"l": 74, "r": 20, "t": 96, "b": 50},
        title={"text": "Tuned on one seed, run on the others: median strong, every seed thin"},
        legend={"orientation": "h", "y": 1 + 40 / (290 * len(problems)), "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )  # fmt: skip


def median_curve(curves: Sequence[dict], axis: str) -> tuple[list, list]:
    """Median place and error at every checkpoint (by updates) that all seeds have; a diverged one counts as infinite."""
    shared = [step for step in curves[0]["updates"] if all(step in curve["updates"] for curve in curves)]
    places, errors = [], []
    for step in shared:
        index = [curve["updates"].index(step) for curve in curves]
        places.append(statistics.median(curve[axis][i] for curve, i in zip(curves, index, strict=True)))
        each = (curve["errors"][i] for curve, i in zip(curves, index, strict=True))
        errors.append(statistics.median(math.inf if error is None else error for error in each))
    return places, _drawn(errors)


def race_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour each; baselines have the ones they have everywhere."""
    free = iter(_OTHERS * 3)
    return {label: _KNOWN.get(label) or next(free) for label in labels}


def _drawn(errors: Sequence[float | None]) -> list[float]:
    """What a log axis can show: nan breaks the line."""
    return [math.nan if error is None or not math.isfinite(error) or error <= 0 else error for error in errors]
