"""Lesson 03, steepest on the globe: exact natural gradient, damping, invariance.

The first two cards have the smallest model there is, a Gaussian N(μ, σ²) that learns one distribution; the third has two
weights, the fourth a small network.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import torch

from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.fisher import block_diagonal_fisher, dense_fisher, diagonal_fisher, kfac_fisher, natural_gradient
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.metrics import direction_cosine, efficiency
from natgrad_lab.models import mlp
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.style import BLUE, GREY, SKY, VERMILLION, method_colour, template

START, TARGET = (2.0, 0.8), (0.0, 1.0)  # mean and standard deviation
MIX = np.array([[1.0, 2.0], [-1.0, 3.0]])  # of the affine map
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
Point = np.ndarray

# name -> (θ = (μ, σ) to z, z to θ, ∂θ/∂z at θ)
MAPS: dict[str, tuple[Callable[[Point], Point], Callable[[Point], Point], Callable[[Point], Point]]] = {
    "log σ": (
        lambda t: np.array([t[0], np.log(t[1])]),
        lambda z: np.array([z[0], np.exp(z[1])]),
        lambda t: np.diag([1.0, t[1]]),
    ),
    "σ²": (
        lambda t: np.array([t[0], t[1] ** 2]),
        lambda z: np.array([z[0], np.sqrt(z[1])]),
        lambda t: np.diag([1.0, 0.5 / t[1]]),
    ),
    "natural parameters": (
        lambda t: np.array([t[0], -0.5]) / t[1] ** 2,
        lambda z: np.array([-0.5 * z[0] / z[1], np.sqrt(-0.5 / z[1])]),
        lambda t: np.array([[t[1] ** 2, 2 * t[0] * t[1] ** 2], [0.0, t[1] ** 3]]),
    ),
    "affine": (lambda t: MIX @ t + 1, lambda z: np.linalg.solve(MIX, z - 1), lambda t: np.linalg.inv(MIX)),
}


def loss(theta: Point) -> float:
    """Mean of −log p under the target, nats, without the constant ½ log 2π."""
    return float(np.log(theta[1]) + (TARGET[1] ** 2 + (TARGET[0] - theta[0]) ** 2) / (2 * theta[1] ** 2))


def gradient(theta: Point) -> Point:
    """Of `loss` in (μ, σ)."""
    mean, sigma = theta
    variance = TARGET[1] ** 2 + (TARGET[0] - mean) ** 2
    return np.array([(mean - TARGET[0]) / sigma**2, 1 / sigma - variance / sigma**3])


def fisher(theta: Point) -> np.ndarray:
    """Of N(μ, σ²) in (μ, σ)."""
    return np.diag([1.0, 2.0]) / theta[1] ** 2


def kl(theta: Point, other: Point) -> float:
    """KL(N(θ) ‖ N(other)) in nats."""
    (mean, sigma), (m, s) = theta, other
    return float(np.log(s / sigma) + (sigma**2 + (mean - m) ** 2) / (2 * s**2) - 0.5)


# ---- two maps, one model


def step(theta: Point, lr: float, method: str, scale: str | None) -> Point:
    """One step in (μ, σ), or, with `scale`, in those coordinates, read back as (μ, σ)."""
    into, back, jacobian = (np.copy, np.copy, lambda t: np.eye(2)) if scale is None else MAPS[scale]
    J = jacobian(theta)
    g, F = J.T @ gradient(theta), J.T @ fisher(theta) @ J
    direction = np.linalg.solve(F, g) if method == "natural gradient" else g
    return back(into(theta) - lr * direction)


def path(method: str, scale: str | None, lr: float, time: float = 1.0) -> np.ndarray:
    """(steps + 1, 2): mean and σ along time / lr steps."""
    points = [np.array(START)]
    for _ in range(round(time / lr)):
        points.append(step(points[-1], lr, method, scale))
    return np.array(points)


@cache
def gap(method: str, scale: str, lr: float, time: float = 1.0) -> float:
    """Distance in (μ, σ) between the ends of the two paths; with time = lr, of one step."""
    return float(np.linalg.norm(path(method, None, lr, time)[-1] - path(method, scale, lr, time)[-1]))


@cache
def slope(method: str, scale: str, one_step: bool = False) -> float | None:
    """d log gap / d log lr on small learning rates, of paths or of one step; None where the gap is rounding."""
    rates = np.array([0.005, 0.0025, 0.00125])
    gaps = [gap(method, scale, lr, lr if one_step else 1.0) for lr in rates]
    return float(np.polyfit(np.log(rates), np.log(gaps), 1)[0]) if max(gaps) > 1e-12 else None


def two_maps(state: dict) -> dict:
    """Both paths and their gap."""
    method, scale, lr = state["method"], state["scale"], state["lr"]
    return {
        "method": method, "scale": scale, "lr": lr, "ours": path(method, None, lr), "theirs": path(method, scale, lr),
        "gap": gap(method, scale, lr), "slope": slope(method, scale),
    }  # fmt: skip


def draw_two_maps(result: dict) -> go.Figure:
    """The two paths in the half-plane of mean and σ."""
    colour = method_colour("exact_ngd" if result["method"] == "natural gradient" else "sgd")
    figure = go.Figure(layout=template())
    for name, dash, width, points in (
        ("steps in (μ, σ)", "solid", 5, result["ours"]),
        (f"steps in {'(μ, ' + result['scale'] + ')' if 'σ' in result['scale'] else result['scale'] + ' coordinates'}",
         "dot", 3, result["theirs"]),
    ):  # fmt: skip
        line = {"color": colour if dash == "solid" else BLUE, "dash": dash, "width": width}
        figure.add_scatter(x=points[:, 0], y=points[:, 1], name=name, mode="lines", line=line)
    for name, point, symbol in (("start", START, "circle"), ("data", TARGET, "star")):
        marker = {"color": GREY, "size": 10, "symbol": symbol}
        figure.add_scatter(
            x=point[:1], y=point[1:], name=name, mode="markers+text", text=[name], textposition="bottom center", marker=marker,
            showlegend=False,
        )  # fmt: skip
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title_text="mean μ", range=[-0.3, 2.3])
    figure.update_yaxes(title_text="standard deviation σ", range=[0, 2.2])
    return figure


def _two_maps_headline(result: dict) -> tuple[str, str]:
    power = result["slope"]
    if power is None:
        return f"{result['gap']:.0e}", "between the two ends: rounding, the two roads are one"
    power = round(power, 2) + 0.0  # never -0.00
    return f"{result['gap']:.2g}", f"between the two ends; the gap goes with the learning rate to the power {power:.2f}"


# ---- how far to trust the quadratic model


def judged(theta: Point, damping: float, lr: float) -> dict:
    """A damped natural-gradient step from (μ, σ): what the quadratic model promises of it, and what it does."""
    g, F = gradient(theta), fisher(theta)
    delta = -lr * np.linalg.solve(F + damping * np.eye(2), g)
    promised = -float(g @ delta + 0.5 * delta @ F @ delta)
    real = loss(theta) - loss(theta + delta)
    return {
        "theta": theta, "delta": delta, "promised": promised, "real": real, "ratio": real / promised,
        "kl": kl(theta, theta + delta), "quadratic": 0.5 * float(delta @ F @ delta),
    }  # fmt: skip


def trust_region(state: dict) -> dict:
    """The step, and the set of points at its KL: as the Fisher has it (an ellipse), and as it is."""
    result = judged(np.array([START[0], state["sigma"]]), state["damping"], state["lr"])
    theta, radius = result["theta"], result["kl"]
    angles = np.linspace(0, 2 * np.pi, 181)
    ellipse = theta + np.sqrt(2 * radius) * theta[1] * np.stack([np.cos(angles), np.sin(angles) / np.sqrt(2)], 1)
    sigmas = _sigmas_within(theta[1], radius)
    across = sigmas * np.sqrt(np.maximum(0, 2 * (radius + 0.5 - np.log(sigmas / theta[1])) - (theta[1] / sigmas) ** 2))
    ball = np.concatenate([np.stack([theta[0] + across, sigmas], 1), np.stack([theta[0] - across, sigmas], 1)[::-1]])
    return result | state | {"ellipse": ellipse, "ball": ball}


def _sigmas_within(sigma: float, radius: float, count: int = 200) -> np.ndarray:
    """All σ' that N(μ, σ'²) can have at KL `radius` or less, dense at both ends: roots of a convex function by bisection."""
    inside = lambda log_ratio: log_ratio + 0.5 * np.exp(-2 * log_ratio) - 0.5 <= radius  # noqa: E731
    ends = []
    for outside in (-0.5 * np.log(2 * radius + 40) - 1, radius + 1):
        within = 0.0
        for _ in range(60):
            middle = 0.5 * (within + outside)
            within, outside = (middle, outside) if inside(middle) else (within, middle)
        ends.append(within)
    low, high = np.exp(ends)
    return sigma * (0.5 * (low + high) - 0.5 * (high - low) * np.cos(np.linspace(0, np.pi, count)))


def draw_trust_region(result: dict) -> go.Figure:
    """Start, step, ellipse and ball in the half-plane."""
    figure = go.Figure(layout=template())
    theta, end = result["theta"], result["theta"] + result["delta"]
    for name, points, colour, dash in (
        ("this KL, by the Fisher", result["ellipse"], BLUE, "dot"), ("this KL, in truth", result["ball"], GREY, "solid"),
    ):  # fmt: skip
        figure.add_scatter(x=points[:, 0], y=points[:, 1], name=name, mode="lines", line={"color": colour, "dash": dash})
    figure.add_scatter(
        x=[theta[0], end[0]], y=[theta[1], end[1]], name="step", mode="lines+markers",
        line={"color": method_colour("exact_ngd"), "width": 4}, marker={"size": [6, 12], "symbol": ["circle", "diamond"]},
    )  # fmt: skip
    figure.add_scatter(x=[TARGET[0]], y=[TARGET[1]], name="data", mode="markers", marker={"size": 12, "symbol": "star"})
    figure.data[-1].marker.color = GREY
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title_text="mean μ", range=[-2, 6])
    figure.update_yaxes(title_text="standard deviation σ", range=[0, 6])
    return figure


# ---- the dial from gradient to natural gradient

LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
MOST = 2000


@cache
def product_path(power: float, metric: str, lr: float, scale: float) -> np.ndarray:
    """(steps + 1, 2): two weights, f = w₂ w₁ x with E[x²] = scale, target f = x, until the excess loss is 1e-6 of its first.

    Steps −lr (F + 1e-8 I)^(−power) g with F full, or its diagonal. Ends at `MOST` steps, or where it blows up.
    """
    w = np.array([0.2, 1.5])
    points, first = [w], (w.prod() - 1) ** 2
    for _ in range(MOST):
        row = w[::-1]  # ∂(w₁w₂)/∂w
        g = scale * (w.prod() - 1) * row
        if metric == "full":  # F = scale · row rowᵀ, and g lies along row
            direction = g / (scale * (row @ row) + 1e-8) ** power
        else:
            direction = g / (scale * row**2 + 1e-8) ** power
        w = w - lr * direction
        points.append(w)
        error = (w.prod() - 1) ** 2
        if not error < 1e6 or error <= 1e-6 * first:
            break
    return np.array(points)


def steps_needed(power: float, metric: str, lr: float, scale: float) -> float:
    """Steps to an excess loss of 1e-6 times the first; ∞ if it is not reached in `MOST`."""
    points = product_path(power, metric, lr, scale)
    reached = (points[-1].prod() - 1) ** 2 <= 1e-6 * (points[0].prod() - 1) ** 2
    return float(len(points) - 1) if reached else np.inf


def exponent_dial(state: dict) -> dict:
    """The path of the weights and the number of its steps."""
    power, metric, lr, scale = state["power"], state["metric"], state["lr"], state["scale"]
    return state | {"path": product_path(power, metric, lr, scale), "steps": steps_needed(power, metric, lr, scale)}


def draw_exponent_dial(result: dict) -> go.Figure:
    """The path of the two weights, with the curve of all solutions."""
    figure = go.Figure(layout=template())
    curve = np.linspace(0.3, 3, 100)
    figure.add_scatter(x=curve, y=1 / curve, name="solutions w₁w₂ = 1", mode="lines", line={"color": GREY, "dash": "dot"})
    colour = method_colour("exact_ngd" if result["power"] > 0.5 else "sgd")
    points = result["path"][np.abs(result["path"]).max(1) < 1e3]
    figure.add_scatter(
        x=points[:, 0], y=points[:, 1], name="steps", mode="lines+markers", line={"color": colour, "width": 2},
        marker={"size": 5},
    )  # fmt: skip
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title_text="weight w₁", range=[0, 3])
    figure.update_yaxes(title_text="weight w₂", range=[0, 3])
    return figure


# ---- cosine lies

CHECKPOINTS = (0, 1, 2, 3, 5, 10, 20)
UPDATES = ("gradient", "diagonal", "blocks", "K-FAC")


@cache
def checkpoints() -> tuple[tuple, ...]:
    """(model, inputs, targets) after `CHECKPOINTS` natural-gradient steps of a 6-8-8-4 network (164 parameters)."""
    generator, kind = torch.Generator().manual_seed(0), torch.float64
    student = mlp((6, 8, 8, 4), generator=generator, dtype=kind)
    inputs = torch.randn(400, 6, generator=generator, dtype=kind)
    teacher = mlp((6, 8, 8, 4), generator=generator, dtype=kind)
    targets = Categorical().sample(4 * teacher(inputs).detach(), 1, generator)[0]
    weights, found = ParameterLayout(student).parameter_vector(), []
    for before, after in pairwise((0, *CHECKPOINTS)):
        for _ in range(after - before):
            weights = weights - 0.5 * natural_gradient(_with(student, weights), Categorical(), inputs, targets, 1e-2).direction
        found.append((_with(student, weights), inputs, targets))
    return tuple(found)


def _with(model: torch.nn.Module, weights: torch.Tensor) -> torch.nn.Module:
    """A copy of the network with these weights (flat order)."""
    other = mlp((6, 8, 8, 4), dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in ParameterLayout(other).split(weights):
            parameter.copy_(value)
    return other


@cache
def updates(checkpoint: int, damping: float) -> tuple:
    """The damped Fisher's gradient, exact natural gradient and the other updates at one checkpoint; and the Fisher."""
    model, inputs, targets = checkpoints()[CHECKPOINTS.index(checkpoint)]
    exact = natural_gradient(model, Categorical(), inputs, targets, damping)
    g = exact.gradient
    estimates = {"diagonal": diagonal_fisher, "blocks": block_diagonal_fisher, "K-FAC": kfac_fisher}
    others = {name: make(model, Categorical(), inputs).solve(g, damping) for name, make in estimates.items()}
    return g, exact.direction, {"gradient": g, **others}, dense_fisher(model, Categorical(), inputs)


@cache
def judgements(checkpoint: int, damping: float, unit: float = 1.0) -> tuple[dict, dict]:
    """(cosines, efficiencies) of the updates to the exact natural gradient, weights of layer 1 counted in units of 1/unit."""
    g, exact, others, F = updates(checkpoint, damping)
    model = checkpoints()[0][0]
    ruler = torch.ones_like(g)
    ruler[ParameterLayout(model).layers[0].slice] = unit
    cosines = {name: direction_cosine(ruler * v, ruler * exact) for name, v in others.items()}
    return cosines, {name: efficiency(v, g, F, damping) for name, v in others.items()}


def cosine_lies(state: dict) -> dict:
    """Both yardsticks for four updates."""
    cosines, efficiencies = judgements(state["checkpoint"], state["damping"], state["unit"])
    return state | {"cosines": cosines, "efficiencies": efficiencies}


def draw_cosine_lies(result: dict) -> go.Figure:
    """Two bars for each update."""
    figure = go.Figure(layout=template())
    for name, values, colour in (
        ("cosine to the natural gradient", result["cosines"], SKY),
        ("share of the possible decrease", result["efficiencies"], VERMILLION),
    ):
        heights = list(values.values())
        figure.add_bar(
            x=list(values), y=heights, name=name, marker={"color": colour}, text=[f"{height:.2f}" for height in heights],
            textposition="outside", cliponaxis=False,
        )  # fmt: skip
    figure.update_layout(showlegend=True, legend=LEGEND, barmode="group")
    figure.update_xaxes(title_text="update")
    figure.update_yaxes(title_text="cosine, share (0 to 1)", range=[0, 1.05])
    return figure


def _cosine_headline(result: dict) -> tuple[str, str]:
    name = "gradient"
    return f"{100 * result['efficiencies'][name]:.0f} %", (
        f"of the possible decrease is what the gradient reaches; its cosine is {result['cosines'][name]:.2f}"
    )


CARDS = (
    Card(
        name="two_maps",
        title="Two maps, one model",
        message="The same Gaussian, learned in two coordinate systems: does the method care which one?",
        controls=(
            Control("method", "method", ("gradient descent", "natural gradient"), "gradient descent"),
            Control("scale", "other coordinates", tuple(MAPS), "log σ"),
            Control("lr", "learning rate", (0.1, 0.05, 0.02, 0.01, 0.005, 0.002), 0.01),
        ),
        compute=two_maps,
        draw=draw_two_maps,
        headline=_two_maps_headline,
        caption=(
            "Mean against standard deviation of a Gaussian while it learns. Solid: steps taken in mean and σ; dotted: in the "
            "other coordinates. Gradient descent takes two roads, the natural gradient nearly one."
        ),
        presets={"optimal": {"method": "natural gradient", "lr": 0.002}, "break it": {"method": "gradient descent", "lr": 0.1}},
        prediction=Prediction(
            question="Gradient descent learns one Gaussian in σ and in log σ. Do small steps make one road of the two?",
            options=("yes, with very small steps they are one", "no, however small the steps"),
            answer=lambda result: "no, however small the steps",
            explanation="The answer: {answer}. A gradient points along the map, and small steps follow it faithfully.",
        ),
    ),
    Card(
        name="trust_region",
        title="How far to trust the model",
        message="The Fisher promises a decrease of the loss; damping decides how far the promise is believed.",
        controls=(
            Control("sigma", "start: standard deviation σ", (0.3, 0.5, 1.0, 2.0, 3.0), 0.5),
            Control("damping", "damping λ", (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0), 0.0),
            Control("lr", "learning rate", (0.1, 0.2, 0.5, 1.0), 1.0),
        ),
        compute=trust_region,
        draw=draw_trust_region,
        headline=lambda result: (
            f"ρ = {result['ratio']:.2f}",
            f"promised {result['promised']:.2f} nats less, in truth {result['real']:.2f}; predictions moved by a KL of "
            f"{result['kl']:.2f} nats (the Fisher says {result['quadratic']:.2f})",
        ),
        caption=(
            "Mean against standard deviation. Arrow: one damped natural-gradient step from the circle to the diamond. Solid: "
            "all Gaussians at the KL of this step; dotted: where the Fisher at the start believes them to be, an ellipse."
        ),
        presets={
            "optimal": {"sigma": 0.5, "damping": 10.0},
            "break it": {"sigma": 0.3, "damping": 0.0},
            "cautious": {"sigma": 0.5, "damping": 300.0},
        },
        prediction=Prediction(
            question="Without damping, what share ρ of the promised decrease does the first full step deliver?",
            options=("less than a tenth", "about a half", "nearly all"),
            answer=lambda result: (
                "less than a tenth" if result["ratio"] < 0.1 else "about a half" if result["ratio"] < 0.75 else "nearly all"
            ),
            explanation="The answer: {answer}. Far from its centre the ellipse of the Fisher has little to do with the KL.",
        ),
    ),
    Card(
        name="exponent_dial",
        title="A dial from gradient to natural gradient",
        message="Steps F^(−p) g: at p = 0 gradient descent, at p = 1 the natural gradient.",
        controls=(
            Control("power", "power p", (0.0, 0.25, 0.5, 0.75, 1.0), 0.5),
            Control("metric", "Fisher", ("full", "diagonal"), "full"),
            Control("scale", "scale of the inputs E[x²]", (0.01, 0.1, 1.0, 10.0, 100.0), 1.0),
            Control("lr", "learning rate", LRS, 0.1),
        ),
        compute=exponent_dial,
        draw=draw_exponent_dial,
        headline=lambda result: (
            f"{result['steps']:.0f} steps" if np.isfinite(result["steps"]) else "∞ steps",
            "to a millionth of the first excess loss" if np.isfinite(result["steps"]) else f"not there after {MOST}",
        ),
        caption=(
            "The two weights of f = w₂w₁x on their way to w₁w₂ = 1. With the full Fisher every power takes the same road at "
            "another speed; with its diagonal the road changes as well. At p = 1 the scale of the inputs no longer matters."
        ),
        presets={
            "optimal": {"power": 1.0, "metric": "full", "lr": 1.0},
            "break it": {"power": 0.0, "scale": 100.0, "lr": 0.1},
            "other inputs": {"power": 1.0, "scale": 100.0, "lr": 0.1},
        },
        prediction=Prediction(
            question="The inputs are made ten times larger, E[x²] = 100. Which dial setting keeps its number of steps?",
            options=("p = 0", "p = ½", "p = 1", "none"),
            answer=lambda result: "p = 1",
            explanation="The answer: {answer}. Gradient and Fisher both grow with E[x²], and only there does it cancel.",
        ),
    ),
    Card(
        name="cosine_lies",
        title="The cosine lies",
        message="The angle to the natural gradient says little about how much an update achieves.",
        controls=(
            Control("checkpoint", "training steps done", CHECKPOINTS, 20),
            Control("damping", "damping λ", (0.0001, 0.001, 0.01, 0.1), 0.001),
            Control("unit", "layer 1 counted in units of", (0.1, 1.0, 10.0), 1.0),
        ),
        compute=cosine_lies,
        draw=draw_cosine_lies,
        headline=_cosine_headline,
        caption=(
            "For four updates of a network of 164 parameters: cosine to the exact natural gradient, and the share of the best "
            "possible decrease of the quadratic model. Another unit for layer 1 changes the first, not the second."
        ),
        presets={"optimal": {"checkpoint": 0, "unit": 1.0}, "break it": {"checkpoint": 20, "unit": 10.0}},
        prediction=Prediction(
            question="The plain gradient has a cosine of about one half to the natural gradient. What does it achieve?",
            options=("about a half of the decrease", "about a quarter", "less than a twentieth"),
            answer=lambda result: "less than a twentieth" if result["efficiencies"]["gradient"] < 0.05 else "about a quarter",
            explanation="The answer: {answer}. Where curvatures differ by orders of magnitude, a Euclidean angle ignores them.",
        ),
    ),
)
