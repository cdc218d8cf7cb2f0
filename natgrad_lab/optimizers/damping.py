"""Inverses of a damped Kronecker Fisher, one named function per meaning of "damped"."""

import math

import torch

from natgrad_lab.linalg import damped_cholesky, zero_level
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal, Kronecker, StructuredMatrix, pi_trace_norm


def exact_inverse(fisher: StructuredMatrix, damping: float) -> StructuredMatrix:
    """(F + λI)⁻¹ exactly: eigendecompositions of both factors, λ added to their products."""
    return fisher.power(-1, damping)


def factored_inverse(fisher: BlockDiagonal, damping: float) -> BlockDiagonal:
    """K-FAC's (G + √λ/π I)⁻¹ ⊗ (A + π√λ I)⁻¹ per layer: two Choleskys each. [MartensGrosse2015] sec. 6.3.

    A layer without factors (a normalization, a small layer without a rule) has its exact block, and (F_l + λI)⁻¹.
    """
    return BlockDiagonal(tuple(_factored_inverse(block, damping) for block in fisher.blocks))


def _factored_inverse(block: StructuredMatrix, damping: float) -> StructuredMatrix:
    if isinstance(block, BlockDiagonal):  # the groups of a convolution
        return factored_inverse(block, damping)
    if not isinstance(block, Kronecker):
        return block.power(-1, damping)
    root, pi = math.sqrt(damping), pi_trace_norm(block)
    return Kronecker(_inverse(block.left, root / pi), _inverse(block.right, root * pi))


def _inverse(matrix: Tensor, damping: float) -> Tensor:
    """(M + damping I)⁻¹; where rounding has eaten the damping, as `damped_cholesky` does, with its warning or its refusal."""
    damped = matrix.clone()
    damped.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    least = damping / 2 if damping > 0 else zero_level(len(matrix), matrix.diagonal().max())
    if failed or not factor.diagonal().square().min() > least:
        factor = damped_cholesky(matrix, damping)
    return torch.cholesky_inverse(factor)


INVERSES = {"factored": factored_inverse, "exact": exact_inverse}
