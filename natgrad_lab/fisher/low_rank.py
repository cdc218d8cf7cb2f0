"""The leading eigenvectors of the exact Fisher, and nothing on the rest but damping."""

import torch
from torch import nn

from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import Gram, LowRank, leading_eigenpairs
from natgrad_lab.structures.krylov import truncated

_LARGEST_EIGEN = 2048  # rows of a matrix whose eigendecomposition is made whole


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
    Cost: (KN)³ operations through the Gram matrix up to 2,048 rows (or P³ for as few parameters); above, products with the
        rows, K N P operations each, some hundreds. Computed in float64; rank · P numbers.
    References: [LeRoux2007].
    """
    return low_rank_from_scores(score_pass(model, likelihood, inputs, fisher_type, targets, num_samples, generator), rank)


def low_rank_from_scores(scores: ScorePass, rank: int = 32) -> LowRank:
    """`low_rank_fisher` from a pass already made."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a positive integer; got {rank!r}. It is the number of eigenvectors kept.")
    gram = gram_from_scores(scores)
    wide = Gram(tuple(block.map(lambda t: t.double()) for block in gram.blocks))
    if min(wide.num_rows, wide.dim) <= _LARGEST_EIGEN:
        leading = truncated(_all_eigenpairs(wide), rank)
    else:
        leading = leading_eigenpairs(wide, min(rank, wide.dim))
    note = "; ".join(part for part in (f"{len(leading.eigenvalues)} leading eigenpairs", scores.note) if part)
    return LowRank(*(t.to(gram.dtype) for t in (leading.basis, leading.eigenvalues, leading.rest)), note=note)


def _all_eigenpairs(gram: Gram) -> LowRank:
    whole = gram.power(1)
    if isinstance(whole, LowRank):
        return whole
    values, vectors = torch.linalg.eigh(whole.to_dense())
    kept = values > 10 * len(values) * torch.finfo(values.dtype).eps * values[-1]
    return LowRank(vectors[:, kept], values[kept], values.new_zeros(()))
