"""Small pictures of F, of each approximation and of what is between them: root mean squares over cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from natgrad_lab.comparison.candidate import Candidate
from natgrad_lab.comparison.exact import Problem
from natgrad_lab.shapes import Float, Tensor

LARGEST = 2000  # parameters up to which pictures are made
CELLS = 120


@dataclass(frozen=True, eq=False)
class MatrixPicture:
    """RMS of matrix entries over cells, (cells, cells) float32. `layers`: (name, first cell, end) along both axes."""

    values: np.ndarray
    layers: tuple[tuple[str, float, float], ...]


def pictures(problem: Problem, candidates: Sequence[Candidate]) -> dict[str, dict[str, MatrixPicture]]:
    """By approximation: "approximation" and "difference" (F̂ - F); "exact" has "approximation" only. {} if P > 2,000."""
    if problem.layout.dim > LARGEST:
        return {}
    exact = problem.exact.matrix
    edges = torch.linspace(0, len(exact), min(CELLS, len(exact)) + 1).round().long()
    places = np.arange(len(edges))
    layers = tuple(
        (layer.name or "model", *(float(np.interp(end, edges, places)) for end in (layer.start, layer.slice.stop)))
        for layer in problem.layout.layers
    )
    made = {"exact": {"approximation": MatrixPicture(_rms(exact, edges), layers)}}
    for each in candidates:
        if each.matrix is not None:
            dense = each.matrix.to_dense().double()
            parts = {"approximation": dense, "difference": dense - exact}
            made[each.approximation.name] = {kind: MatrixPicture(_rms(m, edges), layers) for kind, m in parts.items()}
    return made


def _rms(matrix: Float[Tensor, "P P"], edges: Tensor) -> np.ndarray:
    """Root mean square over the cells between the edges."""
    widths = edges.diff()
    cell = torch.repeat_interleave(torch.arange(len(widths)), widths).to(matrix.device)
    sums = matrix.new_zeros(len(widths), matrix.shape[1]).index_add_(0, cell, matrix.square())
    sums = matrix.new_zeros(len(widths), len(widths)).index_add_(1, cell, sums)
    area = torch.outer(widths, widths).to(matrix)
    return (sums / area).sqrt().to(torch.float32).cpu().numpy()
