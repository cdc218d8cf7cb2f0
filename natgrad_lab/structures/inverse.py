"""The inverse of another structure, which is never formed: products are its solves."""

from dataclasses import dataclass
from numbers import Real

from natgrad_lab.linalg import check_damping
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.dense import Dense


@dataclass(frozen=True, eq=False, repr=False)
class Inverse(StructuredMatrix):
    """M⁻¹ of an invertible `matrix` M: its products are M's undamped solves, its solves M's products."""

    matrix: StructuredMatrix

    def __post_init__(self):
        """Refuse a singular matrix now, not at the first product."""
        super().__post_init__()
        self.matrix.logdet()

    @property
    def dim(self) -> int:
        """As the matrix."""
        return self.matrix.dim

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M⁻¹ x."""
        self._check(x)
        return self.matrix.solve(x)

    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M⁻¹ + damping I)⁻¹ x = (M + I / damping)⁻¹ M x / damping."""
        self._check(x)
        if check_damping(damping) == 0:
            return self.matrix.matmul(x)
        return self.matrix.solve(self.matrix.matmul(x), 1 / float(damping)) / float(damping)

    def power(self, p: Real, damping: Real = 0.0) -> StructuredMatrix:
        """(M⁻¹ + damping I)^p: M's own power without damping, else through the dense matrix."""
        if check_damping(damping) == 0:
            return self.matrix.power(-p)
        return Dense(self.to_dense()).power(p, damping)

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself, symmetric to the last bit."""
        inverse = super().to_dense()
        return (inverse + inverse.mT) / 2

    def eigvalsh(self) -> Float[Tensor, " P"]:
        """Reciprocals of M's eigenvalues, ascending."""
        return 1 / self.matrix.eigvalsh().flip(0)

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """log det(M⁻¹ + damping I)."""
        if check_damping(damping) == 0:
            return -self.matrix.logdet()
        return (self.eigvalsh() + float(damping)).log().sum()

    def __repr__(self) -> str:
        """One line; the matrix by its kind."""
        return f"Inverse(dim={self.dim}, {str(self.dtype).removeprefix('torch.')}, of {type(self.matrix).__name__})"
