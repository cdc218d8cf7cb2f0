"""Kronecker-factored approximate curvature: layer blocks G ⊗ A."""

from functools import singledispatch

import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.chunks import averaged, passes
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import called, known
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    ConcatRows,
    Dense,
    EmbeddingRows,
    KhatriRaoRows,
    Kronecker,
    RowBlock,
    SharedRows,
    StructuredMatrix,
)
from natgrad_lab.structures.row_blocks import mirror_upper

WEIGHT_SHARING = ("expand", "reduce")
_STRIP = 96  # rows of a factor computed at a time
_LARGE = 1 << 26  # multiplications from which half of them are worth the copy of the other half
_LARGEST_DENSE_BLOCK = 4096  # parameters of a layer without Kronecker structure whose exact block is taken instead


def kfac_fisher(
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
    """K-FAC: one Kronecker product G ⊗ A per layer.

    A layer's exact block is E[ssᵀ ⊗ aaᵀ], a its homogeneous input and s the score at its output; K-FAC takes
    E[ssᵀ] ⊗ E[aaᵀ]. The block is exact for a single example, and for deep linear networks with a Gaussian likelihood
    ("exact" scores there do not depend on the example); everything between layers is dropped.

    Where a layer's weights are used at S positions of an example (convolutions, sequences, recurrent layers):
    "expand" takes positions for independent, A = mean over examples and positions, G = mean over examples of the sum over
    positions (KFC for convolutions; exact for deep linear networks with a Gaussian term at every position). "reduce"
    takes the mean input and the summed score of each example (exact for deep linear networks that sum or average over
    positions before the loss). With S = 1 they are the same.

    Layers of elementwise weights (normalizations) and small layers without a rule get their exact block.

    Args: weight_sharing: "expand" or "reduce"; the rest as `dense_fisher`.
    Raises: as `dense_fisher`; UnsupportedLayerError for a large layer that has no Kronecker structure.
    Returns: one block per layer in the flat order: Kronecker with left G (out, out), right A (in + 1, in + 1) with bias; an
        Embedding's is A ⊗ G with A the diagonal of its entries' frequencies; a grouped convolution's one Kronecker a group.
    Cost: one forward and K backward passes; O(in² + out²) numbers per layer.
    References: [MartensGrosse2015] sec. 3; [GrosseMartens2016]; [Eschenhagen2023].
    """
    known(weight_sharing, WEIGHT_SHARING, "weight_sharing")
    each = passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return averaged(lambda scores: kfac_from_scores(scores, weight_sharing), each).validated()


def kfac_from_scores(scores: ScorePass, weight_sharing: str = "expand") -> BlockDiagonal:
    """`kfac_fisher` from a pass already made."""
    blocks = []
    for layer, rows in ((each.layer, each.rows) for each in scores.layers):
        block = kronecker_block(rows, scores.num_examples, weight_sharing)
        if block is None:
            raise UnsupportedLayerError(
                f"{called(layer.name, layer.module)} has no Kronecker structure, and its {layer.size} "
                f"parameters are too many for an exact block (at most {_LARGEST_DENSE_BLOCK}). Freeze it with "
                "requires_grad_(False), or register a rule with @natgrad_lab.fisher.row_block.register."
            )
        blocks.append(block)
    return BlockDiagonal(tuple(blocks), note=scores.note)


@singledispatch
def kronecker_block(rows: RowBlock, num_examples: int, weight_sharing: str) -> StructuredMatrix | None:
    """K-FAC's block for rows of this kind: the exact block where there is no product structure; None if that is too large."""
    return Dense(contract([rows], num_examples)) if rows.shape[1] <= _LARGEST_DENSE_BLOCK else None


@kronecker_block.register
def _(rows: KhatriRaoRows, num_examples: int, weight_sharing: str) -> Kronecker:
    return _kronecker(rows.scores.flatten(0, 1), rows.inputs, num_examples, num_examples)


@kronecker_block.register
def _(rows: SharedRows, num_examples: int, weight_sharing: str) -> Kronecker:
    if weight_sharing == "reduce":
        return _kronecker(rows.scores.sum(2).flatten(0, 1), rows.inputs.mean(1), num_examples, num_examples)
    positions = rows.inputs.shape[1]
    return _kronecker(rows.scores.flatten(0, 2), rows.inputs.flatten(0, 1), num_examples, num_examples * positions)


@kronecker_block.register
def _(rows: EmbeddingRows, num_examples: int, weight_sharing: str) -> Kronecker | None:
    if rows.num_entries > _LARGEST_DENSE_BLOCK:
        return None
    one_hot = nn.functional.one_hot(rows.index + 1, rows.num_entries + 1)[..., 1:].to(rows.dtype)  # (N, S, V)
    factors = kronecker_block(SharedRows(one_hot, rows.scores), num_examples, weight_sharing)
    return Kronecker.trusted(left=factors.right, right=factors.left, note="")


@kronecker_block.register
def _(rows: ConcatRows, num_examples: int, weight_sharing: str) -> BlockDiagonal:
    return BlockDiagonal(tuple(kronecker_block(block, num_examples, weight_sharing) for block in rows.blocks))


def _kronecker(scores: Tensor, inputs: Tensor, num_examples: int, num_inputs: int) -> Kronecker:
    left, right = _gram(scores, num_examples), _gram(inputs, num_inputs)
    return Kronecker.trusted(left=left, right=right, note="")


def _gram(rows: Tensor, count: int) -> Tensor:
    """Σ of the rows' outer products / count; a large one by strips of its upper triangle, little more than half the work."""
    num_rows, width = rows.shape
    out = rows.new_empty(width, width)
    if num_rows * width**2 < _LARGE:
        return torch.addmm(out, rows.T, rows, beta=0, alpha=1 / count, out=out)
    for start in range(0, width, _STRIP):
        strip = out[start : start + _STRIP, start:]
        torch.addmm(strip, rows[:, start : start + _STRIP].T, rows[:, start:], beta=0, alpha=1 / count, out=strip)
    return mirror_upper(out, _STRIP)
