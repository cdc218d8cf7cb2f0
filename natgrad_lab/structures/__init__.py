"""The algebra room: symmetric positive semidefinite matrices as frozen dataclasses of tensors, no model in sight."""

from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.block_diagonal import BlockDiagonal
from natgrad_lab.structures.block_tridiagonal import BlockTridiagonalInverse, tridiagonal_tikhonov
from natgrad_lab.structures.dense import Dense
from natgrad_lab.structures.diagonal import Diagonal
from natgrad_lab.structures.eigen_kronecker import EigenKronecker
from natgrad_lab.structures.gram import Gram
from natgrad_lab.structures.implicit import Implicit
from natgrad_lab.structures.inverse import Inverse
from natgrad_lab.structures.kronecker import Kronecker, factored_tikhonov, pi_trace_norm
from natgrad_lab.structures.kronecker_inverse import FormedKroneckerInverse, KroneckerInverse
from natgrad_lab.structures.krylov import krylov_solve, lanczos, leading_eigenpairs
from natgrad_lab.structures.low_rank import LowRank
from natgrad_lab.structures.one_sided import bias_free_damping, input_damping
from natgrad_lab.structures.quasi_diagonal import QuasiDiagonal, arrow_matrix, ollivier_solve
from natgrad_lab.structures.restore import from_state
from natgrad_lab.structures.row_blocks import DenseRows, KhatriRaoRows, RowBlock
from natgrad_lab.structures.shared_rows import ConcatRows, EmbeddingRows, SharedRows
from natgrad_lab.structures.unit_wise import UnitWise

__all__ = [
    "BlockDiagonal",
    "BlockTridiagonalInverse",
    "ConcatRows",
    "Dense",
    "DenseRows",
    "Diagonal",
    "EigenKronecker",
    "EmbeddingRows",
    "FormedKroneckerInverse",
    "Gram",
    "Implicit",
    "Inverse",
    "KhatriRaoRows",
    "Kronecker",
    "KroneckerInverse",
    "LowRank",
    "QuasiDiagonal",
    "RowBlock",
    "SharedRows",
    "StructuredMatrix",
    "UnitWise",
    "arrow_matrix",
    "bias_free_damping",
    "factored_tikhonov",
    "from_state",
    "input_damping",
    "krylov_solve",
    "lanczos",
    "leading_eigenpairs",
    "ollivier_solve",
    "pi_trace_norm",
    "tridiagonal_tikhonov",
]
