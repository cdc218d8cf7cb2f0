"""Lesson 07, from gradient statistics to K-FAC: what is assumed, how it is damped, who notices other coordinates."""

from functools import cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from natgrad_lab import datasets, fisher, likelihoods, models
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.course.checkpoints import Moment, moments
from natgrad_lab.metrics import efficiency, relative_error
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.style import GREY, METHOD_COLOURS, SAND, colorscale, method_colour, template
from natgrad_lab.reproduce.invariance import affine_image, copied, logistic_twin
from natgrad_lab.structures import Dense, Kronecker, factored_tikhonov

SIZES, STEPS, DAMPING = (16, 10, 10, 10), (0, 5, 10, 20, 50), 0.01


def moment(steps: int) -> Moment:
    """The network 16-10-10-10 after so many steps."""
    return moments(SIZES, STEPS)[steps]


# ---- the assumption switchboard


def assumed(now: Moment, independence: bool, no_cross: bool, diagonal: bool) -> torch.Tensor:
    """What is left of the Fisher (P, P) under these assumptions."""
    matrix = now.kronecker if independence else now.exact
    matrix = now.only(matrix, lambda i, j: i == j) if no_cross else matrix
    return torch.diag(matrix.diagonal()) if diagonal else matrix


def step_efficiency(now: Moment, matrix: torch.Tensor | None) -> float:
    """Of the step (M + 0.01 I)⁻¹ g, or of the gradient itself for None, against the exact Fisher at that damping."""
    g = now.gradient
    v = g if matrix is None else torch.linalg.solve(matrix + DAMPING * torch.eye(len(g), dtype=g.dtype), g)
    return efficiency(v, g, Dense(now.exact), DAMPING)


def block_errors(now: Moment, matrix: torch.Tensor) -> list[float]:
    """Relative error of each layer's own block."""
    return [relative_error(matrix[layer, layer], now.exact[layer, layer]) for layer in now.layers]


def unit_picture(now: Moment, matrix: torch.Tensor) -> np.ndarray:
    """Root mean square entry for each pair of units."""
    starts = [unit.start for unit in now.units]
    widths = np.array([unit.stop - unit.start for unit in now.units])
    sums = np.add.reduceat(np.add.reduceat(matrix.numpy() ** 2, starts, 0), starts, 1)
    return np.sqrt(sums / np.outer(widths, widths))


@cache
def _switched(independence: bool, no_cross: bool, diagonal: bool, steps: int) -> dict:
    now = moment(steps)
    matrix = assumed(now, independence, no_cross, diagonal)
    pictures = {"exact F": now.exact, "what is left": matrix, "difference": matrix - now.exact}
    return {
        "steps": steps, "loss": now.loss, "efficiency": step_efficiency(now, matrix), "gd": step_efficiency(now, None),
        "errors": block_errors(now, matrix), "error": relative_error(matrix, now.exact),
        "pictures": {name: np.round(np.log10(np.maximum(unit_picture(now, each), 1e-7)), 2) for name, each in pictures.items()},
    }  # fmt: skip


def compute_switchboard(state: dict) -> dict:
    """The matrix under the chosen assumptions: pictures, errors, efficiency."""
    return _switched(state["independence"], state["no_cross"], state["diagonal"], state["steps"])


def draw_switchboard(result: dict) -> go.Figure:
    """Three maps of pairs of units: exact, what is left, difference."""
    figure = make_subplots(1, 3, subplot_titles=list(result["pictures"]), horizontal_spacing=0.04)
    figure.update_layout(template())
    edges = np.cumsum(SIZES[1:-1]) - 0.5
    for column, (name, picture) in enumerate(result["pictures"].items(), 1):
        figure.add_heatmap(
            row=1, col=column, z=picture.tolist(), zmin=-5, zmax=0, colorscale=colorscale("sequential"), name=name,
            showscale=column == 3, colorbar={"title": "log₁₀", "thickness": 12},
        )  # fmt: skip
        for edge in edges:
            figure.add_hline(y=edge, line={"color": "white", "width": 1}, row=1, col=column)
            figure.add_vline(x=edge, line={"color": "white", "width": 1}, row=1, col=column)
    figure.update_xaxes(title={"text": "unit", "font": {"size": 13}}, range=[-0.5, 29.5])
    figure.update_yaxes(title={"text": "unit", "font": {"size": 13}}, range=[29.5, -0.5], showticklabels=False)
    figure.update_yaxes(title_text=" ", col=2).update_yaxes(title_text=" ", col=3)
    errors = ", ".join(f"layer {i}: {error:.2f}" for i, error in enumerate(result["errors"], 1))
    figure.add_annotation(
        x=0, y=1.2, xref="paper", yref="paper", showarrow=False, text=f"error of the layers' blocks: {errors}"
    )
    return figure.update_layout(height=340, margin={"t": 84, "l": 30})


SWITCHBOARD = Card(
    name="assumption_switchboard",
    title="Assumption switchboard",
    message="Each assumption makes the Fisher cheaper and more wrong. How much does the step lose?",
    controls=(
        Control("independence", "inputs and scores independent", (False, True), True),
        Control("no_cross", "no correlation between layers", (False, True), True),
        Control("diagonal", "diagonal only", (False, True), False),
        Control("steps", "training steps so far", STEPS, 50),
    ),
    compute=compute_switchboard,
    draw=draw_switchboard,
    headline=lambda result: (
        f"{100 * result['efficiency']:.0f} %",
        f"of the possible decrease is reached at λ = 0.01 (gradient: {100 * result['gd']:.0f} %); the matrix is "
        f"{100 * result['error']:.0f} % off",
    ),
    caption=(
        "Three maps of a network 16-10-10-10 on digits. Each cell is a pair of units and shows the root mean square of the "
        "entries that join their weights, on a logarithmic scale; white lines separate the layers. Left: the exact Fisher; "
        "middle: what the assumptions leave of it; right: the difference."
    ),
    presets={
        "optimal": {"independence": False, "no_cross": False},
        "K-FAC": {"independence": True, "no_cross": True, "diagonal": False},
        "break it": {"independence": True, "no_cross": True, "diagonal": True},
    },
    prediction=Prediction(
        question="After 50 steps K-FAC's block of the last layer is more than half wrong. How much of the possible decrease "
        "does its step reach?",
        options=("less than a quarter", "about half", "more than three quarters"),
        answer=lambda result: (
            "less than a quarter" if result["efficiency"] < 0.25
            else "more than three quarters" if result["efficiency"] > 0.75 else "about half"
        ),
        explanation="The answer: {answer}. Entries can be wrong without the step being wrong: what counts is which "
        "directions are called steep and which flat.",
    ),
)  # fmt: skip


# ---- the damping bench

LAMBDAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
UNITS = (0.01, 0.1, 1.0, 10.0, 100.0)
SCHEMES = ("λ on the product", "√λ on each factor", "√λ split by π", "λ on each factor")
_SCHEME_COLOURS = dict(zip(SCHEMES, (METHOD_COLOURS["exact_ngd"], SAND, METHOD_COLOURS["kfac"], GREY), strict=True))


def _damped(block: Kronecker, scheme: str, damping: float) -> tuple[Kronecker, float]:
    """The block to invert, and what is still to be added to its eigenvalues."""
    if scheme == "λ on the product":
        return block, damping
    if scheme == "√λ split by π":
        return factored_tikhonov(block, damping), 0.0
    root = damping**0.5 if scheme == "√λ on each factor" else damping
    left, right = (each + root * torch.eye(len(each), dtype=each.dtype) for each in (block.left, block.right))
    return Kronecker(left, right), 0.0


@cache
def _spectrum(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linalg.eigh(moment(steps).exact)


def damped_step(steps: int, scheme: str, damping: float, units: float) -> tuple[float, float]:
    """(efficiency of K-FAC's step, smallest eigenvalue of its damped blocks), with A in other units: A → uA, G → G/u."""
    now, parts, least = moment(steps), [], []
    for i, layer in enumerate(now.layers):
        block, more = _damped(Kronecker(now.G[i][i] / units, now.A[i][i] * units), scheme, damping)
        least.append(float(block.eigvalsh()[0]) + more)
        parts.append(block.solve(now.gradient[layer], more))
    v, g, (values, vectors) = torch.cat(parts), now.gradient, _spectrum(steps)
    best = float((vectors.mT @ g).square() @ (1 / (values + damping)))
    return float((g @ v) ** 2 / (v @ (now.exact @ v) + damping * v @ v) / best), min(least)


@cache
def _bench(steps: int, units: float) -> dict:
    return {scheme: [damped_step(steps, scheme, damping, units) for damping in LAMBDAS] for scheme in SCHEMES}


def compute_damping(state: dict) -> dict:
    """Efficiency over λ for every scheme, and the chosen point."""
    bench = _bench(state["steps"], state["units"])
    efficiency_, least = bench[state["scheme"]][LAMBDAS.index(state["damping"])]
    curves = {scheme: [point[0] for point in points] for scheme, points in bench.items()}
    return {**state, "curves": curves, "efficiency": efficiency_, "least": least}


def draw_damping(result: dict) -> go.Figure:
    """Efficiency against λ."""
    figure = go.Figure(layout=template())
    for scheme, curve in result["curves"].items():
        chosen = scheme == result["scheme"]
        figure.add_scatter(
            x=LAMBDAS, y=curve, name=scheme, mode="lines+markers", opacity=1 if chosen else 0.55,
            line={"color": _SCHEME_COLOURS[scheme], "width": 4 if chosen else 2},
        )  # fmt: skip
    figure.add_scatter(
        x=[result["damping"]], y=[result["efficiency"]], name="chosen", mode="markers",
        marker={"size": 14, "color": "rgba(0,0,0,0)", "line": {"color": "black", "width": 2}},
    )  # fmt: skip
    figure.update_xaxes(title_text="damping λ (log)", type="log", dtick=1)
    figure.update_yaxes(title_text="share of the possible decrease", range=[0, 1.05])
    return figure.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})


DAMPING_BENCH = Card(
    name="damping_bench",
    title="Damping bench",
    message="λI is no Kronecker product. Four ways to damp one, and which of them care about the units of a layer's inputs.",
    controls=(
        Control("scheme", "damping", SCHEMES, "√λ on each factor"),
        Control("damping", "λ", LAMBDAS, 1e-2),
        Control("units", "inputs in other units: A × u, G / u, u =", UNITS, 100.0),
        Control("steps", "training steps so far", (0, 50), 50),
    ),
    compute=compute_damping,
    draw=draw_damping,
    headline=lambda result: (
        f"{100 * result['efficiency']:.0f} %",
        f"of the possible decrease; smallest eigenvalue of the damped blocks {result['least']:.1e}, λ = {result['damping']:g}",
    ),
    caption=(
        "Share of the possible decrease that K-FAC's step reaches, against the damping λ, for four ways to damp a Kronecker "
        "product. Turning u changes A and G and not their product: a curve that moves depends on the units."
    ),
    presets={
        "optimal": {"scheme": "√λ split by π", "units": 1.0},
        "break it": {"scheme": "λ on each factor", "damping": 1e-5, "units": 100.0},
    },
    prediction=Prediction(
        question="We multiply A by u = 100 and divide G by it: their product stays. Which of these steps changes?",
        options=("√λ on each factor", "√λ split by π", "λ on the product", "none"),
        answer=lambda result: "√λ on each factor",
        explanation="The answer: {answer}. π measures both factors, so it follows them; λ on the product sees the product "
        "alone; a fixed √λ is large for one factor and small for the other.",
    ),
)


# ---- the invariance bench

DAMPINGS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
METHODS = ("gradient descent", "K-FAC", "K-FAC, bias apart", "exact natural gradient")
CHANGES = ("tanh to logistic", "inputs centred and whitened", "inputs through a random matrix")
_COLOURS = dict(zip(METHODS, map(method_colour, ("sgd", "kfac", "diagonal", "exact_ngd")), strict=True))


@cache
def _pair(change: str) -> tuple:
    """(network, inputs), (the same function in other coordinates, its inputs), targets."""
    blobs = datasets.gaussian_blobs(300, 3, 6, seed=1, dtype=torch.float64)
    targets = torch.nn.functional.one_hot(blobs.targets, 3).double()
    generator = torch.Generator().manual_seed(1)
    tanh = models.mlp((6, 8, 8, 3), "tanh", generator=generator, dtype=torch.float64)
    if change == "tanh to logistic":
        other, moved = logistic_twin(tanh), blobs.inputs
    elif change == "inputs centred and whitened":
        other, moved = _whitened(tanh, blobs.inputs)
    else:
        moved, other = affine_image(tanh, blobs.inputs, generator)
    return (tanh, blobs.inputs), (other, moved), targets


@torch.no_grad()
def _whitened(model, inputs):
    mean, covariance = inputs.mean(0), torch.cov(inputs.mT, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    twin = copied(model)
    twin[0].weight.copy_(model[0].weight @ (vectors * values.sqrt()))
    twin[0].bias.add_(model[0].weight @ mean)
    return twin, (inputs - mean) @ (vectors / values.sqrt())


def direction(model, inputs, targets, method: str, damping: float) -> torch.Tensor:
    """What a method moves against (P,)."""
    likelihood = likelihoods.Bernoulli()
    exact = fisher.natural_gradient(model, likelihood, inputs, targets, damping=damping)
    if method == "exact natural gradient":
        return exact.direction
    gradient = fisher.score_pass(model, likelihood, inputs, loss_targets=targets).gradient()
    if method == "gradient descent":
        return gradient
    parts, start = [], 0
    for block in fisher.kfac_fisher(model, likelihood, inputs).blocks:
        A = block.right.clone()
        if method == "K-FAC, bias apart":
            A[-1, :-1] = A[:-1, -1] = 0
        parts.append(factored_tikhonov(Kronecker(block.left, A), damping).solve(gradient[start : start + block.dim]))
        start += block.dim
    return torch.cat(parts)


@torch.no_grad()
def _moved(model, inputs, direction: torch.Tensor, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
    new = copied(model)
    for parameter, part in ParameterLayout(new).split(direction):
        parameter.sub_(lr * part)
    return model(inputs), new(inputs)


@cache
def one_step(change: str, method: str, damping: float, lr: float = 0.1) -> dict:
    """Changes of the outputs (300, 3) after one step on each of two networks that are one function, and the relative gap."""
    *pair, targets = _pair(change)
    changes = []
    for model, inputs in pair:
        before, after = _moved(model, inputs, direction(model, inputs, targets, method, damping), lr)
        changes.append(after - before)
    gap = float((changes[0] - changes[1]).norm() / changes[0].norm())
    return {"changes": [each.numpy() for each in changes], "gap": gap}


def compute_invariance(state: dict) -> dict:
    """What one step does to the two networks."""
    return {**state, **one_step(state["change"], state["method"], state["damping"])}


def draw_invariance(result: dict) -> go.Figure:
    """Change of each output in the one network against the other."""
    figure = go.Figure(layout=template())
    ours, theirs = (each[::4].ravel() for each in result["changes"])
    reach = 1.05 * float(np.abs([ours, theirs]).max())
    figure.add_scatter(
        x=[-reach, reach], y=[-reach, reach], mode="lines", name="the same step", line={"color": GREY, "dash": "dot"}
    )
    figure.add_scatter(
        x=ours, y=theirs, mode="markers", name=result["method"], marker={"color": _COLOURS[result["method"]], "size": 5}
    )
    figure.update_xaxes(title_text="change of an output, tanh network", range=[-reach, reach])
    figure.update_yaxes(title_text="change of it, in other coordinates", range=[-reach, reach])
    return figure.update_layout(width=520, height=440)


INVARIANCE_BENCH = Card(
    name="invariance_bench",
    title="Invariance bench",
    message="One function, written in two coordinate systems. Does one step make one function of it again?",
    controls=(
        Control("change", "change of coordinates", CHANGES, "tanh to logistic"),
        Control("method", "method", METHODS, "K-FAC"),
        Control("damping", "damping λ", DAMPINGS, 0.0),
    ),
    compute=compute_invariance,
    draw=draw_invariance,
    headline=lambda result: (
        f"{result['gap']:.1e}",
        "relative gap of the two functions after one step; rounding is about 1e-12",
    ),
    caption=(
        "Each point is one output for one example: how much one step changes it in a network with tanh units (across) and in "
        "the same function written in other coordinates (up). A method that does not notice the change puts all points on "
        "the dotted diagonal."
    ),
    presets={
        "optimal": {"method": "K-FAC", "damping": 0.0},
        "break it": {"method": "K-FAC", "damping": 0.1},
        "forget the bias": {"method": "K-FAC, bias apart", "damping": 0.0},
    },
    prediction=Prediction(
        question="Undamped K-FAC is only an approximation of the natural gradient. Does its step notice that tanh units "
        "became logistic ones?",
        options=("yes, a little", "yes, as much as gradient descent", "no, not at all"),
        answer=lambda result: "no, not at all",
        explanation="The answer: {answer}. The change acts on a layer's inputs and outputs by matrices, and K-FAC's two "
        "factors absorb one each.",
    ),
)

CARDS = (SWITCHBOARD, DAMPING_BENCH, INVARIANCE_BENCH)
