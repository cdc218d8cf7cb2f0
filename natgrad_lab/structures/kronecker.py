"""Kronecker products and K-FAC's factored damping.

Convention: row-major vec, so (left ⊗ right) vec(X) = vec(left X rightᵀ). For a layer, left is G and right is A.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.linalg import (
    check_damping,
    damped_cholesky,
    invertible_spectrum,
    psd_eigh,
    spectrum_power,
)
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.eigen_kronecker import EigenKronecker, two_sided


@dataclass(frozen=True, eq=False, repr=False)
class Kronecker(StructuredMatrix):
    """left ⊗ right on row-major vec(X) of an (m, n) matrix: (left ⊗ right) vec(X) = vec(left X rightᵀ).

    Cost: m² + n² numbers, a product or solve 2mn(m + n) flops. A damped solve needs the eigendecompositions of both
    factors, an undamped one their Cholesky factors; either is kept, so the next solve costs no more than a product.
    """

    left: Float[Tensor, "m m"]
    right: Float[Tensor, "n n"]

    def __post_init__(self):
        """Refuse factors that are not square."""
        super().__post_init__()
        for name, factor in (("left", self.left), ("right", self.right)):
            if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or not len(factor):
                raise ValueError(
                    f"Kronecker needs square factors with at least one row; {name} has shape {tuple(factor.shape)}."
                )

    @property
    def dim(self) -> int:
        """m * n."""
        return self.left.shape[0] * self.right.shape[0]

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """vec(left X rightᵀ)."""
        self._check(x)
        return two_sided(self.left, x, self.right)

    def left_rows(self, rows: Float[Tensor, "N m"]) -> Float[Tensor, "N m"]:
        """Rows times left."""
        return rows @ self.left

    def right_rows(self, rows: Float[Tensor, "N n"]) -> Float[Tensor, "N n"]:
        """Rows times right."""
        return rows @ self.right

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x: damping is added to the products s_i t_j of the eigenvalues, never to the factors.

        With damping 0, where the inverse is the product of the inverses, two Cholesky factorizations do.
        """
        self._check(x)
        if check_damping(damping) > 0:
            return self._eigen.solve(x, damping)
        left, right = self._cholesky
        stacked = x.reshape(self.dim, -1).mT.reshape(-1, len(left), len(right))  # (k, m, n)
        half = torch.cholesky_solve(stacked, left)
        return torch.cholesky_solve(half.mT, right).mT.reshape(len(stacked), -1).mT.reshape(x.shape)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p: a Kronecker with damping 0, else an EigenKronecker."""
        if check_damping(damping) > 0:
            return self._eigen.power(p, damping)
        return Kronecker(*((vectors * spectrum_power(values, p)) @ vectors.mT for values, vectors in self._factors))

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself."""
        return torch.kron(self.left, self.right)

    def diagonal(self) -> Float[Tensor, " P"]:
        """Products of the factors' diagonals."""
        return torch.outer(self.left.diagonal(), self.right.diagonal()).flatten()

    def trace(self) -> Float[Tensor, ""]:
        """Product of the traces."""
        return self.left.trace() * self.right.trace()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """The products s_i t_j, ascending."""
        return self._eigen.eigvalsh()

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """log det(M + damping I)."""
        if check_damping(damping) > 0:
            return self._eigen.logdet(damping)
        left, right = (invertible_spectrum(values).log().sum() for values, _ in self._factors)
        return len(self.right) * left + len(self.left) * right

    @cached_property
    def _cholesky(self) -> tuple[Tensor, Tensor]:
        return damped_cholesky(self.left), damped_cholesky(self.right)

    @cached_property
    def _factors(self) -> tuple:
        return psd_eigh(self.left), psd_eigh(self.right)

    @cached_property
    def _eigen(self) -> EigenKronecker:
        (s, left_vectors), (t, right_vectors) = self._factors
        return EigenKronecker(left_vectors, right_vectors, torch.outer(s, t))


def pi_trace_norm(kron: Kronecker) -> float:
    """K-FAC's split of the damping between the factors: π² = (tr A / n) / (tr G / m), a ratio of mean eigenvalues.

    1 where a trace is 0. With it the damped product does not change when A is scaled by c and G by 1/c.
    References: [MartensGrosse2015] sec. 6.3.
    """
    G, A = kron.left, kron.right
    ratio = A.trace().item() / len(A), G.trace().item() / len(G)
    return math.sqrt(ratio[0] / ratio[1]) if min(ratio) > 0 else 1.0


def factored_tikhonov(kron: Kronecker, damping: Real) -> Kronecker:
    """K-FAC's damped product (G + √λ/π I) ⊗ (A + π√λ I), λ the damping.

    Not M + λI: expanded, it is G ⊗ A + π√λ G ⊗ I + √λ/π I ⊗ A + λI, larger than exact damping by the two middle
    terms. Often the better preconditioner all the same; for exact damping use `Kronecker.solve(x, damping)`.
    References: [MartensGrosse2015] sec. 6.3, 6.6.
    """
    root, pi = math.sqrt(check_damping(damping)), pi_trace_norm(kron)
    left, right = kron.left.clone(), kron.right.clone()
    left.diagonal().add_(root / pi)
    right.diagonal().add_(root * pi)
    return Kronecker(left, right, note=f"factored damping {float(damping):g}, pi {pi:.3g}")
