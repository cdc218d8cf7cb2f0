"""The inverse of a damped Kronecker product, kept as the Cholesky factors of its two sides.

Convention as in `kronecker`: row-major vec, left is G and right is A.
"""

from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.linalg import check_damping
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.kronecker import Kronecker
from natgrad_lab.substitution import inverted_blocks, solve_rows


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerInverse(StructuredMatrix):
    """(G + d₀I)⁻¹ ⊗ (A + d₁I)⁻¹, by the lower Cholesky factors `left` of G + d₀I and `right` of A + d₁I.

    Cost: products as of a Kronecker, 2mn(m + n) flops; making it, a third of what the two inverses would cost.

    Attributes:
        dampings: (d₀, d₁), from which a product with G ⊗ A is known once one with its damped inverse is; see `row_products`.
    """

    left: Float[Tensor, "m m"]
    right: Float[Tensor, "n n"]
    dampings: Float[Tensor, "2"]

    def __post_init__(self):
        """Refuse factors that are not square."""
        super().__post_init__()
        for name, factor in (("left", self.left), ("right", self.right)):
            if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or not len(factor):
                raise ValueError(
                    f"KroneckerInverse needs square factors with at least one row; {name} has shape {tuple(factor.shape)}."
                )

    @property
    def dim(self) -> int:
        """m * n."""
        return len(self.left) * len(self.right)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """vec((G + d₀I)⁻¹ X (A + d₁I)⁻¹)."""
        self._check(x)
        m, n = len(self.left), len(self.right)
        stacked = x.reshape(self.dim, -1).mT.reshape(-1, m, n)  # (k, m, n)
        half = self.right_rows(stacked.reshape(-1, n)).view(-1, m, n)
        whole = self.left_rows(half.mT.reshape(-1, m)).view(-1, n, m).mT
        return whole.reshape(len(stacked), -1).mT.reshape(x.shape)

    def left_rows(self, rows: Float[Tensor, "N m"]) -> Float[Tensor, "N m"]:
        """Rows times (G + d₀I)⁻¹."""
        return solve_rows(rows, self.left, self._blocks[0])

    def right_rows(self, rows: Float[Tensor, "N n"]) -> Float[Tensor, "N n"]:
        """Rows times (A + d₁I)⁻¹."""
        return solve_rows(rows, self.right, self._blocks[1])

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x; without damping a product with G + d₀I and A + d₁I."""
        self._check(x)
        return self._explicit.solve(x, damping) if check_damping(damping) else self._damped.matmul(x)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p, as of a Kronecker."""
        return self._explicit.power(p, damping) if check_damping(damping) else self._damped.power(-p)

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself."""
        return self._explicit.to_dense()

    def diagonal(self) -> Float[Tensor, " P"]:
        """Products of the two inverses' diagonals."""
        return self._explicit.diagonal()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """The products of eigenvalues, ascending."""
        return self._explicit.eigvalsh()

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """log det(M + damping I)."""
        if check_damping(damping):
            return self._explicit.logdet(damping)
        left, right = (factor.diagonal().log().sum() for factor in (self.left, self.right))
        return -2 * (len(self.right) * left + len(self.left) * right)

    @cached_property
    def _blocks(self) -> tuple[Tensor, Tensor]:
        return inverted_blocks(self.left), inverted_blocks(self.right)

    @cached_property
    def _explicit(self) -> Kronecker:
        return Kronecker(torch.cholesky_inverse(self.left), torch.cholesky_inverse(self.right))

    @cached_property
    def _damped(self) -> Kronecker:
        return Kronecker(self.left @ self.left.mT, self.right @ self.right.mT)
