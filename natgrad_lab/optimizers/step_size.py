"""How long a step is: from a direction to a move δ, and what a quadratic model of the loss says of it.

A plain step multiplies by lr, a clipped one keeps the KL within a bound, and the exact quadratic model chooses the length, and
how much of the last update to add, by itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from natgrad_lab.shapes import Float, Tensor

NAN = float("nan")


@dataclass(frozen=True)
class Direction:
    """A direction d (P,) uphill, flat order, with what the Fisher F it came from says of it.

    Attributes:
        curvature: dᵀF d.
        product: v ↦ F v, for a step whose parameters have different learning rates.
    """

    vector: Float[Tensor, " P"]
    curvature: float
    product: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Move:
    """What is added to the parameters, δ (P,), with gᵀδ and δᵀFδ.

    Attributes:
        l2: η δᵀδ, the curvature of the l2 term, if there is one.
        alpha, mu: δ = α · (−direction) + μ · (last update), where a model chose them; lr and max_kl come after.
    """

    update: Float[Tensor, " P"]
    slope: float
    curvature: float
    l2: float = 0.0
    alpha: float = NAN
    mu: float = NAN

    @property
    def predicted_change(self) -> float:
        """gᵀδ + ½ δᵀ(F + ηI)δ, of the objective."""
        return self.slope + (self.curvature + self.l2) / 2

    def scaled(self, factor: float) -> "Move":
        """The same direction, `factor` times as long."""
        square = factor * factor
        return replace(
            self, update=factor * self.update, slope=factor * self.slope, curvature=square * self.curvature, l2=square * self.l2
        )


@dataclass(frozen=True)
class ConstantStep:
    """δ = −lr · d, with lr one number or one per parameter."""

    def move(self, direction: Direction, gradient: Float[Tensor, " P"], lr: float | Tensor) -> Move:
        """The update and its model."""
        update = direction.vector * -lr
        if isinstance(lr, Tensor):
            curvature = float(update @ direction.product(update))
        else:
            curvature = lr * lr * direction.curvature
        return Move(update, float(gradient @ update), curvature)

    def clipped(self, move: Move) -> Move:
        """The move as it is."""
        return move


@dataclass(frozen=True)
class KLClip:
    """δ = −lr · d, shortened to ½ δᵀFδ ≤ max_kl nats where it is longer. [Ba2017] sec. 5."""

    max_kl: float

    def __post_init__(self) -> None:
        """Refuse what is no bound."""
        if not (math.isfinite(self.max_kl) and self.max_kl > 0):
            raise ValueError(f"max_kl must be a positive number of nats, or None; got {self.max_kl}.")

    def move(self, direction: Direction, gradient: Float[Tensor, " P"], lr: float | Tensor) -> Move:
        """The update and its model."""
        return self.clipped(ConstantStep().move(direction, gradient, lr))

    def clipped(self, move: Move) -> Move:
        """The move, shortened if need be."""
        too_long = move.curvature / 2 > self.max_kl
        return move.scaled(math.sqrt(2 * self.max_kl / move.curvature)) if too_long else move


@dataclass(frozen=True)
class QuadraticModel:
    """δ = α Δ + μ δ₀ minimizing M(δ) = ∇hᵀδ + ½ δᵀ(F + (λ + η) I)δ with the exact Fisher F of the batch.

    Δ is minus the direction and δ₀ the last update. F enters by ‖SᵀJ v‖² alone: one forward derivative per vector, nothing
    is backpropagated. On a quadratic objective with fixed F this is preconditioned conjugate gradients.

    Attributes:
        fraction: τ₂, the first part of the batch on which F is taken ("a value below 1 is dangerous", the authors' code).
        momentum: whether δ₀ takes part.
        rescale: False: α = 1, μ = 0, and M only judges (the paper's ablation).
    References: [MartensGrosse2015] sec. 6.4, 7.
    """

    fraction: float = 1.0
    momentum: bool = True
    rescale: bool = True

    def __post_init__(self) -> None:
        """Refuse a fraction that is none."""
        check_fraction(self.fraction, "fraction")

    def move(
        self,
        vectors: Float[Tensor, "k P"],
        roots: Float[Tensor, "k M"],
        gradient: Float[Tensor, " P"],
        num_examples: int,
        damping: float,
    ) -> Move:
        """The best combination of `vectors` (Δ, and δ₀ if there is one); arguments as `minimize_model`."""
        x, curvature, slopes = minimize_model(vectors, roots, gradient, num_examples, damping)
        if not self.rescale:
            x = [1.0] + [0.0] * (len(x) - 1)
        weights = torch.tensor(x, dtype=torch.float64)
        update = weights.to(vectors) @ vectors
        alpha, mu = (*x, 0.0)[:2]
        return Move(update, float(weights @ slopes), float(weights @ curvature @ weights), alpha=alpha, mu=mu)


def check_fraction(value: float, name: str) -> None:
    """Refuse what is not in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1]; got {value}. It is a part of the batch.")


def minimize_model(
    vectors: Float[Tensor, "k P"],
    roots: Float[Tensor, "k M"],
    gradient: Float[Tensor, " P"],
    num_examples: int,
    damping: float,
) -> tuple[list[float], Tensor, Tensor]:
    """Coefficients x of Σ x_i v_i that minimize gᵀδ + ½ δᵀ(F + damping I)δ, for F = (1/N) Σ_n (SᵀJ)ₙᵀ(SᵀJ)ₙ.

    Args: roots: SᵀJ v of every vector, stacked over examples and outputs.
    Returns: x, and in float64 the products v_iᵀF v_j (k, k) and gᵀv_i (k,) that everything else of the model follows from.
    Vectors that are zero or dependent cost nothing: the smallest x that attains the minimum is taken.
    """
    curvature = (roots @ roots.mT / num_examples).double().cpu()
    matrix = curvature + damping * (vectors @ vectors.mT).double().cpu()
    slopes = (vectors @ gradient).double().cpu()
    scale = matrix.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    unit = inverse[:, None] * matrix * inverse  # ones on the diagonal: vectors of any length count alike
    if not torch.isfinite(unit).all():
        return [NAN] * len(slopes), curvature, slopes
    pseudoinverse = torch.linalg.pinv(unit, rtol=10 * torch.finfo(roots.dtype).eps, hermitian=True)
    return (-inverse * (pseudoinverse @ (inverse * slopes))).tolist(), curvature, slopes
