"""The diagonal of the Fisher."""

import torch
from torch import nn

from natgrad_lab.fisher.chunks import averaged, passes
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import Diagonal


def diagonal_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Diagonal:
    """The diagonal of `dense_fisher`, and nothing else of it.

    As an approximation of the whole matrix it is exact only if all parameters' scores are uncorrelated. The entries are
    exact: means of squared per-example gradients, (1/N) Σ_n Σ_k s_kni² x_na² (not squares of mean gradients).

    Args, Raises: as `dense_fisher`.
    Cost: one (C, N)(N, D) product per layer; P numbers.
    """
    each = passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return averaged(diagonal_from_scores, each)


def diagonal_from_scores(scores: ScorePass) -> Diagonal:
    """`diagonal_fisher` from a pass already made."""
    return Diagonal(torch.cat([layer.rows.diagonal() for layer in scores.layers]) / scores.num_examples, note=scores.note)
