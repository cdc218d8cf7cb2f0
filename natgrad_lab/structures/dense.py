"""A matrix stored whole."""

from dataclasses import dataclass
from functools import cached_property
from numbers import Real

from natgrad_lab.linalg import psd_eigh, psd_eigvalsh, psd_solve, spectrum_power
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix, power_note


@dataclass(frozen=True, eq=False, repr=False)
class Dense(StructuredMatrix):
    """The matrix itself: the slow, obvious twin of every other structure.

    Cost: P² numbers; a solve is one Cholesky factorization (P³/3 flops), `power` one eigendecomposition, kept for the
    next call.
    """

    matrix: Float[Tensor, "P P"]

    def __post_init__(self):
        """Refuse what is not square."""
        super().__post_init__()
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1] or not len(self.matrix):
            raise ValueError(f"Dense needs a square matrix with at least one row; got shape {tuple(self.matrix.shape)}.")

    @property
    def dim(self) -> int:
        """Number of rows."""
        return len(self.matrix)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""
        self._check(x)
        return self.matrix @ x

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x by Cholesky."""
        self._check(x)
        return psd_solve(self.matrix, x, damping)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p as a Dense."""
        values, vectors = self._eigen
        return Dense((vectors * spectrum_power(values, p, damping)) @ vectors.mT, note=power_note(p, damping))

    def to_dense(self) -> Float[Tensor, "P P"]:
        """A copy: writing into it leaves the structure alone."""
        return self.matrix.clone()

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries."""
        return self.matrix.diagonal().clone()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """All eigenvalues, ascending."""
        return self._eigenvalues.clone()

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        return psd_eigh(self.matrix)

    @cached_property
    def _eigenvalues(self) -> Tensor:
        return self._eigen[0] if "_eigen" in self.__dict__ else psd_eigvalsh(self.matrix)
