"""Lesson 03, steepest on the globe: exact natural gradient, damping, invariance."""

from functools import cache

import numpy as np
import plotly.graph_objects as go

from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.plots.style import method_colour, template

START, TARGET = (2.0, 0.5), (0.0, 1.0)  # mean and standard deviation
SCALES = {  # name -> (σ to the coordinate s, s to σ, dσ/ds as a function of σ)
    "log σ": (np.log, np.exp, lambda sigma: sigma),
    "σ²": (np.square, np.sqrt, lambda sigma: 0.5 / sigma),
}


def _gradient(mean: float, sigma: float) -> np.ndarray:
    """Of KL(target ‖ N(mean, σ²)) in (mean, σ)."""
    variance = TARGET[1] ** 2 + (TARGET[0] - mean) ** 2
    return np.array([(mean - TARGET[0]) / sigma**2, 1 / sigma - variance / sigma**3])


def _step(mean: float, sigma: float, lr: float, method: str, scale: str | None) -> tuple[float, float]:
    """One step in (mean, σ), or, with `scale`, in (mean, that coordinate), read back as (mean, σ)."""
    gradient, jacobian = _gradient(mean, sigma), 1.0 if scale is None else SCALES[scale][2](sigma)
    fisher = np.array([1 / sigma**2, 2 / sigma**2 * jacobian**2])
    gradient = gradient * np.array([1.0, jacobian])
    update = -lr * (gradient / fisher if method == "natural gradient" else gradient)
    if scale is None:
        return mean + update[0], sigma + update[1]
    return mean + update[0], float(SCALES[scale][1](SCALES[scale][0](sigma) + update[1]))


def path(method: str, scale: str | None, lr: float, time: float = 0.5) -> np.ndarray:
    """(steps + 1, 2): mean and σ along time / lr steps."""
    points = [START]
    for _ in range(round(time / lr)):
        points.append(_step(*points[-1], lr, method, scale))
    return np.array(points)


def gap(method: str, scale: str, lr: float) -> float:
    """Distance in (mean, σ) between the ends of the two paths."""
    return float(np.linalg.norm(path(method, None, lr)[-1] - path(method, scale, lr)[-1]))


@cache
def slope(method: str, scale: str) -> float:
    """d log gap / d log lr, fitted on small learning rates."""
    rates = np.array([0.005, 0.0025, 0.00125])
    return float(np.polyfit(np.log(rates), np.log([gap(method, scale, lr) for lr in rates]), 1)[0])


def compute(state: dict) -> dict:
    """Both paths and their gap."""
    method, scale, lr = state["method"], state["scale"], state["lr"]
    return {
        "method": method, "scale": scale, "lr": lr, "ours": path(method, None, lr), "theirs": path(method, scale, lr),
        "gap": gap(method, scale, lr), "slope": slope(method, scale),
    }  # fmt: skip


def draw(result: dict) -> go.Figure:
    """The two paths in the half-plane of mean and σ."""
    colour = method_colour("exact_ngd" if result["method"] == "natural gradient" else "sgd")
    figure = go.Figure(layout=template())
    for name, dash, points in (
        ("steps in σ", "solid", result["ours"]),
        (f"steps in {result['scale']}", "dot", result["theirs"]),
    ):
        line = {"color": colour, "dash": dash, "width": 3}
        figure.add_scatter(x=points[:, 0], y=points[:, 1], name=name, mode="lines", line=line)
    figure.add_scatter(x=[TARGET[0]], y=[TARGET[1]], name="data", mode="markers+text", text=["data"], textposition="top center")
    figure.update_layout(showlegend=True, legend={"x": 0.6, "y": 1})
    figure.update_xaxes(title_text="mean μ", range=[-0.2, 2.2])
    figure.update_yaxes(title_text="standard deviation σ", range=[0, 2.2])
    return figure


CARDS = (
    Card(
        name="two_maps",
        title="Two maps, one model",
        message="The same Gaussian, learned in two coordinate systems: does the method care which one?",
        controls=(
            Control("method", "method", ("gradient descent", "natural gradient"), "gradient descent"),
            Control("scale", "second coordinate", tuple(SCALES), "log σ"),
            Control("lr", "learning rate", (0.1, 0.05, 0.02, 0.01, 0.005, 0.002), 0.01),
        ),
        compute=compute,
        draw=draw,
        headline=lambda result: (
            f"{result['gap']:.1e}",
            f"between the two ends; the gap goes with the learning rate to the power {result['slope']:.2f}",
        ),
        caption=(
            "Mean against standard deviation of a Gaussian while it learns. Solid: steps taken in σ; dotted: in the other "
            "coordinate. Gradient descent takes two roads, the natural gradient nearly one."
        ),
        presets={"optimal": {"method": "natural gradient", "lr": 0.002}, "break it": {"method": "gradient descent", "lr": 0.1}},
        prediction=Prediction(
            question="Gradient descent learns one Gaussian in σ and in log σ. Do small steps make one road of the two?",
            options=("yes, with very small steps they are one", "no, however small the steps"),
            answer=lambda result: "no, however small the steps",
            explanation="The answer: {answer}. A gradient points along the map, and small steps follow it faithfully.",
        ),
    ),
)
