"""A diagonal matrix."""

from dataclasses import dataclass
from numbers import Real

from natgrad_lab.linalg import check_damping, clamp_spectrum, not_positive_definite, spectrum_power
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix, power_note


@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(StructuredMatrix):
    """diag(values): the entries are the eigenvalues. A solve adds no rounding, so only an entry 0 makes it singular."""

    values: Float[Tensor, " P"]

    def __post_init__(self):
        """Refuse what is not a vector."""
        super().__post_init__()
        if self.values.ndim != 1 or not len(self.values):
            raise ValueError(f"Diagonal needs a vector with at least one entry; got shape {tuple(self.values.shape)}.")

    @property
    def dim(self) -> int:
        """Number of entries."""
        return len(self.values)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""
        self._check(x)
        return _rows(self.values, x) * x

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x."""
        self._check(x)
        return x / _rows(self._positive(damping), x)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M + damping I)^p as a Diagonal."""
        powers = self._positive(damping).pow(p) if p < 0 else spectrum_power(self.values, p, damping)
        return Diagonal(powers, note=power_note(p, damping))

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself."""
        return self.values.diag()

    def diagonal(self) -> Float[Tensor, " P"]:
        """The entries."""
        return self.values.clone()

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """The entries, sorted."""
        return self.values.sort().values

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """Sum of the logarithms of the damped entries."""
        return self._positive(damping).log().sum()

    def _positive(self, damping: Real) -> Tensor:
        damped = clamp_spectrum(self.values) + check_damping(damping)
        if (smallest := damped.min().item()) <= 0:
            raise not_positive_definite(self.dim, f"its smallest entry is {smallest:.3g}", float(damping), 0.0)
        return damped


def _rows(values: Tensor, x: Tensor) -> Tensor:
    return values if x.ndim == 1 else values[:, None]
