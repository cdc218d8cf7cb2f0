"""The inverse of a damped Kronecker product: by the Cholesky factors of its two sides, or with both inverses formed.

Convention as in `kronecker`: row-major vec, left is G and right is A.
"""

from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.linalg import check_damping, cholesky_solve
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.kronecker import Kronecker
from natgrad_lab.substitution import BLOCK, inverted_blocks, solve_rows

_FEW = 64  # up to so many rows, LAPACK's substitution is as fast, and needs no blocks


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerInverse(StructuredMatrix):
    """(G + d₀I)⁻¹ ⊗ (A + d₁I)⁻¹, by the lower Cholesky factors `left` of G + d₀I and `right` of A + d₁I.

    Cost: products as of a Kronecker, 2mn(m + n) flops; making it, a third of what the two inverses would cost.

    Attributes:
        dampings: (d₀, d₁), from which a product with G ⊗ A is known once one with its damped inverse is.
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
        return self.left.shape[0] * self.right.shape[0]

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
        return self._rows(rows, 0)

    def right_rows(self, rows: Float[Tensor, "N n"]) -> Float[Tensor, "N n"]:
        """Rows times (A + d₁I)⁻¹."""
        return self._rows(rows, 1)

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

    def _rows(self, rows: Tensor, side: int) -> Tensor:
        factor = (self.left, self.right)[side]
        if len(factor) > BLOCK and len(rows) <= _FEW:
            return cholesky_solve(factor, rows.mT).mT
        ready = self._ready.get(side)
        if ready is None:
            ready = self._ready[side] = (inverted_blocks if len(factor) > BLOCK else torch.cholesky_inverse)(factor)
        return solve_rows(rows, factor, ready) if len(factor) > BLOCK else rows @ ready

    @cached_property
    def _ready(self) -> dict[int, Tensor]:
        """By side what products need: inverses of the blocks on the diagonal, or of all of a small factor."""
        return {}

    @cached_property
    def _explicit(self) -> Kronecker:
        return Kronecker(torch.cholesky_inverse(self.left), torch.cholesky_inverse(self.right))

    @cached_property
    def _damped(self) -> Kronecker:
        return Kronecker(self.left @ self.left.mT, self.right @ self.right.mT)


@dataclass(frozen=True, eq=False, repr=False)
class FormedKroneckerInverse(Kronecker):
    """(G + d₀I)⁻¹ ⊗ (A + d₁I)⁻¹ with both inverses formed, and `dampings` (d₀, d₁) as in `KroneckerInverse`."""

    dampings: Float[Tensor, "2"]
