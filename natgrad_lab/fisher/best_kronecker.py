"""The Kronecker product nearest to each layer's exact block: a bound on what any Kronecker product can do.

Rearranged so that Kronecker products become matrices of rank one, the block B = (1/N) Σ_r vec(M_r) vec(M_r)ᵀ of rows M_r
(C, D) turns into an operator on (D, D) matrices and back,

    A ↦ (1/N) Σ_r M_r A M_rᵀ,     G ↦ (1/N) Σ_r M_rᵀ G M_r,

whose largest singular pair is the nearest G ⊗ A. Both maps take psd matrices to psd matrices, so power iteration from
K-FAC's factors stays psd, never forms the rearranged matrix, and can only come nearer.
"""

import warnings
from collections.abc import Callable
from functools import singledispatch

import torch
from torch import nn

from natgrad_lab.errors import NumericalWarning
from natgrad_lab.fisher.kfac import kfac_from_scores
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, ConcatRows, KhatriRaoRows, Kronecker, RowBlock, StructuredMatrix

_WORKSPACE = 1 << 25  # numbers of rows formed at a time
_STEPS = 1000
_CONVERGED = 1e-10  # relative change in the norm of the product, above which stopping is stated

Maps = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def best_kronecker_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> BlockDiagonal:
    """Per layer the G ⊗ A nearest to the exact block in the Frobenius norm (Van Loan's), instead of K-FAC's.

    No Kronecker product is nearer, K-FAC's included: what is left is the cost of rank one. It is exact where K-FAC is.
    Its trace is not the Fisher's; A is scaled to have K-FAC's trace. Where the two largest singular values are equal
    it is not unique (its distance is).

    Layers that get their exact block from K-FAC get it here; shared weights take "expand" factors as the start.

    Args: as `dense_fisher`.
    Raises: as `kfac_fisher`.
    Warns: NumericalWarning if 1,000 iterations did not converge.
    Returns: one Kronecker per layer in the flat order, both factors psd (a grouped convolution's one per group).
    Cost: per iteration that of K-FAC's factors, and N (C² + D²) numbers read, for layers that see one vector per example; for
        others the rows are formed in chunks, K N C D (C + D) operations. Some tens of iterations.
    References: [VanLoan1993]; [Koroko2022].
    """
    return best_kronecker_from_scores(score_pass(model, likelihood, inputs, fisher_type, targets, num_samples, generator))


def best_kronecker_from_scores(scores: ScorePass) -> BlockDiagonal:
    """`best_kronecker_fisher` from a pass already made."""
    kfac = kfac_from_scores(scores)
    pairs = zip(scores.layers, kfac.blocks, strict=True)
    blocks = (_nearest(each.rows, block, scores.num_examples, each.layer.name) for each, block in pairs)
    return BlockDiagonal(tuple(blocks), note=scores.note)


def _nearest(rows: RowBlock, start: StructuredMatrix, num_examples: int, name: str) -> StructuredMatrix:
    if isinstance(rows, ConcatRows) and isinstance(start, BlockDiagonal):
        pairs = zip(rows.blocks, start.blocks, strict=True)
        return BlockDiagonal(tuple(_nearest(inner, block, num_examples, name) for inner, block in pairs))
    if not isinstance(start, Kronecker):
        return start
    to_left, to_right = rearranged_maps(rows, (len(start.left), len(start.right)), num_examples)
    left, right, size = start.left, start.right, 0.0
    for _ in range(_STEPS):
        before = right / right.norm().clamp(min=torch.finfo(right.dtype).tiny)
        left = to_left(before)  # the best for this right, of norm 1
        if not left.any():
            return Kronecker(left, start.right)
        right = to_right(left) / left.square().sum()  # the best for that left
        change = abs(1 - size / float(left.norm() * right.norm()))
        size = float(left.norm() * right.norm())
        if (right / right.norm() - before).norm() <= 100 * torch.finfo(right.dtype).eps:
            break
    else:
        if change > max(_CONVERGED, 100 * torch.finfo(right.dtype).eps):
            warnings.warn(
                f"the nearest Kronecker product of layer {name!r} still changed by {change:.1e} in norm after {_STEPS} "
                "iterations: its two largest singular values are nearly equal. Its distance is right to about that.",
                NumericalWarning,
                stacklevel=2,
            )
    scale = float(start.right.trace() / right.trace())
    return Kronecker(_symmetric(left) / scale, _symmetric(right) * scale)


@singledispatch
def rearranged_maps(rows: RowBlock, shape: tuple[int, int], num_examples: int) -> Maps:
    """The two maps of the module's text: here from rows formed, a few at a time."""
    step = max(1, _WORKSPACE // rows.shape[1])

    def summed(term: Callable[[Tensor], Tensor]) -> Tensor:
        starts = range(0, rows.shape[0], step)
        return sum(term(rows.rows(start, start + step).unflatten(1, shape)) for start in starts) / num_examples

    def to_left(right: Tensor) -> Tensor:
        return summed(lambda M: torch.einsum("rcd,rbd->cb", M @ right, M))

    def to_right(left: Tensor) -> Tensor:
        return summed(lambda M: torch.einsum("rcd,rce->de", left @ M, M))

    return to_left, to_right


@rearranged_maps.register
def _(rows: KhatriRaoRows, shape: tuple[int, int], num_examples: int) -> Maps:
    inputs, scores = rows.inputs, rows.scores

    def to_left(right: Tensor) -> Tensor:
        weights = ((inputs @ right) * inputs).sum(1)  # (N,) aᵀ A a
        return ((scores * weights[:, None]).flatten(0, 1).mT @ scores.flatten(0, 1)) / num_examples

    def to_right(left: Tensor) -> Tensor:
        weights = ((scores @ left) * scores).sum((0, 2))  # (N,) Σ_k sᵀ G s
        return ((inputs * weights[:, None]).mT @ inputs) / num_examples

    return to_left, to_right


def _symmetric(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    return (matrix + matrix.mT) / 2
