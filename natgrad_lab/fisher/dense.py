"""The whole Fisher as one matrix, contracted over the scores before the parameters.

The textbook product (Sᵀ J)ᵀ(Sᵀ J) / N costs 2 N K P² operations. Entry by entry

    F[(l,i,a), (m,j,b)] = (1/N) Σ_n x_lna (Σ_k s_lkni s_mknj) x_mnb,

so for one unit (l, i) the whole strip of rows is X_lᵀ Z with Z[n, (m,j,b)] = (Σ_k s_lkni s_mknj) x_mnb: N P² operations for
the upper triangle, whatever K is.
"""

import torch
from torch import nn

from natgrad_lab.fisher.chunks import passes
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.progress import announce
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Dense, KhatriRaoRows, RowBlock

_WORKSPACE = 2**26  # numbers in the workspace Z (256 MB in float32): longer batches are split


def dense_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    out: Tensor | None = None,
) -> Dense:
    """The Fisher F = (1/N) Σ_n J_nᵀ Λ_n J_n as one dense (P, P) matrix in the flat order.

    Exact for "exact"; for "monte_carlo" and "empirical" it is exactly the matrix that the scores define.

    Args:
        inputs: (N, ...).
        fisher_type, targets, num_samples, generator: as in `output_scores`.
        out: a (P, P) buffer of the model's dtype and device to write into; its last dimension must be contiguous.
    Returns: Dense, holding `out` if it was given.
    Raises: as `score_pass`.
    Cost: N P² operations after the pass, P² numbers.
    """
    seen, note = 0, ""
    for scores in passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator):
        out = contract([layer.rows for layer in scores.layers], len(inputs), out, accumulate=seen > 0)
        seen, note = seen + scores.num_examples, scores.note
    return Dense(out, note=note)


def dense_from_scores(scores: ScorePass, out: Tensor | None = None) -> Dense:
    """`dense_fisher` from a pass already made."""
    return Dense(contract([layer.rows for layer in scores.layers], scores.num_examples, out), note=scores.note)


def contract(
    blocks: list[RowBlock], num_examples: int, out: Tensor | None = None, *, accumulate: bool = False
) -> Float[Tensor, "P P"]:
    """RᵀR / N for rows given by layer: over the scores first where every layer has one position, else from formed rows.

    Args:
        num_examples: N, which may be more than the blocks hold, if `accumulate` adds further blocks to `out` later.
        out: buffer; `accumulate` adds to what it holds.
    """
    dim = sum(block.shape[1] for block in blocks)
    _, like = next(blocks[0].tensors())
    matrix = _buffer(out, dim, like)
    if all(isinstance(block, KhatriRaoRows) for block in blocks):
        _contract_scores(blocks, num_examples, matrix, accumulate)
        return matrix
    chunk = max(1, _WORKSPACE // dim)
    if not accumulate:
        matrix.zero_()
    for start in range(0, blocks[0].shape[0], chunk):
        rows = torch.cat([block.rows(start, start + chunk) for block in blocks], dim=1)
        torch.addmm(matrix, rows.T, rows, alpha=1 / num_examples, out=matrix)
    return matrix


def _contract_scores(blocks: list[KhatriRaoRows], num_examples: int, matrix: Tensor, accumulate: bool) -> None:
    """RᵀR / N for rows r_kn = [s_1kn ⊗ x_1n, s_2kn ⊗ x_2n, ...], without forming them."""
    chunk = max(1, _WORKSPACE // len(matrix))
    for start in range(0, len(blocks[0].inputs), chunk):
        part = slice(start, start + chunk)
        inputs = [block.inputs[part] for block in blocks]
        scores = [block.scores[:, part].permute(1, 0, 2) / num_examples**0.5 for block in blocks]  # (n, K, C)
        _add_upper_triangle(inputs, scores, matrix, accumulate or start > 0)
    _mirror(blocks, matrix)


def _add_upper_triangle(inputs: list[Tensor], scores: list[Tensor], matrix: Tensor, accumulate: bool) -> None:
    num_examples, dim = inputs[0].shape[0], matrix.shape[0]
    workspace = matrix.new_empty(num_examples * dim)
    row = 0
    for first, (x, s) in enumerate(zip(inputs, scores, strict=True)):
        # weights[m][n, i, j] = Σ_k s_lkni s_mknj for this layer l and every later layer m
        weights = [torch.bmm(s.mT, later) for later in scores[first:]]
        for unit in range(s.shape[2]):
            strip = workspace[: num_examples * (dim - row)].view(num_examples, dim - row)
            column = 0
            for weight, later_inputs in zip(weights, inputs[first:], strict=True):
                weight = weight[:, unit, unit:] if column == 0 else weight[:, unit]
                width = weight.shape[1] * later_inputs.shape[1]
                z = strip[:, column : column + width].view(num_examples, weight.shape[1], later_inputs.shape[1])
                torch.mul(weight.unsqueeze(2), later_inputs.unsqueeze(1), out=z)
                column += width
            block = matrix[row : row + x.shape[1], row:]
            if accumulate:
                torch.addmm(block, x.T, strip, out=block)
            else:
                torch.mm(x.T, strip, out=block)
            row += x.shape[1]


def _mirror(blocks: list[KhatriRaoRows], matrix: Tensor) -> None:
    """Copy the strips right of each unit's diagonal block below it."""
    row = 0
    for block in blocks:
        width = block.inputs.shape[1]
        for _ in range(block.scores.shape[2]):
            end = row + width
            matrix[end:, row:end] = matrix[row:end, end:].T
            row = end


def _buffer(out: Tensor | None, dim: int, like: Tensor) -> Tensor:
    if out is None:
        announce(dim * dim * like.element_size(), f"a dense {dim} x {dim} Fisher")
        return like.new_empty(dim, dim)
    wrong = out.shape != (dim, dim) or out.dtype != like.dtype or out.device != like.device or out.stride(1) != 1
    if wrong or out.requires_grad or (dim > 1 and out.stride(0) < dim):
        raise ValueError(
            f"out must be a ({dim}, {dim}) buffer, {like.dtype} on {like.device}, with contiguous rows; got "
            f"{tuple(out.shape)}, {out.dtype} on {out.device}, strides {out.stride()}. Make it with "
            f"torch.empty({dim}, {dim}, dtype={like.dtype}, device={str(like.device)!r})."
        )
    return out
