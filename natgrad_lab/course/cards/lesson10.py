"""Lesson 10, convolutions: what a shared kernel's Fisher is assumed to be, expand or reduce, and races of small networks."""

import math
import statistics
from functools import cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import nn

from natgrad_lab import datasets, likelihoods
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.course.measured import measured
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.kfac import kronecker_block
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.metrics import efficiency, relative_error
from natgrad_lab.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, colorscale, method_colour, template
from natgrad_lab.reproduce.race_results import ratios
from natgrad_lab.structures import Dense

CHANNELS, CLASSES, EXAMPLES = 3, 4, 128
READOUTS = ("fully connected", "global average")
PICTURES = ("stripes", "digits", "noise")
UNITS = {"tanh": nn.Tanh, "rectifier": nn.ReLU, "none (linear)": nn.Identity}
TICKS = [value * 10.0**power for power in range(-6, 5) for value in (1, 2, 5)]


def subplots(columns: int, **options) -> go.Figure:
    """One row of plots in the course's style."""
    axes = template()
    figure = make_subplots(1, columns, **options).update_layout(axes)
    return figure.update_xaxes(axes["xaxis"]).update_yaxes(axes["yaxis"])


@cache
def pictures(kind: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(128, size²) pictures of variance near 1, and one of four classes each."""
    if kind == "stripes":
        data = datasets.textures(EXAMPLES, CLASSES, size=size, dtype=torch.float64)
    elif kind == "digits":
        data = datasets.resize(datasets.digits(dtype=torch.float64).select(slice(EXAMPLES)), size)
    else:
        return torch.randn(EXAMPLES, size**2, generator=torch.Generator().manual_seed(2), dtype=torch.float64), (
            torch.arange(EXAMPLES) % CLASSES
        )
    return data.inputs, data.targets % CLASSES


def convolutional(size: int, readout: str, unit: str, seed: int = 1) -> nn.Sequential:
    """One 3 x 3 convolution with 3 channels that keeps the size, then the readout to four classes."""
    generator = torch.Generator().manual_seed(seed)
    pooled = [nn.AdaptiveAvgPool2d(1)] if readout == "global average" else []
    features = CHANNELS if pooled else CHANNELS * size**2
    layers = [
        nn.Unflatten(1, (1, size, size)), nn.utils.skip_init(nn.Conv2d, 1, CHANNELS, 3, padding=1, dtype=torch.float64),
        UNITS[unit](), *pooled, nn.Flatten(), nn.utils.skip_init(nn.Linear, features, CLASSES, dtype=torch.float64),
    ]  # fmt: skip
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
    return model


@cache
def first_layer(kind: str, size: int, readout: str, unit: str, seed: int = 1):
    """Patches (N, T, 10) and scores (K, N, T, 3) of the convolution, and the loss' gradient by its parameters."""
    inputs, targets = pictures(kind, size)
    scores = score_pass(
        convolutional(size, readout, unit, seed), likelihoods.Categorical(), inputs, "exact", loss_targets=targets
    )
    layer = scores.layers[0]
    return layer.rows, scores.gradient()[layer.layer.slice]


# ---- the assumptions under the microscope

SHIFTS = 4
QUANTITIES = ("derivatives at its outputs", "inputs")


def correlation_by_shift(values: torch.Tensor) -> np.ndarray:
    """(M, S, S, C) → (2·4 + 1)²: Σ over channels of E[v_t v_{t+δ}], mean over t, divided by that at δ = 0."""
    size, found = values.shape[1], np.zeros((2 * SHIFTS + 1,) * 2)
    for down in range(-SHIFTS, SHIFTS + 1):
        for right in range(-SHIFTS, SHIFTS + 1):
            here = [slice(max(0, -shift), size - max(0, shift)) for shift in (down, right)]
            there = [slice(max(0, shift), size - max(0, -shift)) for shift in (down, right)]
            products = values[:, here[0], here[1]] * values[:, there[0], there[1]]
            found[down + SHIFTS, right + SHIFTS] = float(products.mean())
    return found / found[SHIFTS, SHIFTS]


@cache
def _microscope(kind: str, readout: str, quantity: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
    size = 8
    rows, _ = first_layer(kind, size, readout, unit)
    values = rows.scores.flatten(0, 1) if quantity == QUANTITIES[0] else rows.inputs[..., 4:5]  # a patch's middle pixel
    values = values.reshape(-1, size, size, values.shape[-1])
    power = values.square().mean((0, 3))
    return correlation_by_shift(values), (power / power.mean()).numpy()


def microscope(state: dict) -> dict:
    """Correlations by shift, and the mean square by place."""
    correlation, power = _microscope(state["pictures"], state["readout"], state["quantity"], state["unit"])
    neighbours = [correlation[SHIFTS + a, SHIFTS + b] for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    return {"correlation": correlation, "power": power, "quantity": state["quantity"], "neighbours": float(np.mean(neighbours)),
            "spread": float(power.max() / power.min()) if power.all() else math.inf}  # fmt: skip


def draw_microscope(result: dict) -> go.Figure:
    """Correlation by shift (should be 0 off the middle), mean square by place (should be flat)."""
    titles = "correlation by shift", "mean square by place / mean"
    figure = subplots(2, subplot_titles=titles, horizontal_spacing=0.22)
    shifts = list(range(-SHIFTS, SHIFTS + 1))
    bar = {"thickness": 12, "len": 0.9}
    figure.add_heatmap(row=1, col=1, z=result["correlation"], x=shifts, y=shifts, zmin=-1, zmax=1, name="correlation",
                       colorscale=colorscale("diverging"), colorbar=bar | {"x": 0.405}, hovertemplate="%{z:.2f}")  # fmt: skip
    top = max(2.0, float(result["power"].max()))
    figure.add_heatmap(row=1, col=2, z=result["power"], zmin=0, zmax=top, name="mean square",
                       colorscale=colorscale("sequential"), colorbar=bar | {"x": 1.01}, hovertemplate="%{z:.2f}")  # fmt: skip
    figure.update_xaxes(title={"text": "shift to the right (pixels)"}, showgrid=False, constrain="domain", row=1, col=1)
    figure.update_yaxes(title={"text": "shift down (pixels)"}, showgrid=False, autorange="reversed", scaleanchor="x",
                        constrain="domain", row=1, col=1)  # fmt: skip
    figure.update_xaxes(title={"text": "column"}, showgrid=False, constrain="domain", row=1, col=2)
    figure.update_yaxes(title={"text": "row"}, showgrid=False, autorange="reversed", scaleanchor="x2", constrain="domain",
                        row=1, col=2)  # fmt: skip
    return figure.update_layout(width=820, height=380)


# ---- expand or reduce

SIZES = (3, 4, 6, 8)
FORGOTTEN = "expand, 1/T forgotten"
COLOURS = {"expand": GREEN, "reduce": ORANGE, FORGOTTEN: GREY}


@cache
def both_sharings(kind: str, size: int, readout: str, unit: str, seed: int = 1) -> dict[str, tuple[float, float]]:
    """Name → (relative error of the block, efficiency of the step with it at λ = mean eigenvalue / 100)."""
    rows, gradient = first_layer(kind, size, readout, unit, seed)
    exact = Dense(contract([rows], EXAMPLES))
    damping = float(exact.trace()) / len(gradient) / 100
    found = {}
    for name in ("expand", "reduce"):
        block = kronecker_block(rows, EXAMPLES, name)
        found[name] = (relative_error(block, exact), efficiency(block.solve(gradient, damping), gradient, exact, damping))
    wrong = Dense(size**2 * kronecker_block(rows, EXAMPLES, "expand").to_dense())
    found[FORGOTTEN] = (relative_error(wrong, exact), efficiency(wrong.solve(gradient, damping), gradient, exact, damping))
    return found


def sharing(state: dict) -> dict:
    """Errors and efficiencies of both, and of a forgotten 1/T."""
    found = both_sharings(state["pictures"], state["size"], state["readout"], state["unit"])
    better = min(("expand", "reduce"), key=lambda name: found[name][0])
    return {"found": found, "better": better, "positions": state["size"] ** 2}


def draw_sharing(result: dict) -> go.Figure:
    """Two groups of bars."""
    figure = subplots(2, subplot_titles=("relative error of the block", "efficiency of the step"), horizontal_spacing=0.14)
    names = list(result["found"])
    for column in (1, 2):
        values = [result["found"][name][column - 1] for name in names]
        figure.add_bar(row=1, col=column, x=[name.replace(", ", ",<br>") for name in names], y=values,
                       name="error" if column == 1 else "efficiency",
                       marker={"color": [COLOURS[name] for name in names]}, text=[f"{value:.2f}" for value in values],
                       textposition="outside", cliponaxis=False)  # fmt: skip
    figure.update_xaxes(title={"text": f"factors of the block, T = {result['positions']}"}, title_standoff=20)
    top = math.log10(max(error for error, _ in result["found"].values())) + 0.25
    figure.update_yaxes(type="log", range=[-1.5, max(0.3, top)], tickvals=TICKS, exponentformat="none",
                        title={"text": "‖approximation − exact‖ / ‖exact‖ (log)"}, row=1, col=1)  # fmt: skip
    figure.update_yaxes(range=[0, 1.1], title={"text": "share of the possible decrease"}, row=1, col=2)
    return figure.update_layout(width=860, height=400, margin_b=76)


# ---- races

GROUPS = {
    "KFC against first-order methods": {
        "momentum": ("SGD with momentum", PURPLE), "adam": ("Adam", SKY), "KFC": ("KFC", method_colour("kfac")),
    },
    "PRONG against batch normalization": {
        "momentum": ("SGD with momentum", PURPLE), "SGD + BatchNorm": ("SGD + BatchNorm", ORANGE),
        "PRONG": ("PRONG", method_colour("prong")), "PRONG+": ("PRONG+", BLUE),
    },
}  # fmt: skip
RIVALS = {
    "KFC against first-order methods": ("KFC", "momentum"),
    "PRONG against batch normalization": ("PRONG+", "SGD + BatchNorm"),
}
AXES = {"updates": "updates of the parameters", "seconds": "CPU seconds of the steps"}
SEEDS = ("median of five", "1", "2", "3", "4", "5")


@cache
def needed(entrant: str, baseline: str, axis: str = "updates") -> list[float]:
    """Per seed: what the entrant needs to the baseline's final loss, over what the baseline needs."""
    curves = measured("cnn_races")["curves"]
    seeds = [{"curves": {"textures": {name: runs[i] for name, runs in curves.items()}}} for i in range(5)]
    return ratios(seeds, "textures", entrant, baseline, axis)


def cnn_race(state: dict) -> dict:
    """Curves of one seed, or medians."""
    curves, one = {}, state["seed"] != SEEDS[0]
    for key in GROUPS[state["group"]]:
        runs = measured("cnn_races")["curves"][key]
        runs = [runs[int(state["seed"]) - 1]] if one else runs
        axis = [statistics.median(values) for values in zip(*(run[state["axis"]] for run in runs), strict=True)]
        errors = [statistics.median(values) for values in zip(*(run["errors"] for run in runs), strict=True)]
        curves[key] = np.array(axis[1:]), np.array(errors[1:])
    entrant, baseline = RIVALS[state["group"]]
    found = needed(entrant, baseline, state["axis"])
    ratio = found[int(state["seed"]) - 1] if one else statistics.median(found)
    return {"curves": curves, "axis": state["axis"], "group": state["group"], "ratio": ratio, "rivals": (entrant, baseline)}


def draw_race(result: dict) -> go.Figure:
    """Training loss, both axes log."""
    figure = go.Figure(layout=template())
    for key, (x, y) in result["curves"].items():
        name, colour = GROUPS[result["group"]][key]
        width = 4 if key == result["rivals"][0] else 2.5
        figure.add_scatter(x=x, y=np.maximum(y, 1e-7), mode="lines", name=name, line={"color": colour, "width": width})
    figure.update_xaxes(type="log", dtick=1, title={"text": AXES[result["axis"]] + " (log)"})
    figure.update_yaxes(type="log", dtick=1, title={"text": "training loss, nats (log)"})
    return figure.update_layout(width=760, height=400, showlegend=True, legend={"x": 0.02, "y": 0.02, "yanchor": "bottom"})


def _race_headline(result: dict) -> tuple[str, str]:
    entrant, baseline = (GROUPS[result["group"]][key][0] for key in result["rivals"])
    value = f"{result['ratio']:.2f} times" if math.isfinite(result["ratio"]) else "∞"
    return value, f"the {result['axis']} of {baseline} are what {entrant} needs to the loss at which {baseline} ends"


_PICTURES = Control("pictures", "pictures", PICTURES, "stripes")
_UNIT = Control("unit", "units", tuple(UNITS), "tanh")
CARDS = (
    Card(
        name="expand_or_reduce",
        title="Expand or reduce?",
        message="A kernel is used at T places. Whether to sum products or to multiply sums depends on what comes after it.",
        controls=(
            Control("readout", "after the convolution", READOUTS, READOUTS[0]),
            Control("size", "side of the pictures (T = its square)", SIZES, 4),
            _PICTURES,
            _UNIT,
        ),
        compute=sharing,
        draw=draw_sharing,
        headline=lambda result: (
            f"{result['found']['expand'][0]:.2f} and {result['found']['reduce'][0]:.2f}",
            f"relative errors of expand and reduce; with 1/T forgotten {result['found'][FORGOTTEN][0]:.1f}",
        ),
        caption=(
            "Left: relative error of three Kronecker products against the exact block of a convolution's kernel, log "
            "scale. Right: share of the possible decrease that a step with each reaches. On stripes, under a fully "
            "connected readout, expand (green) is nearer; under a global average reduce (orange) is. A forgotten 1/T makes "
            "the block T times too large."
        ),
        presets={
            "optimal": {"readout": READOUTS[1], "unit": "none (linear)"},
            "break it": {"readout": READOUTS[1], "unit": "none (linear)", "size": 8},
        },
        prediction=Prediction(
            question="A convolution over 16 places, then a fully connected layer: which factors give the nearer block?",
            options=(
                "expand: products at every place, then means",
                "reduce: means over places, then products",
                "no difference",
            ),
            answer=lambda result: (
                "expand: products at every place, then means"
                if result["better"] == "expand"
                else "reduce: means over places, then products"
            ),
            explanation="The answer: {answer}. A fully connected readout gives every place derivatives of its own, so that "
            "products at different places nearly cancel; then move the first control.",
        ),
    ),
    Card(
        name="assumption_microscope",
        title="The assumptions under the microscope",
        message="KFC takes derivatives at different places for uncorrelated, and all places for alike. Are they?",
        controls=(
            Control("readout", "after the convolution", READOUTS, READOUTS[0]),
            Control("quantity", "what to look at", QUANTITIES, QUANTITIES[0]),
            _PICTURES,
            _UNIT,
        ),
        compute=microscope,
        draw=draw_microscope,
        headline=lambda result: (
            f"{result['neighbours']:.2f}",
            f"correlation of neighbouring places ({result['quantity']}); "
            + (
                "at some places the mean square is 0"
                if math.isinf(result["spread"])
                else f"mean squares differ by a factor of up to {result['spread']:.1f} between places"
            ),
        ),
        caption=(
            "Left: correlation between two places of the first layer by their shift, red positive, blue negative, white 0. "
            "KFC takes it for 0 except in the middle. Right: mean square at each place over the mean; KFC takes it for 1 "
            "everywhere. After a global average the derivatives are nearly the same everywhere."
        ),
        presets={"optimal": {"readout": READOUTS[0], "quantity": QUANTITIES[0]}, "break it": {"readout": READOUTS[1]}},
        prediction=Prediction(
            question="Fully connected readout: how correlated are the derivatives at neighbouring places (0 not at all, 1 "
            "fully)?",
            answer=lambda result: round(result["neighbours"], 2),
            explanation="They correlate by {answer}. The readout has weights of its own for every place, so the assumption "
            "is a good one here. Choose the global average and look again.",
        ),
    ),
    Card(
        name="cnn_race",
        title="A race of small convolutional networks",
        message="Two convolutions learn noisy stripes: which method needs how many updates, and how many seconds?",
        controls=(
            Control("group", "entrants", tuple(GROUPS), next(iter(GROUPS))),
            Control("axis", "count", tuple(AXES), "updates"),
            Control("seed", "seed", SEEDS, SEEDS[0]),
        ),
        compute=cnn_race,
        draw=draw_race,
        headline=_race_headline,
        caption=(
            "Training loss (log) of a network with two convolutions of 6 channels on 12 x 12 pictures against updates or "
            "CPU seconds (log). KFC falls steepest late, after a start no faster than the others'. PRONG+ is ahead of "
            "batch normalization, plain PRONG is not."
        ),
        presets={"optimal": {"axis": "updates"}, "break it": {"axis": "seconds", "seed": "3"}},
        prediction=Prediction(
            question="How much of SGD with momentum's updates does KFC need to the loss at which that one ends, as a fraction?",
            answer=lambda result: round(result["ratio"], 2),
            explanation="It needs {answer} of them, the median of five seeds. We had asked for a third, so the figure "
            "counts as not reproduced; Adam and seconds are in the card.",
        ),
    ),
)
