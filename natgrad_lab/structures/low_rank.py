"""A few eigenvectors, and one eigenvalue for the whole complement."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch

from natgrad_lab.linalg import clamp_spectrum, invertible_spectrum, spectrum_power
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix, power_note


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(StructuredMatrix):
    """U diag(eigenvalues) Uᵀ + rest (I - U Uᵀ) with orthonormal columns U: the complement is never dropped.

    Cost: P r numbers, a product or solve 4 P r flops.
    """

    basis: Float[Tensor, "P r"]
    eigenvalues: Float[Tensor, " r"]
    rest: Float[Tensor, ""]

    def __post_init__(self):
        """Refuse shapes that do not fit together."""
        super().__post_init__()
        shapes = [tuple(t.shape) for t in (self.basis, self.eigenvalues, self.rest)]
        fits = self.basis.ndim == 2 and shapes[1:] == [(shapes[0][1],), ()]
        if not fits or not len(self.basis) or shapes[0][1] > shapes[0][0]:
            raise ValueError(
                f"LowRank needs a basis (P, r) with r <= P, eigenvalues (r,) and a scalar rest; got shapes {shapes}."
            )

    @property
    def dim(self) -> int:
        """Rows of the basis."""
        return len(self.basis)

    @property
    def _complement_dim(self) -> int:
        return self.basis.shape[0] - self.basis.shape[1]

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""
        self._check(x)
        return self._scaled(self.eigenvalues, self.rest, x)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x."""
        self._check(x)
        inverse = 1 / invertible_spectrum(self._distinct(), damping)
        return self._scaled(inverse[: len(self.eigenvalues)], inverse[-1], x)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p in the same basis; without a complement the rest is 0."""
        powers = spectrum_power(self._distinct(), p, damping)
        rest = powers[-1] if self._complement_dim else self.rest * 0
        return LowRank(self.basis, powers[: len(self.eigenvalues)], rest, note=power_note(p, damping))

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries."""
        inside = self.basis.square()
        return inside @ self.eigenvalues + self.rest * (1 - inside.sum(1))

    def trace(self) -> Float[Tensor, ""]:
        """Sum of all P eigenvalues."""
        return self.eigenvalues.sum() + self._complement_dim * self.rest

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """All P eigenvalues, ascending: P - r of them are `rest`."""
        return clamp_spectrum(torch.cat([self.eigenvalues, self.rest.expand(self._complement_dim)])).sort().values

    def map(self, fn: Callable[..., Tensor], *others):
        """Apply `fn` tensor by tensor; others must share the basis, since the average of two bases is none."""
        for other in others:
            self._require_alike(other)
            if not torch.equal(self.basis, other.basis):
                raise ValueError(
                    "LowRank combines tensor by tensor only with another on the same basis; these differ. Combine the "
                    "matrices they came from instead."
                )
        return super().map(fn, *others)

    def _distinct(self) -> Tensor:
        """The eigenvalues, then `rest` once if there is a complement."""
        return torch.cat([self.eigenvalues, self.rest[None]]) if self._complement_dim else self.eigenvalues

    def _scaled(self, values: Tensor, rest: Tensor, x: Tensor) -> Tensor:
        inside = self.basis.mT @ x
        outside = x - self.basis @ inside if self._complement_dim else torch.zeros_like(x)
        # Again: what rounding left inside the basis would be scaled by `rest`, which may be 1 / damping.
        outside = outside - self.basis @ (self.basis.mT @ outside)
        return self.basis @ (inside * (values if x.ndim == 1 else values[:, None])) + rest * outside
