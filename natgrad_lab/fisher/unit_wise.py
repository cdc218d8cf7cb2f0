"""The blocks of single units, exact, with zeros between units."""

from functools import singledispatch

import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.chunks import averaged, passes
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.scores import LayerRows, ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import called
from natgrad_lab.progress import announce
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, EmbeddingRows, KhatriRaoRows, RowBlock, UnitWise

_WORKSPACE = 1 << 25  # numbers formed at a time
_LARGEST_SINGLE = 4096  # parameters of a layer without units that count as those of one


def unit_wise_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> BlockDiagonal:
    """The blocks of `dense_fisher` that belong to single units, each exact; everything between units is dropped.

    A unit is a row of [W | b]: an output of a linear layer, a channel of a convolution, with M_c = (1/N) Σ_n Σ_k s_knc² [a; 1]
    [a; 1]ᵀ where its weights are used once per example. An Embedding's units are its entries; a layer whose parameters are
    no matrix (a normalization) counts as one unit. Exact for layers of one unit; equal to the layer blocks if scores of
    different units of a layer are uncorrelated given the input (one layer, Gaussian or Bernoulli).

    Args, Raises: as `dense_fisher`; UnsupportedLayerError for a large layer without units.
    Returns: one UnitWise per layer in the flat order.
    Cost: N C D² operations and C D² numbers for a layer of C units with D parameters each.
    References: [Ollivier2015].
    """
    each = passes(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return averaged(unit_wise_from_scores, each)


def unit_wise_from_scores(scores: ScorePass) -> BlockDiagonal:
    """`unit_wise_fisher` from a pass already made."""
    return BlockDiagonal(tuple(UnitWise(_blocks(each) / scores.num_examples) for each in scores.layers), note=scores.note)


def _blocks(each: LayerRows) -> Float[Tensor, "m n n"]:
    layer, (_, like) = each.layer, next(each.rows.tensors())
    if not layer.has_rows and not isinstance(each.rows, EmbeddingRows):
        if layer.size > _LARGEST_SINGLE:
            raise UnsupportedLayerError(
                f"{called(layer.name, layer.module)} has no units, and its {layer.size} parameters are too "
                f"many for one block (at most {_LARGEST_SINGLE}). Freeze it with requires_grad_(False)."
            )
        return contract([each.rows], 1).unsqueeze(0)
    units = each.rows.num_entries if isinstance(each.rows, EmbeddingRows) else layer.shape[0]
    width = layer.size // units
    announce(units * width**2 * like.element_size(), f"{units} blocks {width} x {width} of layer {layer.name!r}")
    return unit_blocks(each.rows, units)


@singledispatch
def unit_blocks(rows: RowBlock, units: int) -> Float[Tensor, "m n n"]:
    """Σ_r of the outer products of the rows' parts, unit by unit, (units, width, width): here from the columns, formed."""
    width = rows.shape[1] // units
    step = max(1, _WORKSPACE // (rows.shape[0] * width))
    blocks = []
    for unit in range(0, units, step):
        columns = rows.columns(unit * width, min(unit + step, units) * width).unflatten(1, (-1, width)).transpose(0, 1)
        blocks.append(columns.mT @ columns)
    return torch.cat(blocks)


@unit_blocks.register
def _(rows: KhatriRaoRows, units: int) -> Float[Tensor, "m n n"]:
    weights = rows.scores.square().sum(0).mT.unsqueeze(2)  # (C, N, 1)
    step = max(1, _WORKSPACE // rows.inputs.numel())
    return torch.cat([rows.inputs.mT @ (part * rows.inputs) for part in weights.split(step)])
