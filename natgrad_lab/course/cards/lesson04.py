"""Lesson 04, deep linear networks: where the natural gradient is solvable."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from natgrad_lab import deep_linear
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.metrics import direction_cosine
from natgrad_lab.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, method_colour, template
from natgrad_lab.shapes import Float, Tensor

DIM = 4  # inputs and outputs
LR, STEPS = 0.05, 60
GRADIENT_LRS = tuple(10 ** (k / 4) for k in range(-12, 5))
DAMPING = 1e-3
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
AXIS = {
    "showline": True, "linecolor": GREY, "gridcolor": "rgba(128,128,128,0.25)", "title_font_size": 13, "tickfont_size": 12,
}  # fmt: skip
FORMULA = {"natural gradient": "equal", "shortest natural gradient": "minimum_norm"}
METHODS = {
    "gradient descent": method_colour("sgd"), "natural gradient": method_colour("exact_ngd"),
    "shortest natural gradient": PURPLE, "damped K-FAC": method_colour("kfac"),
}  # fmt: skip


@cache
def problem(depth: int, width: int, condition: float, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """(weights, inputs, targets): 4 inputs, hidden layers of `width`, 4 outputs, E[xxᵀ] with that condition number.

    Weights N(0, 1 / fan-in), and a random linear target without noise.
    """
    generator = torch.Generator().manual_seed(100 * seed + depth)
    sizes = (DIM, *[width] * (depth - 1), DIM)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [draw(above, below) / math.sqrt(below) for below, above in pairwise(sizes)]
    spread = torch.logspace(0, -math.log10(condition), DIM, dtype=torch.float64)
    axes = torch.linalg.qr(draw(DIM, DIM)).Q
    second = (axes * spread) @ axes.mT
    return weights, *deep_linear.data_from_moments(second, draw(DIM, DIM) @ second)


@cache
def descent(method: str, depth: int, width: int, condition: float, lr: float = LR, steps: int = STEPS) -> np.ndarray:
    """(steps + 1,) excess losses; gradient descent at the best of 17 learning rates."""
    weights, inputs, targets = problem(depth, width, condition)
    if method == "gradient descent":
        return gradient_descent(weights, inputs, targets, steps)
    excess = []
    for _ in range(steps + 1):
        formula = FORMULA.get(method, "block_diagonal")
        found = deep_linear.natural_gradient(weights, inputs, targets, formula=formula)
        layers = damped_kfac(weights, inputs, found.gradient) if method == "damped K-FAC" else found.layers
        excess.append(found.excess_loss)
        weights = [W - lr * V for W, V in zip(weights, layers, strict=True)]
        if not excess[-1] < 1e9:
            break
    return np.array(excess)


def gradient_descent(weights: list[Tensor], inputs: Tensor, targets: Tensor, steps: int) -> np.ndarray:
    """(steps + 1,) excess losses at the best learning rate, of those that never raise the loss; all rates run at once."""
    rates = torch.tensor(GRADIENT_LRS, dtype=torch.float64)[:, None, None]
    best = torch.linalg.lstsq(inputs, targets).solution.mT
    second = inputs.mT @ inputs / len(inputs)
    layers, excess = [W.expand(len(rates), *W.shape).clone() for W in weights], []
    for _ in range(steps + 1):
        below = [torch.eye(DIM, dtype=torch.float64).expand(len(rates), DIM, DIM)]
        for W in layers:
            below.append(W @ below[-1])
        error = below.pop() - best
        excess.append((error @ second * error).sum((1, 2)) / 2)
        above, gradients = torch.eye(DIM, dtype=torch.float64).expand(len(rates), DIM, DIM), []
        for W, B in zip(reversed(layers), reversed(below), strict=True):
            gradients.insert(0, above.mT @ error @ second @ B.mT)
            above = above @ W
        layers = [W - rates * g for W, g in zip(layers, gradients, strict=True)]
    curves = torch.stack(excess, 1).nan_to_num(nan=math.inf)
    falls = (curves[:, 1:] <= curves[:, :-1] * (1 + 1e-9) + 1e-24 * curves[:, :1]).all(1)  # up to rounding
    return curves[falls][curves[falls, -1].argmin()].numpy()


def damped_kfac(weights: list[Tensor], inputs: Tensor, gradient: tuple[Tensor, ...]) -> list[Tensor]:
    """((G ⊗ A) + λI)⁻¹ of each layer's gradient, divided by the depth, with the exact factors G and A."""
    layers, signal = [], inputs.mT
    above = [torch.eye(DIM, dtype=torch.float64)]
    for W in reversed(weights[1:]):
        above.insert(0, above[0] @ W)
    for A, W, g in zip(above, weights, gradient, strict=True):
        s, U = torch.linalg.eigh(A.mT @ A)
        t, V = torch.linalg.eigh(signal @ signal.mT / len(inputs))
        layers.append(U @ ((U.mT @ g @ V) / (s[:, None] * t + DAMPING)) @ V.mT / len(weights))
        signal = W @ signal
    return layers


def fitted_rate(excess: np.ndarray, lr: float = LR) -> float:
    """Slope of log excess against lr · steps, by least squares, over the steps before rounding is reached."""
    count = int(np.argmax(np.append(excess, 0.0) <= 1e-24 * excess[0]))
    return float(np.polyfit(lr * np.arange(count), np.log(excess[:count]), 1)[0])


def depth_proof(state: dict) -> dict:
    """The excess loss of one method, and the rate fitted to it."""
    excess = descent(state["method"], state["depth"], state["width"], state["condition"])
    return state | {"excess": excess, "rate": fitted_rate(excess)}


def draw_depth_proof(result: dict) -> go.Figure:
    """Excess loss over time with e^(−2t)."""
    figure = go.Figure(layout=template())
    excess = result["excess"]
    times = LR * np.arange(STEPS + 1)
    figure.add_scatter(
        x=times, y=np.exp(-2 * times), name="e^(−2t)", mode="lines", line={"color": BLUE, "dash": "dot", "width": 2}
    )
    figure.add_scatter(
        x=times[: len(excess)], y=excess / excess[0], name=result["method"], mode="lines",
        line={"color": METHODS[result["method"]], "width": 3},
    )  # fmt: skip
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title_text=f"time t = {LR} · steps", range=[0, LR * STEPS])
    figure.update_yaxes(title_text="excess loss / first (log)", type="log", range=[-4, 1], dtick=1)
    return figure


# ---- two updates, one function


def two_updates(state: dict) -> dict:
    """The formula's update and the shortest one: entries of both, and what each does to the function to first order."""
    weights, inputs, targets = problem(state["depth"], state["width"], 100.0, state["seed"])
    found = [deep_linear.natural_gradient(weights, inputs, targets, formula=name) for name in ("equal", "minimum_norm")]
    changes = [function_change(weights, each.layers) for each in found]
    return state | {
        "vectors": [each.vector.numpy() for each in found],
        "changes": [change.flatten().numpy() for change in changes],
        "cosine": direction_cosine(found[0].vector, found[1].vector),
        "longer": float(found[0].vector.norm() / found[1].vector.norm()),
        "difference": float((changes[0] - changes[1]).norm() / changes[1].norm()),
    }


def function_change(weights: list[Tensor], layers: tuple[Tensor, ...]) -> Float[Tensor, "C D"]:
    """Derivative of the product W_L ⋯ W_1 along `layers`: Σ A_i V_i B_i."""
    total = torch.zeros(len(weights[-1]), weights[0].shape[1], dtype=torch.float64)
    for i, V in enumerate(layers):
        factors = [*weights[:i], V, *weights[i + 1 :]]
        total += torch.linalg.multi_dot(factors[::-1]) if len(factors) > 1 else V
    return total


def draw_two_updates(result: dict) -> go.Figure:
    """Left: entries of the two updates against each other. Right: entries of the change of the function."""
    figure = make_subplots(1, 2, subplot_titles=("the updates of the weights", "what they do to the function"))
    figure.update_layout(template())
    for column, (pair, name, colour) in enumerate(
        ((result["vectors"], "weights", VERMILLION), (result["changes"], "function", GREEN)), start=1
    ):
        most = 1.1 * max(np.abs(each).max() for each in pair)
        figure.add_scatter(
            x=[-most, most], y=[-most, most], name=f"equal {name}", mode="lines", line={"color": GREY, "dash": "dot"}, row=1,
            col=column,
        )  # fmt: skip
        figure.add_scatter(
            x=pair[1], y=pair[0], name=name, mode="markers", marker={"color": colour, "size": 6}, row=1, col=column
        )
    figure.update_xaxes(title_text="entry of the shortest solution", **AXIS)
    figure.update_yaxes(title_text="entry of the formula's", **AXIS)
    return figure


# ---- learning modes, one after the other or all at once

MODES = (4.0, 2.0, 1.0, 0.5)
TIMES = np.linspace(0, 12, 241)


@cache
def modes(flow: str, layers: int, initial: float) -> np.ndarray:
    """(times, modes) strengths of the modes of the network on white inputs."""
    s, times = torch.tensor(MODES, dtype=torch.float64), torch.from_numpy(TIMES)
    if flow == "natural gradient":
        return (s + (initial - s) * torch.exp(-times)[:, None]).numpy()
    return deep_linear.saxe(s, initial, times, num_layers=layers).numpy()


def half_times(flow: str, layers: int, initial: float) -> list[float]:
    """When each mode reaches half of its strength; ∞ if later than the last time."""
    strengths = modes(flow, layers, initial)
    found = []
    for column, s in zip(strengths.T, MODES, strict=True):
        found.append(float(np.interp(s / 2, column, TIMES)) if column[-1] >= s / 2 else math.inf)
    return found


def learning_modes(state: dict) -> dict:
    """Strengths and half-times."""
    choice = state["flow"], state["layers"], state["initial"]
    return state | {"strengths": modes(*choice), "half": half_times(*choice)}


def draw_learning_modes(result: dict) -> go.Figure:
    """Strength of each mode over time, as a share of what it has to become."""
    figure = go.Figure(layout=template())
    for s, column, colour in zip(MODES, result["strengths"].T, (BLUE, SKY, ORANGE, VERMILLION), strict=True):
        line = {"color": colour, "width": 3}
        figure.add_scatter(x=TIMES, y=column / s, name=f"s = {s:g}", mode="lines", line=line)
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title_text="time t (learning rate · steps)", range=[0, TIMES[-1]])
    figure.update_yaxes(title_text="learned share u / s", range=[0, 1.05])
    return figure


# ---- a line that passes a singular map


@cache
def crossing_problem(seed: int) -> tuple[Float[Tensor, "4 4"], Float[Tensor, "4 4"]]:
    """W(0) and W*, 4 × 4 Gaussian."""
    pair = torch.randn(2, DIM, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2
    return pair[0], pair[1]


def breakdown(start: Float[Tensor, "D D"], best: Float[Tensor, "D D"]) -> float:
    """First t > 0 at which W* + e^(−t)(W(0) − W*) is singular; ∞ if there is none."""
    values = torch.linalg.eigvals(torch.linalg.solve(start, best))
    negative = -values.real[(values.imag == 0) & (values.real < 0)]
    return math.log1p(1 / float(negative.max())) if len(negative) else math.inf


def products_while_finite(start: Tensor, best: Tensor, depth: int, lr: float, steps: int) -> Float[Tensor, "K 4 4"]:
    """W(0) and the products after each step, until one is beyond 10⁶ or has no inverse."""
    found = [start]
    while len(found) <= steps and found[-1].abs().max() < 1e6:
        try:
            found.append(deep_linear.product_steps(found[-1], best, depth, lr, 1)[1])
        except torch.linalg.LinAlgError:
            break
    return torch.stack(found)


def crossing(state: dict) -> dict:
    """Excess loss of discrete steps of a square network, and the smallest singular value on the flow's straight line."""
    start, best = crossing_problem(state["seed"])
    times = np.linspace(0, 4, 161)
    line = [best + math.exp(-t) * (start - best) for t in times]
    products = products_while_finite(start, best, state["depth"], state["lr"], round(4 / state["lr"]))
    excess = ((products - best).square().sum((1, 2)) / 2).numpy()
    return state | {
        "times": times, "smallest": np.array([float(torch.linalg.svdvals(W)[-1]) for W in line]), "excess": excess,
        "end": breakdown(start, best), "monotone": bool((np.diff(excess) < 0).all()),
    }  # fmt: skip


def draw_crossing(result: dict) -> go.Figure:
    """Above: excess loss of the steps; below: the smallest singular value along the straight line."""
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    figure.update_layout(template())
    times, taken = result["times"], result["lr"] * np.arange(len(result["excess"]))
    excess = result["excess"] / result["excess"][0]
    colour = method_colour("exact_ngd")
    figure.add_scatter(x=times, y=np.exp(-2 * times), name="e^(−2t)", mode="lines", line={"color": BLUE, "dash": "dot"})
    figure.add_scatter(x=taken, y=excess, name="steps", mode="lines", line={"color": colour, "width": 3})
    figure.add_scatter(
        x=times, y=result["smallest"], name="smallest singular value of W(t)", mode="lines", line={"color": GREEN}, row=2, col=1
    )
    if math.isfinite(result["end"]):
        for row in (1, 2):
            figure.add_vline(x=result["end"], line={"color": GREY, "dash": "dash"}, row=row, col=1)
    figure.update_xaxes(range=[0, 4], **AXIS)
    figure.update_xaxes(title_text="time t = learning rate · steps", row=2, col=1)
    figure.update_xaxes(title_text=" ", row=1, col=1)
    figure.update_yaxes(title_text="excess / first (log)", type="log", range=[-4, 2], dtick=2, row=1, col=1, **AXIS)
    figure.update_yaxes(title_text="smallest σ of W(t)", rangemode="tozero", row=2, col=1, **AXIS)
    figure.update_layout(showlegend=True, legend=LEGEND, height=460)
    return figure


def _crossing_headline(result: dict) -> tuple[str, str]:
    if math.isinf(result["end"]):
        return "t* = ∞", "the straight line stays clear of singular maps: the loss falls as e^(−2t)"
    fate = "falls all the way" if result["monotone"] else "rises on the way"
    return f"t* = {result['end']:.2f}", f"the straight line meets a singular map; with these steps the loss {fate}"


def _rate_headline(result: dict) -> tuple[str, str]:
    excess = result["excess"]
    if excess.max() > 10 * excess[0]:
        return f"{excess.max() / excess[0]:.0e} times", "the first excess loss at the worst: the steps met a singular map"
    theory = 2 * math.log(1 - LR) / LR
    return f"rate −{-result['rate']:.2f}", f"per unit of time, fitted; −{-theory:.2f} is the theory for steps of {LR}"


def _modes_headline(result: dict) -> tuple[str, str]:
    first, last = result["half"][0], result["half"][-1]
    if math.isinf(last):
        return (
            f"> {TIMES[-1] / first:.0f} times",
            "as long as the strongest mode waits the weakest, and is not half learned yet",
        )
    return f"{last / first:.1f} times", "as long as the strongest mode needs the weakest to be half learned"


CARDS = (
    Card(
        name="depth_proof",
        title="Depth-proof descent",
        message="Whatever the depth and the inputs, the natural gradient of a linear network learns at one rate.",
        controls=(
            Control("method", "method", tuple(METHODS), "gradient descent"),
            Control("depth", "layers L", (1, 2, 3, 4, 6, 8), 3),
            Control("condition", "condition number of the inputs", (1.0, 100.0, 1e4, 1e6), 100.0),
            Control("width", "hidden units", (2, 4, 8, 16), 8),
        ),
        compute=depth_proof,
        draw=draw_depth_proof,
        headline=_rate_headline,
        caption=(
            "Excess loss, relative to the first, on a logarithmic axis against time. Dotted: theory of the natural gradient. "
            "Gradient descent has the best of 17 learning rates, of those that never raise the loss."
        ),
        presets={
            "optimal": {"method": "natural gradient", "depth": 8, "condition": 1e4, "width": 16},
            "break it": {"method": "natural gradient", "depth": 3, "width": 2},
            "square": {"method": "natural gradient", "depth": 8, "width": 4},
        },
        prediction=Prediction(
            question="Natural gradient on 3 layers loses excess loss at the rate −2. What is the rate with 8 layers?",
            options=("about −2/8", "about −2", "about −16"),
            answer=lambda result: "about −2",
            explanation="The answer: {answer}. In function space every layer's share adds up to the whole error.",
        ),
    ),
    Card(
        name="two_updates",
        title="Two updates, one function",
        message="The Fisher is singular: many updates of the weights are natural gradients, and all move the function alike.",
        controls=(
            Control("depth", "layers L", (2, 3, 5, 7), 3),
            Control("width", "hidden units", (2, 4, 6, 12), 6),
            Control("seed", "initial weights", (0, 1, 2, 3), 0),
        ),
        compute=two_updates,
        draw=draw_two_updates,
        headline=lambda result: (
            f"cosine {result['cosine']:.2f}",
            f"between the two updates of the weights; their changes of the function differ by {result['difference']:.0e}",
        ),
        caption=(
            "Each point is one entry: the formula's value against that of the shortest solution. Left, weights: off the "
            "diagonal. Right, the change of the function: on it, unless a hidden layer is a bottleneck."
        ),
        presets={"optimal": {"depth": 7, "width": 12}, "break it": {"width": 2}},
        prediction=Prediction(
            question="Two different solutions of F v = g: do they change the function in the same way?",
            options=("yes, to first order exactly", "nearly", "no"),
            answer=lambda result: "yes, to first order exactly" if result["difference"] < 1e-6 else "no",
            explanation="The answer: {answer}. Solutions differ by vectors with F v = 0, and those leave the function alone.",
        ),
    ),
    Card(
        name="learning_modes",
        title="One after the other, or all at once",
        message="Gradient flow learns strong modes first and waits on plateaus; natural gradient flow has none.",
        controls=(
            Control("flow", "flow", ("gradient", "natural gradient"), "gradient"),
            Control("layers", "layers L", (1, 2, 3, 5), 2),
            Control("initial", "initial strength", (0.001, 0.01, 0.1), 0.01),
        ),
        compute=learning_modes,
        draw=draw_learning_modes,
        headline=_modes_headline,
        caption=(
            "Learned share of four modes, with singular values from 4 to 0.5, over time. White inputs, layers aligned with the "
            "modes and balanced, where both flows have a closed form or an equation for each mode."
        ),
        presets={"optimal": {"flow": "natural gradient"}, "break it": {"layers": 5, "initial": 0.001}},
        prediction=Prediction(
            question="Two layers, gradient flow, modes of strength 4 and 0.5. How many times longer does the weak one take?",
            answer=lambda result: result["half"][-1] / result["half"][0],
            unit="times",
            explanation="About {answer} times. A mode waits about log(s/u₀)/2s, the weak one has an eighth of the strength.",
        ),
    ),
    Card(
        name="crossing",
        title="When the straight road ends",
        message="In square layers the straight line can pass a singular map, and there the weights cannot follow.",
        controls=(
            Control("seed", "initial and target map", tuple(range(10)), 0),
            Control("depth", "layers L", (2, 3, 4, 8), 2),
            Control("lr", "learning rate", (0.02, 0.05, 0.1, 0.2, 0.5), 0.05),
        ),
        compute=crossing,
        draw=draw_crossing,
        headline=_crossing_headline,
        caption=(
            "Above: excess loss of natural-gradient steps of a 4 × 4 network, with e^(−2t) dotted. Below: the smallest "
            "singular value on the straight line from the initial to the target map. Dashed: where it is zero."
        ),
        presets={"optimal": {"seed": 1}, "break it": {"seed": 0, "depth": 2, "lr": 0.02}},
        prediction=Prediction(
            question="Both maps are invertible. Is the straight line between them free of singular maps?",
            options=("yes, always", "not always"),
            answer=lambda result: "not always",
            explanation="The answer: {answer}. A determinant that changes its sign has to pass 0 on the way.",
        ),
    ),
)
