"""Lesson 11, many workers: the noisy quadratic model, a cluster, and damping that follows the batch.

The noisy quadratic model has one coordinate for each curvature h_i. A step with preconditioner q_i and a gradient averaged over
B examples is θ_i ← (1 − α q_i h_i) θ_i + α q_i √(c_i / B) ε, so that E θ_i² is known in closed form.
"""

import math
from collections.abc import Sequence
from functools import cache
from numbers import Real

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.course.measured import measured
from natgrad_lab.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, colorscale, method_colour, template

DIM = 10_000
BATCHES = tuple(2**k for k in range(4, 21))
POWERS = {"gradient descent (p = 0)": 0.0, "p = ½": 0.5, "natural gradient (p = 1)": 1.0}
COLOURS = dict(zip(POWERS, (method_colour("sgd"), PURPLE, method_colour("exact_ngd")), strict=True))
RATES = np.geomspace(1e-6, 1.999, 72)
MOST = 10**7
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
AXIS = {
    "showline": True, "linecolor": GREY, "gridcolor": "rgba(128,128,128,0.25)", "title_font_size": 13, "tickfont_size": 12,
}  # fmt: skip


@cache
def spectrum(exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """Curvatures i^−exponent, i = 1 … 10⁴, in about 200 groups with equal neighbours merged: (h, how many each)."""
    index = np.arange(1, DIM + 1)
    edges = np.unique(np.concatenate([index[:50], np.geomspace(50, DIM + 1, 150).round().astype(int)]))
    counts = np.diff(edges)
    middles = np.array([(index[a - 1 : b - 1] ** -float(exponent)).mean() for a, b in zip(edges[:-1], edges[1:], strict=True)])
    return middles, counts.astype(float)


def risk_parts(batch: Real, rates: np.ndarray, h: np.ndarray, c: np.ndarray, q: np.ndarray, counts: np.ndarray):
    """½ Σ counts h E θ² after t steps of each of the `rates` (R,) from θ = 1 is Σ exp(t D) W + w: D, W (R, groups), w (R,).

    E θ² = r^2t + v (1 − r^2t) with the factor r = 1 − α q h of a step and the variance v that noise alone settles at.
    """
    step = rates[:, None] * q
    r = 1 - step * h
    gap = 1 - r**2
    variance = np.divide(step**2 * c / batch, gap, out=np.zeros_like(gap), where=gap != 0)
    weights = 0.5 * h * counts
    return 2 * np.log(np.maximum(np.abs(r), 1e-300)), (1 - variance) * weights, (variance * weights).sum(1)


def risk(steps: np.ndarray, batch: Real, rates: np.ndarray, h: np.ndarray, c: np.ndarray, q: np.ndarray, counts: np.ndarray):
    """½ Σ counts h E θ² after `steps` (R,) steps of each of the `rates` (R,), from θ = 1: bias and noise."""
    return risk_after(steps, risk_parts(batch, rates, h, c, q, counts))


def risk_after(steps: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The same from its parts, of which the number of steps is none."""
    decay, weights, settled = parts
    return np.einsum("rg,rg->r", np.exp(steps[:, None] * decay), weights) + settled


def steps_to_target(
    batch: Real, target: Real, h: np.ndarray, c: np.ndarray, q: np.ndarray, counts: np.ndarray, rates: np.ndarray = RATES
) -> float:
    """Fewest steps to `target` at the best of the learning rates, each found by bisection; ∞ above `MOST`."""
    rates = rates[rates * (q * h).max() < 2]
    if not len(rates):
        return math.inf
    parts = risk_parts(batch, rates, h, c, q, counts)
    if (risk_after(np.ones(len(rates)), parts) <= target).any():
        return 1.0
    low, high = np.ones(len(rates)), np.full(len(rates), float(MOST))
    reached = risk_after(high, parts) <= target
    if not reached.any():
        return math.inf
    low, high, parts = low[reached], high[reached], [part[reached] for part in parts]
    while (high - low > 1).any():
        middle = np.floor(np.sqrt(low * high)) if (high > 2 * low).any() else np.floor((low + high) / 2)
        middle = np.clip(middle, low, high)
        middle = np.where((middle == low) & (high - low > 1), low + 1, middle)
        there = risk_after(middle, parts) <= target
        low, high = np.where(there, low, middle), np.where(there, middle, high)
        may_win = low < high.min()
        low, high, parts = low[may_win], high[may_win], [part[may_win] for part in parts]
    return float(high.min())


@cache
def steps_curve(power: float, exponent: float, noise: float, target: float, damping: float = 0.0) -> np.ndarray:
    """(batches,) fewest steps for each of `BATCHES`; noise c = h^noise, preconditioner (h + damping)^−power."""
    h, counts = spectrum(exponent)
    q = (h + damping) ** -power
    return np.array([steps_to_target(batch, target, h, h**noise, q, counts) for batch in BATCHES])


def critical_batch(steps: np.ndarray, efficiency: float = 0.8) -> float:
    """The last batch size before examples-per-target first exceed 1/efficiency of the fewest at smaller ones."""
    examples = np.array(BATCHES) * steps
    found = float(BATCHES[0])
    for i in range(1, len(BATCHES)):
        if not math.isfinite(steps[i]) or examples[i] > examples[: i + 1].min() / efficiency:
            break
        found = float(BATCHES[i])
    return found


def nqm(state: dict) -> dict:
    """Steps against batch size for the three powers, and where the chosen one stops scaling."""
    curves = {name: steps_curve(p, state["exponent"], state["noise"], state["target"]) for name, p in POWERS.items()}
    return state | {"curves": curves, "critical": critical_batch(curves[state["method"]])}


def draw_nqm(result: dict) -> go.Figure:
    """Log-log: steps to the target against the batch size."""
    figure = go.Figure(layout=template())
    for name, steps in result["curves"].items():
        chosen = name == result["method"]
        line = {"color": COLOURS[name], "width": 4 if chosen else 1.5}
        figure.add_scatter(x=BATCHES, y=np.where(np.isfinite(steps), steps, np.nan), name=name, mode="lines", line=line)
    steps = result["curves"][result["method"]]
    figure.add_scatter(
        x=BATCHES, y=steps[0] * BATCHES[0] / np.array(BATCHES), name="perfect scaling", mode="lines",
        line={"color": GREY, "dash": "dot"},
    )  # fmt: skip
    figure.add_vline(x=result["critical"], line={"color": GREY, "dash": "dash"})
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title_text="batch size B (examples, log)", type="log", dtick=1)
    top = math.log10(max(np.nanmax(np.where(np.isfinite(s), s, np.nan)) for s in result["curves"].values()))
    figure.update_yaxes(title_text="steps to the target (log)", type="log", range=[-0.2, top + 0.2], dtick=1)
    return figure


# ---- a cluster

WORK = {"SGD": BLUE, "gradients": ORANGE, "statistics": SKY, "inverses": VERMILLION, "all-reduce": GREY}
MODES = ("SGD", "K-FAC, everyone does everything", "K-FAC, three roles")
DRIFT = 0.02  # relative change of curvatures per update, up in half of the coordinates, down in the others


@cache
def stale_steps(batch: Real, staleness: int, power: float) -> float:
    """Fewest steps to a loss of 0.01 with a preconditioner `staleness` updates old while curvatures drift."""
    h, counts = spectrum(1.0)
    age = np.exp(DRIFT * staleness)
    halves = [np.concatenate([part, part]) for part in (h, counts / 2)]
    q = np.concatenate([h**-power * age**power, h**-power * age**-power])
    return steps_to_target(batch, 0.01, halves[0], halves[0], q, halves[1])


def cluster(state: dict) -> dict:
    """Time per update, staleness, updates and time to the target; the bars of the first updates.

    Units: the gradient of one example takes 1. Statistics of one example take 1, an all-reduce log₂ of the workers.
    """
    workers, inverse, each, mode = state["workers"], state["inverse"], state["examples"], state["mode"]
    reduce = math.log2(workers)
    staleness, power, gradient_workers, inverters = 0, 1.0, workers, 0
    bars: list[tuple[str, str, float, float]] = []
    if mode == "K-FAC, three roles":
        inverters = statisticians = max(1, workers // 8)
        gradient_workers = workers - inverters - statisticians
        update = each + reduce
        refresh = max(inverse / inverters, update)  # layers are shared out among the inverters
        staleness = math.ceil(refresh / update)
        rows = (("gradients", gradient_workers, each), ("statistics", statisticians, each), ("inverses", inverters, refresh))
        for name, count, length in rows:
            start = 0.0
            while start < 4 * update:
                bars.append((f"{count} × {name}", name, start, min(length, 4 * update - start)))
                if name == "gradients":
                    bars.append((f"{count} × {name}", "all-reduce", start + each, reduce))
                start += max(length, update) if name != "inverses" else refresh
    elif mode == "SGD":
        power, update = 0.0, each + reduce
        for number in range(4):
            bars.append((f"{workers} × everything", "gradients", number * update, float(each)))
            bars.append((f"{workers} × everything", "all-reduce", number * update + each, reduce))
    else:
        update = 2 * each + 2 * reduce + inverse / workers
        for number in range(4):
            start = number * update
            for name, length in (
                ("gradients", each),
                ("statistics", each),
                ("all-reduce", 2 * reduce),
                ("inverses", inverse / workers),
            ):
                bars.append((f"{workers} × everything", name, start, float(length)))
                start += length
    updates = stale_steps(float(gradient_workers * each), staleness, power)
    return state | {
        "update": float(update), "staleness": staleness, "updates": updates, "time": updates * update, "bars": bars,
        "batch": gradient_workers * each,
    }  # fmt: skip


def draw_cluster(result: dict) -> go.Figure:
    """A Gantt chart of the first four updates."""
    figure = go.Figure(layout=template())
    rows = list(dict.fromkeys(row for row, *_ in result["bars"]))
    for name in dict.fromkeys(kind for _, kind, *_ in result["bars"]):
        mine = [(row, start, length) for row, kind, start, length in result["bars"] if kind == name]
        figure.add_bar(
            y=[row for row, *_ in mine], x=[length for *_, length in mine], base=[start for _, start, _ in mine],
            name=name, orientation="h", marker={"color": WORK[name], "line": {"color": "white", "width": 1}}, width=0.5,
        )  # fmt: skip
    for number in range(1, 5):
        figure.add_vline(x=number * result["update"], line={"color": GREY, "dash": "dot"})
    figure.update_layout(barmode="overlay", showlegend=True, legend=LEGEND, margin={"l": 130, "r": 16, "t": 34, "b": 44})
    figure.update_xaxes(title_text="time (1 = the gradient of one example); dotted: updates", rangemode="tozero")
    figure.update_yaxes(title_text="workers", categoryorder="array", categoryarray=rows[::-1], title_standoff=4)
    return figure


def _cluster_headline(result: dict) -> tuple[str, str]:
    if math.isinf(result["time"]):
        words = f"the target is out of reach: preconditioners {result['staleness']:,} updates old, noise and drift are too much"
        return "∞ units of time", words
    number = f"{result['time']:,.0f}"
    return f"{number} units of time", (
        f"to the target: {result['updates']:,.0f} updates with {result['batch']:,} examples each, {result['update']:.0f} units "
        f"an update, inverses {result['staleness']} updates old"
    )


# ---- batch and damping

DAMPINGS = tuple(float(10.0**k) for k in np.arange(-5, 2.5, 0.5))
CHOICES = {"fixed at 1": np.array([1.0]), "tuned for every point": RATES}
COARSE = tuple(2**k for k in range(4, 21, 2))


@cache
def damping_table(lr: str, exponent: float, target: float) -> np.ndarray:
    """(dampings, batches) fewest steps with the preconditioner 1 / (h + λ), learning rates as `CHOICES` has them."""
    h, counts = spectrum(exponent)
    rates = CHOICES[lr]
    rows = [[steps_to_target(B, target, h, h, 1 / (h + damping), counts, rates) for B in COARSE] for damping in DAMPINGS]
    return np.array(rows)


def batch_damping(state: dict) -> dict:
    """The table, and the best damping for each batch size."""
    table = damping_table(state["lr"], state["exponent"], state["target"])
    best = np.array(DAMPINGS)[table.argmin(0)]
    return state | {"table": table, "best": best, "chosen": float(best[COARSE.index(state["batch"])])}


def draw_batch_damping(result: dict) -> go.Figure:
    """Heatmap of steps, with the best damping of every batch size marked."""
    figure = go.Figure(layout=template())
    figure.add_heatmap(
        x=[math.log2(b) for b in COARSE], y=[math.log10(d) for d in DAMPINGS], 
        z=np.log10(np.where(np.isfinite(result["table"]), result["table"], np.nan)),
        colorscale=colorscale("sequential"), colorbar={"title": {"text": "log₁₀ steps"}}, name="steps",
    )  # fmt: skip
    x, y = [math.log2(b) for b in COARSE], np.log10(result["best"])
    marker = {"color": "white", "size": 9, "line": {"color": "black", "width": 1.5}}
    figure.add_scatter(x=x, y=y, mode="lines+markers", name="best damping", line={"color": "white"}, marker=marker)
    figure.add_vline(x=math.log2(result["batch"]), line={"color": GREEN, "dash": "dash", "width": 3})
    figure.update_xaxes(title_text="batch size, log₂ B")
    figure.update_yaxes(title_text="damping, log₁₀ λ")
    return figure


# ---- a real network


def batch_sweep(state: dict) -> dict:
    """Measured steps of SGD and K-FAC against the batch size, as steps or as examples."""
    kept = measured("batch_sweep")
    batches, steps = np.array(kept["batches"], float), {name: np.array(each, float) for name, each in kept["steps"].items()}
    examples = {name: each * batches for name, each in steps.items()}
    critical = {name: last_efficient(batches, each, state["efficiency"]) for name, each in steps.items()}
    return state | {"batches": batches, "steps": steps, "examples": examples, "critical": critical}


def last_efficient(batches: np.ndarray, steps: np.ndarray, efficiency: float) -> float:
    """The last batch size before examples-per-target first exceed those of the smallest batch by 1/efficiency."""
    found = float(batches[0])
    for batch, count in zip(batches[1:], steps[1:], strict=True):
        if not batches[0] * steps[0] >= efficiency * batch * count:
            break
        found = float(batch)
    return found


def draw_batch_sweep(result: dict) -> go.Figure:
    """Steps, or examples, to the target against the batch size."""
    figure = go.Figure(layout=template())
    x = result["batches"]
    for name, words in (("sgd", "SGD"), ("kfac", "K-FAC")):
        y = result[result["axis"]][name]
        figure.add_scatter(x=x, y=y, name=words, mode="lines+markers", line={"color": method_colour(name), "width": 3})
        ideal = y[0] * x[0] / x if result["axis"] == "steps" else np.full(len(x), y[0])
        line = {"color": method_colour(name), "dash": "dot", "width": 1.5}
        figure.add_scatter(x=x, y=ideal, name=f"{words}, perfect scaling", mode="lines", line=line)
        figure.add_vline(x=result["critical"][name], line={"color": method_colour(name), "dash": "dash"})
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(
        title_text="batch size B (examples, log)", type="log", tickvals=list(x), ticktext=[f"{batch:.0f}" for batch in x]
    )
    words = "updates" if result["axis"] == "steps" else "examples seen"
    figure.update_yaxes(title_text=f"{words} until the loss is 0.1 nats (log)", type="log", dtick=1)
    return figure


CARDS = (
    Card(
        name="noisy_quadratic",
        title="When do bigger batches stop paying?",
        message="Twice the batch halves the steps, until curvature and not noise is the limit.",
        controls=(
            Control("method", "preconditioner h^(−p)", tuple(POWERS), "gradient descent (p = 0)"),
            Control("exponent", "spectrum: curvature i^(−a), a", (0.5, 1.0, 1.5), 1.0),
            Control("noise", "noise: variance h^b, b", (0.5, 1.0), 1.0),
            Control("target", "target loss", (0.01, 0.1, 1.0), 0.01),
        ),
        compute=nqm,
        draw=draw_nqm,
        headline=lambda result: (
            f"B = {result['critical']:,.0f}",
            "is the last batch size that uses its examples with an efficiency of 80 % or more",
        ),
        caption=(
            "Fewest steps to the target, at the best learning rate for each batch size, against the batch size; both axes "
            "logarithmic. Dotted: perfect scaling of the chosen method. Dashed: where its efficiency falls below 80 %."
        ),
        presets={
            "optimal": {"method": "natural gradient (p = 1)"},
            "break it": {"method": "gradient descent (p = 0)", "exponent": 1.5},
        },
        prediction=Prediction(
            question="Gradient descent goes from B = 1024 to B = 2048. What happens to its number of steps?",
            options=("it halves", "it falls, by less than a quarter", "it does not change at all"),
            answer=lambda result: "it falls, by less than a quarter",
            explanation="The answer: {answer}. Beyond the critical batch the small curvatures set the number of steps.",
        ),
    ),
    Card(
        name="cluster",
        title="Who does what in a cluster",
        message="Inverses can be computed beside the gradients, if they may be a little old.",
        controls=(
            Control("mode", "who does what", MODES, MODES[2]),
            Control("workers", "workers", (8, 16, 32, 64, 128, 256), 64),
            Control("inverse", "all inverses take", (100, 1000, 10_000, 100_000), 10_000),
            Control("examples", "examples for each worker", (8, 32, 128), 32),
        ),
        compute=cluster,
        draw=draw_cluster,
        headline=_cluster_headline,
        caption=(
            "The first four updates of a cluster: what which workers do when, in units of one example's gradient. Updates to "
            "the target come from the noisy quadratic model, with curvatures that drift while inverses are computed."
        ),
        presets={
            "optimal": {"mode": "K-FAC, three roles", "workers": 256},
            "break it": {"mode": "K-FAC, three roles", "inverse": 100_000, "examples": 8},
        },
        prediction=Prediction(
            question="64 workers, SGD or K-FAC with three roles: who needs less time to the target?",
            options=("SGD: its updates are cheaper", "K-FAC: it needs fewer of them"),
            answer=lambda result: "K-FAC: it needs fewer of them",
            explanation="The answer: {answer}. At this batch size curvature limits SGD, and more examples do not help it.",
        ),
    ),
    Card(
        name="batch_damping",
        title="Damping follows the batch",
        message="With a fixed learning rate, damping has to follow the batch; a tuned one takes most of that work.",
        controls=(
            Control("batch", "batch size B", COARSE, 256),
            Control("lr", "learning rate", tuple(CHOICES), "fixed at 1"),
            Control("exponent", "spectrum: curvature i^(−a), a", (0.5, 1.0, 1.5), 1.0),
            Control("target", "target loss", (0.01, 0.1, 1.0), 0.01),
        ),
        compute=batch_damping,
        draw=draw_batch_damping,
        headline=lambda result: (f"λ = {result['chosen']:.2g}", f"needs the fewest steps at B = {result['batch']:,}"),
        caption=(
            "Steps to the target (colour, logarithmic) of the preconditioner 1 / (h + λ) against batch size and damping; "
            "empty where the target is out of reach. White: the best damping of every batch size. Dashed: the chosen one."
        ),
        presets={"optimal": {"batch": 2**20}, "break it": {"batch": 16}, "tuned": {"lr": "tuned for every point"}},
        prediction=Prediction(
            question="The learning rate is fixed and the batch becomes larger. Where does the best damping go?",
            options=("up", "down", "it stays"),
            answer=lambda result: "down" if result["best"][-1] < result["best"][0] else "it stays",
            explanation="The answer: {answer}. Damping holds back the coordinates whose gradient is mostly noise.",
        ),
    ),
    Card(
        name="batch_sweep",
        title="A real network",
        message="Digits, a network of 1510 weights: how far do SGD and K-FAC scale?",
        controls=(
            Control("axis", "count", ("steps", "examples"), "steps"),
            Control("efficiency", "efficiency asked for", (0.5, 0.8), 0.8),
        ),
        compute=batch_sweep,
        draw=draw_batch_sweep,
        headline=lambda result: (
            f"{result['critical']['kfac'] / result['critical']['sgd']:.0f} times",
            f"as large is the batch up to which K-FAC scales: {result['critical']['kfac']:.0f} against "
            f"{result['critical']['sgd']:.0f} examples",
        ),
        caption=(
            "Updates until the loss on all 1797 digits is 0.1 nats, against the batch size, both axes logarithmic; each at the "
            "best learning rate (and damping) of a grid, two seeds. Dotted: perfect scaling. Dashed: last efficient batch."
        ),
        presets={"optimal": {"axis": "examples"}, "break it": {"efficiency": 0.5}},
        prediction=Prediction(
            question="Which method can use the larger batches efficiently?",
            options=("SGD", "K-FAC", "both alike"),
            answer=lambda result: "K-FAC" if result["critical"]["kfac"] > result["critical"]["sgd"] else "both alike",
            explanation="The answer: {answer}. Its floor of steps is lower, so noise is the limit for longer.",
        ),
    ),
)
