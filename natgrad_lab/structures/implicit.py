"""A matrix known through its products alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real

import torch

from natgrad_lab.linalg import cg, check_damping
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix

_LARGEST_DENSE = 8192


@dataclass(frozen=True, eq=False, repr=False)
class Implicit(StructuredMatrix):
    """M known by v ↦ M v: nothing is stored, whatever the size.

    `solve` runs conjugate gradients to `tolerance` (relative residual), and says so if it does not get there. What needs
    the entries (`to_dense`, `diagonal`, `eigvalsh`, `power`) takes P products, and is refused above 8,192 parameters.
    Describes one batch, so `map` is refused.
    """

    product: Callable[[Tensor], Tensor]
    example: Tensor = field()
    tolerance: float = 1e-8
    max_steps: int = 2000

    @property
    def dim(self) -> int:
        """P, the length of `example`, which also gives dtype and device."""
        return len(self.example)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x, one product per column."""
        self._check(x)
        return self.product(x) if x.ndim == 1 else torch.stack([self.product(column) for column in x.unbind(1)], 1)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x by conjugate gradients; warns with the residual if `tolerance` is not reached."""
        self._check(x)
        return cg(self.matmul, x, check_damping(damping), tolerance=self.tolerance, max_steps=self.max_steps)[0]

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p, through the dense matrix."""
        return self._dense().power(p, damping)

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself, by P products."""
        return self._dense().matrix

    def map(self, fn: Callable[..., Tensor], *others):
        """Refused: there are no entries to map."""
        raise ValueError(
            "Implicit cannot be mapped or averaged: it is products with one batch. Use a dense or Kronecker Fisher."
        )

    def _dense(self) -> StructuredMatrix:
        from natgrad_lab.structures.dense import Dense

        if self.dim > _LARGEST_DENSE:
            raise ValueError(
                f"this needs the entries of a {self.dim} x {self.dim} matrix known through products only ({self.dim} of them). "
                "Use gram_fisher, or fewer parameters."
            )
        eye = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        columns = self.matmul(eye)
        return Dense((columns + columns.mT) / 2)

    def state(self) -> dict:
        """Refused: products cannot be saved."""
        raise ValueError("Implicit cannot be saved: it holds a function. Save Dense(F.to_dense()) or a Kronecker Fisher.")
