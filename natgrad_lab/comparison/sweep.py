"""Moving the damping: a sweep of every approximation, and a slider for one that answers from cached eigendecompositions.

In the eigenbasis of a Kronecker product a new λ is a division, v = Q (Qᵀg / (d + λ)); rotate the rows of R into that basis
once, and vᵀFv = ‖R v‖² needs no rotation back. In the eigenbasis of R Rᵀ the exact natural gradient is a division too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from numbers import Real

import torch

from natgrad_lab.comparison.candidate import Candidate
from natgrad_lab.comparison.directions import direction_numbers, efficiency
from natgrad_lab.comparison.exact import Problem
from natgrad_lab.comparison.products import rotated
from natgrad_lab.comparison.rows import Numbers
from natgrad_lab.linalg import psd_eigh, rounding_level
from natgrad_lab.progress import track
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Diagonal, EigenKronecker, Gram, Kronecker, StructuredMatrix
from natgrad_lab.structures.eigen_kronecker import two_sided

LONGEST = 120.0  # seconds of one approximation's sweep above which it is left out
SWEPT = ("efficiency", "cosine", "norm_ratio", "best_step", "predicted_decrease", "achieved_decrease", "kl")


@dataclass(frozen=True)
class Sweep:
    """Numbers against damping. `curves[approximation][metric]` has one number (or None) for each of `dampings`."""

    dampings: tuple[float, ...]
    curves: dict[str, dict[str, list[float | None]]]
    residuals: list[float]  # of the exact natural gradient at each damping

    def to_dict(self) -> dict:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Sweep":
        """Undo `to_dict`."""
        return cls(tuple(values["dampings"]), values["curves"], values["residuals"])


def sweep(problem: Problem, candidates: Sequence[Candidate], dampings: Sequence[float]) -> Sweep:
    """Directions of every candidate at every damping, judged by the exact Fisher at the same damping.

    One that would take longer than `LONGEST` by itself is left out.
    Cost: one factorization of the exact system for each damping; none for approximations that keep eigendecompositions.
    """
    candidates = [each for each in candidates if each.seconds_next * len(dampings) <= LONGEST]
    curves = {each.approximation.name: {name: [] for name in SWEPT} for each in candidates}
    residuals = []
    for damping in track(list(dampings), "damping sweep"):
        residuals.append(problem.natural_gradient(damping).residual)
        for candidate in candidates:
            numbers = Numbers()
            try:
                v = candidate.direction(damping)
            except Exception:  # None in the curve; the row at the headline damping carries reasons
                v = None
            if v is not None:
                direction_numbers(numbers, problem, v, damping, steps="best")
            for name, curve in curves[candidate.approximation.name].items():
                curve.append(numbers.values.get(name))
    return Sweep(tuple(dampings), curves, residuals)


@dataclass(frozen=True)
class Position:
    """What a slider shows at one damping."""

    damping: Real
    efficiency: float
    cosine: float
    norm_ratio: float
    best_step: float
    predicted_decrease: float


class DampingSlider:
    """One approximation against the exact natural gradient at any λ, from what is computed once.

    Cost: `prepare()` is one eigendecomposition of the exact Fisher (or of R Rᵀ) and of each factor; then `at(λ)` costs one
    product with the rows, O(N Σ in·out), for layers with Kronecker or diagonal structure, else a solve of the structure.
    """

    def __init__(self, problem: Problem, structure: StructuredMatrix):
        """Nothing is computed yet. Args: structure: a float64 or float32 estimate for `problem`."""
        self.problem, self.structure = problem, structure

    def prepare(self) -> "DampingSlider":
        """Fill the caches."""
        _ = self._exact, self._turned
        self.at(self.problem.damping or 1e-3)
        return self

    def at(self, damping: Real) -> Position:
        """All numbers at one damping."""
        g, (values, coordinates, vectors) = self.problem.gradient, self._exact
        if self._turned is not None:
            gradient, spectrum, rows = self._turned
            v = gradient / (spectrum + damping)
        else:
            gradient, rows = g, self.problem.exact.gram
            v = self.structure.solve(g.to(self.structure.dtype), damping).double()
        image = rows.rows_matmul(v)
        slope, damped = float(gradient @ v), float(image @ image) + damping * float(v @ v)
        inside = coordinates / (values + damping)
        if self._through_rows:
            best, length, along = values @ (inside * coordinates), values @ inside.square(), inside @ (vectors.mT @ image)
        else:
            best, length, along = coordinates @ inside, inside @ inside, inside @ (vectors.mT @ v)
        norms = float(torch.linalg.vector_norm(v)), float(length) ** 0.5
        step = slope / damped
        return Position(
            damping, efficiency(slope, damped, float(best)), float(along) / norms[0] / norms[1], norms[0] / norms[1], step,
            step * slope / 2,
        )  # fmt: skip

    @property
    def _through_rows(self) -> bool:
        return self.problem.exact.num_rows < self.problem.exact.dim

    @cached_property
    def _exact(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, "m m"]]:
        """Eigenvalues s, coordinates c and vectors U: (F + λ)⁻¹g is U c/(s+λ), or RᵀU c/(s+λ) where R has fewer rows."""
        values, vectors = self.problem.exact.eigen
        if not self._through_rows:
            return values, vectors.mT @ self.problem.gradient, vectors
        coordinates = self.problem.fisher.coordinates
        if coordinates is not None:
            return values, vectors.mT @ coordinates, vectors
        image = vectors.mT @ self.problem.exact.gram.rows_matmul(self.problem.gradient)  # R g = R Rᵀ u
        kept = values > rounding_level(len(values), values[-1])
        return values, torch.where(kept, image / values.where(kept, torch.ones_like(values)), 0), vectors

    @cached_property
    def _turned(self) -> tuple[Tensor, Tensor, Gram] | None:
        """Gradient, eigenvalues and rows in the structure's eigenbasis; None where a layer has none of product form."""
        if not self._through_rows or not isinstance(self.structure, BlockDiagonal):
            return None
        turned = []
        for layer, block, rows in zip(self.problem.layout.layers, self.structure.blocks, self.problem.exact.rows, strict=False):
            g = self.problem.gradient[layer.slice]
            if isinstance(block, Diagonal):
                turned.append((g, block.values.double(), rows))
                continue
            eigen = _eigenbasis(block)
            there = None if eigen is None else rotated(rows, eigen.left_vectors, eigen.right_vectors)
            if there is None or block.dim != layer.size:
                return None
            turned.append((two_sided(eigen.left_vectors.mT, g, eigen.right_vectors.mT), eigen.eigenvalues.flatten(), there))
        gradients, spectra, rows = zip(*turned, strict=True)
        return torch.cat(gradients), torch.cat(spectra), Gram(tuple(rows))


def _eigenbasis(block: StructuredMatrix) -> EigenKronecker | None:
    """The block in its Kronecker eigenbasis, float64; None if it has none."""
    if isinstance(block, Kronecker):
        (s, left), (t, right) = psd_eigh(block.left), psd_eigh(block.right)
        block = EigenKronecker(left, right, torch.outer(s, t))
    return block.map(lambda t: t.double()) if isinstance(block, EigenKronecker) else None
