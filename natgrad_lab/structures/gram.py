"""M = RᵀR through the small matrix RRᵀ: the exact Fisher of a batch with fewer rows than the model has parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.linalg import (
    check_damping,
    check_finite,
    cholesky_solve,
    clamp_spectrum,
    damped_cholesky,
    not_positive_definite,
    psd_eigh,
    psd_eigvalsh,
    rounding_level,
    shifted_cholesky,
    spectrum_power,
)
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix, power_note
from natgrad_lab.structures.dense import Dense
from natgrad_lab.structures.low_rank import LowRank
from natgrad_lab.structures.row_blocks import RowBlock, mirror_upper

_PASSES = 4  # each multiplies the residual by eps * ‖M‖ / damping
_RESIDUAL = 1e-14  # of the refined solve, relative: rounding of float64
_IN_RANGE = {torch.float32: 1e-9, torch.float64: _RESIDUAL}  # of the range form: a hundredth of the rounding of its result
_DEAR = 1 << 28  # multiplications of one product with R from which corrections by products are avoided
_CHUNK = 1 << 24  # numbers of R formed at a time by to_dense


@dataclass(frozen=True, eq=False, repr=False)
class Gram(StructuredMatrix):
    """RᵀR with R (rows, P) in column blocks, one per layer: a row is one score of one example, already divided by √N.

    With rows < P everything goes through RRᵀ (rows, rows), otherwise through the matrix itself. Solves through RRᵀ
    are as exact as in float64 whatever the dtype: the factorization is made in the working precision and refined with
    products in float64, which are cheap; where that does not converge, RRᵀ is made and factored in float64.
    Describes one batch, so `map` is refused.
    Cost: rows² Σ C_l flops for RRᵀ (kept), rows³ / 3 for a factorization, 4 N P for a product, N examples.
    """

    blocks: tuple[RowBlock, ...]

    def __post_init__(self):
        """Refuse blocks with different numbers of rows."""
        if not self.blocks:
            raise ValueError("Gram needs at least one block of rows; got none. A model without parameters has no Fisher.")
        super().__post_init__()
        for path, tensor in self.tensors():
            check_finite(tensor, f"Gram.{path}")
        if len(counts := {block.shape[0] for block in self.blocks}) > 1:
            raise ValueError(f"Gram needs blocks with as many rows each; got {sorted(counts)}. Use one batch for all layers.")

    @property
    def dim(self) -> int:
        """P, the columns of all blocks."""
        return sum(block.shape[1] for block in self.blocks)

    @property
    def num_rows(self) -> int:
        """Rows of R."""
        return self.blocks[0].shape[0]

    @cached_property
    def row_gram(self) -> Float[Tensor, "R R"]:
        """RRᵀ = Σ_l (A_l A_lᵀ) ∘ (G_l G_lᵀ), A_l the inputs and G_l the scores of layer l. Kept: only read it."""
        out = torch.zeros(self.num_rows, self.num_rows, dtype=self.dtype, device=self.device)
        for block in self.blocks:
            block.add_gram(out)
        return mirror_upper(out)

    def rows_matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "R *k"]:
        """R x."""
        self._check(x)
        parts = x.split([block.shape[1] for block in self.blocks])
        return sum(block.matmul(part) for block, part in zip(self.blocks, parts, strict=True))

    def rmatmul(self, v: Float[Tensor, "R *k"]) -> Float[Tensor, "P *k"]:
        """Rᵀ v."""
        self._check_rows(v)
        return torch.cat([block.rmatmul(v) for block in self.blocks])

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """Rᵀ(R x)."""
        return self.rmatmul(self.rows_matmul(x))

    def range_solve(self, u: Float[Tensor, "R *k"], damping: Real) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ Rᵀu = Rᵀ(RRᵀ + damping I)⁻¹u: the range form, for a gradient g = Rᵀu.

        Nothing is subtracted, as it is in the Woodbury form of `solve`, so nothing cancels at a small damping.
        With damping 0 it needs RRᵀ invertible, and gives the solution of least norm.
        """
        self._check_rows(u)
        return self._double.rmatmul(self._rows_solve(u.double(), damping, _IN_RANGE[self.dtype])).to(self.dtype)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x = (x - Rᵀ(RRᵀ + damping I)⁻¹ R x) / damping (Woodbury), in float64.

        For x close to the range of Rᵀ, as gradients are, the subtraction cancels: further passes correct the first.
        With at least as many rows as parameters the matrix itself is factored.
        """
        self._check(x)
        if self.num_rows >= self.dim:
            return self._dense.solve(x, damping)
        self._require_damping(damping)
        if self._double_gram_is_cheaper:
            return self._solve_in_rows(x.double(), float(damping)).to(self.dtype)
        residual = wide = x.double()
        solution = torch.zeros_like(wide)
        for _ in range(_PASSES):
            inside = self._double.rmatmul(self._rows_solve(self._double.rows_matmul(residual), damping))
            solution = solution + (residual - inside) / float(damping)
            residual = wide - self._double.matmul(solution) - float(damping) * solution
            if (residual.norm(dim=0) <= 10 * _RESIDUAL * wide.norm(dim=0)).all():
                break
        return solution.to(self.dtype)

    @cached_property
    def _double_gram_is_cheaper(self) -> bool:
        """Whether products with R are so dear that one correction by them costs more than RRᵀ in float64."""
        product = sum(block.product_flops for block in self.blocks)
        return product > _DEAR and sum(block.gram_flops for block in self.blocks) <= 4 * product

    def _solve_in_rows(self, x: Tensor, damping: float) -> Tensor:
        """(x − Rᵀw) / damping with w corrected in the space of rows, where a residual Rᵀy costs a product with RRᵀ only.

        What the last subtraction cancels stays: a relative residual of about eps λ_max / damping.
        """
        gram, factor = self._double.row_gram, self._double._factor(damping, damped_cholesky)
        images = self._double.rows_matmul(x)
        w = cholesky_solve(factor, images)
        for _ in range(_PASSES):
            y = (gram @ w + damping * w - images) / damping  # the residual of the solution is Rᵀy
            image = gram @ y
            size = (y * image).sum(0).clamp(min=0).sqrt()
            if (size <= 10 * _RESIDUAL * x.norm(dim=0)).all():
                break
            w = w - y + cholesky_solve(factor, image)
        return (x - self._double.rmatmul(w)) / damping

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p as a LowRank: eigenvectors Rᵀu/√s, s the eigenvalues above rounding; damping^p elsewhere.

        With at least as many rows as parameters, a Dense.
        """
        if self.num_rows >= self.dim:
            return self._dense.power(p, damping)
        if p < 0:
            self._require_damping(damping)
        s, u = psd_eigh(self._double.row_gram)
        kept = s > rounding_level(len(s), s[-1])
        scaled = self._double.rmatmul((u[:, kept] / s[kept].sqrt()).flip(1))
        basis = torch.linalg.qr(scaled).Q if kept.any() else scaled  # orthonormal to rounding also where s is tiny
        zero = torch.zeros(1, dtype=s.dtype, device=s.device)
        powers = spectrum_power(torch.cat([s[kept].flip(0), zero]), p, damping)
        return LowRank(*(t.to(self.dtype) for t in (basis, powers[:-1], powers[-1])), note=power_note(p, damping))

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself, summed over chunks of rows."""
        out = torch.zeros(self.dim, self.dim, dtype=self.dtype, device=self.device)
        step = max(1, _CHUNK // self.dim)
        for start in range(0, self.num_rows, step):
            rows = torch.cat([block.rows(start, start + step) for block in self.blocks], dim=1)
            out.addmm_(rows.mT, rows)
        return out

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """The rectangle M[rows, columns], exact, without the rest; slices of step 1 in the flat order."""
        left = self._columns(rows)
        return left.mT @ (left if rows == columns else self._columns(columns))

    def _columns(self, where: slice) -> Tensor:
        start, stop, step = where.indices(self.dim)
        if step != 1 or stop <= start:
            raise ValueError(f"a tile needs non-empty slices of step 1 within 0 .. {self.dim}; got {where}.")
        parts, offset = [], 0
        for block in self.blocks:
            low, high = max(start - offset, 0), min(stop - offset, block.shape[1])
            if low < high:
                parts.append(block.columns(low, high))
            offset += block.shape[1]
        return torch.cat(parts, dim=1)

    def diagonal(self) -> Float[Tensor, " P"]:
        """Squared norms of the columns of R; R is not formed."""
        return torch.cat([block.diagonal() for block in self.blocks])

    def eigvalsh(self) -> Float[Tensor, " r"]:
        """The min(rows, P) largest eigenvalues, ascending: all that are not zero are among them."""
        return self._eigenvalues.clone()

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """log det(M + damping I) = log det(RRᵀ + damping I) + (P - rows) log damping, in float64."""
        if self.num_rows >= self.dim:
            return self._dense.logdet(damping)
        self._require_damping(damping)
        inside = (self._double._eigenvalues + float(damping)).log().sum()
        return (inside + (self.dim - self.num_rows) * math.log(damping)).to(self.dtype)

    def map(self, fn: Callable[..., Tensor], *others):
        """Refused: the rows are those of one batch."""
        raise ValueError(
            "Gram cannot be mapped or averaged: its rows describe one batch, and combining those of two batches entry "
            "by entry means nothing. Use Dense(F.to_dense()) or a Kronecker Fisher for a moving average."
        )

    @cached_property
    def _double(self):
        """The same rows in float64 (small: inputs and scores, not R)."""
        return self if self.dtype == torch.float64 else Gram(tuple(b.map(lambda t: t.double()) for b in self.blocks))

    @cached_property
    def _dense(self) -> Dense:
        return Dense(self.to_dense())

    @cached_property
    def _eigenvalues(self) -> Tensor:
        return clamp_spectrum(self._dense.eigvalsh() if self.num_rows >= self.dim else psd_eigvalsh(self.row_gram))

    def _rows_solve(self, u: Tensor, damping: Real, enough: float = _RESIDUAL) -> Tensor:
        """(RRᵀ + damping I)⁻¹u in float64, to a relative residual of `enough`."""
        damping = check_damping(damping)
        if self.dtype != torch.float64 and (w := self._refined_solve(u, damping, enough)) is not None:
            return w
        return cholesky_solve(self._double._factor(damping, damped_cholesky), u)

    def _factor(self, damping: float, cholesky: Callable) -> Tensor | None:
        """The Cholesky factor of RRᵀ + damping I, kept until another damping is asked for."""
        if damping not in self._newest_factor:
            self._newest_factor.clear()
            self._newest_factor[damping] = cholesky(self.row_gram, damping)
        return self._newest_factor[damping]

    @cached_property
    def _newest_factor(self) -> dict:
        return {}

    def _refined_solve(self, u: Tensor, damping: float, enough: float) -> Tensor | None:
        """Factor in the working precision, correct by float64 residuals; None if that converges slowly."""
        factor = self._factor(damping, _cholesky_or_none)
        if factor is None:
            return None
        scale = u.norm(dim=0).clamp(min=torch.finfo(u.dtype).tiny)
        w, residual, error = torch.zeros_like(u), u, 1.0
        while error > enough:
            correction = cholesky_solve(factor, (residual / scale).to(self.dtype)).double() * scale
            refined = w + correction
            residual = u - self._double.rows_matmul(self._double.rmatmul(refined)) - damping * refined
            before, error = error, (residual.norm(dim=0) / scale).max().item()
            if not error < before / 10:
                return w if before < 1e-12 else None
            w = refined
        return w

    def _require_damping(self, damping: Real) -> None:
        if check_damping(damping) == 0:
            size = f"its rank is at most {self.num_rows}, so its smallest eigenvalue is 0"
            raise not_positive_definite(self.dim, size, 0.0, 0.0)

    def _check_rows(self, v: Tensor) -> None:
        if v.ndim not in (1, 2) or len(v) != self.num_rows:
            raise ValueError(
                f"Gram with {self.num_rows} rows takes one number per row, ({self.num_rows},) or ({self.num_rows}, k); "
                f"got length {len(v) if v.ndim else 'none'}, shape {tuple(v.shape)}. Row k * N + n is score k of "
                "example n."
            )


def _cholesky_or_none(matrix: Tensor, damping: float) -> Tensor | None:
    factor, failed = shifted_cholesky(matrix, damping)
    return None if failed else factor
