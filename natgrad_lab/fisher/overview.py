"""A picture of a Fisher that is never formed: the root mean square of every block of groups of parameters.

For groups r and c of parameters, ‖F_rc‖² = ‖R_rᵀ R_c‖² = ⟨R_r R_rᵀ, R_c R_cᵀ⟩: Gram matrices of the rows, one per group,
as long vectors, and one matrix product of them. Symmetric, so only their upper triangles are needed.
"""

from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab.fisher.gram import gram_fisher
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.progress import track
from natgrad_lab.shapes import Float, Int, Tensor
from natgrad_lab.structures import Gram, KhatriRaoRows, RowBlock

_WORKSPACE = 2**25  # numbers of the groups' Gram matrices held at a time


@dataclass(frozen=True)
class Overview:
    """Block RMS of a Fisher.

    Attributes:
        rms: (g, g): √ of the mean of squared entries of each block.
        edges: (g + 1,): group i holds the parameters edges[i] to edges[i + 1] of the flat order. Groups never cross layers,
            and hold whole units, or a piece of one unit, so that they can be named.
    """

    rms: Float[Tensor, "g g"]
    edges: Int[Tensor, " h"]


def overview(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    resolution: int = 200,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Overview:
    """RMS picture of the exact Fisher, about `resolution` groups a side (at least one per layer).

    Equals the RMS of the blocks of `dense_fisher` to rounding, at any number of parameters.

    Args: resolution: groups of parameters; the rest as `dense_fisher`.
    Raises: as `dense_fisher`.
    Cost: g² M² operations for M = K N rows, in pieces of fixed memory.
    """
    if not isinstance(resolution, int) or resolution < 1:
        raise ValueError(f"resolution must be a positive integer; got {resolution!r}.")
    gram = gram_fisher(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
    return overview_of(gram, group_edges(ParameterLayout(model), resolution))


def group_edges(layout: ParameterLayout, resolution: int) -> Int[Tensor, " h"]:
    """Cut the flat order into about `resolution` groups: a share per layer by size, then whole units or pieces of units."""
    edges = [0]
    for layer in layout.layers:
        groups = max(1, min(layer.size, round(resolution * layer.size / layout.dim)))
        units, width = layer.shape
        if groups <= units:
            cuts = [round(i * units / groups) * width for i in range(1, groups + 1)]
        else:
            pieces = min(width, -(-groups // units))
            inner = [round(i * width / pieces) for i in range(1, pieces + 1)]
            cuts = [unit * width + cut for unit in range(units) for cut in inner]
        edges += [layer.start + cut for cut in cuts]
    return torch.tensor(edges)


def overview_of(gram: Gram, edges: Int[Tensor, " h"]) -> Overview:
    """`overview` of a Gram Fisher on given groups; a group must not cross blocks (layers)."""
    groups = _groups(gram, edges.tolist())
    rows, count = gram.num_rows, len(groups)
    squares = torch.zeros(count, count, dtype=gram.dtype, device=gram.device)
    height = max(1, min(rows, _WORKSPACE // (count * rows)))
    for start in track(range(0, rows, height), f"overview, {count} x {count}"):
        strip = torch.stack([_strip(block, columns, start, height) for block, columns in groups])  # (g, h, rows - start)
        square, right = strip[:, :, :height].flatten(1), strip[:, :, height:].flatten(1)
        squares.addmm_(square, square.T).addmm_(right, right.T, alpha=2)
    sizes = edges.diff().to(squares)
    return Overview((squares.clamp(min=0) / torch.outer(sizes, sizes)).sqrt(), edges)


def _groups(gram: Gram, edges: list[int]) -> list[tuple[RowBlock, slice]]:
    """Each group as a block and columns of it."""
    groups, start = [], 0
    cuts = iter(zip(edges[:-1], edges[1:], strict=True))
    cut = next(cuts, None)
    for block in gram.blocks:
        stop = start + block.shape[1]
        while cut is not None and cut[1] <= stop:
            groups.append((block, slice(cut[0] - start, cut[1] - start)))
            cut = next(cuts, None)
        start = stop
    return groups


def _strip(block: RowBlock, columns: slice, start: int, height: int) -> Tensor:
    """Rows start to start + height of R_g R_gᵀ, from column `start` on."""
    if isinstance(block, KhatriRaoRows):
        return _khatri_rao_strip(block, columns, start, height)
    rows = block.columns(columns.start, columns.stop)
    return rows[start : start + height] @ rows[start:].mT


def _khatri_rao_strip(block: KhatriRaoRows, columns: slice, start: int, height: int) -> Tensor:
    """(x_n · x_m) (s_kn · s_jm) over the group's inputs and units, which are a rectangle of the layer's matrix [W | b]."""
    width, num_examples = block.inputs.shape[1], len(block.inputs)
    units = slice(columns.start // width, -(-columns.stop // width))
    whole = columns.start % width == 0 and columns.stop % width == 0
    inputs = (
        block.inputs if whole else block.inputs[:, columns.start - units.start * width : columns.stop - units.start * width]
    )
    scores = block.scores[:, :, units].flatten(0, 1)
    index = torch.arange(start, len(scores), device=block.device) % num_examples
    left = index[:height]
    products = (inputs @ inputs.mT)[left][:, index]
    return products.mul_(scores[start : start + height] @ scores[start:].mT)
