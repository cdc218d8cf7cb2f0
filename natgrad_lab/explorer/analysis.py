"""What stands beside the picture: all eigenvalues, condition numbers, a table of layers, and the same preconditioned."""

from functools import singledispatch

import torch

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.explorer.inverse import RowSpectrum
from natgrad_lab.explorer.matrices import Matrices
from natgrad_lab.linalg import psd_eigh, psd_eigvalsh, rounding_level
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Dense, Gram, Kronecker, StructuredMatrix

_SOLVED = 2**25  # numbers of C⁻¹Rᵀ, some seconds: above, a preconditioned spectrum is not computed
_CHUNK = 2**24  # numbers of it formed at a time


def analysis(matrices: Matrices) -> dict:
    """Plain data: {"dim", "rows", "damping", "spectra": [...], "layers": [...], "notes": [...]}.

    A spectrum is {"name", "kind", "eigenvalues" (all above rounding, descending), "rank", "null", "condition"}; "kind" is
    "exact", "plain" (before whitening), or "preconditioned": the eigenvalues of C^-½ F C^-½, C an approximation + damping I,
    from RC⁻¹Rᵀ. The condition number is that of the range, largest over smallest above rounding. A layer is its
    name, its parameters, its share of the trace, its largest eigenvalue and its condition number.
    What cannot be had is named in "notes". Cost: rows³ for each spectrum and layer, and rows solves for each preconditioner.
    """
    damping, dim = matrices.arrangement.damping, matrices.layout.dim
    out = {"dim": dim, "rows": matrices.gram.num_rows, "damping": damping, "spectra": [], "layers": [], "notes": []}
    try:
        spectrum = matrices.spectrum
        values = spectrum.eigenvalues
    except ValueError as error:
        return out | {"notes": [str(error)]}
    out["spectra"].append(summary("exact F, white coordinates" if matrices.arrangement.white else "exact F", values, dim))
    if matrices.arrangement.white:
        before = RowSpectrum(matrices.plain_gram).eigenvalues
        out["spectra"].append(summary("before whitening", before, dim, "plain"))
    for name, matrix in matrices.structures.items():
        try:
            solved = preconditioned(matrices.gram, matrix, damping)
        except (ValueError, UnsupportedLayerError) as error:
            out["notes"].append(f"preconditioned by {name}: {error}")
        else:
            rank = out["spectra"][0]["rank"]  # the rank of F: an invertible change keeps it, rounding would add to it
            out["spectra"].append(summary(name, solved.flip(0)[:rank], dim, "preconditioned"))
    out["layers"] = layer_table(matrices)
    return out


def summary(name: str, values: Float[Tensor, " R"], dim: int, kind: str = "exact") -> dict:
    """Eigenvalues of RRᵀ as those of the (dim, dim) matrix RᵀR."""
    values = values.clamp(min=0).sort(descending=True).values[:dim]
    kept = values[values > rounding_level(len(values), values[0])]
    return {
        "name": name, "kind": kind, "eigenvalues": kept.tolist(), "rank": len(kept), "null": dim - len(kept),
        "condition": float(kept[0] / kept[-1]) if len(kept) else None,
    }  # fmt: skip


def layer_table(matrices: Matrices) -> list[dict]:
    """One row a layer, in the flat order and the coordinates shown."""
    gram = matrices.gram if matrices.order is None else matrices.plain_gram
    rows, total = [], float(gram.diagonal().double().sum())
    for number, (layer, block) in enumerate(zip(matrices.layout.layers, gram.blocks, strict=True), 1):
        trace = float(block.diagonal().double().sum())
        one = summary(layer.name, RowSpectrum(Gram((block,))).eigenvalues, layer.size)
        rows.append({
            "name": layer.name or "model", "number": number, "units": layer.shape[0], "inputs": layer.shape[1],
            "parameters": layer.size, "share": trace / total if total else 0.0, "rank": one["rank"],
            "largest": one["eigenvalues"][0] if one["rank"] else 0.0, "condition": one["condition"],
        })  # fmt: skip
    return rows


def preconditioned(gram: Gram, matrix: StructuredMatrix, damping: float) -> Float[Tensor, " R"]:
    """Eigenvalues of (M + λI)^-½ RᵀR (M + λI)^-½ that can differ from 0: those of R (M + λI)⁻¹ Rᵀ, float64.

    Raises: ValueError where the solves would take more than 33 million numbers: tiles would wait for them.
    """
    size = gram.num_rows * gram.dim
    if size > _SOLVED:
        raise ValueError(f"{gram.num_rows:,} solves with {gram.dim:,} parameters take long. Use fewer rows of scores.")
    exact, wide = RowSpectrum(gram).gram, widened(matrix)
    eye = torch.eye(gram.num_rows, dtype=torch.float64, device=gram.device)
    step, parts = max(1, _CHUNK // gram.dim), []
    for start in range(0, gram.num_rows, step):
        columns = exact.rmatmul(eye[:, start : start + step].contiguous())
        parts.append(exact.rows_matmul(wide.solve(columns, damping)))
    small = torch.cat(parts, 1)
    return psd_eigvalsh((small + small.mT) / 2)


@singledispatch
def widened(matrix: StructuredMatrix) -> StructuredMatrix:
    """The same in float64. Factors known to float32 are semidefinite to float32 only: each is made so again."""
    return matrix.map(lambda tensor: tensor.double())


@widened.register(BlockDiagonal)
def _blocks(matrix):
    return BlockDiagonal(tuple(widened(block) for block in matrix.blocks), note=matrix.note)


@widened.register(Kronecker)
def _kronecker(matrix):
    return Kronecker(_semidefinite(matrix.left), _semidefinite(matrix.right))


@widened.register(Dense)
def _dense(matrix):
    return Dense(_semidefinite(matrix.matrix))


def _semidefinite(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    if matrix.dtype == torch.float64:
        return matrix
    values, vectors = psd_eigh(matrix)  # refuses what rounding in its own precision does not explain
    half = vectors.double() * values.double().sqrt()
    return half @ half.mT
