"""K-FAC with neighbouring layers: the inverse is block tridiagonal."""

import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.chunks import averaged, passes
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import called
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockTridiagonalInverse, KhatriRaoRows


def block_tridiagonal_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> BlockTridiagonalInverse:
    """Block-tridiagonal K-FAC, F̂: the blocks G_ij ⊗ A_ij of neighbouring layers, and the others that follow from a chain.

    K-FAC's approximation for every pair of layers, E[s_i s_jᵀ] ⊗ E[a_i a_jᵀ], is kept on the diagonal and beside it; the other
    blocks are those that make the *inverse* block tridiagonal: layers interact with their neighbours only. Neighbours are
    those of the flat order (order of definition). As a whole matrix, cross-layer blocks included, it is exact for a
    single example and for deep linear networks with a Gaussian likelihood.

    Undamped. It is singular where K-FAC's blocks are (softmax: G of the last layer has rank C - 1), and where a layer is
    determined by its neighbour (linear hidden units). `solve(x, damping)` is exactly (F̂ + λI)⁻¹x; K-FAC's own damping of the
    diagonal factors, which keeps the chain, is `structures.tridiagonal_tikhonov`.

    Args: as `dense_fisher`.
    Raises: as `dense_fisher`; UnsupportedLayerError for layers whose weights are used at several positions of an example or
        have no product structure: scores and inputs of two layers have a covariance only where both have one per example.
    Cost: K-FAC, and as much again for the factors between neighbours.
    References: [MartensGrosse2015] sec. 4.3, appendix B.
    """
    each = passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return averaged(block_tridiagonal_from_scores, each)


def block_tridiagonal_from_scores(scores: ScorePass) -> BlockTridiagonalInverse:
    """`block_tridiagonal_fisher` from a pass already made."""
    for layer, rows in ((each.layer, each.rows) for each in scores.layers):
        if not isinstance(rows, KhatriRaoRows):
            raise UnsupportedLayerError(
                f"block-tridiagonal K-FAC has no rule for {called(layer.name, layer.module)}: its weights "
                "are used at several positions of an example, or have no Kronecker structure, so there are no factors between "
                "it and its neighbours. It takes Linear layers that see one vector per example. Use kfac_fisher, or freeze "
                "the layer."
            )
    inputs = [each.rows.inputs for each in scores.layers]
    stacked = [each.rows.scores.flatten(0, 1) for each in scores.layers]
    pairs = zip(inputs, inputs[1:], strict=False), zip(stacked, stacked[1:], strict=False)
    right_cross, left_cross = (tuple(a.mT @ b / scores.num_examples for a, b in pair) for pair in pairs)
    left, right = (tuple(a.mT @ a / scores.num_examples for a in sides) for sides in (stacked, inputs))
    return BlockTridiagonalInverse(left, right, left_cross, right_cross, note=scores.note)
