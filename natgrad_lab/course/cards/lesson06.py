"""Lesson 06, structured natural gradient: the same path or not, roots by iteration, landmarks, and batch normalization."""

import statistics
from functools import cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from natgrad_lab import datasets
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.course.measured import measured
from natgrad_lab.plots.style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILLION, method_colour, template
from natgrad_lab.roots import nystrom
from natgrad_lab.structures import LowRank


def subplots(columns: int, **options) -> go.Figure:
    """One row of plots in the course's style."""
    axes = template()
    figure = make_subplots(1, columns, **options).update_layout(axes)
    return figure.update_xaxes(axes["xaxis"]).update_yaxes(axes["yaxis"])


# ---- the same path?

EXAMPLES, STEPS, START, DAMPING = 40, 30, np.array([-1.0, 3.0]), 1e-3
NEVER = 1000


@cache
def logistic_data(condition: float) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (40, 2) whose second moment has that condition number, and targets 0 or 1."""
    random = np.random.default_rng(3)
    raw = random.standard_normal((EXAMPLES, 2))
    white = raw @ np.linalg.inv(np.linalg.cholesky(raw.T @ raw / EXAMPLES)).T
    angle = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    inputs = white * np.sqrt([np.sqrt(condition), 1 / np.sqrt(condition)]) @ angle.T
    return inputs, (random.random(EXAMPLES) < 1 / (1 + np.exp(-inputs @ np.array([0.8, 0.6])))).astype(float)


def loss(w: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray | float:
    """Mean nll in nats; w (..., 2)."""
    outputs = w @ inputs.T
    return (np.logaddexp(0, outputs) - targets * outputs).mean(-1)


def _gradient_and_fisher(w: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = 1 / (1 + np.exp(-inputs @ w))
    fisher = (inputs * (p * (1 - p))[:, None]).T @ inputs / len(inputs)
    return inputs.T @ (p - targets) / len(inputs), fisher + DAMPING * np.eye(2)


def natural_path(lr: float, condition: float, steps: int = STEPS) -> np.ndarray:
    """(steps + 1, 2): natural gradient descent on w."""
    points = [START]
    for _ in range(steps):
        gradient, fisher = _gradient_and_fisher(points[-1], *logistic_data(condition))
        points.append(points[-1] - lr * np.linalg.solve(fisher, gradient))
    return np.array(points)


def white_path(lr: float, condition: float, period: int, steps: int = STEPS) -> np.ndarray:
    """The same as gradient descent on w' = G^½ w, with G renewed every `period` steps; read back as w."""
    points = [START]
    for step in range(steps):
        gradient, fisher = _gradient_and_fisher(points[-1], *logistic_data(condition))
        if step % period == 0:
            values, vectors = np.linalg.eigh(fisher)
            root, inverse_root = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
            white = root @ points[-1]
        white = white - lr * inverse_root @ gradient
        points.append(inverse_root @ white)
    return np.array(points)


def drift(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Distance between two paths after each step, relative to how far `theirs` has come."""
    return np.linalg.norm(ours - theirs, axis=1)[1:] / np.linalg.norm(theirs - theirs[0], axis=1)[1:]


@cache
def _contours(condition: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = np.linspace(-1.5, 2.5, 61), np.linspace(-0.2, 3.3, 54)
    return x, y, loss(np.stack(np.meshgrid(x, y), -1), *logistic_data(condition))


def same_path(state: dict) -> dict:
    """Both paths, their distance and their losses."""
    lr, condition, period = state["lr"], state["condition"], state["period"]
    theirs, ours = natural_path(lr, condition), white_path(lr, condition, period)
    x, y, z = _contours(condition)
    losses = [float(loss(path[-1], *logistic_data(condition))) for path in (ours, theirs)]
    return {"x": x, "y": y, "z": z, "ours": ours, "theirs": theirs, "drift": drift(ours, theirs), "losses": losses,
            "furthest": float(drift(ours, theirs).max()), "period": period}  # fmt: skip


def draw_paths(result: dict) -> go.Figure:
    """Paths over the contours of the loss; drift by step."""
    titles = "paths of the two weights, over the loss", "distance of the paths"
    figure = subplots(2, subplot_titles=titles, column_widths=[0.56, 0.44], horizontal_spacing=0.14)
    shade = [[0, "rgb(235,235,235)"], [1, "rgb(150,150,150)"]]
    figure.add_contour(row=1, col=1, x=result["x"], y=result["y"], z=np.log(result["z"]), showscale=False, ncontours=14,
                       colorscale=shade, contours={"coloring": "lines"}, hoverinfo="skip", name="loss")  # fmt: skip
    colours = {"natural gradient": method_colour("exact_ngd"), "descent on w'": method_colour("sngd")}
    for name, points, width in (("natural gradient", result["theirs"], 5), ("descent on w'", result["ours"], 2)):
        figure.add_scatter(row=1, col=1, x=points[:, 0], y=points[:, 1], mode="lines+markers", name=name, showlegend=True,
                           line={"color": colours[name], "width": width}, marker={"size": width + 3})  # fmt: skip
    steps = np.arange(1, len(result["drift"]) + 1)
    figure.add_scatter(row=1, col=2, x=steps, y=np.maximum(result["drift"], 1e-17), mode="lines+markers", name="drift",
                       showlegend=False, line={"color": BLUE, "width": 3})  # fmt: skip
    figure.update_xaxes(range=[-1.5, 2.5], title={"text": "weight 1"}, row=1, col=1)
    figure.update_yaxes(range=[-0.2, 3.3], title={"text": "weight 2"}, row=1, col=1)
    figure.update_xaxes(title={"text": "steps"}, row=1, col=2)
    figure.update_yaxes(type="log", range=[-18, 1], dtick=3, title={"text": "distance / length of the way (log)"},
                        row=1, col=2)  # fmt: skip
    return figure.update_layout(width=880, height=400, showlegend=True, legend={"x": 0.5, "y": 0.98, "xanchor": "right"})


# ---- roots

CONDITIONS, ITERATIONS, SIZE = (1e1, 1e2, 1e4, 1e6, 1e8, 1e10), 16, 30
UPDATES = ("both from the old pair", "Z from the new Y")


@cache
def matrix_of_condition(condition: float, size: int = SIZE) -> torch.Tensor:
    """Symmetric, eigenvalues evenly spread over 1 … 1/condition on a log scale, float64."""
    normal = torch.randn(size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    basis, _ = torch.linalg.qr(normal)
    values = torch.logspace(0, -float(np.log10(condition)), size, dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.mT
    return (matrix + matrix.mT) / 2


def iterate(matrix: torch.Tensor, scaled: bool, update: str, iterations: int = ITERATIONS) -> dict:
    """Denman-Beavers from Y = M, Z = I: residuals after each iteration (nan once it has broken down), and the last pair."""
    dim = len(matrix)
    eye = torch.eye(dim, dtype=matrix.dtype)
    Y, Z, found = matrix, eye, {"root": [], "product": []}
    for iteration in range(iterations + 1):
        norms = (
            torch.linalg.matrix_norm(Y @ Y - matrix) / torch.linalg.matrix_norm(matrix),
            torch.linalg.matrix_norm(Y @ Z - eye),
        )
        found["root"].append(float(norms[0]))
        found["product"].append(float(norms[1]) / dim**0.5)
        if iteration == iterations:
            break
        mu = float(torch.exp(-(torch.linalg.slogdet(Y)[1] + torch.linalg.slogdet(Z)[1]) / (2 * dim))) if scaled else 1.0
        Z_inverse = torch.linalg.inv_ex(Z)[0]
        new = (mu * Y + Z_inverse / mu) / 2
        Z = (mu * Z + torch.linalg.inv_ex(Y if update == UPDATES[0] else new)[0] / mu) / 2
        Y = new
    inverse = torch.linalg.matrix_norm(Z @ matrix @ Z - eye) / dim**0.5
    return found | {"Y": Y, "Z": Z, "inverse": float(inverse)}


def roots(state: dict) -> dict:
    """Residuals by iteration."""
    matrix = matrix_of_condition(state["condition"]).to(getattr(torch, state["dtype"]))
    found = iterate(matrix, state["scaled"], state["update"])
    product = np.array(found["product"])
    with np.errstate(invalid="ignore"):
        there = np.flatnonzero(product < 1e-6)
    return {"root": np.array(found["root"]), "product": product, "inverse": found["inverse"],
            "iterations": int(there[0]) if len(there) else None}  # fmt: skip


def draw_roots(result: dict) -> go.Figure:
    """Both residuals by iteration, log scale."""
    figure = go.Figure(layout=template())
    for name, values, colour in (("‖Y² − M‖ / ‖M‖", result["root"], VERMILLION), ("‖Y Z − I‖ / √m", result["product"], BLUE)):
        shown = np.where(np.isfinite(values) & (values > 0), np.clip(values, 1e-17, 1e6), np.nan)
        figure.add_scatter(
            x=np.arange(len(values)), y=shown, mode="lines+markers", name=name, line={"color": colour, "width": 3}
        )
    figure.update_xaxes(title={"text": "iterations"}, range=[-0.3, ITERATIONS + 0.3])
    figure.update_yaxes(type="log", range=[-17.5, 6.5], dtick=3, title={"text": "residual (log)"})
    return figure.update_layout(width=760, height=380, showlegend=True, legend={"x": 0.98, "y": 0.98, "xanchor": "right"})


def _roots_headline(result: dict) -> tuple[str, str]:
    counted = f"; ‖Y Z − I‖ / √m < 1e-6 after {result['iterations']} iterations" if result["iterations"] is not None else ""
    value = f"{result['inverse']:.0e}" if np.isfinite(result["inverse"]) else "∞"
    return value, f"‖Z M Z − I‖ / √m of the inverse root after {ITERATIONS} iterations{counted}"


# ---- landmarks

COUNTS = (1, 2, 5, 10, 20, 30, 40, 50, 65)
CHOICES = ("largest first", "at random")  # the largest diagonal entry that is not yet explained
DRAWS = 8


@cache
def inputs_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
    """E[x̄ x̄ᵀ] of the 8 x 8 digits (65 x 65), and the gradient (10, 65) of a softmax on them at random weights."""
    data = datasets.digits(dtype=torch.float64)
    x = torch.cat([data.inputs, data.inputs.new_ones(len(data.inputs), 1)], 1)
    W = torch.randn(10, 65, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 8
    p = torch.softmax(x @ W.mT, 1)
    p[torch.arange(len(p)), data.targets] -= 1
    return x.mT @ x / len(x), p.mT @ x / len(x)


@cache
def stand_ins(choice: str) -> dict[int, list[tuple[LowRank, float]]]:
    """Number of landmarks → stand-ins and the share of the trace that each leaves out; several draws at random."""
    A, _ = inputs_and_gradient()
    if choice == CHOICES[0]:
        return {count: [nystrom(A, count)] for count in COUNTS}
    orders = [torch.randperm(len(A), generator=torch.Generator().manual_seed(seed)) for seed in range(DRAWS)]
    return {count: [nystrom(A, order[:count]) for order in orders] for count in COUNTS}


def _share_of_decrease(direction: torch.Tensor, gradient: torch.Tensor, A: torch.Tensor, damping: float) -> float:
    damped = A + damping * torch.eye(len(A), dtype=A.dtype)
    best = (gradient * torch.linalg.solve(damped, gradient.mT).mT).sum()
    return float((gradient * direction).sum() ** 2 / (direction * (direction @ damped)).sum() / best)


@cache
def efficiencies(choice: str, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """For every count: median efficiency of the step with the stand-in, and median share of the trace left out."""
    A, V = inputs_and_gradient()
    found = []
    for count in COUNTS:
        each = stand_ins(choice)[count]
        shares = [_share_of_decrease(low_rank.solve(V.mT, damping).mT, V, A, damping) for low_rank, _ in each]
        found.append((statistics.median(shares), statistics.median(left for _, left in each)))
    return tuple(np.array(values) for values in zip(*found, strict=True))


def landmarks(state: dict) -> dict:
    """Curves of both choices; the chosen point."""
    place = COUNTS.index(state["count"])
    curves = {choice: efficiencies(choice, state["damping"]) for choice in CHOICES}
    A, V = inputs_and_gradient()
    return {
        "curves": curves, "choice": state["choice"], "count": state["count"], "damping": state["damping"],
        "efficiency": float(curves[state["choice"]][0][place]), "left": float(curves[state["choice"]][1][place]),
        "plain": _share_of_decrease(V, V, A, state["damping"]),
    }  # fmt: skip


def draw_landmarks(result: dict) -> go.Figure:
    """Efficiency, and what the stand-in leaves out, by number of landmarks."""
    figure = subplots(2, subplot_titles=("how good the step is", "what the stand-in leaves out"), horizontal_spacing=0.16)
    for choice, colour in zip(CHOICES, (method_colour("sngd"), ORANGE), strict=True):
        chosen = choice == result["choice"]
        for column, values in enumerate(result["curves"][choice], 1):
            figure.add_scatter(row=1, col=column, x=COUNTS, y=np.where(values > 1e-12, values, np.nan), mode="lines",
                               name=choice, showlegend=column == 1, opacity=1.0 if chosen else 0.5,
                               line={"color": colour, "width": 4 if chosen else 2})  # fmt: skip
    figure.add_scatter(row=1, col=1, x=[result["count"]], y=[result["efficiency"]], mode="markers", name="chosen",
                       marker={"size": 13, "color": BLACK, "symbol": "circle-open", "line": {"width": 3}})  # fmt: skip
    figure.add_hline(result["plain"], line={"color": GREY, "dash": "dash"}, row=1, col=1)
    figure.add_annotation(row=1, col=1, x=65, y=result["plain"], text="plain gradient", showarrow=False, yshift=9,
                          xanchor="right", font={"color": GREY})  # fmt: skip
    figure.update_xaxes(title={"text": "landmarks, of 65 columns"}, row=1, col=1)
    figure.update_xaxes(title={"text": "landmarks, of 65 columns"}, row=1, col=2)
    figure.update_yaxes(title={"text": "share of the possible decrease"}, range=[0, 1.03], row=1, col=1)
    figure.update_yaxes(type="log", dtick=1, range=[-7, 0.2], title={"text": "share of the trace (log)"}, row=1, col=2)
    return figure.update_layout(width=880, height=380, showlegend=True, legend={"x": 0.17, "y": 0.17, "yanchor": "bottom"})


# ---- local Fisher layers or batch normalization

ENTRANTS = {"sgd": ("SGD", ORANGE), "SGD + BatchNorm": ("SGD + BatchNorm", SKY), "SNGD": ("SNGD", method_colour("sngd")),
            "RNGD (as released)": ("RNGD, the released code", method_colour("rngd"))}  # fmt: skip
AXES = {"updates": "updates of the parameters", "seconds": "CPU seconds of the steps"}
SEEDS = ("median of five", "1", "2", "3", "4", "5")


def final_ratios(entrant: str, baseline: str) -> list[float]:
    """Training loss over the baseline's after the last update, a number a seed."""
    curves = measured("sngd_races")["curves"]
    return [a["errors"][-1] / b["errors"][-1] for a, b in zip(curves[entrant], curves[baseline], strict=True)]


def batch_norm_race(state: dict) -> dict:
    """Curves of one seed, or medians."""
    curves = {}
    for key in ENTRANTS if state["released"] else list(ENTRANTS)[:3]:
        runs = measured("sngd_races")["curves"][key]
        runs = runs if state["seed"] == SEEDS[0] else [runs[int(state["seed"]) - 1]]
        axis = [statistics.median(values) for values in zip(*(run[state["axis"]] for run in runs), strict=True)]
        errors = [statistics.median(values) for values in zip(*(run["errors"] for run in runs), strict=True)]
        curves[key] = (np.array(axis[1:]), np.array(errors[1:]))
    ratios = final_ratios("SNGD", "SGD + BatchNorm")
    ratio = statistics.median(ratios) if state["seed"] == SEEDS[0] else ratios[int(state["seed"]) - 1]
    return {"curves": curves, "axis": state["axis"], "ratio": ratio}


def draw_batch_norm(result: dict) -> go.Figure:
    """Training loss, both axes log."""
    figure = go.Figure(layout=template())
    for key, (x, y) in result["curves"].items():
        name, colour = ENTRANTS[key]
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line={"color": colour, "width": 4 if key == "SNGD" else 2.5})
    figure.update_xaxes(type="log", dtick=1, title={"text": AXES[result["axis"]] + " (log)"})
    figure.update_yaxes(type="log", dtick=1, title={"text": "training loss, nats (log)"})
    return figure.update_layout(width=760, height=400, showlegend=True, legend={"x": 0.02, "y": 0.02, "yanchor": "bottom"})


CARDS = (
    Card(
        name="same_path",
        title="The same path?",
        message="Gradient descent on w' = G^½ w is natural gradient descent on w, as long as G is the Fisher of this moment.",
        controls=(
            Control("period", "T: steps for which G is kept", (1, 2, 5, 10, NEVER), 5),
            Control("lr", "learning rate", (0.05, 0.1, 0.2, 0.4), 0.1),
            Control("condition", "condition number of the inputs", (1.0, 10.0, 100.0), 10.0),
        ),
        compute=same_path,
        draw=draw_paths,
        headline=lambda result: (
            f"{100 * result['furthest']:.1f} %" if result["furthest"] > 1e-3 else f"{result['furthest']:.0e}",
            f"is how far the paths get apart, relative to the way; after {STEPS} steps the losses are "
            f"{result['losses'][0]:.4f} and {result['losses'][1]:.4f} nats",
        ),
        caption=(
            "Left: the two weights of a logistic regression on their way over the contours of the loss, by natural "
            "gradient descent (thick) and by gradient descent on w' (thin). Right: their distance relative to the way, log "
            "scale. With T = 1 it is rounding; with any other T the paths part at the second step."
        ),
        presets={"optimal": {"period": 1}, "break it": {"period": NEVER, "lr": 0.4, "condition": 1.0}},
        prediction=Prediction(
            question="G is kept for 5 steps, then renewed. How far do the two paths get apart, in percent of the way?",
            answer=lambda result: round(100 * result["furthest"], 1),
            unit="%",
            explanation="They get {answer} % apart. G^½ is a constant only until G is renewed, and a G of five steps ago "
            "is the Fisher of other weights.",
        ),
    ),
    Card(
        name="root_finder",
        title="A root without eigenvectors",
        message="Averaging a matrix with the inverse of its partner converges to the square root, and fast.",
        controls=(
            Control("condition", "condition number", CONDITIONS, 1e4),
            Control("dtype", "precision", ("float32", "float64"), "float64"),
            Control("scaled", "scale in every iteration", (False, True), False),
            Control("update", "new Y and Z", UPDATES, UPDATES[0]),
        ),
        compute=roots,
        draw=draw_roots,
        headline=_roots_headline,
        caption=(
            "Residuals of the Denman-Beavers iteration for a 30 x 30 matrix M, log scale, against iterations. Orange: how "
            "far Y² is from M; blue: how far Y Z is from I. After a slow start both fall quadratically, down to rounding."
        ),
        presets={
            "optimal": {"scaled": True},
            "break it": {"update": UPDATES[1]},
            "too coarse": {"dtype": "float32", "condition": 1e8},
        },
        prediction=Prediction(
            question="How many iterations until ‖Y Z − I‖ / √m is below 1e-6, for a condition number of 10,000?",
            answer=lambda result: result["iterations"],
            unit="iterations",
            explanation="It takes {answer}. Most of them bring the extreme eigenvalues near 1, one factor of 2 at a time; "
            "the last few double the digits each. Scaling shortens the first part.",
        ),
    ),
    Card(
        name="nystrom_rank",
        title="How many landmarks?",
        message="A few columns of a matrix can stand in for all of it, if the damping covers what they leave out.",
        controls=(
            Control("count", "landmarks", COUNTS, 10),
            Control("choice", "chosen", CHOICES, CHOICES[0]),
            Control("damping", "damping λ", (1e-4, 1e-3, 1e-2, 1e-1), 1e-2),
        ),
        compute=landmarks,
        draw=draw_landmarks,
        headline=lambda result: (
            f"{100 * result['efficiency']:.0f} %",
            f"of the decrease that the full 65 x 65 matrix promises, with {result['count']} landmarks; "
            f"{100 * result['left']:.2g} % of the trace is left out",
        ),
        caption=(
            "Left: share of the possible decrease that a step with the stand-in reaches, against the number of landmarks; "
            "dashed: a plain gradient step. Right: share of the trace that the stand-in leaves out, log scale. Landmarks "
            "chosen one by one (purple) need far fewer than random ones (orange)."
        ),
        presets={"optimal": {"count": 40}, "break it": {"count": 2, "damping": 1e-4}},
        prediction=Prediction(
            question="10 of 65 columns, damping 0.01: what percentage of the full matrix' decrease does the step reach?",
            answer=lambda result: round(100 * result["efficiency"]),
            unit="%",
            explanation="It reaches {answer} %. Directions that no landmark explains get the gradient divided by λ alone, "
            "and that is too much where their variance is above λ.",
        ),
    ),
    Card(
        name="fisher_layer_or_batch_norm",
        title="Fisher layers or batch normalization",
        message="Two ways to make a layer's inputs behave: which one trains faster, in updates and in seconds?",
        controls=(
            Control("axis", "count", tuple(AXES), "updates"),
            Control("seed", "seed", SEEDS, SEEDS[0]),
            Control("released", "with the released code", (False, True), False),
        ),
        compute=batch_norm_race,
        draw=draw_batch_norm,
        headline=lambda result: (
            f"{result['ratio']:.2f} times",
            "the loss of SGD with batch normalization is what SNGD ends at, after equally many updates",
        ),
        caption=(
            "Training loss (log) of a perceptron 64-40-40-40-10 on digits against updates or CPU seconds (log). SNGD is "
            "below SGD with batch normalization, which is below SGD, at equal updates; in seconds the first two change "
            "places."
        ),
        presets={"optimal": {"axis": "updates"}, "break it": {"axis": "seconds"}},
        prediction=Prediction(
            question="At equal updates: which order do the final training losses have, lowest first?",
            options=("SNGD, batch normalization, SGD", "batch normalization, SNGD, SGD", "SNGD, SGD, batch normalization"),
            answer=lambda result: "SNGD, batch normalization, SGD",
            explanation="The order: {answer}, in five seeds of five. Ask again for seconds.",
        ),
    ),
)
