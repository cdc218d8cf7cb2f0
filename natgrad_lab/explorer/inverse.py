"""Damped inverses: of the exact Fisher through the small matrix RRᵀ, of a structure by its own rule."""

from functools import cached_property

import numpy as np
import torch

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.explorer.cells import add_strips
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.row_pairs import ELEMENT
from natgrad_lab.explorer.source import Source, TooDear
from natgrad_lab.explorer.structure import Approximation, diagonal_cells
from natgrad_lab.linalg import psd_eigh, psd_eigvalsh
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Gram, KhatriRaoRows, StructuredMatrix

ROWS_LIMIT = 3000  # rows of R up to which RRᵀ is diagonalized
_HELD = 2**25  # numbers of Gram matrices held at a time
_DEAR = 3e11  # operations above which one picture is refused: tens of seconds
_COLUMNS = 2**23  # numbers of R formed at a time


class RowSpectrum:
    """Eigenvalues and eigenvectors of RRᵀ in float64: those of RᵀR are Rᵀu / √κ, and all else is 0."""

    def __init__(self, gram: Gram):
        """Keep the rows in float64; nothing is computed. Raises: ValueError for more than 3,000 rows."""
        if gram.num_rows > ROWS_LIMIT:
            raise ValueError(
                f"RRᵀ of {gram.num_rows:,} rows is not diagonalized here (the limit is {ROWS_LIMIT:,}). Use fewer examples or "
                "fisher_type='monte_carlo', which has one row an example."
            )
        self.gram = Gram(tuple(block.map(lambda tensor: tensor.double()) for block in gram.blocks))

    @cached_property
    def pairs(self) -> tuple[Float[Tensor, " R"], Float[Tensor, "R R"]]:
        """Eigenvalues, descending, and eigenvectors in columns."""
        values, vectors = psd_eigh(self.gram.row_gram)
        return values.flip(0), vectors.flip(1)

    @property
    def eigenvalues(self) -> Float[Tensor, " R"]:
        """Descending; without eigenvectors, a third of the work, unless these are there."""
        return self.pairs[0] if "pairs" in vars(self) else self._eigenvalues

    @cached_property
    def _eigenvalues(self) -> Float[Tensor, " R"]:
        return psd_eigvalsh(self.gram.row_gram).flip(0)

    @cached_property
    def leading(self) -> Float[Tensor, " P"]:
        """The unit eigenvector of RᵀR of the largest eigenvalue."""
        vector = self.gram.rmatmul(self.pairs[1][:, 0].contiguous())
        return vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)


class InverseExact(Source):
    """(RᵀR + λI)⁻¹ = (I − ZᵀZ) / λ with Z = diag(κ + λ)^-½ UᵀR, RRᵀ = U diag(κ) Uᵀ: nothing of size P x P is formed.

    Computed in float64 whatever the model's precision. Exact up to eps / λ: directions with κ < eps λ are left out of Z.
    Cost: of entries, 2 R² a row or column and 2 R an entry; of mean squares of cells that are not formed 3 R² a parameter.
    Raises: TooDear for a picture of mean squares of more than 3e11 operations; means and entries cost little.
    """

    def __init__(self, spectrum: RowSpectrum, damping: float):
        """Keep both; nothing is computed."""
        self.rows_of, self.spectrum, self.damping = ExactFisher(spectrum.gram), spectrum, damping
        self.label = f"(F + {damping:.3g} I)⁻¹"

    @property
    def dim(self) -> int:
        """P."""
        return self.rows_of.dim

    @cached_property
    def _root(self) -> Float[Tensor, "k R"]:
        values, vectors = self.spectrum.pairs
        kept = values > torch.finfo(values.dtype).eps * self.damping
        return (vectors[:, kept] / (values[kept] + self.damping).sqrt()).mT.contiguous()

    def entries(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """(δ − ZᵀZ) / λ."""
        left = self._image(rows)
        out = -(left.mT @ (left if rows == columns else self._image(columns)))
        low, high = max(rows.start, columns.start), min(rows.stop, columns.stop)
        if low < high:
            out[low - rows.start : high - rows.start, low - columns.start : high - columns.start].diagonal().add_(1)
        return out / self.damping

    def sums(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Through the sums of the rows of R over cells."""
        left = self._root @ self.rows_of.row_sums(rows)
        inside = left.mT @ (left if np.array_equal(rows, columns) else self._root @ self.rows_of.row_sums(columns))
        return (diagonal_cells(self._ones, rows, columns) - inside) / self.damping

    def squares(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """From entries, or Σ (δ − z)² = Σ z² + Σ_diagonal (1 − 2z) with Σ z² inner products of the cells' ZZᵀ."""
        (k, R), r, c = self._root.shape, len(rows) - 1, len(columns) - 1
        height, width = float(rows[-1] - rows[0]), float(columns[-1] - columns[0])
        formed = height * width * (2 * k + 2 * ELEMENT) + (height + width) * 2 * k * R
        groups = -(-r // max(1, _HELD // k**2))
        grams = (height + groups * width) * (2 * k * R + 2 * k**2) + 2.0 * r * c * k**2
        if min(formed, grams) > _DEAR:
            raise TooDear(
                f"root mean squares of these cells of an inverse take about {min(formed, grams):.0e} operations. Choose "
                "colours with a sign (their means cost little), a smaller region, or fewer rows of scores (examples, or "
                "fisher_type='monte_carlo')."
            )
        if formed <= grams:
            return add_strips(lambda a, b: self.entries(a, b).square_(), rows, columns)
        corrections = diagonal_cells(1 - 2 * self._lengths, rows, columns)
        return (self._inner_products(rows, columns, -(-r // groups)) + corrections) / self.damping**2

    def diagonal(self) -> Float[Tensor, " P"]:
        """(1 − |z|²) / λ."""
        return (1 - self._lengths) / self.damping

    @cached_property
    def _lengths(self) -> Float[Tensor, " P"]:
        """|z|² of every column of Z: diagonal of RᵀMR with M the square of the root."""
        weights, out = self._root.mT @ self._root, []
        for block, (start, stop) in zip(self.spectrum.gram.blocks, self.rows_of.spans, strict=True):
            if isinstance(block, KhatriRaoRows):
                out.append(quadratic_diagonal(block, weights))
            else:
                out.extend(self._image(part).square().sum(0) for part in self._strips(start, stop))
        return torch.cat(out)

    @cached_property
    def _ones(self) -> Tensor:
        return torch.ones(self.dim, dtype=torch.float64, device=self._root.device)

    def _image(self, where: slice) -> Float[Tensor, "k w"]:
        return self._root @ self.rows_of.columns(where)

    def _strips(self, start: int, stop: int):
        step = max(1, _COLUMNS // self._root.shape[1])
        return (slice(at, min(at + step, stop)) for at in range(start, stop, step))

    def _gram(self, start: int, stop: int) -> Float[Tensor, "k k"]:
        return sum((z := self._image(part)) @ z.mT for part in self._strips(start, stop))

    def _inner_products(self, rows: np.ndarray, columns: np.ndarray, together: int) -> Float[Tensor, "r c"]:
        out = []
        for first in range(0, len(rows) - 1, together):
            edges = rows[first : first + together + 1]
            own = torch.stack([self._gram(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]).flatten(1)
            each = zip(columns[:-1].tolist(), columns[1:].tolist(), strict=True)
            out.append(torch.stack([own @ self._gram(a, b).flatten() for a, b in each], 1))
        return torch.cat(out)


def quadratic_diagonal(block: KhatriRaoRows, weights: Float[Tensor, "R R"]) -> Float[Tensor, " C"]:
    """Diagonal of BᵀMB: of unit u and input i it is a_iᵀ T_u a_i with T_u = Σ_kl s_k s_lᵀ ∘ M_kl, an (N, N) matrix a unit."""
    K, N, units = block.scores.shape
    by_column = weights.view(K * N, K, N).permute(2, 0, 1)  # (m, R, l)
    step, out = max(1, _COLUMNS // (K * N * N)), []
    for first in range(0, units, step):
        scores = block.scores[:, :, first : first + step]
        half = (by_column @ scores.permute(1, 0, 2)).view(N, K, N, -1)  # (m, k, n, u)
        T = (half * scores).sum(1).permute(2, 0, 1)  # (u, m, n)
        out.append(((T @ block.inputs) * block.inputs).sum(1).flatten())
    return torch.cat(out)


def inverse_of(matrix: StructuredMatrix, damping: float, label: str) -> Approximation:
    """(M + λI)⁻¹ of a structure, by its own rule. Raises: UnsupportedLayerError, by name, where it has none."""
    try:
        return Approximation(matrix.power(-1, damping), label)
    except (NotImplementedError, UnsupportedLayerError, ValueError) as error:
        raise UnsupportedLayerError(f"no damped inverse to show of {label} ({type(matrix).__name__}): {error}") from error


class Minus(Source):
    """One source minus another, entry by entry: mean squares only of regions small enough to be formed."""

    def __init__(self, left: Source, right: Source, label: str):
        """Keep both."""
        self.left, self.right, self.label = left, right, label

    @property
    def dim(self) -> int:
        """P."""
        return self.left.dim

    def squares(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Formed. Raises: TooDear above 2^26 entries."""
        return formed_squares(self, rows, columns)

    def sums(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """The difference of the sums."""
        return self.left.sums(rows, columns).double() - self.right.sums(rows, columns).double()

    def entries(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """The difference of the entries."""
        return self.left.entries(rows, columns).double() - self.right.entries(rows, columns).double()

    def diagonal(self) -> Float[Tensor, " P"]:
        """The difference of the diagonals."""
        return self.left.diagonal().double() - self.right.diagonal().double()


def formed_squares(source: Source, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
    """Squared entries of a source, formed a strip at a time. Raises: TooDear above 67 million entries."""
    if float(rows[-1] - rows[0]) * float(columns[-1] - columns[0]) > 2**26:
        raise TooDear(
            f"root mean squares of {source.label} are formed entry by entry, and this region has more than 67 million. "
            "Zoom in, or choose colours with a sign, which show means."
        )
    return add_strips(lambda a, b: source.entries(a, b).square(), rows, columns)
