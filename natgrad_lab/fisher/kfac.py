"""Kronecker-factored approximate curvature: layer blocks G ⊗ A."""

import torch
from torch import nn

from natgrad_lab.fisher.layers import kronecker_factors, rule_for
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal


def kfac_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> BlockDiagonal:
    """K-FAC: one Kronecker product G ⊗ A per layer.

    A layer's exact block is E[ssᵀ ⊗ aaᵀ], a its homogeneous input and s the score at its output; K-FAC takes
    E[ssᵀ] ⊗ E[aaᵀ]. The block is exact for a single example, and for deep linear networks with a Gaussian likelihood
    ("exact" scores there do not depend on the example); everything between layers is dropped.

    Args, Raises: as `dense_fisher`.
    Returns: one Kronecker per layer in the flat order, left G (out, out), right A (in + 1, in + 1) with bias.
    Cost: one forward and K backward passes; O(in² + out²) numbers per layer.
    References: [MartensGrosse2015] sec. 3.
    """
    return kfac_from_scores(score_pass(model, likelihood, inputs, fisher_type, targets, num_samples, generator))


def kfac_from_scores(scores: ScorePass) -> BlockDiagonal:
    """`kfac_fisher` from a pass already made."""
    return BlockDiagonal(
        tuple(rule_for(kronecker_factors, row.layer)(row.layer.module, row.layer, row.rows) for row in scores.layers)
    )
