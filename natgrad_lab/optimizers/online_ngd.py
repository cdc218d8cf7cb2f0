"""Online natural gradient: the closed form of deep linear networks, with running averages and damping, for any network."""

import math

import torch
from torch import nn

from natgrad_lab.fisher.kfac import kfac_from_scores
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import check_damping, damped_cholesky
from natgrad_lab.optimizers.natural_gradient import FisherEstimate, NaturalGradient
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal, Dense, Kronecker, StructuredMatrix


def online_ngd(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.5,
    damping: float = 1e-2,
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> NaturalGradient:
    """W ← W − (lr / L) (G + √λ I)⁻¹ ∇_W (A + √λ I)⁻¹, the natural gradient of deep linear networks taken to nonlinear ones.

    G = E[s sᵀ] with targets sampled from the model's predictions, A = E[a aᵀ], as running averages; L counts the layers of
    the flat order. It is K-FAC without its split π of the damping, at lr / L: block-diagonal steps move a deep linear
    function L times too far, a nonlinear one about as much.

    Exact at λ = 0 with the Fisher of one batch for deep linear networks with a Gaussian likelihood, under the rank conditions
    of formula "equal" in `deep_linear.natural_gradient` and with "exact" scores. For λ = 0 the factors have to be invertible.

    Convolutions, embeddings, recurrent and grouped layers follow from K-FAC's factors for them. Layers without factors
    (normalizations, small layers without a rule) have their exact block: (F_l + λI)⁻¹ / L.

    Args:
        lr, damping: α and λ.
        choices: of `FisherEstimate`: fisher_type ("monte_carlo"), num_samples, ema_decay (0.95), update_every, invert_every.
    References: [Bernacchia2018]; averages and inverses are K-FAC's here, not the paper's own online scheme.
    """
    estimate = FisherEstimate(kfac_from_scores, **{"fisher_type": "monte_carlo", "ema_decay": 0.95} | choices)
    return NaturalGradient(model, likelihood, estimate, root_inverse, lr=lr, damping=damping, max_kl=max_kl, seed=seed)


def root_inverse(fisher: BlockDiagonal, damping: float) -> BlockDiagonal:
    """(G + √λ I)⁻¹ ⊗ (A + √λ I)⁻¹ / L for each of the L blocks, √λ on both factors whatever their sizes.

    Unlike K-FAC's, it changes when A is scaled by c and G by 1/c.
    """
    share = 1 / len(fisher.blocks)
    blocks = tuple(_root_inverse(block, check_damping(damping), share) for block in fisher.blocks)
    return BlockDiagonal(blocks, note=f"√λ on both factors, λ {damping:g}, over L = {len(blocks)}")


def _root_inverse(block: StructuredMatrix, damping: float, share: float) -> StructuredMatrix:
    if isinstance(block, BlockDiagonal):  # the groups of a convolution
        return BlockDiagonal(tuple(_root_inverse(group, damping, share) for group in block.blocks))
    if not isinstance(block, Kronecker):
        return Dense(share * block.power(-1, damping).to_dense())
    root = math.sqrt(damping)
    return Kronecker(share * _inverse(block.left, root), _inverse(block.right, root))


def _inverse(matrix: Tensor, damping: float) -> Tensor:
    return torch.cholesky_inverse(damped_cholesky(matrix, damping))
