"""Dampings of a Kronecker product that touch one factor: those of the methods that whiten a layer's inputs only."""

from numbers import Real

from natgrad_lab.linalg import check_damping
from natgrad_lab.structures.kronecker import Kronecker


def input_damping(kron: Kronecker, damping: Real) -> Kronecker:
    """G ⊗ (A + damping I): what SNGD damps before it takes the root of A. Not G ⊗ A + damping I, unless G = I."""
    right = kron.right.clone()
    right.diagonal().add_(check_damping(damping))
    return Kronecker(kron.left, right, note=f"input damping {float(damping):g}")


def bias_free_damping(kron: Kronecker, damping: Real) -> Kronecker:
    """G ⊗ (A + damping diag(1, ..., 1, 0)), for A of homogeneous inputs [a; 1]: PRONG's damping.

    PRONG subtracts the mean μ of the inputs, whitens by their covariance Σ + damping I and lets the bias take up the rest.
    As a matrix on [W | b] that is A = [[Σ + μμᵀ, μ], [μᵀ, 1]] with damping on the weights and none on the bias.
    References: [Desjardins2015].
    """
    right = kron.right.clone()
    right.diagonal()[:-1].add_(check_damping(damping))
    return Kronecker(kron.left, right, note=f"input damping {float(damping):g}, none on the bias")
