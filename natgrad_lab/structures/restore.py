"""From a saved state back to a structure: the one table of kinds."""

from natgrad_lab.structures.base import TensorFields
from natgrad_lab.structures.block_diagonal import BlockDiagonal
from natgrad_lab.structures.block_tridiagonal import BlockTridiagonalInverse, DampedChain
from natgrad_lab.structures.dense import Dense
from natgrad_lab.structures.diagonal import Diagonal
from natgrad_lab.structures.eigen_kronecker import EigenKronecker
from natgrad_lab.structures.gram import Gram
from natgrad_lab.structures.inverse import Inverse
from natgrad_lab.structures.kronecker import Kronecker
from natgrad_lab.structures.kronecker_inverse import FormedKroneckerInverse, KroneckerInverse
from natgrad_lab.structures.low_rank import LowRank
from natgrad_lab.structures.quasi_diagonal import QuasiDiagonal
from natgrad_lab.structures.row_blocks import DenseRows, KhatriRaoRows
from natgrad_lab.structures.shared_rows import ConcatRows, EmbeddingRows, SharedRows
from natgrad_lab.structures.unit_wise import UnitWise

KINDS = {
    kind.__name__: kind
    for kind in (
        *(BlockDiagonal, Dense, Diagonal, EigenKronecker, Gram, Kronecker, LowRank),
        *(BlockTridiagonalInverse, DampedChain, FormedKroneckerInverse, Inverse, KroneckerInverse, QuasiDiagonal, UnitWise),
        *(ConcatRows, DenseRows, EmbeddingRows, KhatriRaoRows, SharedRows),
    )
}


def from_state(state: dict) -> TensorFields:
    """Rebuild what `state()` described; the caches are not saved."""
    values = dict(state)
    if (kind := values.pop("structure", None)) not in KINDS:
        raise ValueError(
            f"a structure's state names its kind under 'structure'; got {kind!r}. Known kinds: {', '.join(KINDS)}."
        )
    return KINDS[kind](**{name: _value(part) for name, part in values.items()})


def _value(part):
    if isinstance(part, list):
        return tuple(_value(inner) for inner in part)
    return from_state(part) if isinstance(part, dict) else part
