"""The diagonal of the Fisher and the row of each unit's bias."""

import torch
from torch import nn

from natgrad_lab.fisher.chunks import averaged, passes
from natgrad_lab.fisher.scores import LayerRows, ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal, Diagonal, KhatriRaoRows, QuasiDiagonal, RowBlock, StructuredMatrix

_WORKSPACE = 1 << 25  # numbers formed at a time


def quasi_diagonal_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> BlockDiagonal:
    """Per unit the variance of each weight, of the bias, and their covariance with the bias, all exact.

    Of the unit's block M_00 = E[s²], M_0i = E[s² a_i], M_ii = E[s² a_i²] are kept; the entries between two weights are
    those that make the inverse zero there (see `structures.quasi_diagonal`), so that the undamped solve is Ollivier's
    quasi-diagonal step. It does not change with the scale and offset of any input. Exact for units with one input and a
    bias; for a layer *without bias there is no such row, and its diagonal is all that is kept*, and so it is for layers
    whose parameters are no matrix [W | b].

    Damping is exact, (M + λI)⁻¹; Ollivier's own, before the reduction, is `structures.ollivier_solve`.

    Args, Raises: as `dense_fisher`.
    Returns: one QuasiDiagonal per layer with bias, one Diagonal per other layer, in the flat order.
    Cost: as `diagonal_fisher`, twice.
    References: [Ollivier2015]; [MarceauCaron2016].
    """
    each = passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return averaged(quasi_diagonal_from_scores, each)


def quasi_diagonal_from_scores(scores: ScorePass) -> BlockDiagonal:
    """`quasi_diagonal_fisher` from a pass already made."""
    return BlockDiagonal(tuple(_block(each, scores.num_examples) for each in scores.layers), note=scores.note)


def _block(each: LayerRows, num_examples: int) -> StructuredMatrix:
    diagonal = each.rows.diagonal() / num_examples
    if not (each.layer.has_rows and each.layer.has_bias):
        return Diagonal(diagonal)
    variances = diagonal.view(each.layer.shape)
    cross = _bias_rows(each.rows, each.layer.shape[0])[:, :-1] / num_examples
    weights, bias = variances[:, :-1], variances[:, -1]
    # Rounding can leave cross² above its Cauchy-Schwarz bound, by a few units in the last place.
    bound = weights.sqrt() * bias.sqrt()[:, None]
    return QuasiDiagonal(weights.clone(), cross.clamp(-bound, bound), bias.clone())


def _bias_rows(rows: RowBlock, units: int) -> Tensor:
    """Σ_r of each unit's entries times its bias entry, (units, width)."""
    if isinstance(rows, KhatriRaoRows):
        return rows.scores.square().sum(0).mT @ (rows.inputs * rows.inputs[:, -1:])
    width = rows.shape[1] // units
    step = max(1, _WORKSPACE // (rows.shape[0] * width))
    parts = []
    for unit in range(0, units, step):
        columns = rows.columns(unit * width, min(unit + step, units) * width).unflatten(1, (-1, width))
        parts.append((columns * columns[:, :, -1:]).sum(0))
    return torch.cat(parts)
