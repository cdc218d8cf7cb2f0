"""The layer blocks of the Fisher, exact, with zeros between layers."""

import torch
from torch import nn

from natgrad_lab.fisher.chunks import averaged, passes
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal, Dense


def block_diagonal_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> BlockDiagonal:
    """The blocks of `dense_fisher` on the diagonal, one dense block per layer; everything between layers is dropped.

    Exact for a network of one layer. Also the yardstick for K-FAC, which approximates these blocks.

    Args, Raises: as `dense_fisher`.
    Cost: N Σ_l P_l² operations, Σ_l P_l² numbers.
    """
    each = passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return averaged(block_diagonal_from_scores, each)


def block_diagonal_from_scores(scores: ScorePass) -> BlockDiagonal:
    """`block_diagonal_fisher` from a pass already made."""
    blocks = (Dense(contract([layer.rows], scores.num_examples)) for layer in scores.layers)
    return BlockDiagonal(tuple(blocks), note=scores.note)
