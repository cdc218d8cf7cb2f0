"""What the training panel shows, as a pure function of a model and some choices: no widget, no thread, no training."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.metrics import condition_number, numerical_rank
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.heatmap import fisher_picture
from natgrad_lab.shapes import Float, Tensor

MOST_PARAMETERS = 12_000
WHOLE = "whole"
WHOLE_SIZE, BLOCK_SIZE = 300, 400  # cells a side; 330 parameters, the default net's last layer, fit one by one


@dataclass(frozen=True, eq=False)
class ProbeFisher:
    """The exact Fisher of the probe examples: all of it for the picture, and its spectrum.

    `matrix` (P, P) is in float32, for looking at. `eigenvalues`, descending, come from the Gram matrix in float64: all
    that can be nonzero.
    """

    layout: ParameterLayout
    matrix: Float[Tensor, "P P"]
    eigenvalues: Float[Tensor, " r"]


def probe_fisher(model: nn.Module, likelihood: Likelihood, inputs: Tensor, *, out: Tensor | None = None) -> ProbeFisher:
    """Exact Fisher of `inputs` by one pass in float64 on a copy of `model`, which is left alone.

    Args: out: a (P, P) float32 buffer to write into.
    Raises: ValueError if the dense picture would be too large; as `score_pass`.
    """
    layout = ParameterLayout(model)
    if layout.dim > MOST_PARAMETERS:
        raise ValueError(
            f"the live picture forms the dense Fisher of {layout.dim:,} parameters ({layout.dim**2 * 4 / 1e9:.1f} GB) for "
            f"every frame; it takes up to {MOST_PARAMETERS:,}. Use a smaller network, or freeze layers with "
            "requires_grad_(False)."
        )
    double = copy.deepcopy(model).double()
    # the first look at a model (no buffer yet) also checks that what is captured is its whole gradient
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    scores = score_pass(double, likelihood, inputs, verify=out is None)
    eigenvalues = gram_from_scores(scores).eigvalsh().flip(0)
    rows = [layer.rows.map(lambda tensor: tensor.float()) for layer in scores.layers]
    return ProbeFisher(layout, contract(rows, scores.num_examples, out), eigenvalues)


def compute(state: dict[str, Any]) -> dict[str, Any]:
    """What the panel shows.

    Args:
        state: "model", "likelihood", "inputs" (the probe examples), "scale" (a key of `plots.SCALES`), "damping", and
            optionally "picture" ("whole", or names of two layers) and "fisher" (a `ProbeFisher` of the same model and
            inputs, if there is one already).
    Returns:
        "picture", "layout", "eigenvalues" (descending, numpy), "rank", "dim", "condition_number" (largest over smallest
        nonzero eigenvalue), "damped_condition_number" (of F + damping I; infinite for 0).
    """
    fisher = state.get("fisher") or probe_fisher(state["model"], state["likelihood"], state["inputs"])
    part = state.get("picture", WHOLE)
    rows, columns = _part(fisher.layout, part)
    size = WHOLE_SIZE if part == WHOLE and fisher.layout.dim > BLOCK_SIZE else BLOCK_SIZE
    picture = fisher_picture(fisher.matrix.cpu().numpy(), state["scale"], rows=rows, columns=columns, size=size)
    dim, damping = fisher.layout.dim, float(state["damping"])
    is_zero = not bool(fisher.eigenvalues.max() > 0)
    return {
        "picture": picture,
        "layout": fisher.layout,
        "eigenvalues": fisher.eigenvalues.cpu().numpy(),
        "rank": 0 if is_zero else numerical_rank(fisher.eigenvalues),
        "dim": dim,
        "condition_number": float("nan") if is_zero else condition_number(fisher.eigenvalues, "nonzero", dim=dim),
        "damped_condition_number": damped_condition_number(fisher.eigenvalues, damping, dim),
    }


def damped_condition_number(eigenvalues: Tensor | np.ndarray, damping: float, dim: int) -> float:
    """Condition number of F + damping I; infinite if that is singular."""
    values = torch.as_tensor(eigenvalues)
    if damping <= 0 and (len(values) < dim or numerical_rank(values) < dim):
        return float("inf")
    return condition_number(values, "damped", damping, dim=dim)


def picture_choices(layout: ParameterLayout) -> list[tuple[str, Any]]:
    """(label, choice) of the parts of the Fisher that can be looked at."""
    names = [(layer.name or "model", layer) for layer in layout.layers]
    parts = [(f"whole, {layout.dim:,} × {layout.dim:,}", WHOLE)]
    if len(names) == 1:
        return parts
    for i, (row, first) in enumerate(names):
        for column, second in names[i:]:
            parts.append((f"layer {row} × layer {column}, {first.size:,} × {second.size:,}", (first.name, second.name)))
    return parts


def _part(layout: ParameterLayout, choice) -> tuple[slice, slice]:
    if choice == WHOLE:
        return slice(0, layout.dim), slice(0, layout.dim)
    slices = {layer.name: layer.slice for layer in layout.layers}
    unknown = [name for name in choice if name not in slices]
    if unknown:
        raise ValueError(f"the model has no layer {unknown[0]!r}; its layers are {', '.join(map(repr, slices))}.")
    return slices[choice[0]], slices[choice[1]]
