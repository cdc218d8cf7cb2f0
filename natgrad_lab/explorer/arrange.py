"""Another arrangement of the same matrices: white coordinates, units or parameters in another order.

All of it is a change of the rows R of RᵀR or of a structure's factors, so that tiles stay exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.explorer.structure import DENSE_LIMIT, prepared
from natgrad_lab.linalg import check_damping, psd_eigh
from natgrad_lab.names import known
from natgrad_lab.optimizers.whitening import InputMoments
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Int, Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    Dense,
    DenseRows,
    Diagonal,
    EigenKronecker,
    Gram,
    KhatriRaoRows,
    Kronecker,
    SharedRows,
    StructuredMatrix,
)

ORDERS = ("layer", "unit", "eigenvector")
_GATHERED = 2**26  # numbers of R that may be formed to put single parameters in another order


@dataclass(frozen=True)
class Arrangement:
    """How matrices are shown.

    order: "layer", the flat order; "unit", within every layer the units by their share of the trace, largest first;
        "eigenvector", all parameters by their entry in the leading eigenvector of the exact Fisher, largest first.
    white: in PRONG's coordinates (V, d), in which every layer's inputs are white up to `damping`.
    damping: λ of the inverses and of preconditioners, and what is added to the variances of the inputs.
    """

    order: str = "layer"
    white: bool = False
    damping: float = 1e-3

    def __post_init__(self):
        """Refuse an unknown order, and a damping that is not positive."""
        known(self.order, ORDERS, "order of parameters")
        if check_damping(self.damping) == 0:
            raise ValueError("the damping of the explorer's inverses must be positive: most Fisher matrices are singular.")


# ---- order


def unit_orders(gram: Gram, layout: ParameterLayout) -> list[Int[Tensor, " u"]]:
    """Per layer its units by their share of the trace, largest first; equal ones stay as they are."""
    parts = gram.diagonal().split([layer.size for layer in layout.layers])
    sizes = [part.view(layer.shape).sum(1) for part, layer in zip(parts, layout.layers, strict=True)]
    return [size.sort(descending=True, stable=True).indices.cpu() for size in sizes]


def eigenvector_order(vector: Float[Tensor, " P"]) -> Int[Tensor, " P"]:
    """Parameters by their entry, largest first; the entry of largest size counts as positive."""
    sign = vector[vector.abs().argmax()].sign()
    return (vector * sign).sort(descending=True, stable=True).indices.cpu()


def by_units(gram: Gram, orders: Sequence[Tensor]) -> Gram:
    """The rows with every layer's units in another order."""
    return Gram(tuple(_units(block, order) for block, order in zip(gram.blocks, orders, strict=True)))


def _units(block, order: Tensor):
    if len(order) == 1:
        return block
    if isinstance(block, KhatriRaoRows | SharedRows):
        return type(block)(block.inputs, block.scores[..., order])
    return DenseRows(block.to_dense().unflatten(1, (len(order), -1))[:, order].flatten(1))


def by_parameters(gram: Gram, order: Int[Tensor, " P"]) -> Gram:
    """The rows with all parameters in another order, formed. Raises: ValueError above 67 million numbers."""
    if gram.num_rows * gram.dim > _GATHERED:
        raise ValueError(
            f"the order by the leading eigenvector forms all {gram.num_rows:,} rows of {gram.dim:,} parameters, more than "
            f"{_GATHERED:,} numbers. Use fewer examples, fisher_type='monte_carlo', or the order by unit."
        )
    return Gram((DenseRows(torch.cat([block.to_dense() for block in gram.blocks], 1)[:, order]),))


def structure_by_units(matrix: StructuredMatrix, orders: Sequence[Tensor], layout: ParameterLayout) -> StructuredMatrix:
    """A structure with every layer's units in another order. Raises: UnsupportedLayerError for what cannot be reordered."""
    matrix = prepared(matrix)
    sizes = [layer.size for layer in layout.layers]
    if isinstance(matrix, BlockDiagonal) and [block.dim for block in matrix.blocks] == sizes:
        return BlockDiagonal(tuple(_block_by_units(b, o, "") for b, o in zip(matrix.blocks, orders, strict=True)))
    if isinstance(matrix, BlockDiagonal) and len(matrix.blocks) == sum(map(len, orders)):  # a block a unit
        starts = torch.tensor([0, *map(len, orders)]).cumsum(0)
        return BlockDiagonal(tuple(matrix.blocks[s + int(i)] for s, o in zip(starts, orders, strict=False) for i in o))
    return structure_by_parameters(matrix, flat_order(orders, layout))


def _block_by_units(block: StructuredMatrix, order: Tensor, note: str) -> StructuredMatrix:
    if isinstance(block, Kronecker) and len(block.left) == len(order):
        return Kronecker(block.left[order][:, order], block.right)
    if isinstance(block, EigenKronecker) and len(block.left_vectors) == len(order):
        return EigenKronecker(block.left_vectors[order], block.right_vectors, block.eigenvalues)
    if isinstance(block, BlockDiagonal) and len(block.blocks) == len(order):
        return BlockDiagonal(tuple(block.blocks[int(i)] for i in order))
    places = torch.arange(block.dim).view(len(order), -1)[order].flatten()
    return structure_by_parameters(block, places)


def structure_by_parameters(matrix: StructuredMatrix, order: Int[Tensor, " P"]) -> StructuredMatrix:
    """A structure with all parameters in another order: a Diagonal, or up to 6,000 parameters formed."""
    if isinstance(matrix, Diagonal):
        return Diagonal(matrix.values[order])
    if matrix.dim > DENSE_LIMIT:
        raise UnsupportedLayerError(
            f"a {type(matrix).__name__} of {matrix.dim:,} parameters cannot be put in another order of parameters: it would be "
            f"formed, and the limit is {DENSE_LIMIT:,}. Open the explorer without this approximation."
        )
    return Dense(matrix.to_dense()[order][:, order])


def flat_order(orders: Sequence[Tensor], layout: ParameterLayout) -> Int[Tensor, " P"]:
    """The place in the flat order of every place shown, for units in another order."""
    pairs = zip(layout.layers, orders, strict=True)
    places = (layer.start + torch.arange(layer.size).view(len(order), -1)[order].flatten() for layer, order in pairs)
    return torch.cat(list(places))


# ---- white coordinates


def whitening_maps(gram: Gram, layout: ParameterLayout, damping: float) -> list[Float[Tensor, "d e"]]:
    """Per layer the matrix T with T [h; 1] = [U(h − c); 1], U and c from the inputs h of the batch.

    Raises: UnsupportedLayerError for a layer that is not a Linear one.
    References: [Desjardins2015] sec. 3.
    """
    return [_map(block, layer, damping) for block, layer in zip(gram.blocks, layout.layers, strict=True)]


def _map(block, layer: Layer, damping: float) -> Tensor:
    if not isinstance(block, KhatriRaoRows | SharedRows) or not isinstance(layer.module, torch.nn.Linear):
        raise UnsupportedLayerError(
            f"white coordinates are shown for networks of Linear layers; layer {layer.name!r} is a "
            f"{type(layer.module).__name__}. PRONG itself also whitens convolutions: optimizers.METHODS['prong']."
        )
    inputs = block.inputs.flatten(0, -2)
    h = inputs[:, :-1] if layer.has_bias else inputs
    white = InputMoments.of(h, layer.has_bias, layer.name).whitening(damping, block.dtype, layer.name)
    if not layer.has_bias:
        return white.U
    T = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=block.dtype, device=block.device)
    T[:-1, :-1], T[:-1, -1], T[-1, -1] = white.U, -white.U @ white.c, 1.0
    return T


def whitened(gram: Gram, maps: Sequence[Tensor]) -> Gram:
    """The rows by (V, d): with dW = dV U and db = dd − dW c the score of V is that of W times the white input."""
    return Gram(tuple(type(b)(b.inputs @ T.mT, b.scores) for b, T in zip(gram.blocks, maps, strict=True)))


def structure_whitened(matrix: StructuredMatrix, maps: Sequence[Tensor]) -> StructuredMatrix | None:
    """A Kronecker product a layer, G ⊗ T A Tᵀ: as it would be estimated in white coordinates. None for other structures."""
    if not isinstance(matrix, BlockDiagonal) or len(matrix.blocks) != len(maps):
        return None
    if not all(isinstance(block, Kronecker) for block in matrix.blocks):
        return None
    return BlockDiagonal(tuple(Kronecker(b.left, _congruent(b.right, T)) for b, T in zip(matrix.blocks, maps, strict=True)))


def _congruent(A: Float[Tensor, "d d"], T: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """T A Tᵀ as a product HHᵀ, which rounding leaves semidefinite however large T is."""
    values, vectors = psd_eigh(A)
    half = T @ (vectors * values.sqrt())
    return half @ half.mT
