"""The Fisher as RᵀR with its N·K rows kept in factors: exact at any number of parameters."""

import torch
from torch import nn

from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import Gram


def gram_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Gram:
    """The same matrix as `dense_fisher`, held as RᵀR with R = SᵀJ / √N of K·N rows that are never formed.

    The (KN, KN) Gram matrix R Rᵀ = Σ_l (A_l A_lᵀ) ∘ (G_l G_lᵀ) / N has the same nonzero eigenvalues as the Fisher, and
    damped solves need only it: cheaper than dense as soon as K·N < P, and exact where a dense Fisher would not fit.

    Args, Raises: as `dense_fisher`.
    Cost: memory of one backward pass with K vectors; (KN)² Σ_l (in_l + out_l) operations for the Gram matrix.
    """
    return gram_from_scores(score_pass(model, likelihood, inputs, fisher_type, targets, num_samples, generator))


def gram_from_scores(scores: ScorePass) -> Gram:
    """`gram_fisher` from a pass already made."""
    root = scores.num_examples**0.5
    return Gram(tuple(layer.rows.scaled(1 / root) for layer in scores.layers), note=scores.note)
