"""Equal dense blocks along the diagonal, one per unit, handled all at once."""

from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.linalg import (
    check_damping,
    check_symmetric,
    clamp_spectrum,
    damped_cholesky,
    invertible_spectrum,
    spectrum_power,
)
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix, power_note

_CHUNK = 1 << 25  # numbers of the blocks that are factored at a time


@dataclass(frozen=True, eq=False, repr=False)
class UnitWise(StructuredMatrix):
    """One dense (n, n) block for each of m units, zero elsewhere: the units' parameters are contiguous.

    Cost: m n² numbers; a solve is m Cholesky factorizations (m n³ / 3 flops, batched), `power` and `eigvalsh` as many
    eigendecompositions, kept for the next call.
    """

    blocks: Float[Tensor, "m n n"]

    def __post_init__(self):
        """Refuse what is not a stack of square matrices, and asymmetric ones."""
        super().__post_init__()
        shape = tuple(self.blocks.shape)
        if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
            raise ValueError(f"UnitWise needs square blocks (m, n, n) with no size 0; got shape {shape}.")
        for block in self.blocks[:: max(1, shape[0] // 4)]:  # a few of them: they are made alike
            check_symmetric(block)

    @property
    def dim(self) -> int:
        """m n."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""
        self._check(x)
        return torch.bmm(self.blocks, self._split(x)).reshape(x.shape)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x by one Cholesky factorization per unit."""
        self._check(x)
        damping, columns = check_damping(damping), self._split(x)
        parts = [
            torch.cholesky_solve(part, factor)
            for part, factor in zip(columns.split(self._step), self._factors(damping), strict=True)
        ]
        return torch.cat(parts).reshape(x.shape)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p as a UnitWise."""
        values, vectors = self._eigen
        powers = power_of_each(values, p, damping)
        return UnitWise(symmetric_product(vectors, powers), note=power_note(p, damping))

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix with its zeros."""
        return torch.block_diag(*self.blocks.clone())

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries."""
        return self.blocks.diagonal(dim1=1, dim2=2).reshape(-1).clone()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """The blocks' eigenvalues together, ascending."""
        return self._eigenvalues.flatten().sort().values

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """Sum of the blocks' logdets."""
        return invertible_each(self._eigenvalues, damping).log().sum()

    @property
    def _step(self) -> int:
        return max(1, _CHUNK // self.blocks.shape[1] ** 2)

    def _split(self, x: Tensor) -> Tensor:
        """Columns unit by unit, (m, n, k)."""
        return x.reshape(*self.blocks.shape[:2], -1)

    def _factors(self, damping: float):
        """Yield the Cholesky factors of `_step` units at a time."""
        for blocks in self.blocks.split(self._step):
            yield batched_cholesky(blocks, damping)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        parts = [torch.linalg.eigh(blocks) for blocks in self.blocks.split(self._step)]
        values, vectors = (torch.cat(part) for part in zip(*parts, strict=True))
        return clamp_each(values), vectors

    @cached_property
    def _eigenvalues(self) -> Tensor:
        if "_eigen" in self.__dict__:
            return self._eigen[0]
        return clamp_each(torch.cat([torch.linalg.eigvalsh(part) for part in self.blocks.split(self._step)]))


def batched_cholesky(blocks: Float[Tensor, "m n n"], damping: float) -> Float[Tensor, "m n n"]:
    """Lower Cholesky factors of all blocks + damping I; a block that gives trouble is left to `damped_cholesky`."""
    shifted = blocks.clone()
    shifted.diagonal(dim1=1, dim2=2).add_(damping)
    factors, failed = torch.linalg.cholesky_ex(shifted)
    pivots = factors.diagonal(dim1=1, dim2=2).square().amin(1)
    largest = shifted.diagonal(dim1=1, dim2=2).amax(1)
    least = damping / 2 if damping else 10 * blocks.shape[1] * torch.finfo(blocks.dtype).eps * largest
    for unit in ((failed > 0) | ~(pivots > least)).nonzero().flatten().tolist():
        factors[unit] = damped_cholesky(blocks[unit], damping)  # adds jitter and warns, or says why there is no inverse
    return factors


def clamp_each(eigenvalues: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """`clamp_spectrum` block by block: what is rounding in a large block is not in a small one."""
    level = 10 * eigenvalues.shape[1] * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().amax(1)
    if (eigenvalues.amin(1) < -level).any():
        for block in eigenvalues:
            clamp_spectrum(block)  # raises for the one that is negative
    return eigenvalues.clamp(min=0)


def invertible_each(eigenvalues: Float[Tensor, "m n"], damping: Real = 0.0) -> Float[Tensor, "m n"]:
    """`invertible_spectrum` block by block: eigenvalues + damping, every block invertible by itself."""
    damping = check_damping(damping)
    damped = eigenvalues + damping
    levels = 0 if damping else 10 * damped.shape[1] * torch.finfo(damped.dtype).eps * damped.amax(1)
    singular = damped.amin(1) <= levels
    if singular.any():
        invertible_spectrum(eigenvalues[singular.nonzero()[0, 0]], damping)  # says why it has no inverse
    return damped


def power_of_each(eigenvalues: Float[Tensor, "m n"], p: Real, damping: Real = 0.0) -> Float[Tensor, "m n"]:
    """`spectrum_power` block by block."""
    if p < 0:
        invertible_each(eigenvalues, damping)
    return spectrum_power(eigenvalues, p, damping) if p >= 0 else (eigenvalues + float(damping)).pow(p)


def symmetric_product(vectors: Float[Tensor, "m n n"], values: Float[Tensor, "m n"]) -> Float[Tensor, "m n n"]:
    """V diag(values) Vᵀ of every block, symmetric to the last bit."""
    product = torch.bmm(vectors * values.unsqueeze(1), vectors.mT)
    return (product + product.mT) / 2
