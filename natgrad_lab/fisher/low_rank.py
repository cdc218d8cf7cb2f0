"""The leading eigenvectors of the exact Fisher, and nothing on the rest but damping."""

import torch
from torch import nn

from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import psd_eigh, zero_level
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Dense, Gram, LowRank, leading_eigenpairs
from natgrad_lab.structures.krylov import truncated

_LARGEST_EIGEN = 1024  # rows of a matrix whose eigendecomposition is made whole
_LARGEST_FORMED = 8192  # rows of a matrix that is formed


def low_rank_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    rank: int = 32,
) -> LowRank:
    """The `rank` largest eigenpairs of the whole Fisher, across layers and units; zero on the complement.

    The nearest matrix of that rank, in every unitarily invariant norm. A damped solve divides by λ on the complement, which
    is never dropped: (1/λ) of the gradient's part outside. Exact if `rank` is at least the Fisher's, at most K·N; TONGA keeps
    such a matrix of observed scores ("empirical"), per unit and as a running average. Where eigenvalue rank + 1 equals
    eigenvalue rank, which eigenvectors are kept is arbitrary.

    Args: rank: at least 1; fewer are kept if fewer eigenvalues are above rounding. The rest as `dense_fisher`.
    Returns: LowRank with rest 0, eigenvalues descending.
    Cost: the Gram matrix up to 8,192 rows (or the Fisher itself, for as few parameters) and some hundreds of products with
        it; above, as many products with the rows, 4 N P operations each. Computed in float64; rank · P numbers.
    References: [LeRoux2007].
    """
    return low_rank_from_scores(score_pass(model, likelihood, inputs, fisher_type, targets, num_samples, generator), rank)


def low_rank_from_scores(scores: ScorePass, rank: int = 32) -> LowRank:
    """`low_rank_fisher` from a pass already made."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a positive integer; got {rank!r}. It is the number of eigenvectors kept.")
    gram = gram_from_scores(scores)
    wide = Gram(tuple(block.map(lambda t: t.double()) for block in gram.blocks))
    leading = _leading_eigenpairs(wide, rank)
    note = "; ".join(part for part in (f"{len(leading.eigenvalues)} leading eigenpairs", scores.note) if part)
    return LowRank(*(t.to(gram.dtype) for t in (leading.basis, leading.eigenvalues, leading.rest)), note=note)


def _leading_eigenpairs(gram: Gram, rank: int) -> LowRank:
    """Of F = RᵀR: from F, from RRᵀ (v = Rᵀu / √s for its eigenpairs s, u), or from products alone."""
    if gram.dim <= min(gram.num_rows, _LARGEST_FORMED):
        return _of_formed(contract(list(gram.blocks), 1), rank)
    if gram.num_rows > _LARGEST_FORMED:
        return leading_eigenpairs(gram, min(rank, gram.dim))
    inside = _of_formed(gram.row_gram, rank)
    if not len(inside.eigenvalues):
        return LowRank(gram.row_gram.new_zeros(gram.dim, 0), inside.eigenvalues, inside.rest)
    scaled = gram.rmatmul(inside.basis / inside.eigenvalues.sqrt())
    return LowRank(torch.linalg.qr(scaled).Q, inside.eigenvalues, inside.rest)  # orthonormal also where s is tiny


def _of_formed(matrix: Float[Tensor, "m m"], rank: int) -> LowRank:
    """The eigenpairs above rounding of a formed matrix, at most `rank`, descending."""
    if len(matrix) > max(_LARGEST_EIGEN, 4 * rank):
        leading = leading_eigenpairs(Dense(matrix), rank)
        values, vectors = leading.eigenvalues, leading.basis
    else:
        values, vectors = psd_eigh(matrix)
    kept = values > zero_level(len(matrix), values.max())
    return truncated(LowRank(vectors[:, kept], values[kept], values.new_zeros(())), rank)
