"""Natural gradients of a deep linear network: every solution of F v = g moves the function alike, some cost next to nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from natgrad_lab.deep_linear.network import Chain, Weights, chain, checked_layers, regression, truncated_svd
from natgrad_lab.names import known
from natgrad_lab.shapes import Float, Tensor

_EXACT = {torch.float64: 1e-8, torch.float32: 1e-4}


@dataclass(frozen=True)
class DeepLinearDirection:
    """A direction v (uphill; the step is −lr v) and how far it is from a natural gradient.

    Attributes:
        layers: one matrix per layer, of its shape ([W | b] where it has a bias).
        gradient: of the loss, likewise.
        residual: ‖F v − g‖ / ‖g‖ with the exact Fisher; 0 where the gradient is 0.
        exact: whether `residual` is rounding (1e-8 in float64, 1e-4 in float32): then v is a natural gradient.
        onto: whether every change of the function on the data is in reach of the weights, so that the error E moves by −E.
        equal_shares: whether A_i has rank C and B_i the rank of the data for every i, where "equal" is exact for any target.
        excess_loss: the loss above that of the best linear map.
        formula: by which v was made.
    """

    layers: tuple[Tensor, ...]
    gradient: tuple[Tensor, ...]
    residual: float
    exact: bool
    onto: bool
    equal_shares: bool
    excess_loss: float
    formula: str

    @property
    def vector(self) -> Float[Tensor, " P"]:
        """The direction in the flat order of `ParameterLayout`."""
        return torch.cat([layer.flatten() for layer in self.layers])

    def __repr__(self) -> str:
        """One line, without the numbers of the layers."""
        shapes = ", ".join("x".join(map(str, layer.shape)) for layer in self.layers)
        said = "exact" if self.exact else "NOT exact"
        return f"DeepLinearDirection({shapes}; formula {self.formula!r}, {said}: residual {self.residual:.1e})"


@dataclass(frozen=True)
class Factored:
    """A chain with the singular value decompositions of its A_i and B_i: pseudo-inverses, projectors, ranks."""

    chain: Chain
    above: list[tuple[Tensor, Tensor, Tensor]]
    below: list[tuple[Tensor, Tensor, Tensor]]

    def pseudo_inverse_of(self, i: int, change: Float[Tensor, "C r"]) -> Tensor:
        """A_i⁺ change B_i⁺: the smallest V_i that moves the function by the part of `change` in reach of layer i."""
        (U, s, V), (left, t, right) = self.above[i], self.below[i]
        return (V / s) @ (U.mT @ change @ right) @ (left / t).mT

    def cells(self) -> list[tuple[int, int, Tensor]]:
        """The error in parts (first, last, E_part): exactly the layers first … last can reach the part.

        The ranges of A_1, A_2, … and the row spaces of B_L, B_{L−1}, … grow, so that their projectors commute and the
        increments ΔP_j E ΔQ_k are orthogonal; layer i reaches those with j ≤ i ≤ k. With k < j nothing does.
        """
        num_layers = len(self.above)
        rows = _increments([U @ U.mT for U, _, _ in self.above])
        columns = _increments([V @ V.mT for _, _, V in self.below[::-1]])
        return [(j, num_layers - 1 - k, P @ self.chain.error @ Q) for j, P in rows for k, Q in columns]

    @property
    def onto(self) -> bool:
        """Whether no part of any error is out of reach."""
        if self.chain.is_nested:
            return all(first <= last for first, last, _ in self.cells())
        return int(torch.linalg.matrix_rank(self.chain.gram(), hermitian=True)) == self.chain.error.numel()

    @property
    def full_rank(self) -> bool:
        """Whether every A_i has rank C and every B_i rank r."""
        rows, columns = self.chain.error.shape
        return all(len(s) == rows for _, s, _ in self.above) and all(len(t) == columns for _, t, _ in self.below)


def _increments(projectors: list[Tensor]) -> list[tuple[int, Tensor]]:
    """Differences of growing projectors, those that are not zero, with their places."""
    found, before = [], torch.zeros_like(projectors[0])
    for place, projector in enumerate(projectors):
        if (projector.trace() - before.trace()).round() > 0:
            found.append((place, projector - before))
            before = projector
    return found


def factored(parts: Chain, eps: float) -> Factored:
    """Decompose every A_i and B_i."""
    return Factored(parts, [truncated_svd(A, eps) for A in parts.above], [truncated_svd(B, eps) for B in parts.below])


def exact_shares(net: Factored) -> list[Tensor]:
    """Each part of the error shared equally among the layers that reach it: solves F v = g for any widths and ranks.

    Where a layer with bias follows one without, no such parts exist, and the shortest solution is taken.
    """
    if not net.chain.is_nested:
        return minimum_norm(net)
    shares = [torch.zeros_like(net.chain.error) for _ in net.above]
    for first, last, part in net.cells():
        for i in range(first, last + 1):
            shares[i] += part / (last - first + 1)
    return [net.pseudo_inverse_of(i, share) for i, share in enumerate(shares)]


def equal_shares(net: Factored) -> list[Tensor]:
    """A_i⁺ E B_i⁺ / L: every layer takes the L-th part of the whole error. [Bernacchia2018]."""
    return [layer / len(net.above) for layer in block_diagonal(net)]


def block_diagonal(net: Factored) -> list[Tensor]:
    """A_i⁺ E B_i⁺, each layer as if it were alone: undamped K-FAC, whose blocks are exact here. L times "equal"."""
    return [net.pseudo_inverse_of(i, net.chain.error) for i in range(len(net.above))]


def minimum_norm(net: Factored) -> list[Tensor]:
    """pinv(F) g, the shortest solution: Jᵀ (J Jᵀ)⁺ E."""
    solved = torch.linalg.pinv(net.chain.gram(), hermitian=True) @ net.chain.error.flatten()
    return net.chain.pulled_back(solved.view_as(net.chain.error))


FORMULAS: dict[str, Callable[[Factored], list[Tensor]]] = {
    "exact": exact_shares, "equal": equal_shares, "block_diagonal": block_diagonal, "minimum_norm": minimum_norm,
}  # fmt: skip


def natural_gradient(
    weights: Weights,
    inputs: Tensor,
    targets: Tensor,
    *,
    output_covariance: Tensor | None = None,
    formula: str = "exact",
) -> DeepLinearDirection:
    """The natural gradient of a deep linear network with a Gaussian likelihood, in closed form.

    The loss is the mean of ½ (y − f)ᵀ Γ⁻¹ (y − f). F is singular (W_{i+1} M⁻¹, M W_i give the same function), so a natural
    gradient is any v with F v = g. All of them change the function alike, to first order by the whole error E if `onto`.

    formula:
        "exact": each part of E is shared equally among the layers that reach it. Solves F v = g for all widths, ranks,
            singular input moments and targets. Where every A_i has rank C and every B_i the rank of the data (generic
            weights, hidden widths ≥ max(C, D)) it is "equal". At a bottleneck it is P E Q / L on all layers, P E (I − Q) / k on
            the k layers below and (I − P) E Q / (L − k) on those above, and only the part of E tangent to the maps of that
            rank is followed. Where a layer with bias follows one without it is "minimum_norm".
        "equal": A_i⁺ E B_i⁺ / L = (A_iᵀΓ⁻¹A_i)⁺ ∇_i (B_iΣB_iᵀ)⁺ / L, the published formula, exact only in the first case above;
            `residual` says by how much it misses.
        "block_diagonal": without 1/L. Undamped block-diagonal K-FAC; moves the function L times too far.
        "minimum_norm": pinv(F) g.

    Args:
        weights: matrices (n_i, n_{i−1}), or [W | b] with one column more, inputs first; or a model, see `layers_of`.
        inputs, targets: (N, D) and (N, C), of the weights' dtype. For second moments see `data_from_moments`.
        output_covariance: Γ (C, C); the identity if none is given. No closed form depends on it where "equal" is exact.
    Raises: ValueError for shapes that do not fit; UnsupportedLayerError for a model that is no chain of Linear layers.
    Cost: two singular value decompositions per layer, of (C, n_i) and (n_{i−1}, rank); "minimum_norm" (C·rank)³.
    References: [Bernacchia2018]; the bottleneck's shares are derived here.
    """
    known(formula, FORMULAS, "formula")
    layers = checked_layers(weights, inputs, targets)
    problem = regression(layers, inputs, targets, output_covariance)
    net = factored(chain([layer.double() for layer in layers], problem), problem.eps)
    found = tuple(layer.to(inputs.dtype) for layer in FORMULAS[formula](net))
    gradient = net.chain.gradient()
    residual = _residual(net.chain, [layer.double() for layer in found], gradient)
    return DeepLinearDirection(
        found, tuple(layer.to(inputs.dtype) for layer in gradient), residual, residual <= _EXACT[inputs.dtype], net.onto,
        net.full_rank, float(net.chain.excess()), formula,
    )  # fmt: skip


def _residual(parts: Chain, layers: list[Tensor], gradient: list[Tensor]) -> float:
    product = parts.pulled_back(parts.pushed(layers))
    off = torch.stack([(Fv - g).norm() for Fv, g in zip(product, gradient, strict=True)]).norm()
    return float(off / size) if (size := torch.stack([g.norm() for g in gradient]).norm()) > 0 else 0.0
