"""Each weight with its unit's bias, and weights with each other only through it.

Of a unit's block the diagonal and the row of the bias are kept. An arrow, the matrix with zeros everywhere else, is not
positive semidefinite in general (weights that all follow the bias give it a negative eigenvalue). What stands here is
the matrix with those entries whose *inverse* is an arrow, which is psd always:

    M_ii, M_0i, M_00 as given,     M_ij = M_0i M_0j / M_00:  two weights covary as far as the bias explains both.

Its undamped inverse is Ollivier's quasi-diagonal reduction.
"""

from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.linalg import check_damping, not_positive_definite
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.unit_wise import UnitWise


@dataclass(frozen=True, eq=False, repr=False)
class QuasiDiagonal(StructuredMatrix):
    """m units of n weights and a bias (the last of the unit's parameters), each unit diagonal plus rank one.

    With c = cross / bias, a unit's block is diag(weights - bias c², 0) + bias [c; 1] [c; 1]ᵀ.
    A moving average (`map`) averages the entries that are given, as one would those of the whole matrix.
    Cost: (2 n + 1) m numbers, a product or solve a few times as many flops; `power` and `eigvalsh` go through the units'
    dense blocks.
    References: [Ollivier2015], quasi-diagonal reduction.
    """

    weights: Float[Tensor, "m n"]
    cross: Float[Tensor, "m n"]
    bias: Float[Tensor, " m"]

    def __post_init__(self):
        """Refuse shapes that do not fit together, and entries that no psd matrix has."""
        super().__post_init__()
        m, shapes = len(self.bias), [tuple(t.shape) for t in (self.weights, self.cross, self.bias)]
        if self.weights.ndim != 2 or shapes != [shapes[0], shapes[0], (m,)] or shapes[0][0] != m or m == 0:
            raise ValueError(f"QuasiDiagonal needs weights and cross (m, n) and bias (m,); got shapes {shapes}.")
        slack = 1 + 100 * torch.finfo(self.dtype).eps
        bad = (self.cross.square() > slack * self.weights * self.bias[:, None]) | (self.weights < 0)
        if (self.bias < 0).any() or bad.any():
            raise ValueError(
                "QuasiDiagonal needs entries of a psd matrix: weights >= 0, bias >= 0, cross² <= weights · bias; "
                f"{int(bad.sum() + (self.bias < 0).sum())} entries are not. Take them from mean outer products."
            )

    @property
    def dim(self) -> int:
        """m (n + 1)."""
        return self.weights.numel() + len(self.bias)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""
        self._check(x)
        weights, bias = self._split(x)
        slopes, rest = self._slopes.unsqueeze(2), self._rest.unsqueeze(2)
        along = self.bias[:, None, None] * ((slopes * weights).sum(1, keepdim=True) + bias)
        return torch.cat([rest * weights + slopes * along, along], 1).reshape(x.shape)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x: eliminate the weights, then the bias. Without damping this is Ollivier's formula."""
        self._check(x)
        damping = check_damping(damping)
        pivots = self._pivots(damping)
        solution = self._eliminated(x, damping, *pivots)
        if damping > 0:  # inputs of very different scales leave an error that one correction takes away
            solution = solution + self._eliminated(x - self.matmul(solution) - damping * solution, damping, *pivots)
        return solution

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p as a UnitWise."""
        return self._unit_wise.power(p, damping)

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix with its zeros."""
        return self._unit_wise.to_dense()

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries, as given."""
        return torch.cat([self._rest + self.bias[:, None] * self._slopes.square(), self.bias[:, None]], 1).flatten()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """The units' eigenvalues together, ascending."""
        return self._unit_wise.eigvalsh()

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """Sum of the logarithms of the pivots."""
        return sum(part.log().sum() for part in self._pivots(check_damping(damping)))

    @cached_property
    def _slopes(self) -> Tensor:
        """cross / bias, 0 for a unit whose bias has no variance (and so no covariance)."""
        return torch.where(self.bias[:, None] > 0, self.cross / self.bias[:, None].clamp(min=torch.finfo(self.dtype).tiny), 0)

    @cached_property
    def _rest(self) -> Tensor:
        """Variance of the weights that the bias does not explain."""
        return (self.weights - self.cross * self._slopes).clamp(min=0)

    @property
    def _unit_wise(self) -> UnitWise:
        column = torch.cat([self._slopes, torch.ones_like(self.bias)[:, None]], 1)
        blocks = self.bias[:, None, None] * column.unsqueeze(2) * column.unsqueeze(1)
        blocks.diagonal(dim1=1, dim2=2)[:, :-1].add_(self._rest)
        return UnitWise(blocks)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Columns by unit: of the weights (m, n, k) and of the bias (m, 1, k)."""
        columns = x.reshape(len(self.bias), self.weights.shape[1] + 1, -1)
        return columns[:, :-1], columns[:, -1:]

    def _eliminated(self, x: Tensor, damping: float, rest: Tensor, pivot: Tensor) -> Tensor:
        weights, bias = self._split(x)
        slopes, rest = self._slopes.unsqueeze(2), rest.unsqueeze(2)
        aside = (weights - slopes * bias) / rest
        top = (bias - self.bias[:, None, None] * (slopes * aside).sum(1, keepdim=True)) / pivot[:, None, None]
        return torch.cat([aside + damping * slopes / rest * top, top], 1).reshape(x.shape)

    def _pivots(self, damping: float) -> tuple[Tensor, Tensor]:
        """Of the weights (m, n) and, with these eliminated, of the bias (m,): their product is the determinant.

        A weight's pivot is a difference, and drowns in rounding relative to that weight alone: scales do not matter.
        """
        rest, bias = self._rest + damping, self.bias + damping
        level = 0.0 if damping else 10 * torch.finfo(self.dtype).eps
        for pivots, least in ((rest, level * self.weights), (bias, torch.zeros_like(bias))):
            if (singular := pivots <= least).any():
                size = f"its smallest pivot is {pivots[singular].min().item():.3g}"
                raise not_positive_definite(self.dim, size, damping, least[singular].max().item())
        explained = (self._slopes.square() / rest).sum(1)
        return rest, bias + damping * self.bias * explained


def ollivier_solve(matrix: QuasiDiagonal, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
    """Ollivier's quasi-diagonal step: `damping` is added to the given diagonal entries, then the reduction is made.

    Per unit, with g the entries of x: dw_i = (g_i M_00 - g_0 M_0i) / (M_ii M_00 - M_0i²), db = g_0 / M_00 - Σ_i M_0i / M_00
    dw_i, where M_ii and M_00 are damped and M_0i is not. This is not (M + damping I)⁻¹ x: the entries between two weights,
    M_0i M_0j / M_00, fall when M_00 grows. With damping 0 the two are the same.
    References: [Ollivier2015]; [MarceauCaron2016].
    """
    damping = check_damping(damping)
    if damping == 0:
        return matrix.solve(x)
    damped = QuasiDiagonal(matrix.weights + damping, matrix.cross, matrix.bias + damping, note=f"reduced at {damping:g}")
    return damped.solve(x)


def arrow_matrix(matrix: QuasiDiagonal) -> Float[Tensor, "P P"]:
    """The entries that are given, and zeros between the weights of a unit: symmetric, in general not psd."""
    m, n = matrix.weights.shape
    blocks = torch.diag_embed(torch.cat([matrix.weights, matrix.bias[:, None]], 1))
    blocks[:, :n, n] = blocks[:, n, :n] = matrix.cross
    return torch.block_diag(*blocks)
