"""Kronecker blocks with one factor replaced by a multiple of the identity."""

from functools import singledispatch

import torch
from torch import nn

from natgrad_lab.fisher.chunks import averaged, passes
from natgrad_lab.fisher.kfac import kfac_from_scores
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal, ConcatRows, EmbeddingRows, Kronecker, RowBlock, StructuredMatrix

SCALES = ("trace", "one")


def one_sided_input_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    scale: str = "trace",
) -> BlockDiagonal:
    """K-FAC with white scores, g I ⊗ A per layer: what methods that whiten a layer's inputs take the Fisher for.

    With scale="one" and no damping, the direction is V A⁻¹ for the gradient V of [W | b], A of homogeneous inputs: PRONG's
    step (which subtracts the mean of the inputs, whitens them, and lets the bias take up the rest), and SNGD's (which takes
    the symmetric root A^½ into the weights). They differ once damped: `structures.bias_free_damping` is PRONG's,
    `structures.input_damping` SNGD's; `solve(x, damping)` is exact, as everywhere. Equal to K-FAC if G is a multiple of I.

    Args: scale: "trace": g is the mean eigenvalue of G, so that the trace is K-FAC's; "one": g = 1, the methods' own. The rest
        as `dense_fisher`.
    Raises: as `kfac_fisher`.
    Cost: as `kfac_fisher`.
    References: [Desjardins2015].
    """
    return _one_sided("right", scale, (model, likelihood, inputs, fisher_type, targets, num_samples, generator))


def one_sided_score_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    scale: str = "trace",
) -> BlockDiagonal:
    """K-FAC with white inputs, G ⊗ a I per layer: the other half of `one_sided_input_fisher`, what whitening leaves to do.

    Equal to K-FAC if A is a multiple of I: inputs whitened together with their constant.

    Args: scale: "trace": a is the mean eigenvalue of A; "one": a = 1. The rest as `dense_fisher`.
    Raises, Cost: as `kfac_fisher`.
    """
    return _one_sided("left", scale, (model, likelihood, inputs, fisher_type, targets, num_samples, generator))


def one_sided_from_scores(scores: ScorePass, kept: str = "right", scale: str = "trace") -> BlockDiagonal:
    """From a pass already made; `kept` is "right" (inputs) or "left" (scores)."""
    kfac = kfac_from_scores(scores)
    pairs = zip(scores.layers, kfac.blocks, strict=True)
    return BlockDiagonal(tuple(_halved(each.rows, block, kept, scale) for each, block in pairs), note=kfac.note)


def _one_sided(kept: str, scale: str, choices: tuple) -> BlockDiagonal:
    known(scale, SCALES, "scale")
    return averaged(lambda scores: one_sided_from_scores(scores, kept, scale), passes(*choices))


@singledispatch
def _halved(rows: RowBlock, block: StructuredMatrix, kept: str, scale: str) -> StructuredMatrix:
    if not isinstance(block, Kronecker):
        return block  # a layer without Kronecker structure keeps its exact block
    left, right = block.left, block.right
    return Kronecker(_white(left, scale), right) if kept == "right" else Kronecker(left, _white(right, scale))


@_halved.register
def _(rows: EmbeddingRows, block: StructuredMatrix, kept: str, scale: str) -> StructuredMatrix:
    return _halved.registry[object](rows, block, {"left": "right", "right": "left"}[kept], scale)  # its block is A ⊗ G


@_halved.register
def _(rows: ConcatRows, block: StructuredMatrix, kept: str, scale: str) -> StructuredMatrix:
    if not isinstance(block, BlockDiagonal):
        return block
    pairs = zip(rows.blocks, block.blocks, strict=True)
    return BlockDiagonal(tuple(_halved(inner, part, kept, scale) for inner, part in pairs))


def _white(factor: Tensor, scale: str) -> Tensor:
    eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return eye * (factor.trace() / len(factor)) if scale == "trace" else eye
