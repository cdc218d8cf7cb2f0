"""A picture of a Fisher that is never formed: the root mean square of every block of groups of parameters.

For groups r and c of parameters, ‖F_rc‖² = ‖R_rᵀ R_c‖² = ⟨R_r R_rᵀ, R_c R_cᵀ⟩: Gram matrices of the rows, one per group,
as long vectors, and one matrix product of them. Symmetric, so only their upper triangles are needed.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from natgrad_lab.fisher.gram import gram_fisher
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.progress import track
from natgrad_lab.shapes import Float, Int, Tensor
from natgrad_lab.structures import Gram, KhatriRaoRows, RowBlock

_WORKSPACE = 2**23  # numbers of the groups' Gram matrices held at a time: what a cache holds pays


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
    layers = _groups(gram, edges.tolist())
    rows, count = gram.num_rows, len(edges) - 1
    squares = torch.zeros(count, count, dtype=gram.dtype, device=gram.device)
    height = max(1, min(rows, _WORKSPACE // (count * rows)))
    workspace = torch.empty(count * height * rows, dtype=gram.dtype, device=gram.device)
    for start in track(range(0, rows, height), f"overview, {count} x {count}"):
        shape = (count, min(height, rows - start), rows - start)
        strip = workspace[: shape[0] * shape[1] * shape[2]].view(shape)
        place = 0
        for layer in layers:
            layer.fill(strip[place : place + len(layer.columns)], start)
            place += len(layer.columns)
        squares.addmm_(strip.flatten(1), strip.flatten(1).T)
    sizes = edges.diff().to(squares)
    return Overview((squares.clamp(min=0) / torch.outer(sizes, sizes)).sqrt(), edges)


@dataclass(frozen=True)
class _LayerGroups:
    """The groups of one layer, as columns of its block of rows."""

    block: RowBlock
    columns: list[slice]

    @cached_property
    def scores(self) -> Tensor | None:
        """The groups' scores (g, K N, c), zeros after the last unit; None unless all groups are whole units."""
        if not isinstance(self.block, KhatriRaoRows):
            return None
        width = self.block.inputs.shape[1]
        if any(columns.start % width or columns.stop % width for columns in self.columns):
            return None
        flat = self.block.scores.flatten(0, 1)
        parts = [flat[:, columns.start // width : columns.stop // width] for columns in self.columns]
        most = max(part.shape[1] for part in parts)
        return torch.stack([torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts])

    def fill(self, out: Tensor, start: int) -> None:
        """Rows start to start + h of every R_g R_gᵀ, from column `start` on; right of the square they count √2."""
        height = out.shape[1]
        if self.scores is None:
            for each, columns in zip(out, self.columns, strict=True):
                rows = self.block.columns(columns.start, columns.stop)
                torch.mm(rows[start : start + height], rows[start:].mT, out=each)
            out[:, :, height:] *= 2**0.5
            return
        inputs = self.block.inputs
        index = torch.arange(start, start + out.shape[2], device=out.device) % len(inputs)
        products = inputs[index[:height]] @ inputs.mT[:, index]
        products[:, height:] *= 2**0.5
        torch.bmm(self.scores[:, start : start + height], self.scores[:, start:].mT, out=out)
        out *= products


def _groups(gram: Gram, edges: list[int]) -> list[_LayerGroups]:
    """The groups between edges, layer by layer."""
    layers, start = [], 0
    for block in gram.blocks:
        stop = start + block.shape[1]
        inside = [slice(a - start, b - start) for a, b in zip(edges[:-1], edges[1:], strict=True) if start <= a and b <= stop]
        layers.append(_LayerGroups(block, inside))
        start = stop
    if sum(len(layer.columns) for layer in layers) != len(edges) - 1:
        raise ValueError(f"groups must not cross layers; got edges {edges}. Take those of group_edges(layout, resolution).")
    return layers
