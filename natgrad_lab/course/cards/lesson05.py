"""Lesson 05, whiten and walk: the Fisher before and after whitening, its conditioning while training, ε and T."""

import statistics
from functools import cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from natgrad_lab import datasets, likelihoods, models
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.course.measured import measured
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.plots.style import BLUE, GREY, ORANGE, PURPLE, SKY, colorscale, method_colour, template

SIZES, EXAMPLES, SEED = (16, 16, 16, 10), 600, 1
ROW = SIZES[0] + 1  # a unit's weights and its bias; the three layers happen to have equally many inputs
WHITENED = {"all layers": (0, 1, 2), "the first": (0,), "all but the first": (1, 2), "none": ()}
DATA = ("digits", "white noise")
EPSILONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


TICKS = [value * 10.0**power for power in range(-9, 10) for value in (1, 2, 5)]


def subplots(columns: int, **options) -> go.Figure:
    """One row of plots in the course's style."""
    axes = template()
    figure = make_subplots(1, columns, **options).update_layout(axes)
    return figure.update_xaxes(axes["xaxis"]).update_yaxes(axes["yaxis"])


# ---- before and after whitening


@cache
def network(data: str, seed: int = SEED) -> dict:
    """The model, what each layer receives, its outputs, and its exact Fisher (714 x 714)."""
    if data == "digits":
        inputs = datasets.resize(datasets.digits(dtype=torch.float64).select(slice(EXAMPLES)), 4).inputs
    else:
        inputs = torch.randn(EXAMPLES, SIZES[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = models.mlp(SIZES, "tanh", generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    received, x = [], inputs
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            received.append(x)
        x = layer(x).detach()
    fisher = dense_fisher(model, likelihoods.Categorical(), inputs).to_dense()
    return {"model": model, "received": received, "outputs": x, "fisher": fisher, "conditioning": conditioning(fisher)}


def conditioning(fisher: torch.Tensor) -> float:
    """λ_max / mean λ."""
    return float(torch.linalg.eigvalsh(fisher)[-1] / (fisher.trace() / len(fisher)))


def whitening(inputs: torch.Tensor, epsilon: float, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """U and c: U (h − c) has variances λ / (λ + ε)."""
    c = inputs.mean(0) if centred else inputs.new_zeros(inputs.shape[1])
    values, vectors = torch.linalg.eigh((inputs - c).mT @ (inputs - c) / len(inputs))
    return (values.clamp(min=0) + epsilon).rsqrt()[:, None] * vectors.mT, c


def change_of_units(epsilon: float, centred: bool, layers: tuple[int, ...], data: str, seed: int = SEED) -> torch.Tensor:
    """M of every unit, (units, 17, 17), with rows [W | b] = [V | d] M; the identity where a layer is not whitened."""
    matrices = []
    for place, received in enumerate(network(data, seed)["received"]):
        M = torch.eye(ROW, dtype=torch.float64)
        if place in layers:
            U, c = whitening(received, epsilon, centred)
            M[:-1, :-1], M[:-1, -1] = U, -U @ c
        matrices += [M] * SIZES[place + 1]
    return torch.stack(matrices)


def fisher_after(epsilon: float, centred: bool, layers: tuple[int, ...], data: str, seed: int = SEED) -> torch.Tensor:
    """The Fisher of (V, d): that of (W, b) between blocks of M."""
    M = change_of_units(epsilon, centred, layers, data, seed)
    fisher = network(data, seed)["fisher"].view(len(M), ROW, len(M), ROW)
    half = torch.einsum("uab,ubvc->uavc", M, fisher)
    return torch.einsum("uavc,vdc->uavd", half, M).reshape(len(M) * ROW, -1)


def outputs_after(epsilon: float, centred: bool, layers: tuple[int, ...], data: str, seed: int = SEED) -> torch.Tensor:
    """Outputs of the network in the new coordinates, with V = W U⁻¹ and d = b + W c."""
    linear = [layer for layer in network(data, seed)["model"] if isinstance(layer, torch.nn.Linear)]
    x = network(data, seed)["received"][0]
    for place, layer in enumerate(linear):
        W, b = layer.weight.detach(), layer.bias.detach()
        if place in layers:
            U, c = whitening(network(data, seed)["received"][place], epsilon, centred)
            V, d = torch.linalg.solve(U, W, left=False), b + W @ c
            x = (x - c) @ U.mT @ V.mT + d
        else:
            x = x @ W.mT + b
        x = x if place == 2 else x.tanh()
    return x


def one_unit_of_each_layer(fisher: torch.Tensor) -> np.ndarray:
    """Entries between the first units of the three layers, (51, 51), log₁₀ |entry| relative to the mean diagonal entry."""
    starts = np.cumsum([0, *(ROW * size for size in SIZES[1:-1])])
    index = torch.as_tensor(np.concatenate([np.arange(start, start + ROW) for start in starts]))
    part = fisher[index][:, index].abs() / (fisher.trace() / len(fisher))
    return part.clamp(min=1e-12).log10().numpy().astype(np.float32)


@cache
def _spectrum_and_picture(epsilon: float, centred: bool, layers: tuple[int, ...], data: str) -> tuple:
    fisher = fisher_after(epsilon, centred, layers, data)
    values = torch.linalg.eigvalsh(fisher).flip(0).clamp(min=0) / (fisher.trace() / len(fisher))
    return values.numpy(), one_unit_of_each_layer(fisher)


def whiten(state: dict) -> dict:
    """Pictures, spectra and λ_max / mean λ on both sides of the reparametrization."""
    choice = state["epsilon"], state["centred"], WHITENED[state["layers"]], state["data"]
    before, after = _spectrum_and_picture(1.0, True, (), state["data"]), _spectrum_and_picture(*choice)
    outputs = network(state["data"])["outputs"]
    return {
        "before": before[1], "after": after[1], "spectrum before": before[0], "spectrum after": after[0],
        "condition before": float(before[0][0]), "condition after": float(after[0][0]),
        "factor": float(before[0][0] / after[0][0]),
        "change": float((outputs_after(*choice) - outputs).norm() / outputs.norm()),
    }  # fmt: skip


def draw_whitening(result: dict) -> go.Figure:
    """Two heatmaps on one scale, and both spectra."""
    titles = ("before: (W, b)", "after: (V, d)", "eigenvalues")
    figure = subplots(3, subplot_titles=titles, horizontal_spacing=0.11, column_widths=[0.35, 0.35, 0.3])
    high = max(result["before"].max(), result["after"].max())
    middles = [ROW * place + ROW / 2 - 0.5 for place in range(3)]
    ticks = {"tickvals": middles, "ticktext": ["1", "2", "3"], "showgrid": False, "constrain": "domain"}
    for column, name in ((1, "before"), (2, "after")):
        figure.add_heatmap(
            row=1, col=column, z=result[name], zmin=high - 4, zmax=high, colorscale=colorscale("sequential"), name=name,
            showscale=False, hovertemplate=name + ", entry %{y}, %{x}: 10^%{z:.1f} of the mean diagonal<extra></extra>",
        )  # fmt: skip
        for line in (ROW - 0.5, 2 * ROW - 0.5):
            figure.add_vline(line, line={"color": "white", "width": 1}, row=1, col=column)
            figure.add_hline(line, line={"color": "white", "width": 1}, row=1, col=column)
        figure.update_xaxes(ticks | {"title": {"text": "first unit of layer"}}, row=1, col=column)
        axis = {"autorange": "reversed", "scaleanchor": "x" if column == 1 else "x2"}
        figure.update_yaxes(
            ticks | axis | {"title": {"text": "first unit of layer" if column == 1 else " "}}, row=1, col=column
        )
    for name, colour in (("before", ORANGE), ("after", method_colour("prong"))):
        values = result[f"spectrum {name}"]
        rank = np.arange(1, len(values) + 1)
        figure.add_scatter(row=1, col=3, x=rank, y=np.maximum(values, 1e-9), mode="lines", name=name, showlegend=True,
                           line={"color": colour, "width": 3})  # fmt: skip
    figure.add_hline(1.0, line={"color": GREY, "dash": "dash", "width": 1}, row=1, col=3)
    figure.update_xaxes(type="log", dtick=1, title={"text": "place in the order (log)"}, row=1, col=3)
    figure.update_yaxes(type="log", range=[-4, 3], dtick=1, title={"text": "λ / mean λ (log)", "standoff": 2}, row=1, col=3)
    figure.update_layout(showlegend=True, legend={"x": 0.99, "y": 1.0, "xanchor": "right"})
    return figure.update_layout(width=900, height=360, margin={"l": 50, "r": 16, "t": 40, "b": 50})


# ---- while training

MEANINGS = {
    "λ_max / mean λ": "mean",
    "(λ_max + ε) / (λ_min + ε), ε = mean λ / 1000": "damped",
    "λ_max / λ_r, r = a tenth of the parameters": "top",
}


def _median(curves: list[list[float]]) -> np.ndarray:
    return np.array([statistics.median(values) for values in zip(*curves, strict=True)])


def while_training(state: dict) -> dict:
    """Curves of every seed, and the median over checkpoints of gradient descent's conditioning over PRONG's."""
    seeds, kind = measured("prong_fig2")["seeds"], MEANINGS[state["meaning"]]
    plain = [seed["training"]["None"][kind] for seed in seeds]
    white = [seed["training"][str(state["period"])][kind] for seed in seeds]
    losses = {name: _median([seed["training"][key]["losses"] for seed in seeds])[-1]
              for name, key in (("plain", "None"), ("white", str(state["period"])))}  # fmt: skip
    below = [b < a for one, other in zip(plain, white, strict=True) for a, b in zip(one, other, strict=True)]
    return {
        "steps": np.array(seeds[0]["training"]["None"]["steps"]), "plain": np.array(plain), "white": np.array(white),
        "meaning": state["meaning"], "period": state["period"], "share below": float(np.mean(below)),
        "factors": _median(plain) / _median(white), "losses": losses,
    }  # fmt: skip


def draw_training(result: dict) -> go.Figure:
    """Median strong, every seed thin."""
    figure = go.Figure(layout=template())
    every = "update" if result["period"] == 1 else f"{result['period']} updates"
    pairs = (
        ("gradient descent", result["plain"], ORANGE),
        (f"whitened every {every}", result["white"], method_colour("prong")),
    )
    for name, curves, colour in pairs:
        for curve in curves:
            figure.add_scatter(x=result["steps"], y=curve, mode="lines", name=f"{name}, one seed", opacity=0.3,
                               line={"color": colour, "width": 1}, hoverinfo="skip")  # fmt: skip
        middle = np.median(curves, axis=0)
        figure.add_scatter(x=result["steps"], y=middle, mode="lines+markers", name=name, line={"color": colour, "width": 3})
        figure.add_annotation(x=result["steps"][-1], y=np.log10(middle[-1]), text=name, xanchor="right", showarrow=False,
                              yshift=22, font={"color": colour, "size": 14})  # fmt: skip
    figure.update_xaxes(title={"text": "updates of the parameters"})
    figure.update_yaxes(type="log", tickvals=TICKS, exponentformat="none", title={"text": f"{result['meaning']} (log)"})
    return figure.update_layout(width=760, height=380)


# ---- ε and T

BASELINES = {"sgd": ("SGD", ORANGE), "momentum": ("SGD with momentum", PURPLE), "SGD + BatchNorm": ("SGD + BatchNorm", SKY)}
ONCE = "once, at the start"
PERIODS = {"1": 1, "10": 10, "100": 100, ONCE: 10**9}
AXES = {"updates": "updates of the parameters", "seconds": "CPU seconds of the steps"}
START = 1e-4, 1e-3, 1e-2, 1e-1, 1.0


def cell(epsilon: float, period: str) -> dict:
    """One measured curve of the grid: medians of three seeds."""
    return measured("prong_grid")["curves"][f"{epsilon:g} {PERIODS[period]}"]


def best_cell() -> tuple[float, str]:
    """ε and T with the lowest final error."""
    return min(((e, p) for e in START for p in PERIODS), key=lambda pair: cell(*pair)["errors"][-1])


def race(state: dict) -> dict:
    """The chosen curve beside those of first-order methods."""
    grid = measured("prong_grid")
    curve = cell(state["epsilon"], state["period"])
    baselines = {name: grid["curves"][name] for name in BASELINES}
    return {
        "axis": state["axis"], "epsilon": state["epsilon"], "period": state["period"], "curve": curve, "baselines": baselines,
        "final": curve["errors"][-1], "best baseline": min(each["errors"][-1] for each in baselines.values()),
        "grid": np.array([[cell(e, p)["errors"][-1] for e in START] for p in PERIODS]), "best": best_cell(),
    }  # fmt: skip


def draw_race(result: dict) -> go.Figure:
    """Errors while training, and the final errors of the whole grid."""
    titles = "training error", "final error of every ε and T"
    figure = subplots(2, column_widths=[0.58, 0.42], horizontal_spacing=0.13, subplot_titles=titles)
    curves = {BASELINES[key][0]: (each, BASELINES[key][1]) for key, each in result["baselines"].items()}
    curves["PRONG"] = (result["curve"], method_colour("prong"))
    for name, (curve, colour) in curves.items():
        keep = [i for i, update in enumerate(curve["updates"]) if update > 0]
        figure.add_scatter(
            row=1, col=1, x=[curve[result["axis"]][i] for i in keep], y=[curve["errors"][i] for i in keep], mode="lines",
            name=name, line={"color": colour, "width": 4 if name == "PRONG" else 2},
        )  # fmt: skip
    names = [f"{e:g}" for e in START], ["1", "10", "100", "once"]
    z = np.log10(result["grid"])
    text = [[f"{value:.3g}" for value in row] for row in result["grid"]]
    figure.add_heatmap(row=1, col=2, z=z, x=names[0], y=names[1], colorscale=colorscale("sequential"), reversescale=True,
                       showscale=False, text=text, texttemplate="%{text}", name="final errors", hoverinfo="skip", zmin=0,
                       zmax=1.8)  # fmt: skip
    place = list(START).index(result["epsilon"]), list(PERIODS).index(result["period"])
    figure.add_shape(type="rect", x0=place[0] - 0.5, x1=place[0] + 0.5, y0=place[1] - 0.5, y1=place[1] + 0.5, xref="x2",
                     yref="y2", line={"color": BLUE, "width": 5})  # fmt: skip
    ticks = [10.0**power for power in range(-3, 4)]
    figure.update_xaxes(type="log", tickvals=ticks, exponentformat="none", title={"text": AXES[result["axis"]] + " (log)"},
                        row=1, col=1)  # fmt: skip
    figure.update_yaxes(type="log", tickvals=TICKS, exponentformat="none", title={"text": "‖picture − output‖² (log)"},
                        row=1, col=1)  # fmt: skip
    figure.update_xaxes(type="category", title={"text": "ε"}, showgrid=False, row=1, col=2)
    figure.update_yaxes(type="category", title={"text": "T: updates between whitenings"}, showgrid=False, row=1, col=2)
    legend = {"x": 0.0, "y": -0.28, "orientation": "h"}
    return figure.update_layout(width=900, height=420, showlegend=True, legend=legend, margin={"b": 90, "t": 40, "l": 60})


CARDS = (
    Card(
        name="whitening_before_after",
        title="Before and after whitening",
        message="The same network, function for function, in two coordinate systems: its Fisher is not the same at all.",
        controls=(
            Control("epsilon", "ε, added to the variances", EPSILONS, 1e-5),
            Control("centred", "subtract the mean", (False, True), True),
            Control("layers", "layers that are whitened", tuple(WHITENED), "all layers"),
            Control("data", "inputs", DATA, "digits"),
        ),
        compute=whiten,
        draw=draw_whitening,
        headline=lambda result: (
            f"{result['factor']:.1f} times",
            f"smaller: λ_max / mean λ goes from {result['condition before']:.0f} to {result['condition after']:.1f}, "
            f"while the outputs change by {result['change']:.0e}",
        ),
        caption=(
            "Left and middle: size of the Fisher's entries (log scale, dark is small) between the parameters of the first unit "
            "of each of three layers, before and after whitening. Right: all 714 eigenvalues over their mean. Whitening takes "
            "the entries off the diagonal, and brings down the largest eigenvalues."
        ),
        presets={
            "optimal": {"epsilon": 1e-5, "centred": True, "layers": "all layers"},
            "without centring": {"centred": False},
            "break it": {"epsilon": 1.0},
        },
        prediction=Prediction(
            question="Whitening every layer's inputs changes no output. By what factor does the Fisher's λ_max / mean λ fall?",
            answer=lambda result: round(result["factor"], 1),
            unit="times",
            explanation="It falls by a factor of {answer}. The inputs' covariance is one of the two things that a layer's "
            "block is made of; the other one, the covariance of the scores, stays.",
        ),
    ),
    Card(
        name="conditioning_while_training",
        title="Conditioning while training",
        message="A whitening grows stale as the weights move: how much of it is left after 300 updates?",
        controls=(
            Control("period", "T: updates between whitenings", (1, 10, 100), 100),
            Control("meaning", "condition number", tuple(MEANINGS), "λ_max / mean λ"),
        ),
        compute=while_training,
        draw=draw_training,
        headline=lambda result: (
            f"{np.median(result['factors']):.1f} times",
            f"better conditioned than gradient descent (median of the checkpoints); it is the better one at "
            f"{100 * result['share below']:.0f} % of the checkpoints of ten seeds",
        ),
        caption=(
            "A condition number of the Fisher (log scale) against updates. Orange: plain gradient descent; purple: whitened "
            "every T updates. Thin lines are seeds, thick ones medians. The purple lines stay below the orange ones, and rise."
        ),
        presets={"optimal": {"period": 1}, "break it": {"period": 100, "meaning": list(MEANINGS)[2]}},
        prediction=Prediction(
            question="T = 100: how many of ten networks are at any checkpoint worse conditioned than under gradient descent?",
            options=("none", "some", "all"),
            answer=lambda result: "none" if (result["white"] < result["plain"]).all() else "some",
            explanation="The answer: {answer}. Stale whitening is far better than none, which is why one may whiten rarely.",
        ),
    ),
    Card(
        name="prong_race",
        title="ε against T",
        message="An autoencoder for digits: which ε and which period T pay, in updates and in seconds?",
        controls=(
            Control("epsilon", "ε, added to the variances", START, 1e-2),
            Control("period", "T: updates between whitenings", tuple(PERIODS), "10"),
            Control("axis", "count", tuple(AXES), "updates"),
        ),
        compute=race,
        draw=draw_race,
        headline=lambda result: (
            f"{result['final']:.2f}",
            f"final error; the best first-order method ends at {result['best baseline']:.2f}",
        ),
        caption=(
            "Left: training error of an autoencoder against updates or CPU seconds, both axes logarithmic: PRONG with the "
            "chosen ε and T, and three first-order methods. Right: final errors of every pair of ε and T, the chosen one "
            "framed. Medians of three seeds. Small ε ruins training; T matters less."
        ),
        presets={"optimal": {"epsilon": 0.1, "period": "1"}, "break it": {"epsilon": 1e-4, "period": "10"}},
        prediction=Prediction(
            question="ε only keeps us from dividing by 0. Is the smallest ε the best one?",
            options=("the smallest is best", "it hardly matters", "the largest or nearly the largest is best"),
            answer=lambda result: "the largest or nearly the largest is best",
            explanation="The answer: {answer}. Where inputs hardly vary, a small ε makes the steps enormous: ε sets how far "
            "the whitening is trusted, as damping does.",
        ),
    ),
)  # fmt: skip
