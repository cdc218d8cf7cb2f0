"""Lesson 02, one matrix, five recipes: exact, sampled and empirical Fisher, Gauss-Newton, Hessian.

All but the Hessian are (1/N) Σ_n J_nᵀ Λ_n J_n with the same Jacobians; only the (C, C) matrix Λ_n of the outputs differs.
"""

from dataclasses import dataclass
from functools import cache
from numbers import Real

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import nn
from torch.func import functional_call

from natgrad_lab import datasets, likelihoods, metrics, models
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.fisher import score_pass
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.heatmap import SCALES, fisher_picture, grid_lines
from natgrad_lab.plots.style import EXACT, GREY, VERMILLION, colorscale, method_colour, template
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Dense

F64 = torch.float64
NETWORKS = {"6-8-8-4": (6, 8, 8, 4), "6-20-4": (6, 20, 4), "8-8-8-8-4": (8, 8, 8, 8, 4)}
STEPS = (0, 20, 200)
SAMPLES = {f"sampled labels, {count} each": count for count in (1, 10, 100, 1000)}
RECIPES = ("exact Fisher", "Gauss-Newton", *SAMPLES, "empirical Fisher", "Hessian")
DAMPING = 1e-2


@dataclass(frozen=True)
class Stage:
    """The network after some steps: Jacobians (N, C, P) in the flat order, logits (N, C), labels (N,), gradient (P,)."""

    model: nn.Module
    inputs: Tensor
    jacobian: Float[Tensor, "N C P"]
    logits: Float[Tensor, "N C"]
    targets: Tensor
    gradient: Float[Tensor, " P"]
    loss: float


def blobs(inputs: int) -> datasets.Dataset:
    """400 points of four overlapping classes, each input with mean 0 and deviation 1."""
    data = datasets.gaussian_blobs(400, 4, inputs, separation=0.7, seed=0, dtype=F64)
    x = data.inputs
    return datasets.Dataset(
        data.name, (x - x.mean(0)) / x.std(0), data.targets, data.classes, source=data.source, licence="CC0"
    )


def jacobian(model: nn.Module, inputs: Tensor) -> Float[Tensor, "N C P"]:
    """∂ outputs / ∂ parameters, in the flat order: with variance 1 the scores of a Gaussian's root are the outputs' own."""
    passed = score_pass(model, likelihoods.Gaussian(), inputs)
    rows = torch.cat([layer.rows.rows(0, passed.num_scores * len(inputs)) for layer in passed.layers], 1)
    return rows.view(passed.num_scores, len(inputs), -1).transpose(0, 1)


@cache
def stages(network: str) -> dict[int, Stage]:
    """Train by gradient descent (learning rate 0.5), looking after each number of `STEPS`."""
    data = blobs(NETWORKS[network][0])
    model = models.mlp(NETWORKS[network], "tanh", generator=torch.Generator().manual_seed(0), dtype=F64)
    parameters, found = list(model.parameters()), {}
    for step in range(max(STEPS) + 1):
        loss = nn.functional.cross_entropy(model(data.inputs), data.targets)
        if step in STEPS:
            found[step] = _stage(network, step, model, data, float(loss.detach()))
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 0.5 * gradient
    return found


def _stage(network: str, step: int, model: nn.Module, data: datasets.Dataset, loss: float) -> Stage:
    kept = models.mlp(NETWORKS[network], "tanh", dtype=F64)
    kept.load_state_dict(model.state_dict())
    logits, J = kept(data.inputs).detach(), jacobian(kept, data.inputs)
    errors = logits.softmax(1) - nn.functional.one_hot(data.targets, logits.shape[1])
    gradient = torch.einsum("ncp,nc->p", J, errors) / len(errors)
    return Stage(kept, data.inputs, J, logits, data.targets, gradient, loss)


def output_matrices(stage: Stage, recipe: str, seed: int = 0) -> Float[Tensor, "N C C"]:
    """Λ_n of a recipe (not the Hessian, which has none)."""
    p = stage.logits.softmax(1)
    if recipe in ("exact Fisher", "Gauss-Newton"):
        return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    if recipe == "empirical Fisher":
        labels = stage.targets.unsqueeze(0)
    else:
        labels = likelihoods.Categorical().sample(stage.logits, SAMPLES[recipe], torch.Generator().manual_seed(seed))
    shares = nn.functional.one_hot(labels, p.shape[1]).to(F64).mean(0)  # (N, C): how often each label came up
    outer = p.unsqueeze(2) * shares.unsqueeze(1)
    return torch.diag_embed(shares) - outer - outer.mT + p.unsqueeze(2) * p.unsqueeze(1)  # the mean of (e_y − p)(e_y − p)ᵀ


def from_outputs(J: Float[Tensor, "N C P"], matrices: Float[Tensor, "N C C"]) -> Float[Tensor, "P P"]:
    """(1/N) Σ_n J_nᵀ Λ_n J_n."""
    return J.flatten(0, 1).mT @ (matrices @ J).flatten(0, 1) / len(J)


def hessian(stage: Stage) -> Float[Tensor, "P P"]:
    """Second derivative of the mean loss, in the flat order."""
    layout, names = ParameterLayout(stage.model), [name for name, _ in stage.model.named_parameters()]
    shapes = [p.shape for p in stage.model.parameters()]

    def loss(vector):
        parts = [part.view(shape) for part, shape in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True)]
        outputs = functional_call(stage.model, dict(zip(names, parts, strict=True)), (stage.inputs,))
        return nn.functional.cross_entropy(outputs, stage.targets)

    at = torch.nn.utils.parameters_to_vector(stage.model.parameters()).detach()
    H = torch.autograd.functional.hessian(loss, at, vectorize=True)
    return layout.from_torch(layout.from_torch(H).mT)


@cache
def matrix(network: str, steps: int, recipe: str) -> Float[Tensor, "P P"]:
    """The matrix of a recipe."""
    stage = stages(network)[steps]
    if recipe == "Hessian":
        return hessian(stage)
    return from_outputs(stage.jacobian, output_matrices(stage, recipe))


@cache
def numbers(network: str, steps: int, recipe: str) -> dict[str, Real]:
    """How far a recipe's matrix is from the exact one, and how good the step is that it gives."""
    stage, exact, mine = stages(network)[steps], matrix(network, steps, "exact Fisher"), matrix(network, steps, recipe)
    eye = torch.eye(len(mine), dtype=F64)
    step, best = (torch.linalg.solve(each + DAMPING * eye, stage.gradient) for each in (mine, exact))
    values = torch.linalg.eigvalsh((mine + mine.mT) / 2)
    level = len(values) * 2.2e-16 * float(values.abs().max())
    return {
        "error": metrics.relative_error(mine, exact), "trace": float(mine.trace() / exact.trace()),
        "rank": int((values.abs() > level).sum()), "negative": int((values < -level).sum()),
        "largest_over_mean": float(values.max() / values.abs().mean()),
        "efficiency": metrics.efficiency(step, stage.gradient, Dense(exact), DAMPING),
        "cosine": metrics.direction_cosine(step, best),
    }  # fmt: skip


def fisher_recipes(state: dict) -> dict:
    """A picture of the recipe's matrix on the colours of the exact one, its spectrum, and the numbers."""
    network, steps, recipe = state["network"], state["steps"], state["recipe"]
    mine, exact = (matrix(network, steps, name).numpy() for name in (recipe, "exact Fisher"))
    picture, reference = (fisher_picture(each, state["scale"], size=len(each)) for each in (mine, exact))
    layers = grid_lines(ParameterLayout(stages(network)[steps].model), picture.row_edges)["layers"]
    cells, (low, high) = picture.values, reference.limits
    if not picture.scale.signed:
        cells, low, high = np.log10(np.maximum(cells, low)), np.log10(low), np.log10(high)
    return {
        "recipe": recipe, "scale": state["scale"], "cells": cells.astype(np.float32), "limits": (float(low), float(high)),
        "layers": layers, "eigenvalues": np.linalg.eigvalsh((mine + mine.T) / 2)[::-1],
        "exact_eigenvalues": np.linalg.eigvalsh(exact)[::-1], "size": len(mine), **numbers(network, steps, recipe),
    }  # fmt: skip


def _layer_axis(figure, axis: str, layers: list, column: int, title: str) -> None:
    ticks = {
        "tickvals": [(start + stop) / 2 for start, stop, _ in layers], "ticktext": [f"layer {name}" for *_, name in layers],
        "title": {"text": title}, "showgrid": False, "constrain": "domain",
    }  # fmt: skip
    update = figure.update_xaxes if axis == "x" else figure.update_yaxes
    update(ticks, row=1, col=column)
    for start, *_ in layers[1:]:
        (figure.add_vline if axis == "x" else figure.add_hline)(start, line={"color": "white", "width": 1}, row=1, col=column)


def _draw_recipes(result: dict) -> go.Figure:
    scale = SCALES[result["scale"]]
    figure = make_subplots(1, 2, column_widths=[0.55, 0.45], horizontal_spacing=0.22)
    figure.update_layout(template())
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.update(template()["xaxis"])
    low, high = result["limits"]
    title = scale.title if scale.signed else f"log₁₀ {scale.title.partition(',')[0]}"
    figure.add_heatmap(
        z=result["cells"], zmin=low, zmax=high, colorscale=colorscale(scale.colours), name=result["recipe"], x0=0.5, y0=0.5,
        colorbar={"title": {"text": title, "side": "top"}, "thickness": 12, "x": 0.44, "len": 0.9},
        hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    _layer_axis(figure, "x", result["layers"], 1, "parameter j")
    _layer_axis(figure, "y", result["layers"], 1, "parameter i")
    figure.update_yaxes(autorange="reversed", scaleanchor="x", row=1, col=1)
    place = np.arange(1, result["size"] + 1)
    line = {"color": GREY, "width": 2, "dash": "dash"}
    floor = 1e-9
    for name, values, style in (
        ("exact", result["exact_eigenvalues"], {"mode": "lines", "line": line}),
        ("this recipe", result["eigenvalues"], {"mode": "markers", "marker": {"color": EXACT, "size": 4}}),
        (
            "this recipe, negative (size)",
            -result["eigenvalues"],
            {"mode": "markers", "marker": {"color": VERMILLION, "size": 4}},
        ),
    ):
        shown = values > floor
        figure.add_scatter(x=place[shown], y=values[shown], name=name, **style, row=1, col=2)
    figure.update_xaxes(title_text="eigenvalue, from the largest", row=1, col=2)
    figure.update_yaxes(title_text="its value", type="log", dtick=1, row=1, col=2)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "x": 0.5}, width=860, height=430)
    return figure


def _recipe_headline(result: dict) -> tuple[str, str]:
    negative = f", {result['negative']} of them negative" if result["negative"] else ""
    return f"{100 * result['error']:.3g} %", (
        f"away from the exact Fisher (Frobenius); trace × {result['trace']:.2f}; rank {result['rank']} of {result['size']}"
        f"{negative}; largest eigenvalue {result['largest_over_mean']:.0f} × the mean; its step at λ = {DAMPING:g} reaches "
        f"{100 * result['efficiency']:.0f} % of the possible fall (cosine {result['cosine']:.2f})"
    )


# ---- where did N go?

EIGENVALUES = np.geomspace(1e-4, 1.0, 41)
GRADIENTS = {"mean over examples": lambda N: 1.0, "sum over examples": lambda N: N}
FISHERS = {
    "mean of outer products": lambda N: 1.0,
    "sum of outer products": lambda N: N,
    "squares of gradients of the mean loss, summed": lambda N: 1 / N,
    "squares of gradients of the mean loss, averaged": lambda N: 1 / N**2,
}
DAMPINGS = {"λ": lambda N: 1.0, "N λ": lambda N: N}
WANTED = 1e-2  # the damping that is meant


def where_did_n_go(state: dict) -> dict:
    """For each eigenvalue s of F: what the step is multiplied by, where 1 / (s + λ) is right."""
    N = float(state["examples"])
    gradient, fisher, damping = GRADIENTS[state["gradient"]](N), FISHERS[state["fisher"]](N), DAMPINGS[state["damping"]](N)
    yours = gradient / (fisher * EIGENVALUES + damping * WANTED)
    right = 1 / (EIGENVALUES + WANTED)
    return {
        "N": int(N), "yours": yours, "right": right, "worst": float(np.exp(np.abs(np.log(yours / right)).max())),
        "factor": gradient / fisher, "damping": damping * WANTED / fisher,
    }  # fmt: skip


def _draw_n(result: dict) -> go.Figure:
    figure = go.Figure(layout=template())
    for name, values, colour, dash in (
        ("as meant", result["right"], GREY, "dash"), ("as written", result["yours"], method_colour("exact_ngd"), "solid"),
    ):  # fmt: skip
        line = {"color": colour, "dash": dash, "width": 3}
        figure.add_scatter(x=EIGENVALUES, y=values, name=name, mode="lines", line=line)
    figure.update_layout(showlegend=True, legend={"x": 0.05, "y": 0.1, "bgcolor": "rgba(0,0,0,0)"})
    figure.update_xaxes(title_text="eigenvalue s of the Fisher", type="log", dtick=1)
    figure.update_yaxes(title_text="the gradient is multiplied by", type="log", dtick=1)
    return figure


# ---- the order of a Kronecker product


@cache
def kronecker_order(examples: int, order: str) -> dict:
    """The exact block of the middle layer (8 units, 8 inputs and a 1) beside a product of its two factors."""
    stage = stages("6-8-8-4")[20]
    passed = score_pass(stage.model, likelihoods.Categorical(), stage.inputs[:examples])
    rows = passed.layers[1].rows
    scores, inputs = rows.scores.flatten(0, 1), rows.inputs
    G, A = scores.mT @ scores / examples, inputs.mT @ inputs / examples
    each = rows.rows(0, passed.num_scores * examples)
    exact = each.mT @ each / examples
    product = torch.kron(G, A) if order == "G ⊗ A" else torch.kron(A.contiguous(), G.contiguous())
    return {
        "exact": exact.numpy(), "product": product.numpy(), "error": metrics.relative_error(product, exact), "order": order,
        "sorted": float(np.abs(np.sort(product.flatten()) - np.sort(torch.kron(G, A).flatten())).max()),
    }  # fmt: skip


def _draw_order(result: dict) -> go.Figure:
    figure = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=("exact block", result["order"]))
    figure.update_layout(template())
    figure.update_annotations(font_size=13)
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.update(template()["xaxis"], showgrid=False)
    limit = float(np.quantile(np.abs(result["exact"]), 0.995))
    for column, name in enumerate(("exact", "product"), 1):
        figure.add_heatmap(
            z=result[name].astype(np.float32), zmin=-limit, zmax=limit, colorscale=colorscale("diverging"), name=name,
            colorbar={"title": {"text": "entry", "side": "right"}, "thickness": 12}, showscale=column == 2, row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text="parameter j of the layer", constrain="domain", row=1, col=column)
        figure.update_yaxes(
            title_text="parameter i of the layer", autorange="reversed", scaleanchor=f"x{column}", constrain="domain", row=1,
            col=column,
        )  # fmt: skip
    return figure.update_layout(width=820, height=400)


CARDS = (
    Card(
        name="fisher_recipes",
        title="One matrix, five recipes",
        message="Exact, Gauss-Newton, sampled, empirical, Hessian: which of them are the same matrix?",
        controls=(
            Control("recipe", "recipe", RECIPES, "empirical Fisher"),
            Control("steps", "training steps", STEPS, 0),
            Control("scale", "colours", tuple(SCALES), "log"),
            Control("network", "network", tuple(NETWORKS), "6-8-8-4"),
        ),
        compute=fisher_recipes,
        draw=_draw_recipes,
        headline=_recipe_headline,
        caption=(
            "Left: the entries of the recipe's matrix, layer by layer, in the colours of the exact one. Right: its eigenvalues "
            "from the largest down, logarithmic, over those of the exact Fisher (dashed)."
        ),
        presets={
            "optimal": {"recipe": "exact Fisher"},
            "break it": {"recipe": "Hessian", "steps": 0},
            "one draw": {"recipe": RECIPES[2]},
        },
        prediction=Prediction(
            question="Before training we put the labels of the data where the Fisher has labels drawn from the model. By how "
            "many percent does the matrix change?",
            answer=lambda r: round(100 * r["error"]),
            unit="percent",
            explanation="By {answer} percent, in the Frobenius norm. One label drawn from the model for each example "
            "does better.",
        ),
    ),
    Card(
        name="where_did_n_go",
        title="Where did N go?",
        message="Sums and means multiply the step or the damping by N: harmless together, fatal alone.",
        controls=(
            Control("examples", "examples N", (1, 10, 100, 1000), 100),
            Control("gradient", "gradient", tuple(GRADIENTS), "mean over examples"),
            Control("fisher", "Fisher", tuple(FISHERS), "squares of gradients of the mean loss, summed"),
            Control("damping", "damping added", tuple(DAMPINGS), "λ"),
        ),
        compute=where_did_n_go,
        draw=_draw_n,
        headline=lambda r: (
            f"{r['worst']:,.3g} ×",
            f"too long or too short in the worst direction; as if the step were multiplied by {r['factor']:.3g} and the "
            f"damping were {r['damping']:.3g} instead of {WANTED:g}",
        ),
        caption=(
            "For each eigenvalue of the Fisher, the number by which the gradient is multiplied along its eigenvector; both "
            "axes logarithmic. Dashed: 1 / (s + λ), as meant. Solid: what these sums and means give."
        ),
        presets={
            "optimal": {"fisher": "mean of outer products"},
            "break it": {"fisher": "squares of gradients of the mean loss, averaged", "examples": 1000},
            "all sums": {"gradient": "sum over examples", "fisher": "sum of outer products", "damping": "N λ"},
        },
        prediction=Prediction(
            question="A program adds up the squares of gradients of the mean loss over 100 examples and calls the result the "
            "Fisher. What damping does it in effect use if λ is 0.01?",
            answer=lambda r: r["damping"],
            unit="",
            explanation="In effect {answer}: its Fisher is too small by 1/100, so λ is a hundred times as strong beside it.",
        ),
    ),
    Card(
        name="kronecker_order",
        title="The right entries in the wrong order",
        message="The order of a Kronecker product must be that in which the weights were written into a vector.",
        controls=(
            Control("order", "product", ("A ⊗ G", "G ⊗ A"), "A ⊗ G"),
            Control("examples", "examples N", (1, 10, 100, 400), 400),
        ),
        compute=lambda state: kronecker_order(state["examples"], state["order"]),
        draw=_draw_order,
        headline=lambda r: (
            f"{100 * r['error']:.3g} %" if r["error"] > 1e-12 else "0 %", "away from the exact block of the layer (Frobenius)",
        ),
        caption=(
            "Left: the exact Fisher block of a layer with 8 units and 9 inputs. Right: a Kronecker product of the two factors "
            "of the layer, inputs A (9 by 9) and scores G (8 by 8)."
        ),
        presets={"optimal": {"order": "G ⊗ A", "examples": 1}, "break it": {"order": "A ⊗ G", "examples": 1}},
        prediction=Prediction(
            question="For a single example the block of a layer is exactly a Kronecker product. Weights are written row by row "
            "(unit by unit). Which product is it?",
            options=("G ⊗ A: units outside, inputs inside", "A ⊗ G: inputs outside, units inside"),
            answer=lambda r: "G ⊗ A: units outside, inputs inside",
            explanation="The answer: {answer}. Parameters of one unit stand together, and their block is a multiple of A.",
        ),
    ),
)  # fmt: skip
