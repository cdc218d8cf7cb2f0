"""What a few products with the exact Fisher know of it."""

import torch
from torch import nn

from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Gram, LowRank, lanczos


def krylov_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    steps: int = 10,
    start: Tensor | None = None,
) -> LowRank:
    """The exact Fisher seen from V = span(g, F g, ..., F^(steps-1) g): the matrix V (VᵀF V) Vᵀ, zero on the complement.

    For a solve with g itself it gives `steps` steps of conjugate gradients on (F + λI) x = g, for every λ. *It depends on
    g*: for another right-hand side it is an approximation like any other, not that vector's conjugate gradients
    (`structures.krylov_solve`, which is no linear map). Exact once V holds the range of F.

    Args:
        steps: products with F.
        start: g (P,) in the flat order; by default the loss gradient at `targets` if they are given, else a fixed random
            vector.
        The rest as `dense_fisher`.
    Returns: LowRank with rest 0, eigenvalues (Ritz values) descending.
    Cost: `steps` products, 4 K N P operations each, in float64; steps · P numbers.
    References: [Martens2010].
    """
    choices = (model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return krylov_from_scores(score_pass(*choices, loss_targets=targets if start is None else None), steps, start)


def krylov_from_scores(scores: ScorePass, steps: int = 10, start: Float[Tensor, " P"] | None = None) -> LowRank:
    """`krylov_fisher` from a pass already made; its loss gradient is the default start, if it has one."""
    gram, name = gram_from_scores(scores), "a given vector"
    if start is None and scores.loss is not None:
        start, name = scores.gradient(), "the gradient"
    if start is None:
        random = torch.Generator().manual_seed(0)
        start, name = torch.randn(gram.dim, generator=random, dtype=torch.float64).to(gram.device), "a random vector"
    wide = Gram(tuple(block.map(lambda t: t.double()) for block in gram.blocks))
    space = lanczos(wide, start.double(), steps)
    note = "; ".join(part for part in (f"{steps} products from {name}", scores.note) if part)
    return LowRank(*(t.to(gram.dtype) for t in (space.basis, space.eigenvalues, space.rest)), note=note)
