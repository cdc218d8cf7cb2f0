"""Inverses of a damped Kronecker Fisher, one named function per meaning of "damped"."""

import torch

from natgrad_lab.linalg import damped_cholesky, zero_level
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal, Kronecker, StructuredMatrix, factored_tikhonov


def exact_inverse(fisher: StructuredMatrix, damping: float) -> StructuredMatrix:
    """(F + λI)⁻¹ exactly: eigendecompositions of both factors, λ added to their products."""
    return fisher.power(-1, damping)


def factored_inverse(fisher: BlockDiagonal, damping: float) -> BlockDiagonal:
    """K-FAC's (G + √λ/π I)⁻¹ ⊗ (A + π√λ I)⁻¹ per layer: two Choleskys each. [MartensGrosse2015] sec. 6.3."""
    damped = (factored_tikhonov(block, damping) for block in fisher.blocks)
    return BlockDiagonal(tuple(Kronecker(_inverse(block.left), _inverse(block.right)) for block in damped))


def _inverse(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed or factor.diagonal().square().min() <= zero_level(len(matrix), matrix.diagonal().max()):
        factor = damped_cholesky(matrix)  # says why there is no inverse
    return torch.cholesky_inverse(factor)


INVERSES = {"factored": factored_inverse, "exact": exact_inverse}
