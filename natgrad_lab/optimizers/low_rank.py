"""Kronecker products applied to a gradient through its rows: cheaper where a batch has fewer examples than a layer units."""

import torch

from natgrad_lab.fisher.scores import LayerRows, ScorePass
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, KhatriRaoRows, Kronecker, StructuredMatrix


def preconditioned_gradient(
    scores: ScorePass, gradient: Float[Tensor, " P"], inverse: StructuredMatrix, fisher: StructuredMatrix
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """P g and F P g, for the inverse P and the Fisher F.

    A layer's gradient is −(1/N) Σ_n s_n a_nᵀ, so that (G ⊗ A) g = −(1/N) Σ_n (G s_n)(A a_n)ᵀ: N rows are multiplied instead of
    a whole matrix where that is less work. Everything else takes the products of the structures.
    References: [MartensGrosse2015] sec. 8.
    """
    by_layer = isinstance(inverse, BlockDiagonal) and isinstance(fisher, BlockDiagonal)
    if not by_layer or len(fisher.blocks) != len(scores.layers):
        return _by_products(gradient, inverse, fisher)
    parts = gradient.split([block.dim for block in inverse.blocks])
    pairs = [
        _by_rows(layer, P, F) if _is_cheaper(layer, P, F) else _by_products(part, P, F)
        for layer, part, P, F in zip(scores.layers, parts, inverse.blocks, fisher.blocks, strict=True)
    ]
    vector, product = (torch.cat(each) for each in zip(*pairs, strict=True))
    return vector, product


def _is_cheaper(layer: LayerRows, inverse: StructuredMatrix, fisher: StructuredMatrix) -> bool:
    """Fewer operations: N (m² + n² + m n) for rows, m n (m + n) for the matrix."""
    if not (isinstance(layer.loss_rows, KhatriRaoRows) and isinstance(inverse, Kronecker) and isinstance(fisher, Kronecker)):
        return False
    (_, num_examples, m), n = layer.loss_rows.scores.shape, layer.loss_rows.inputs.shape[1]
    return num_examples * (m**2 + n**2 + m * n) < m * n * (m + n)


def _by_rows(layer: LayerRows, inverse: Kronecker, fisher: Kronecker) -> tuple[Tensor, Tensor]:
    inputs, scores = layer.loss_rows.inputs, layer.loss_rows.scores[0] / -len(layer.loss_rows.inputs)
    inputs, scores = inputs @ inverse.right, scores @ inverse.left
    vector = (scores.T @ inputs).flatten()
    return vector, ((scores @ fisher.left).T @ (inputs @ fisher.right)).flatten()


def _by_products(gradient: Tensor, inverse: StructuredMatrix, fisher: StructuredMatrix) -> tuple[Tensor, Tensor]:
    vector = inverse.matmul(gradient)
    return vector, fisher.matmul(vector)
