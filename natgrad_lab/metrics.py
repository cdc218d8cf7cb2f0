"""Numbers that compare two matrices or two directions, and numbers that describe one spectrum.

All are pure functions of tensors and structures and return floats without a unit. Each says when it is defined; where
it is not (a zero denominator, a non-finite input) it raises instead of returning nan.
"""

import math
from numbers import Real

import torch

from natgrad_lab.errors import NotPositiveDefiniteError
from natgrad_lab.linalg import check_damping, check_finite, clamp_spectrum, rounding_level
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import StructuredMatrix

MATRIX_NORMS = {"frobenius": "fro", "spectral": 2}


def relative_error(approx: Tensor | StructuredMatrix, exact: Tensor | StructuredMatrix, norm: str = "frobenius") -> float:
    """‖approx - exact‖ / ‖exact‖, for two matrices (tensors or structures) or two vectors (2-norm, whatever `norm` is).

    Defined unless `exact` is zero. 0 is equality; the zero matrix has error 1.
    Args:
        norm: "frobenius" (all entries alike) or "spectral" (the worst direction; P³ flops).
    """
    if norm not in MATRIX_NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, MATRIX_NORMS))}; got {norm!r}.")
    a, b = (m.to_dense() if isinstance(m, StructuredMatrix) else m for m in (approx, exact))
    if a.shape != b.shape:
        raise ValueError(f"relative_error compares equal shapes; got {tuple(a.shape)} and {tuple(b.shape)}.")
    check_finite(a, "approx")
    check_finite(b, "exact")
    difference, scale = (_norm(m, norm) for m in (a - b, b))
    return difference / _nonzero(scale, "exact", "an error relative to zero is undefined; compare absolute norms")


def direction_cosine(v: Float[Tensor, " P"], w: Float[Tensor, " P"], metric: StructuredMatrix | None = None) -> float:
    """Cosine of the angle between v and w: vᵀMw / √(vᵀMv wᵀMw), with M = I if no metric is given.

    In [-1, 1]. Defined unless v or w has length zero in the metric.
    """
    _check_vectors(v=v, w=w)
    v, w = _unit(v, "v"), _unit(w, "w")
    Mv, Mw = (v, w) if metric is None else (metric.matmul(v), metric.matmul(w))
    pairs = ("v", v, Mv), ("w", w, Mw)
    lengths = [math.sqrt(_nonzero((x @ Mx).item(), name, "no direction")) for name, x, Mx in pairs]
    return max(-1.0, min(1.0, (v @ Mw).item() / lengths[0] / lengths[1]))


def efficiency(
    direction: Float[Tensor, " P"], gradient: Float[Tensor, " P"], fisher: StructuredMatrix, damping: Real = 0.0
) -> float:
    """(gᵀv)² / (vᵀF_λv · gᵀF_λ⁻¹g) with F_λ = F + damping I: the share of the possible decrease that v reaches.

    The quadratic model gᵀd + ½ dᵀF_λd falls by ½ gᵀF_λ⁻¹g at best; along v, with the best step length of either sign,
    by ½ (gᵀv)² / vᵀF_λv. So 1 is the damped natural gradient, 0 a direction orthogonal to the gradient; it is also the
    squared cosine in F_λ between v and F_λ⁻¹g. Defined unless v or g is zero, or F_λ is singular.
    """
    _check_vectors(direction=direction, gradient=gradient)
    damping = check_damping(damping)
    v, g = _unit(direction, "direction"), _unit(gradient, "gradient")
    along = _nonzero((v @ (fisher.matmul(v) + damping * v)).item(), "direction", "the model is flat along it")
    best = (g @ fisher.solve(g, damping)).item()
    return min(1.0, (g @ v).item() ** 2 / along / best)


def norm_ratio(v: Float[Tensor, " P"], w: Float[Tensor, " P"]) -> float:
    """‖v‖ / ‖w‖, 2-norms. Defined unless w is zero."""
    _check_vectors(v=v, w=w)
    return v.norm().item() / _nonzero(w.norm().item(), "w", "a length relative to zero is undefined")


def numerical_rank(eigenvalues: Float[Tensor, " r"]) -> int:
    """Count the eigenvalues above the rounding level, count * eps * largest. 0 for the zero matrix."""
    values = _spectrum(eigenvalues)
    return int((values > rounding_level(len(values), values.max())).sum())


def condition_number(
    eigenvalues: Float[Tensor, " r"], kind: str = "nonzero", damping: Real = 0.0, *, dim: int | None = None
) -> float:
    """Ratio of the largest eigenvalue to a small one, after adding `damping` to all; `kind` says which small one.

    Args:
        eigenvalues: of a psd matrix, in any order.
        kind: "nonzero", the smallest above rounding (`numerical_rank`): the speed of gradient descent inside the range;
            "mean", the mean of all: 1 for a multiple of I, at most dim;
            "damped", the smallest of all: the condition number of the system that is solved, defined if that is not 0.
        dim: size of the matrix if some zero eigenvalues are left out, as `Gram.eigvalsh` does; default: none are.
    Defined unless all eigenvalues (and the damping) are zero.
    """
    if kind not in _SMALL:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _SMALL))}; got {kind!r}.")
    values, damping = _spectrum(eigenvalues), check_damping(damping)
    size = len(values) if dim is None else dim
    if size < len(values):
        raise ValueError(f"dim is the size of the matrix, at least the {len(values)} eigenvalues given; got {dim}.")
    largest = _nonzero(values.max().item() + damping, "spectrum", "its condition number is undefined")
    small = _SMALL[kind](values, damping, size)
    if small <= 0:
        raise NotPositiveDefiniteError(
            f"the condition number of kind {kind!r} is infinite: the smallest eigenvalue is 0 at damping {damping:.3g}. "
            'Give damping > 0, or take kind="nonzero".'
        )
    return largest / small


def effective_dimension(eigenvalues: Float[Tensor, " r"], damping: Real) -> float:
    """Σ s / (s + damping): how many directions the data determine at this damping. Between 0 and the rank.

    Zero eigenvalues add nothing, so those of a Gram suffice. Defined for damping > 0.
    """
    values, damping = _spectrum(eigenvalues), check_damping(damping)
    if damping == 0:
        raise ValueError("effective_dimension needs damping > 0; got 0. Its limit there is numerical_rank.")
    return (values / (values + damping)).sum().item()


def _smallest_nonzero(values: Tensor, damping: float, dim: int) -> float:
    positive = values[values > rounding_level(dim, values.max())]
    return (positive.min().item() if len(positive) else 0.0) + damping


_SMALL = {
    "nonzero": _smallest_nonzero,
    "mean": lambda values, damping, dim: values.sum().item() / dim + damping,
    "damped": lambda values, damping, dim: (values.min().item() if len(values) == dim else 0.0) + damping,
}


def _spectrum(eigenvalues: Tensor) -> Tensor:
    if not eigenvalues.numel():
        raise ValueError("a spectrum needs at least one eigenvalue; got none.")
    check_finite(eigenvalues, "eigenvalues")
    return clamp_spectrum(eigenvalues)


def _norm(x: Tensor, norm: str) -> float:
    return (torch.linalg.matrix_norm(x, MATRIX_NORMS[norm]) if x.ndim == 2 else torch.linalg.vector_norm(x)).item()


def _unit(x: Tensor, name: str) -> Tensor:
    """Divide by the largest entry: squares of very small and very large directions stay representable."""
    return x / _nonzero(x.abs().max().item(), name, "it has no direction")


def _nonzero(value: float, name: str, consequence: str) -> float:
    if not value > 0:
        raise ValueError(f"{name} must not be zero; got length {value:.3g}: {consequence}.")
    return value


def _check_vectors(**vectors: Tensor) -> None:
    for name, vector in vectors.items():
        check_finite(vector, name)
    if len(shapes := {tuple(vector.shape) for vector in vectors.values()}) > 1:
        raise ValueError(f"{' and '.join(vectors)} must have one length; got shapes {sorted(shapes)}.")
