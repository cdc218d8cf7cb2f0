"""Layers as a chain: a matrix whose inverse is block tridiagonal, with Kronecker products as its tridiagonal blocks.

F̃_ij = G_ij ⊗ A_ij is given for j = i and j = i + 1. With the regression of a layer on the next

    Ψ_i = F̃_{i,i+1} F̃_{i+1,i+1}⁻¹ = (G_{i,i+1} G_{i+1,i+1}⁻¹) ⊗ (A_{i,i+1} A_{i+1,i+1}⁻¹)

and what it leaves, Σ_i = F̃_ii - Ψ_i F̃_{i+1,i+1} Ψ_iᵀ (of the last layer: F̃ itself), the matrix is

    F̂ = Ξ⁻¹ diag(Σ) Ξ⁻ᵀ,     F̂⁻¹ = Ξᵀ diag(Σ⁻¹) Ξ,     Ξ = I with -Ψ_i beside the diagonal.

F̂ has the blocks that are given, and its inverse is zero beyond the neighbours: the covariance of a Gaussian chain.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.errors import NotPositiveDefiniteError, NumericalWarning
from natgrad_lab.linalg import (
    cg,
    check_damping,
    invertible_spectrum,
    not_positive_definite,
    psd_eigh,
    rounding_level,
    symmetrize,
)
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.dense import Dense
from natgrad_lab.structures.eigen_kronecker import two_sided
from natgrad_lab.structures.inverse import Inverse
from natgrad_lab.structures.kronecker import Kronecker, factored_tikhonov

LARGEST_DENSE = 8192  # rows up to which a damped system is factored whole
_TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-12}  # relative residual above that, with products in float64
_PER_ROUND = {torch.float32: 1e-3, torch.float64: 1e-6}  # what one round of conjugate gradients reaches, in its own precision
_ROUNDS = 8  # each on the residual that the one before left


@dataclass(frozen=True, eq=False, repr=False)
class BlockTridiagonalInverse(StructuredMatrix):
    """F̂ of the module's text from left = (G_11, G_22, ...), left_cross = (G_12, G_23, ...), and right likewise of the A_ij.

    `matmul`, and `solve` without damping, go through the chain: 4 products of K-FAC's size. F̂ + damping I is no chain: `solve`
    with damping factors the whole matrix up to 8,192 rows, and above runs conjugate gradients, preconditioned by the
    chain with factored damping, to a residual of 1e-12 (1e-8 for float32). K-FAC damps the diagonal factors instead, which
    keeps the chain: `tridiagonal_tikhonov`.
    Where a diagonal factor is singular its pseudoinverse stands for the inverse, and F̂ is singular too.
    References: [MartensGrosse2015] sec. 4.3.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    left_cross: tuple[Tensor, ...]
    right_cross: tuple[Tensor, ...]

    def __post_init__(self):
        """Refuse shapes that do not fit together."""
        super().__post_init__()
        for name, factors, crosses in (("left", self.left, self.left_cross), ("right", self.right, self.right_cross)):
            sizes = [factor.shape[0] for factor in factors]
            square, beside = [(n, n) for n in sizes], list(zip(sizes, sizes[1:], strict=False))
            found = [tuple(t.shape) for t in factors], [tuple(t.shape) for t in crosses]
            if not sizes or 0 in sizes or len(self.left) != len(self.right) or found != (square, beside):
                raise ValueError(
                    "BlockTridiagonalInverse needs square factors, as many left as right, and cross factors that fit between "
                    f"neighbours; {name} has {found[0]} and {found[1]}."
                )

    @property
    def dim(self) -> int:
        """Sum of the layers' dimensions."""
        return sum(self._sizes)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """F̂ x = Ξ⁻¹ diag(Σ) Ξ⁻ᵀ x."""
        self._check(x)
        parts = list(x.split(self._sizes))
        for i, (left, right) in enumerate(self._regressions):
            parts[i + 1] = parts[i + 1] + two_sided(left.mT, parts[i], right.mT)
        parts = [remainder.matmul(part) for remainder, part in zip(self._remainders, parts, strict=True)]
        for i, (left, right) in reversed(list(enumerate(self._regressions))):
            parts[i] = parts[i] + two_sided(left, parts[i + 1], right)
        return torch.cat(parts)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(F̂ + damping I)⁻¹ x; without damping Ξᵀ diag(Σ⁻¹) Ξ x."""
        self._check(x)
        if check_damping(damping) > 0:
            if self.dim <= LARGEST_DENSE:
                return self._dense.solve(x, damping)
            return self._iterated(x.double(), float(damping)).to(self.dtype)
        return self._whitened(self._whitened(x), transposed=True)

    def _whitened(self, x: Float[Tensor, "P *k"], transposed: bool = False) -> Float[Tensor, "P *k"]:
        """B x or Bᵀ x, for B = diag(Σ^-½) Ξ, so that BᵀB = F̂⁻¹."""
        parts = list(x.split(self._sizes))
        if transposed:
            parts = [remainder.root(part, transposed) for remainder, part in zip(self._remainders, parts, strict=True)]
            for i, (left, right) in reversed(list(enumerate(self._regressions))):
                parts[i + 1] = parts[i + 1] - two_sided(left.mT, parts[i], right.mT)
            return torch.cat(parts)
        for i, (left, right) in enumerate(self._regressions):
            parts[i] = parts[i] - two_sided(left, parts[i + 1], right)
        return torch.cat([remainder.root(part) for remainder, part in zip(self._remainders, parts, strict=True)])

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(F̂ + damping I)^p: the inverse without damping as an Inverse, which keeps the chain; else a Dense."""
        if p == -1 and check_damping(damping) == 0:
            return Inverse(self)
        return self._dense.power(p, damping)

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself: its block (i, j > i) is Ψ_i ... Ψ_{j-1} F̃_jj, one Kronecker product."""
        out = torch.empty(self.dim, self.dim, dtype=self.dtype, device=self.device)
        blocks = [out_row.split(self._sizes, 1) for out_row in out.split(self._sizes)]
        for j, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            blocks[j][j].copy_(torch.kron(left, right))
            for i in reversed(range(j)):
                left, right = (psi @ factor for psi, factor in zip(self._regressions[i], (left, right), strict=True))
                blocks[i][j].copy_(torch.kron(left, right))
                blocks[j][i].copy_(blocks[i][j].mT)
        return out

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries, those of the G_ii ⊗ A_ii."""
        return torch.cat([block.diagonal() for block in self.kronecker_blocks])

    def trace(self) -> Float[Tensor, ""]:
        """Sum of the traces of the G_ii ⊗ A_ii."""
        return torch.stack([block.trace() for block in self.kronecker_blocks]).sum()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """All eigenvalues, ascending, of the dense matrix."""
        return self._dense.eigvalsh()

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """log det(F̂ + damping I); without damping the sum of the log det Σ_i."""
        if check_damping(damping) > 0:
            return self._dense.logdet(damping)
        return torch.stack([remainder.logdet() for remainder in self._remainders]).sum()

    def _iterated(self, x: Float[Tensor, "P *k"], damping: float) -> Float[Tensor, "P *k"]:
        """(F̂ + damping I)⁻¹ x by conjugate gradients, preconditioned by the chain with factored damping."""
        wide, dtype, near = self._double, self.dtype, tridiagonal_tikhonov(self, damping)

        def system(v: Tensor) -> Tensor:
            v = near._whitened(v, transposed=True)
            return near._whitened(self.matmul(v) + damping * v)

        size = x.norm(dim=0)
        size = size.where(size > 0, torch.ones_like(size))
        solution, residual = torch.zeros_like(x), x
        for _ in range(_ROUNDS):
            scale = residual.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
            right = near._whitened((residual / scale).to(dtype))
            found = cg(system, right, tolerance=_PER_ROUND[dtype], max_steps=5000)[0]
            solution = solution + near._whitened(found, transposed=True).double() * scale
            residual = x - wide.matmul(solution) - damping * solution
            if (residual.norm(dim=0) <= _TOLERANCE[dtype] * size).all():
                return solution
        left = (residual.norm(dim=0) / size).max().item()
        warnings.warn(
            f"block-tridiagonal K-FAC at damping {damping:.3g} is solved to a relative residual of {left:.1e}; "
            f"{_TOLERANCE[dtype]:.0e} was aimed at. Use float64 or more damping.",
            NumericalWarning,
            stacklevel=3,
        )
        return solution

    @cached_property
    def _double(self):
        """The same matrix in float64: pseudoinverses stay those of the working precision, which knows what is rounding."""
        wide = self.map(Tensor.double)
        wide.__dict__["_regressions"] = [(left.double(), right.double()) for left, right in self._regressions]
        return wide

    @cached_property
    def kronecker_blocks(self) -> tuple[Kronecker, ...]:
        """The diagonal blocks G_ii ⊗ A_ii: K-FAC's."""
        return tuple(Kronecker(left, right) for left, right in zip(self.left, self.right, strict=True))

    @cached_property
    def _sizes(self) -> list[int]:
        return [len(left) * len(right) for left, right in zip(self.left, self.right, strict=True)]

    @cached_property
    def _regressions(self) -> list[tuple[Tensor, Tensor]]:
        """The two factors of each Ψ_i."""
        sides = zip(self.left_cross, self.left[1:], self.right_cross, self.right[1:], strict=True)
        return [(cross_G @ _pseudoinverse(G), cross_A @ _pseudoinverse(A)) for cross_G, G, cross_A, A in sides]

    @cached_property
    def _remainders(self) -> list:
        """The Σ_i."""
        explained = [
            Kronecker(*(symmetrize(psi @ cross.mT) for psi, cross in zip(pair, crosses, strict=True)))
            for pair, crosses in zip(self._regressions, zip(self.left_cross, self.right_cross, strict=True), strict=True)
        ]
        return [KroneckerDifference(*pair) for pair in zip(self.kronecker_blocks, [*explained, None], strict=True)]

    @cached_property
    def _dense(self) -> Dense:
        if self.dim > LARGEST_DENSE:
            raise ValueError(
                f"this needs the {self.dim} x {self.dim} matrix formed, and at most {LARGEST_DENSE} rows are. Products, "
                "undamped solves and solves with damping work at any size; for a damped inverse that stays a chain use "
                "tridiagonal_tikhonov(fisher, damping)."
            )
        return Dense(self.to_dense())


@dataclass(frozen=True, eq=False, repr=False)
class DampedChain(BlockTridiagonalInverse):
    """A chain whose diagonal factors were damped, and so are positive definite: nothing of them counts as zero.

    They are decomposed in float64 whatever their dtype. (In float32 a factor of 200 rows whose smallest eigenvalue is 2e-4 of
    the largest could not be told from a singular one by its decomposition alone.) Products and solves are in their dtype.
    """

    @cached_property
    def _decomposed(self) -> BlockTridiagonalInverse:
        """The chain in float64, decomposed; refused where rounding of the factors exceeds what was added."""
        squares, crosses = (self.left, self.right), (self.left_cross, self.right_cross)
        wide = BlockTridiagonalInverse(
            *(tuple(symmetrize(t.double()) for t in part) for part in squares),  # symmetric to rounding of their dtype only
            *(tuple(t.double() for t in part) for part in crosses),
        )
        try:
            for remainder in wide._remainders:
                remainder._scale  # noqa: B018  (decomposed now, so that the error is this one)
        except NotPositiveDefiniteError as error:
            raise NotPositiveDefiniteError(
                f"rounding ({str(self.dtype).removeprefix('torch.')}) has eaten the damping of a chain of layers. Give more "
                f"damping, or use float64. ({error})"
            ) from error
        return wide

    @cached_property
    def _regressions(self) -> list[tuple[Tensor, Tensor]]:
        return [(left.to(self.dtype), right.to(self.dtype)) for left, right in self._decomposed._regressions]

    @cached_property
    def _remainders(self) -> list:
        return [remainder.to(self.dtype) for remainder in self._decomposed._remainders]


class KroneckerDifference:
    """Σ = A ⊗ B - C ⊗ D, with 0 ≤ C ≤ A and 0 ≤ D ≤ B: one basis makes all four diagonal.

    With A = R Rᵀ, M = R⁻¹ C R⁻ᵀ = E s Eᵀ and K = R⁻ᵀ E, the matrices Kᵀ A K and Kᵀ C K are I and s.
    References: [MartensGrosse2015] appendix B.
    """

    def __init__(self, whole: Kronecker, part: Kronecker | None):
        """whole: A ⊗ B; part: C ⊗ D, None for 0."""
        self.whole, self.part = whole, part

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """Σ x."""
        return self.whole.matmul(x) if self.part is None else self.whole.matmul(x) - self.part.matmul(x)

    def root(self, x: Float[Tensor, "P *k"], transposed: bool = False) -> Float[Tensor, "P *k"]:
        """Q x or Qᵀ x, for a Q with QᵀQ = Σ⁻¹: (1 - s tᵀ)^-½ (K_A ⊗ K_B)ᵀ."""
        (left, *_), (right, *_) = self._bases
        scale = self._scale.flatten().rsqrt()
        scale = scale if x.ndim == 1 else scale[:, None]
        return two_sided(left, scale * x, right) if transposed else scale * two_sided(left.mT, x, right.mT)

    def logdet(self) -> Float[Tensor, ""]:
        """log det Σ."""
        (*_, left), (*_, right) = self._bases
        return len(right) * left.log().sum() + len(left) * right.log().sum() + self._scale.log().sum()

    def to(self, dtype: torch.dtype) -> "KroneckerDifference":
        """The same in another precision: what was decomposed here is converted, not decomposed again."""
        found = KroneckerDifference(*(pair and pair.map(lambda t: t.to(dtype)) for pair in (self.whole, self.part)))
        found.__dict__["_bases"] = [tuple(t.to(dtype) for t in each) for each in self._bases]
        found.__dict__["_scale"] = self._scale.to(dtype)
        return found

    @cached_property
    def _bases(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For both sides K, s, what rounding of A and C does to each entry of s, and the eigenvalues of A."""
        bases = []
        for side in ("left", "right"):
            values, vectors = psd_eigh(getattr(self.whole, side))
            values = invertible_spectrum(values)
            root = vectors * values.rsqrt()  # R⁻ᵀ
            if self.part is None:
                bases.append((root, torch.zeros_like(values), torch.zeros_like(values), values))
                continue
            s, basis = torch.linalg.eigh(symmetrize(root.mT @ getattr(self.part, side) @ root))
            basis = root @ basis
            error = 10 * rounding_level(len(s), values[-1]) * basis.square().sum(0)
            bases.append((basis, s.clamp(min=0), error, values))
        return bases

    @cached_property
    def _scale(self) -> Tensor:
        """1 - s_i t_j: the eigenvalues of (A ⊗ B)⁻¹ Σ, refused where they drown in the rounding of s and t."""
        (_, s, s_error, _), (_, t, t_error, _) = self._bases
        scale, level = 1 - torch.outer(s, t), torch.outer(s_error, t) + torch.outer(s, t_error)
        if (scale <= level).any():
            place = (scale - level).argmin()
            size = f"relative to its own block, the smallest pivot is {scale.flatten()[place].item():.3g}"
            raise not_positive_definite(scale.numel(), size, 0.0, level.flatten()[place].item())
        return scale


def tridiagonal_tikhonov(fisher: BlockTridiagonalInverse, damping: Real) -> BlockTridiagonalInverse:
    """K-FAC's factored damping of a chain: G_ii + √λ/π I and A_ii + π√λ I on the diagonal, the cross factors as they are.

    Not F̂ + λI. The result is a chain again, its inverse still block tridiagonal, and for λ > 0 never singular.
    References: [MartensGrosse2015] sec. 6.3.
    """
    damped = [factored_tikhonov(block, damping) for block in fisher.kronecker_blocks]
    factors = [tuple(block.left for block in damped), tuple(block.right for block in damped)]
    kind, note = DampedChain if damping > 0 else BlockTridiagonalInverse, f"factored damping {float(damping):g}"
    return kind(*factors, fisher.left_cross, fisher.right_cross, note=note)


def _pseudoinverse(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """Of a psd matrix; eigenvalues within rounding count as 0."""
    values, vectors = psd_eigh(matrix)
    kept = values > rounding_level(len(values), values[-1])
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].mT
