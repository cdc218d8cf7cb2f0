"""The algebra room: symmetric positive semidefinite matrices as frozen dataclasses of tensors, no model in sight."""

from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.block_diagonal import BlockDiagonal
from natgrad_lab.structures.dense import Dense
from natgrad_lab.structures.diagonal import Diagonal
from natgrad_lab.structures.eigen_kronecker import EigenKronecker
from natgrad_lab.structures.gram import Gram
from natgrad_lab.structures.implicit import Implicit
from natgrad_lab.structures.kronecker import Kronecker, factored_tikhonov, pi_trace_norm
from natgrad_lab.structures.low_rank import LowRank
from natgrad_lab.structures.restore import from_state
from natgrad_lab.structures.row_blocks import DenseRows, KhatriRaoRows, RowBlock
from natgrad_lab.structures.shared_rows import ConcatRows, EmbeddingRows, SharedRows

__all__ = [
    "BlockDiagonal",
    "ConcatRows",
    "Dense",
    "DenseRows",
    "Diagonal",
    "EigenKronecker",
    "EmbeddingRows",
    "Gram",
    "Implicit",
    "KhatriRaoRows",
    "Kronecker",
    "LowRank",
    "RowBlock",
    "SharedRows",
    "StructuredMatrix",
    "factored_tikhonov",
    "from_state",
    "pi_trace_norm",
]
