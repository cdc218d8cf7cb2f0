"""Matrices that are diagonal in a Kronecker product of two orthonormal bases: damped Kronecker products, EKFAC."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch

from natgrad_lab.linalg import invertible_spectrum, spectrum_power
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix, power_note


def two_sided(left: Float[Tensor, "m a"], x: Float[Tensor, "P *k"], right: Float[Tensor, "n b"]) -> Float[Tensor, "Q *k"]:
    """vec(left X rightᵀ) for each column x = vec(X), row-major."""
    rows, columns = left.shape[1], right.shape[1]
    if x.ndim == 1:
        return (left @ x.reshape(rows, columns) @ right.mT).reshape(-1)
    stacked = x.mT.reshape(-1, rows, columns)  # (k, a, b)
    return (left @ stacked @ right.mT).reshape(len(stacked), -1).mT.contiguous()


@dataclass(frozen=True, eq=False, repr=False)
class EigenKronecker(StructuredMatrix):
    """(Q_L ⊗ Q_R) diag(vec eigenvalues) (Q_L ⊗ Q_R)ᵀ with orthonormal Q_L (m, m), Q_R (n, n) and eigenvalues (m, n).

    What (left ⊗ right + damping I)^p is, and what EKFAC is.
    References: [George2018] sec. 3.
    """

    left_vectors: Float[Tensor, "m m"]
    right_vectors: Float[Tensor, "n n"]
    eigenvalues: Float[Tensor, "m n"]

    def __post_init__(self):
        """Refuse shapes that do not fit together."""
        super().__post_init__()
        m, n = len(self.left_vectors), len(self.right_vectors)
        shapes = [tuple(t.shape) for t in (self.left_vectors, self.right_vectors, self.eigenvalues)]
        if shapes != [(m, m), (n, n), (m, n)] or m * n == 0:
            raise ValueError(f"EigenKronecker needs vectors (m, m) and (n, n) and eigenvalues (m, n); got shapes {shapes}.")

    @property
    def dim(self) -> int:
        """m * n."""
        return self.eigenvalues.numel()

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""
        self._check(x)
        return self._scaled(self.eigenvalues, x)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x."""
        self._check(x)
        return self._scaled(1 / invertible_spectrum(self.eigenvalues, damping), x)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p in the same basis."""
        values = spectrum_power(self.eigenvalues, p, damping)
        return EigenKronecker(self.left_vectors, self.right_vectors, values, note=power_note(p, damping))

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries: squared vectors applied to the eigenvalues."""
        return two_sided(self.left_vectors.square(), self.eigenvalues.flatten(), self.right_vectors.square())

    def trace(self) -> Float[Tensor, ""]:
        """Sum of the eigenvalues."""
        return self.eigenvalues.sum()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """The eigenvalues, ascending."""
        return self.eigenvalues.flatten().sort().values

    def map(self, fn: Callable[..., Tensor], *others):
        """Apply `fn` tensor by tensor; others must share the eigenvectors, whose average would be no basis."""
        for other in others:
            self._require_alike(other)
            bases = (self.left_vectors, other.left_vectors), (self.right_vectors, other.right_vectors)
            if not all(torch.equal(*pair) for pair in bases):
                raise ValueError(
                    "EigenKronecker combines tensor by tensor only with another in the same eigenvectors; these "
                    "differ. Average the Kronecker factors instead, or the eigenvalues in one basis."
                )
        return super().map(fn, *others)

    def _scaled(self, values: Tensor, x: Tensor) -> Tensor:
        inside = two_sided(self.left_vectors.mT, x, self.right_vectors.mT)
        inside = inside * (values.reshape(-1) if x.ndim == 1 else values.reshape(-1, 1))
        return two_sided(self.left_vectors, inside, self.right_vectors)
