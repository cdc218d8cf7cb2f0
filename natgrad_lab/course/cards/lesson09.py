"""Lesson 09, the autoencoder benchmark: races as they were measured, a small live one, K-FAC's parts, what an update costs."""

import math
import statistics
from collections.abc import Sequence
from functools import cache

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.course.measured import measured
from natgrad_lab.plots.reproduce_race import median_curve
from natgrad_lab.plots.style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILLION, YELLOW, method_colour, template
from natgrad_lab.reproduce import race
from natgrad_lab.reproduce.race_results import ratios

COLOURS = {
    "sgd": method_colour("sgd"), "momentum": method_colour("momentum"), "adam": method_colour("adam"),
    "K-FAC": method_colour("kfac_adaptive"), "online NG": method_colour("online_ngd"),
    "online natural gradient": method_colour("online_ngd"), "PRONG": method_colour("prong"), "SGD + BatchNorm": GREY,
}  # fmt: skip


def _two(**choices) -> go.Figure:
    """Two plots side by side, both in the package's style."""
    figure = make_subplots(1, 2, **choices)
    figure.update_layout(template())
    axis = {name: value for name, value in template()["xaxis"].items() if name != "title"}
    title = {"title": {"standoff": 6, "font": {"size": 13}}}
    return figure.update_xaxes(axis | title).update_yaxes(axis | title)


# ---- races as they were measured

RACES = {  # shown as → where it is kept, problem, who is asked, against whom
    "MNIST, K-FAC": ("kept", "kfac-autoencoder", "K-FAC", "momentum"),
    "digits, online NG": ("kept", "online-ngd-autoencoder", "online natural gradient", "sgd"),
    "digits, PRONG": ("kept", "prong-fig3", "PRONG", "momentum"),
    "digits, 4 CPU seconds": ("own", "digits", "K-FAC", "adam"),
    "curves, 4 CPU seconds": ("own", "curves", "K-FAC", "adam"),
}
AXES = ("updates", "seconds")


@cache
def race_curves(name: str) -> dict[str, list[dict]]:
    """Entrant → one curve {"updates", "seconds", "errors"} for each seed."""
    kept, problem, *_ = RACES[name]
    if kept == "kept":
        return measured("kept_races")[problem]["curves"]
    seeds = measured("autoencoder_races")["seeds"]
    return {label: [seed["curves"][problem][label] for seed in seeds] for label in seeds[0]["curves"][problem]}


@cache
def needs(name: str, axis: str) -> tuple[float, ...]:
    """Per seed: what the asked one needs to the other's final error, relative to the other's own need; inf if never."""
    _, problem, asked, baseline = RACES[name]
    curves = race_curves(name)
    seeds = [{"curves": {problem: {label: each[i] for label, each in curves.items()}}} for i in range(len(curves[asked]))]
    return tuple(ratios(seeds, problem, asked, baseline, axis))


def compute_race(state: dict) -> dict:
    """Curves on the chosen axis and the ratio of needs."""
    _, _, asked, baseline = RACES[state["race"]]
    found = needs(state["race"], state["axis"])
    return {
        **state, "asked": asked, "baseline": baseline, "ratio": statistics.median(found), "ratios": list(found),
        "curves": race_curves(state["race"]),
    }  # fmt: skip


def draw_race(result: dict) -> go.Figure:
    """Training error over updates or seconds: the median strong, seeds thin."""
    figure, axis = go.Figure(layout=template()), result["axis"]
    for label, curves in result["curves"].items():
        colour = COLOURS[label]
        if result["seeds"] == "every seed":
            for number, curve in enumerate(curves):
                figure.add_scatter(
                    x=curve[axis][1:], y=curve["errors"][1:], mode="lines", name=f"{label}, seed {number + 1}",
                    showlegend=False, line={"color": colour, "width": 1}, opacity=0.5,
                )  # fmt: skip
        x, y = median_curve(curves, axis)
        figure.add_scatter(x=x[1:], y=y[1:], mode="lines", name=label, line={"color": colour, "width": 3})
    words = {"updates": "updates (log)", "seconds": "CPU seconds of the updates (log)"}
    figure.update_xaxes(title_text=words[axis], type="log", dtick=1)
    figure.update_yaxes(title_text="training error, ‖y − ŷ‖² (log)", type="log", dtick="D2", exponentformat="none")
    return figure.update_layout(showlegend=True, legend={"x": 0.02, "y": 0.02, "yanchor": "bottom"})


def _times(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f} ×"


RACE_VIEWER = Card(
    name="race_viewer",
    title="Race viewer",
    message="Runs that were measured with tuned settings: who is ahead by updates, and who by seconds?",
    controls=(
        Control("race", "race", tuple(RACES), "MNIST, K-FAC"),
        Control("axis", "measured in", AXES, "updates"),
        Control("seeds", "show", ("medians", "every seed"), "medians"),
    ),
    compute=compute_race,
    draw=draw_race,
    headline=lambda result: (
        _times(result["ratio"]),
        f"the {result['axis']} of {result['baseline']} are what {result['asked']} needs to reach its final error "
        f"(median of {len(result['ratios'])} seeds)",
    ),
    caption=(
        "Training error of autoencoders against updates or CPU seconds, both axes logarithmic, median over seeds at the "
        "checkpoints that all seeds have. Every method was tuned with the same number of settings on a seed of its own."
    ),
    presets={
        "optimal": {"race": "MNIST, K-FAC", "axis": "updates"},
        "break it": {"race": "digits, PRONG", "axis": "seconds", "seeds": "every seed"},
        "seconds": {"axis": "seconds"},
    },
    prediction=Prediction(
        question="On MNIST K-FAC reaches the error that tuned momentum has after 400 updates. With how many updates?",
        answer=lambda result: round(400 * result["ratio"]),
        unit="updates",
        explanation="It takes {answer}. Each of them costs several times as much, so look at the seconds next.",
    ),
)

# ---- a live race

LIVE = ("momentum", "adam", "K-FAC")
SETTINGS = {
    "momentum": ({"method": "momentum"}, {"lr": 0.1, "momentum": 0.9}), "adam": ({"method": "adam"}, {"lr": 3e-2}),
    "K-FAC": ({"method": "kfac_adaptive", "fixed": {"weight_decay": 1e-5}}, {"damping": 1.0}),
}  # fmt: skip


def live_race(seconds: float, seed: int, hidden: tuple[int, ...], batch_size: int) -> dict[str, dict]:
    """Train an autoencoder on 500 digits by three methods, with so many CPU seconds for each."""
    from natgrad_lab.course.measured.autoencoders import PROBLEMS

    network = PROBLEMS["digits"]["network"] | {"sizes": hidden}
    config = PROBLEMS["digits"] | {"num_examples": 500, "batch_size": batch_size, "network": network}
    loaded = race.load(config, torch.device("cpu"))
    problem = race.Problem(
        lambda seed, norm: loaded.make(seed, norm).float(), loaded.likelihood, loaded.inputs.float(), loaded.targets.float(),
        batch_size,
    )  # fmt: skip
    budget = {"updates": 2000, "seconds": seconds, "evaluations": 60, "evaluate_examples": 500, "measure": "error"}
    return {label: race.race_one(problem, *SETTINGS[label], seed, budget) for label in LIVE}


HIDDEN = {"64-48-24-8": (48, 24, 8), "64-16-4": (16, 4)}


def compute_live(state: dict) -> dict:
    """Three runs, one after the other."""
    curves = live_race(state["seconds"], state["seed"], HIDDEN[state["network"]], state["batch"])
    return {**state, "curves": {label: [curve] for label, curve in curves.items()}}


def draw_live(result: dict) -> go.Figure:
    """By updates and by seconds."""
    figure = _two(shared_yaxes=True, horizontal_spacing=0.06)
    for label, (curve,) in result["curves"].items():
        for column, axis in enumerate(AXES, 1):
            figure.add_scatter(
                row=1, col=column, x=curve[axis][1:], y=curve["errors"][1:], mode="lines", name=label, legendgroup=label,
                showlegend=column == 1, line={"color": COLOURS[label], "width": 3},
            )  # fmt: skip
    figure.update_yaxes(type="log", title_text="training error, ‖y − ŷ‖² (log)", col=1)
    figure.update_yaxes(type="log", title_text=" ", col=2)
    for column, words in ((1, "updates (log)"), (2, "CPU seconds (log)")):
        figure.update_xaxes(type="log", title_text=words, dtick=1, col=column)
    return figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})


def _winner(result: dict) -> tuple[str, str]:
    last = {label: curve["errors"][-1] for label, (curve,) in result["curves"].items()}
    best = min(last, key=lambda label: last[label] if last[label] is not None else math.inf)
    updates = {label: curve["updates"][-1] for label, (curve,) in result["curves"].items()}
    return (
        f"{last[best]:.2f}",
        f"is the lowest error, by {best} after {updates[best]} updates and {result['seconds']:g} CPU seconds",
    )


LIVE_RACE = Card(
    name="live_race",
    title="A race on this machine",
    message="The same CPU seconds for three methods on 500 digits: does your machine agree with the kept races?",
    controls=(
        Control("seconds", "CPU seconds for each method", (0.5, 1.0, 3.0), 1.0),
        Control("network", "encoder", tuple(HIDDEN), "64-48-24-8"),
        Control("batch", "examples in a batch", (50, 500), 500),
        Control("seed", "seed", (1, 2, 3), 1),
    ),
    compute=compute_live,
    draw=draw_live,
    headline=_winner,
    caption=(
        "Training error of an autoencoder on 500 digits against updates, left, and CPU seconds, right, for three methods with "
        "fixed settings. All axes are logarithmic."
    ),
    presets={"optimal": {"batch": 500}, "break it": {"batch": 50}},
    prediction=Prediction(
        question="All methods get the same CPU seconds. Which has the lowest training error at the end?",
        options=LIVE,
        answer=lambda result: min(result["curves"], key=lambda label: result["curves"][label][0]["errors"][-1]),
        explanation="On this machine and seed: {answer}. Try another seed before you believe it.",
    ),
    seconds=5.0,
)

# ---- K-FAC's parts

WHOLE = "the whole algorithm"
PARTS = tuple(label for label in measured("kfac_parts")["curves"] if label not in (WHOLE, "momentum"))


def part_error(label: str, updates: int = 120) -> float:
    """Median error over seeds after so many updates."""
    curves = measured("kfac_parts")["curves"][label]
    return statistics.median(each["errors"][each["updates"].index(updates)] for each in curves)


def part_ratios(label: str, updates: int = 120) -> list[float]:
    """Per seed: its error over that of the whole algorithm."""
    pairs = zip(*(measured("kfac_parts")["curves"][each] for each in (label, WHOLE)), strict=True)
    return [mine["errors"][mine["updates"].index(updates)] / whole["errors"][whole["updates"].index(updates)]
            for mine, whole in pairs]  # fmt: skip


def compute_parts(state: dict) -> dict:
    """Ratios of all parts at that update, and the curves of the chosen one."""
    curves = measured("kfac_parts")["curves"]
    return {
        **state, "ratios": {label: part_ratios(label, state["updates"]) for label in PARTS},
        "curves": {label: curves[label] for label in (WHOLE, state["part"])},
    }  # fmt: skip


def draw_parts(result: dict) -> go.Figure:
    """Left: ratio of errors for each part; right: curves of the chosen one."""
    figure = _two(horizontal_spacing=0.12)
    order = sorted(PARTS, key=lambda label: statistics.median(result["ratios"][label]))
    for label in order:
        figure.add_scatter(
            row=1, col=1, x=result["ratios"][label], y=[label] * 3, mode="markers", name=label, showlegend=False,
            marker={"size": 11, "color": VERMILLION if label == result["part"] else GREY},
        )  # fmt: skip
    figure.add_vline(x=1, line={"color": BLACK, "dash": "dot"}, row=1, col=1)
    for label, colour in ((WHOLE, COLOURS["K-FAC"]), (result["part"], VERMILLION)):
        x, y = median_curve(result["curves"][label], result["axis"])
        figure.add_scatter(row=1, col=2, x=x[1:], y=y[1:], mode="lines", name=label, line={"color": colour, "width": 3})
    figure.update_xaxes(title_text=f"error over that of the whole, {result['updates']} updates (log)", type="log", col=1,
                        tickvals=[0.5, 1, 2, 4])  # fmt: skip
    words = {"updates": "updates", "seconds": "CPU seconds"}[result["axis"]]
    figure.update_xaxes(title_text=words, col=2)
    figure.update_yaxes(title_text="changed part", col=1, tickfont={"size": 11})
    figure.update_yaxes(title_text="training error (log)", type="log", col=2)
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    return figure.update_layout(showlegend=True, legend=legend, width=860, margin={"l": 190})


KFAC_PARTS = Card(
    name="kfac_parts",
    title="Which part does the work?",
    message="K-FAC's algorithm with one part taken away or changed: how much worse does it get?",
    controls=(
        Control("part", "changed part", PARTS, PARTS[1]),
        Control("updates", "compared after", (30, 60, 120), 120),
        Control("axis", "curves over", AXES, "updates"),
    ),
    compute=compute_parts,
    draw=draw_parts,
    headline=lambda result: (
        f"{statistics.median(result['ratios'][result['part']]):.2f} ×",
        f"the error of the whole algorithm: {result['part']}, {result['updates']} updates, median of 3 seeds",
    ),
    caption=(
        "Left: for each changed part the training error over that of the whole algorithm, one dot a seed; right of the dotted "
        "line is worse. Right: median curves of the whole algorithm and of the chosen change. Measured on the digits "
        "autoencoder 64-48-24-8 with batches of 500."
    ),
    presets={"optimal": {"part": "block-tridiagonal"}, "break it": {"part": "no rescaling (α = 1, μ = 0)"}},
    prediction=Prediction(
        question="α and μ come from a 2 × 2 system with the exact Fisher. How many times larger is the error without it, with "
        "α = 1 and μ = 0?",
        answer=lambda result: round(statistics.median(result["ratios"]["no rescaling (α = 1, μ = 0)"]), 1),
        unit="times",
        explanation="The error is {answer} times as large after 120 updates. The factors give a direction; how far it "
        "carries, only the exact Fisher knows.",
    ),
)

# ---- what an update costs

PHASES = ("gradient", "drawn targets", "factors", "inverses", "direction", "α and μ")
PHASE_COLOURS = dict(zip(PHASES, (ORANGE, YELLOW, SKY, BLUE, "#009E73", VERMILLION), strict=True))


def cost(sizes: Sequence[int], batch: int, invert_every: int) -> dict[str, float]:
    """Floating-point operations of each phase of a K-FAC update of fully connected layers; a product (m, k)(k, n) is 2mkn.

    Forward and backward 6 per weight and example; drawn targets 2 (backward to the layers' outputs alone); factors 2 (in² +
    out²) per example; inverses 2 (in³ + out³), shared by `invert_every` updates; direction 2 in·out (in + out); α and μ two
    forward derivatives, 4 each, and the forward pass they need, 2. References: [MartensGrosse2015] sec. 8.
    """
    pairs = list(zip(sizes, sizes[1:], strict=False))
    weights = sum(a * b for a, b in pairs)
    return {
        "gradient": 6.0 * weights * batch, "drawn targets": 2.0 * weights * batch,
        "factors": 2.0 * batch * sum(a * a + b * b for a, b in pairs),
        "inverses": 2.0 * sum(a**3 + b**3 for a, b in pairs) / invert_every,
        "direction": 2.0 * sum(a * b * (a + b) for a, b in pairs), "α and μ": 10.0 * weights * batch,
    }  # fmt: skip


SHAPES = {"equal widths": (1,) * 9, "autoencoder, halving": (1, 2, 4, 8, 16, 8, 4, 2, 1)}


def relative_cost(sizes: Sequence[int], batch: int, invert_every: int) -> float:
    """A K-FAC update over one of gradient descent."""
    phases = cost(sizes, batch, invert_every)
    return sum(phases.values()) / phases["gradient"]


def compute_cost(state: dict) -> dict:
    """Phases relative to a gradient, at this width and at others."""
    shape = SHAPES[state["shape"]]
    phases = cost([state["width"] // part for part in shape], state["batch"], state["every"])
    widths = [32 * 2**i for i in range(8)]
    curve = [relative_cost([each // part for part in shape], state["batch"], state["every"]) for each in widths]
    return {
        **state,
        "share": {name: each / phases["gradient"] for name, each in phases.items()},
        "widths": widths,
        "curve": curve,
    }


def draw_cost(result: dict) -> go.Figure:
    """Left: phases of one update; right: the whole over the width."""
    figure = _two(horizontal_spacing=0.14, column_widths=[0.55, 0.45])
    figure.add_bar(
        row=1, col=1, x=list(result["share"].values()), y=PHASES, orientation="h", name="phases", showlegend=False,
        marker={"color": [PHASE_COLOURS[name] for name in PHASES]},
        text=[f"{each:.2g}" for each in result["share"].values()], textposition="outside", cliponaxis=False,
    )  # fmt: skip
    figure.add_scatter(row=1, col=2, x=result["widths"], y=result["curve"], mode="lines", name="K-FAC",
                       line={"color": COLOURS["K-FAC"], "width": 3})  # fmt: skip
    total = sum(result["share"].values())
    figure.add_scatter(row=1, col=2, x=[result["width"]], y=[total], mode="markers", name="chosen",
                       marker={"size": 13, "color": BLACK})  # fmt: skip
    figure.update_xaxes(title_text="operations, in gradients", range=[0, 1.15 * max(result["share"].values())], col=1)
    figure.update_yaxes(title_text="phase of an update", autorange="reversed", col=1)
    ticks = result["widths"][::2]
    figure.update_xaxes(title_text="units in the widest layer (log)", type="log", tickvals=ticks, col=2)
    figure.update_yaxes(title_text="one update, in gradients (log)", type="log", col=2,
                        tickvals=[3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200])  # fmt: skip
    return figure.update_layout(margin={"l": 120})


COST_METER = Card(
    name="cost_meter",
    title="What an update costs",
    message="Operations of one K-FAC update, counted in gradients: what must be saved in updates to win in seconds?",
    controls=(
        Control("width", "units in the widest layer", (64, 256, 1024, 4096), 1024),
        Control("shape", "eight layers of", tuple(SHAPES), "equal widths"),
        Control("batch", "examples in a batch", (50, 500, 5000), 500),
        Control("every", "updates between inverses", (1, 20, 100), 20),
    ),
    compute=compute_cost,
    draw=draw_cost,
    headline=lambda result: (
        f"{sum(result['share'].values()):.1f} gradients",
        f"for one update: to win in operations it must need fewer than 1/{sum(result['share'].values()):.1f} of the updates",
    ),
    caption=(
        "Left: operations of each phase of one K-FAC update, in units of one gradient. Right: the whole update against the "
        "width of the layers, both axes logarithmic. Formulas, not times: a machine is at its best for large products only."
    ),
    presets={"optimal": {"batch": 5000, "every": 100, "width": 256}, "break it": {"batch": 50, "every": 1, "width": 4096}},
    prediction=Prediction(
        question="Eight layers of 1024 units, batches of 500, inverses every 20 updates: how many gradients does one K-FAC "
        "update cost?",
        answer=lambda result: round(sum(result["share"].values()), 1),
        unit="gradients",
        explanation="About {answer}. Most of it grows with the batch like the gradient itself; the inverses do not, so large "
        "batches hide them.",
    ),
)

CARDS = (RACE_VIEWER, KFAC_PARTS, COST_METER, LIVE_RACE)
