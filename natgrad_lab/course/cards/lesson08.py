"""Lesson 08, between the layers: what may be cut, what neighbours are worth, how long a step and how much momentum."""

from functools import cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch.func import functional_call

from natgrad_lab import likelihoods
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.course.checkpoints import Moment, moments, small_digits
from natgrad_lab.metrics import efficiency
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.style import BLACK, EXACT, GREY, ORANGE, colorscale, method_colour, template
from natgrad_lab.structures import Dense, Kronecker, factored_tikhonov

SIZES, SHOWN, KEPT = (16, 8, 8, 8, 8, 10), (0, 10, 30), (0, 9, 10, 29, 30)
LAMBDAS = (1e-3, 1e-2, 1e-1)


def moment(steps: int) -> Moment:
    """The network 16-8-8-8-8-10 after so many steps."""
    return moments(SIZES, KEPT)[steps]


def _eye(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)


@cache
def damped(steps: int, damping: float, kind: str = "exact", how: str = "λI") -> torch.Tensor:
    """F ("exact") or F̃ ("kronecker") plus λI, or with K-FAC's factored damping of the diagonal blocks."""
    now = moment(steps)
    matrix = getattr(now, kind)
    if how == "λI":
        return matrix + damping * _eye(len(matrix))
    matrix = matrix.clone()
    for i, layer in enumerate(now.layers):
        matrix[layer, layer] = factored_tikhonov(Kronecker(now.G[i][i], now.A[i][i]), damping).to_dense()
    return matrix


def chain_inverse(matrix: torch.Tensor, layers: list[slice], bandwidth: int) -> torch.Tensor:
    """Inverse, zero beyond `bandwidth` block diagonals, of the matrix that has the blocks of `matrix` within them.

    The precision of a Gaussian chain: Σ over runs of bandwidth + 1 neighbours of their inverse, minus that of the overlaps.
    Positive definite wherever `matrix` is.
    """
    inverse = torch.zeros_like(matrix)
    for first in range(len(layers) - bandwidth):
        run = slice(layers[first].start, layers[first + bandwidth].stop)
        inverse[run, run] += torch.linalg.inv(matrix[run, run])
        if first > 0 and bandwidth > 0:
            overlap = slice(layers[first].start, layers[first + bandwidth - 1].stop)
            inverse[overlap, overlap] -= torch.linalg.inv(matrix[overlap, overlap])
    return inverse


# ---- truncate what?

CUTS = ("cut F", "cut F⁻¹", "chain: F within, zeros in F⁻¹ beyond")


@cache
def truncated(cut: str, bandwidth: int, damping: float, steps: int, kind: str = "exact") -> dict:
    """What multiplies the gradient: its inverse `matrix`, itself `inverse`, smallest eigenvalue of what was cut, efficiency."""
    now, whole = moment(steps), damped(steps, damping, kind)
    near = lambda i, j: abs(i - j) <= bandwidth  # noqa: E731
    if cut == "cut F":
        matrix = now.only(whole, near)
        inverse, judged = torch.linalg.inv(matrix), matrix
    elif cut == "cut F⁻¹":
        inverse = now.only(torch.linalg.inv(whole), near)
        matrix, judged = torch.linalg.inv(inverse), inverse
    else:
        inverse = chain_inverse(whole, now.layers, bandwidth)
        matrix, judged = torch.linalg.inv(inverse), inverse
    values, g = torch.linalg.eigvalsh(judged), now.gradient
    return {
        "matrix": matrix, "inverse": inverse, "least": float(values[0]), "negative": int((values < 0).sum()),
        "efficiency": efficiency(inverse @ g, g, Dense(now.exact), damping), "judged": "F" if cut == "cut F" else "F⁻¹",
    }  # fmt: skip


def block_sizes(now: Moment, matrix: torch.Tensor) -> np.ndarray:
    """Root mean square entry of each block of layers."""
    return np.array([[float(matrix[i, j].square().mean().sqrt()) for j in now.layers] for i in now.layers])


def compute_truncate(state: dict) -> dict:
    """Blocks of the matrix and of its inverse."""
    found = truncated(state["cut"], state["bandwidth"], state["damping"], state["steps"])
    now = moment(state["steps"])
    blocks = {name: np.log10(block_sizes(now, found[name]) + 1e-12) for name in ("matrix", "inverse")}
    numbers = {key: found[key] for key in ("least", "negative", "efficiency", "judged")}
    return {**state, **numbers, "blocks": blocks}


def draw_truncate(result: dict) -> go.Figure:
    """The two matrices, layer by layer."""
    figure = make_subplots(1, 2, subplot_titles=("the matrix", "its inverse"), horizontal_spacing=0.2)
    figure.update_layout(template())
    names = [str(i) for i in range(1, len(SIZES))]
    for column, (name, picture) in enumerate(result["blocks"].items(), 1):
        kept = picture[picture > -9]
        shown = np.where(picture > -9, picture, np.nan)
        figure.add_heatmap(
            row=1, col=column, x=names, y=names, z=shown.tolist(), name=name, colorscale=colorscale("sequential"),
            zmin=float(kept.min()) - 0.5, zmax=float(kept.max()), xgap=2, ygap=2,
            colorbar={"title": "log₁₀", "thickness": 10, "x": 0.41 if column == 1 else 1.01}, hoverongaps=False,
        )  # fmt: skip
    ticks = {"type": "category", "tickfont": {"size": 12}, "title": {"text": "layer", "font": {"size": 13}}}
    figure.update_yaxes(ticks | {"autorange": "reversed"}).update_xaxes(ticks)
    return figure.update_layout(height=350, margin={"t": 60})


def _verdict(result: dict) -> tuple[str, str]:
    if result["negative"]:
        count = result["negative"]
        return (
            f"{result['least']:.2f}",
            f"is the smallest eigenvalue of what is left of {result['judged']}, and {count} are negative: this is no metric",
        )
    return f"{100 * result['efficiency']:.0f} %", "of the possible decrease, and all eigenvalues are positive"


TRUNCATE = Card(
    name="truncate_what",
    title="Truncate what?",
    message="Layers interact most with their neighbours. What may be set to zero?",
    controls=(
        Control("cut", "what is cut", CUTS, "cut F"),
        Control("bandwidth", "neighbours kept on each side", (0, 1, 2, 3, 4), 1),
        Control("damping", "damping λ", LAMBDAS, 1e-2),
        Control("steps", "training steps so far", SHOWN, 0),
    ),
    compute=compute_truncate,
    draw=draw_truncate,
    headline=_verdict,
    caption=(
        "Size of each block of layers, root mean square of its entries on a logarithmic scale; empty blocks are zeros. Left: "
        "the matrix that stands for the damped Fisher; right: its inverse, which multiplies the gradient."
    ),
    presets={
        "optimal": {"cut": CUTS[2], "bandwidth": 1},
        "break it": {"cut": "cut F", "bandwidth": 1},
        "cut the inverse": {"cut": "cut F⁻¹", "bandwidth": 1},
        "blocks alone": {"cut": "cut F", "bandwidth": 0},
    },
    prediction=Prediction(
        question="We keep the blocks of the Fisher on and beside the diagonal and set all others to zero. Is that still "
        "a metric, with positive eigenvalues only?",
        options=("yes, always", "no, it gets negative eigenvalues"),
        answer=lambda result: "no, it gets negative eigenvalues" if result["least"] < 0 else "yes, always",
        explanation="The answer: {answer}. A strong correlation of layers 1 and 2 and of 2 and 3 forces one of 1 and 3; "
        "with a zero there no random variables have such a covariance.",
    ),
)  # fmt: skip


# ---- the ladder

RUNGS = ("gradient", "diagonal", "K-FAC blocks", "K-FAC chain", "K-FAC all blocks", "exact blocks", "exact chain", "exact")
_METHODS = ("sgd", "diagonal", "kfac", "kfac_block_tridiagonal", "kfac_adaptive")
_RUNG_COLOURS = dict(zip(RUNGS, (*map(method_colour, _METHODS), EXACT, EXACT, method_colour("exact_ngd")), strict=True))


@cache
def ladder(steps: int, damping: float, how: str = "λI") -> dict[str, float]:
    """Efficiency of every rung, against F + λI."""
    now, g = moment(steps), moment(steps).gradient
    found = {"gradient": g, "diagonal": g / (now.exact.diagonal() + damping)}
    for name, kind, way in (("K-FAC", "kronecker", how), ("exact", "exact", "λI")):
        matrix = damped(steps, damping, kind, way)
        found[f"{name} blocks"] = chain_inverse(matrix, now.layers, 0) @ g
        found[f"{name} chain"] = chain_inverse(matrix, now.layers, 1) @ g
        found["K-FAC all blocks" if kind == "kronecker" else "exact"] = torch.linalg.solve(matrix, g)
    return {rung: efficiency(found[rung], g, Dense(now.exact), damping) for rung in RUNGS}


def far_share(steps: int, damping: float, how: str) -> tuple[float, float]:
    """Share of Σ|entries| beyond the neighbours, of F̃ and of F̃⁻¹."""
    now, matrix = moment(steps), damped(steps, damping, "kronecker", how)
    far = lambda each: float(now.only(each, lambda i, j: abs(i - j) > 1).abs().sum() / each.abs().sum())  # noqa: E731
    return far(matrix), far(torch.linalg.inv(matrix))


def draw_ladder(result: dict) -> go.Figure:
    """Bars from the gradient to the exact step."""
    figure = go.Figure(layout=template())
    shares = [100 * result["efficiency"][rung] for rung in RUNGS]
    figure.add_bar(
        x=shares, y=RUNGS, orientation="h", name="efficiency", marker={"color": [_RUNG_COLOURS[rung] for rung in RUNGS]},
        text=[f"{share:.0f} %" for share in shares], textposition="outside", cliponaxis=False,
    )  # fmt: skip
    figure.update_xaxes(title_text="share of the possible decrease (%)", range=[0, 108])
    figure.update_yaxes(title_text="step", title_standoff=10)
    return figure.update_layout(margin={"l": 130})


LADDER = Card(
    name="between_layers_ladder",
    title="What neighbours are worth",
    message="From the gradient to the exact step, rung by rung: what do the blocks between layers add?",
    controls=(
        Control("steps", "training steps so far", SHOWN, 30),
        Control("damping", "damping λ", (1e-3, 1e-2, 1e-1, 1.0), 1e-2),
        Control("how", "damping of K-FAC", ("λI", "factored"), "factored"),
    ),
    compute=lambda state: {**state, "efficiency": ladder(state["steps"], state["damping"], state["how"])},
    draw=draw_ladder,
    headline=lambda result: (
        f"{100 * (result['efficiency']['K-FAC chain'] - result['efficiency']['K-FAC blocks']):+.0f} points",
        "of the possible decrease, from the chain of K-FAC's blocks against the blocks alone",
    ),
    caption=(
        "Share of the possible decrease that each step reaches. Blocks: no correlation between layers; chain: neighbours "
        "correlated, zeros in the inverse beyond; all blocks: every pair of layers. K-FAC's use factors, the others do not."
    ),
    presets={"optimal": {"how": "factored", "damping": 1e-1}, "break it": {"how": "λI", "damping": 1e-3}},
    prediction=Prediction(
        question="After 30 steps, how many points of the possible decrease does the chain add to K-FAC's blocks?",
        answer=lambda result: round(100 * (result["efficiency"]["K-FAC chain"] - result["efficiency"]["K-FAC blocks"])),
        unit="points",
        explanation="The chain adds {answer} points here. What it is worth depends on the damping: the more, the less.",
    ),
)

# ---- the plane of α and μ

GAMMAS = (1e-3, 1e-2, 1e-1, 1.0)
GRID = 23


def two_directions(steps: int, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Δ, minus K-FAC's direction with factored damping γ, and δ₀, the last update: both (P,)."""
    now, before, parts = moment(steps), moment(steps - 1), []
    for i, layer in enumerate(now.layers):
        parts.append(factored_tikhonov(Kronecker(now.G[i][i], now.A[i][i]), gamma).solve(now.gradient[layer]))
    vectors = [ParameterLayout(each.model).parameter_vector() for each in (now, before)]
    return -torch.cat(parts), vectors[0] - vectors[1]


def quadratic(steps: int, gamma: float, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """(2, 2) matrix Q and slopes b of M(α, μ) = bᵀx + ½ xᵀQx with x = (α, μ)."""
    now, pair = moment(steps), torch.stack(two_directions(steps, gamma))
    return (pair @ (now.exact + damping * _eye(len(now.exact))) @ pair.mT).numpy(), (pair @ now.gradient).numpy()


@cache
def _losses(steps: int, gamma: float, reach: float, top: float) -> np.ndarray:
    """The loss minus the present one on the grid, (μ, α)."""
    now, data = moment(steps), small_digits()
    Delta, last = two_directions(steps, gamma)
    layout, likelihood = ParameterLayout(now.model), likelihoods.Categorical()
    names = {id(parameter): name for name, parameter in now.model.named_parameters()}
    found = np.empty((GRID, GRID))
    with torch.no_grad():
        for row, mu in enumerate(np.linspace(-0.5, top, GRID)):
            for column, alpha in enumerate(np.linspace(0, reach, GRID)):
                update = alpha * Delta + mu * last
                moved = {names[id(p)]: p + part for p, part in layout.split(update)}
                outputs = functional_call(now.model, moved, (data.inputs,))
                found[row, column] = float(likelihood.nll(outputs, data.targets).mean()) - now.loss
    return found


def compute_plane(state: dict) -> dict:
    """The model on a grid of α and μ, its best point, and the loss there."""
    Q, b = quadratic(state["steps"], state["gamma"], state["damping"])
    best = -np.linalg.solve(Q, b)
    reach = float(f"{max(1.1, 1.6 * abs(b[0] / Q[0, 0]), 1.6 * abs(best[0])):.3g}")
    top = float(f"{max(1.5, 1.3 * best[1]):.3g}")
    alpha, mu = np.linspace(0, reach, GRID), np.linspace(-0.5, top, GRID)
    A, M = np.meshgrid(alpha, mu)
    model = b[0] * A + b[1] * M + 0.5 * (Q[0, 0] * A**2 + 2 * Q[0, 1] * A * M + Q[1, 1] * M**2)
    return {
        **state, "alpha": alpha, "mu": mu, "model": model, "best": best, "decrease": float(-0.5 * b @ best),
        "alone": float(0.5 * b[0] ** 2 / Q[0, 0]), "loss": _losses(state["steps"], state["gamma"], reach, top),
        "at one": float(-(b[0] + 0.5 * Q[0, 0])),
    }  # fmt: skip


def draw_plane(result: dict) -> go.Figure:
    """Contours of the model or of the loss, and the best point of the model."""
    figure = go.Figure(layout=template())
    shown = result["loss" if result["surface"] == "the loss itself" else "model"]
    limit = max(result["decrease"], 1e-12)
    figure.add_contour(
        x=result["alpha"].tolist(), y=result["mu"].tolist(), z=np.clip(shown, None, 1.5 * limit).tolist(),
        name=result["surface"],
        colorscale=colorscale("diverging"), zmid=0, zmin=-1.5 * limit, zmax=1.5 * limit, contours={"size": limit / 4},
        line={"width": 0.7}, colorbar={"title": "change (nats)", "thickness": 10},
    )  # fmt: skip
    for name, point, colour, symbol in (
        ("best of the model", result["best"], BLACK, "star"), ("α = 1, μ = 0", (1.0, 0.0), ORANGE, "x"),
        ("nothing done", (0.0, 0.0), GREY, "circle"),
    ):  # fmt: skip
        marker = {"color": colour, "size": 13, "symbol": symbol}
        if 0 <= point[0] <= result["alpha"][-1]:
            figure.add_scatter(x=[point[0]], y=[point[1]], name=name, mode="markers", marker=marker)
    figure.update_xaxes(title_text="α, times K-FAC's direction", range=[0, result["alpha"][-1]])
    figure.update_yaxes(title_text="μ, times the last update", range=[-0.5, result["mu"][-1]])
    return figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})


PLANE = Card(
    name="alpha_mu_plane",
    title="How far, and how much momentum",
    message="A quadratic model with the exact Fisher chooses the length of the step and of the last one, in one 2 × 2 solve.",
    controls=(
        Control("surface", "show", ("the quadratic model", "the loss itself"), "the quadratic model"),
        Control("gamma", "damping of the direction, γ²", GAMMAS, 1e-2),
        Control("damping", "damping of the model, λ", (0.0, 1e-3, 1e-2, 1e-1), 1e-3),
        Control("steps", "training steps so far", (10, 30), 10),
    ),
    compute=compute_plane,
    draw=draw_plane,
    headline=lambda result: (
        f"{result['decrease']:.3f} nats",
        f"is the decrease promised at α = {result['best'][0]:.2f}, μ = {result['best'][1]:.2f}; {result['alone']:.3f} without "
        "momentum",
    ),
    caption=(
        "Change of the quadratic model, or of the loss, over α (how much of K-FAC's direction) and μ (how much of the last "
        "update). Blue is lower than now, red is higher. The star is the model's best point."
    ),
    presets={
        "optimal": {"gamma": 1e-2, "damping": 1e-3},
        "break it": {"gamma": 1e-3, "damping": 0.0, "surface": "the loss itself"},
    },
    prediction=Prediction(
        question="K-FAC's direction with little damping: does the best length α come out below 1, at 1, or above?",
        options=("below 1", "about 1", "above 1"),
        answer=lambda result: (
            "below 1" if result["best"][0] < 0.9 else "above 1" if result["best"][0] > 1.1 else "about 1"
        ),
        explanation="The answer: {answer}. Blocks without their neighbours each move the function, and together they move "
        "it too far; the exact Fisher notices.",
    ),
)  # fmt: skip

CARDS = (TRUNCATE, LADDER, PLANE)
