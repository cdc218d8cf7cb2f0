"""K-FAC's eigenvectors with exact variances along them."""

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import nn

from natgrad_lab.fisher.chunks import passes
from natgrad_lab.fisher.kfac import WEIGHT_SHARING, kfac_fisher, kfac_from_scores
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import psd_eigh
from natgrad_lab.names import known
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    ConcatRows,
    EigenKronecker,
    EmbeddingRows,
    KhatriRaoRows,
    Kronecker,
    RowBlock,
    SharedRows,
    StructuredMatrix,
)


def ekfac_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    weight_sharing: str = "expand",
) -> BlockDiagonal:
    """EKFAC: each layer's block is diagonal in the eigenbasis of K-FAC's G ⊗ A, with the block's own diagonal there.

    The variances are E[(u_Gᵀ DW u_A)²], of per-example gradients DW (for shared weights summed over positions, then squared),
    so that the trace is the Fisher's, and no matrix diagonal in that basis is nearer: ‖F - EKFAC‖ ≤ ‖F - K-FAC‖. Exact where
    K-FAC is. *Not unique where a factor has a repeated nonzero eigenvalue* (whitened inputs): every basis of its
    eigenspace gives another EKFAC. Not invariant to affine maps of the activations, as K-FAC is.

    Layers that get their exact block from K-FAC get it here.

    Args: weight_sharing: of the K-FAC whose basis is taken. The rest as `dense_fisher`.
    Raises: as `kfac_fisher`.
    Returns: one EigenKronecker per layer in the flat order (a grouped convolution's one per group).
    Cost: K-FAC, its eigendecompositions, and one rotation of inputs and scores; batches too large for one pass are passed
        over twice.
    References: [George2018] sec. 3.
    """
    known(weight_sharing, WEIGHT_SHARING, "weight_sharing")
    state = None if generator is None else generator.get_state()
    each = passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    first = next(each)
    if first.num_examples == len(inputs):
        return ekfac_from_scores(first, weight_sharing)
    each.close()
    again = [None if state is None else torch.Generator(inputs.device).set_state(state) for _ in range(2)]
    choices = (model, likelihood, inputs, fisher_type, targets, num_samples)
    basis = kfac_basis(kfac_fisher(*choices, again[0], weight_sharing=weight_sharing))
    return _averaged(basis, len(inputs), passes(*choices, again[1]))


def ekfac_from_scores(
    scores: ScorePass, weight_sharing: str = "expand", *, basis: BlockDiagonal | None = None
) -> BlockDiagonal:
    """`ekfac_fisher` from a pass already made; with `basis` (of `kfac_basis`) only the variances are new."""
    basis = basis or kfac_basis(kfac_from_scores(scores, weight_sharing))
    return _averaged(basis, scores.num_examples, iter([scores]))


def kfac_basis(kfac: BlockDiagonal) -> BlockDiagonal:
    """K-FAC as an EigenKronecker per layer: the same matrix, with the basis in which EKFAC is diagonal."""
    return BlockDiagonal(tuple(_eigen(block) for block in kfac.blocks), note=kfac.note)


def _eigen(block: StructuredMatrix) -> StructuredMatrix:
    if isinstance(block, BlockDiagonal):
        return kfac_basis(block)
    if not isinstance(block, Kronecker):
        return block
    (s, left), (t, right) = psd_eigh(block.left), psd_eigh(block.right)
    return EigenKronecker(left, right, torch.outer(s, t))


def rebased(old: BlockDiagonal, basis: BlockDiagonal) -> BlockDiagonal:
    """`old` in another basis: of each block U diag(s) Uᵀ its diagonal along the new vectors, (VᵀU)∘² s; the trace stays."""
    pairs = zip(old.blocks, basis.blocks, strict=True)
    return BlockDiagonal(tuple(_rebased(block, new) for block, new in pairs), note=basis.note)


def _rebased(old: StructuredMatrix, basis: StructuredMatrix) -> StructuredMatrix:
    if isinstance(old, BlockDiagonal):
        return rebased(old, basis)
    if not isinstance(old, EigenKronecker):
        return old
    left, right = basis.left_vectors.mT @ old.left_vectors, basis.right_vectors.mT @ old.right_vectors
    values = left.square() @ old.eigenvalues @ right.square().mT
    return EigenKronecker(basis.left_vectors, basis.right_vectors, values)


def _averaged(basis: BlockDiagonal, num_examples: int, each: Iterator[ScorePass]) -> BlockDiagonal:
    """The basis with the variances of all passes."""
    totals: list[Tensor | None] = [None] * len(basis.blocks)
    for scores in each:
        for place, (block, layer) in enumerate(zip(basis.blocks, scores.layers, strict=True)):
            if (part := variances(layer.rows, block)) is not None:
                part = part / num_examples
                totals[place] = part if totals[place] is None else totals[place] + part
    pairs = zip(basis.blocks, totals, strict=True)
    return BlockDiagonal(tuple(block if v is None else _with_variances(block, v) for block, v in pairs), note=basis.note)


def _with_variances(block: StructuredMatrix, values: Float[Tensor, " P"]) -> StructuredMatrix:
    if isinstance(block, EigenKronecker):
        return EigenKronecker(block.left_vectors, block.right_vectors, values.view_as(block.eigenvalues))
    parts = values.split([inner.dim for inner in block.blocks])
    return BlockDiagonal(tuple(_with_variances(inner, part) for inner, part in zip(block.blocks, parts, strict=True)))


@singledispatch
def variances(rows: RowBlock, basis: StructuredMatrix) -> Float[Tensor, " P"] | None:
    """Σ of the squared projections of the rows on the basis vectors, in the order of `basis.eigenvalues`; None without one."""
    return None


@variances.register
def _(rows: KhatriRaoRows, basis: StructuredMatrix) -> Float[Tensor, " P"] | None:
    return KhatriRaoRows(rows.inputs @ basis.right_vectors, rows.scores @ basis.left_vectors).diagonal()


@variances.register
def _(rows: SharedRows, basis: StructuredMatrix) -> Float[Tensor, " P"] | None:
    return SharedRows(rows.inputs @ basis.right_vectors, rows.scores @ basis.left_vectors).diagonal()


@variances.register
def _(rows: EmbeddingRows, basis: StructuredMatrix) -> Float[Tensor, " P"] | None:
    projected = torch.cat([basis.left_vectors, basis.left_vectors.new_zeros(1, rows.num_entries)])[rows.index]  # -1: zeros
    turned = SharedRows(projected, rows.scores @ basis.right_vectors).diagonal()  # (D, V), inputs fastest
    return turned.view(-1, rows.num_entries).mT.flatten()


@variances.register
def _(rows: ConcatRows, basis: StructuredMatrix) -> Float[Tensor, " P"] | None:
    if not isinstance(basis, BlockDiagonal):
        return None
    parts = [variances(inner, block) for inner, block in zip(rows.blocks, basis.blocks, strict=True)]
    return None if any(part is None for part in parts) else torch.cat(parts)
