"""Structures along the diagonal, zero elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch

from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix, power_note


@dataclass(frozen=True, eq=False, repr=False)
class BlockDiagonal(StructuredMatrix):
    """One structure of any kind per block, in the flat order of the parameters; everything is done block by block."""

    blocks: tuple[StructuredMatrix, ...]

    def __post_init__(self):
        """Refuse an empty tuple."""
        if not self.blocks:
            raise ValueError("BlockDiagonal needs at least one block; got none. A model without parameters has no Fisher.")
        super().__post_init__()

    @property
    def dim(self) -> int:
        """Sum of the blocks' dimensions."""
        return sum(block.dim for block in self.blocks)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""
        return self._blockwise(lambda block, part: block.matmul(part), x)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x."""
        return self._blockwise(lambda block, part: block.solve(part, damping), x)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p as a BlockDiagonal."""
        return BlockDiagonal(tuple(block.power(p, damping) for block in self.blocks), note=power_note(p, damping))

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix with its zeros."""
        return torch.block_diag(*(block.to_dense() for block in self.blocks))

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries."""
        return torch.cat([block.diagonal() for block in self.blocks])

    def trace(self) -> Float[Tensor, ""]:
        """Sum of the blocks' traces."""
        return torch.stack([block.trace() for block in self.blocks]).sum()

    def eigvalsh(self) -> Float[Tensor, " r"]:
        """The blocks' eigenvalues together, ascending (a Gram block gives its min(R, P) largest)."""
        return torch.cat([block.eigvalsh() for block in self.blocks]).sort().values

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """Sum of the blocks' logdets."""
        return torch.stack([block.logdet(damping) for block in self.blocks]).sum()

    def _blockwise(self, act: Callable[[StructuredMatrix, Tensor], Tensor], x: Tensor) -> Tensor:
        self._check(x)
        parts = x.split([block.dim for block in self.blocks])
        return torch.cat([act(block, part) for block, part in zip(self.blocks, parts, strict=True)])
