"""Damping: inverses of a damped Fisher, one named function per meaning of "damped"; and rules that adapt λ and γ.

λ damps the quadratic model of the objective, γ the preconditioner: K-FAC's factored damping with γ in place of √λ.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from natgrad_lab.linalg import damped_cholesky, shifted_cholesky, zero_level
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    BlockTridiagonalInverse,
    FormedKroneckerInverse,
    Kronecker,
    KroneckerInverse,
    StructuredMatrix,
    UnitWise,
    pi_trace_norm,
    tridiagonal_tikhonov,
)
from natgrad_lab.structures.unit_wise import batched_cholesky

_FORMED = 128  # a layer with no larger side has its inverses formed in any case: products cost less than substitutions


def exact_inverse(fisher: StructuredMatrix, damping: float) -> StructuredMatrix:
    """(F + λI)⁻¹ exactly: eigendecompositions of both factors, λ added to their products."""
    return fisher.power(-1, damping)


def factored_inverse(fisher: BlockDiagonal, damping: float, *, once: bool = False) -> BlockDiagonal:
    """K-FAC's (G + √λ/π I)⁻¹ ⊗ (A + π√λ I)⁻¹ per layer: two Choleskys each. [MartensGrosse2015] sec. 6.3.

    A layer without factors (a normalization, a small layer without a rule) has its exact block, and (F_l + λI)⁻¹.

    Args:
        once: for inverses that are used for one product and made anew then: those of layers with a large side are not formed,
            which would be two thirds of the work, and products are substitutions (`KroneckerInverse`).
    """
    return BlockDiagonal.trusted(blocks=tuple(_factored_inverse(block, damping, once) for block in fisher.blocks), note="")


def _factored_inverse(block: StructuredMatrix, damping: float, once: bool) -> StructuredMatrix:
    if isinstance(block, BlockDiagonal):  # the groups of a convolution
        return factored_inverse(block, damping, once=once)
    if not isinstance(block, Kronecker):
        return block.power(-1, damping)
    root, pi = math.sqrt(damping), pi_trace_norm(block)
    dampings = root / pi, root * pi
    (left, is_left_exact), (right, is_right_exact) = map(_damped_factor, (block.left, block.right), dampings)
    is_exact, known = is_left_exact and is_right_exact, left.new_tensor(dampings)
    if is_exact and once and max(len(left), len(right)) > _FORMED:
        return KroneckerInverse.trusted(left=left, right=right, dampings=known, note="")
    left, right = torch.cholesky_inverse(left), torch.cholesky_inverse(right)
    if is_exact:
        return FormedKroneckerInverse.trusted(left=left, right=right, dampings=known, note="")
    return Kronecker.trusted(left=left, right=right, note="")


def _damped_factor(matrix: Tensor, damping: float) -> tuple[Tensor, bool]:
    """Cholesky factor of M + damping I, and whether it is that: where rounding has eaten the damping, `damped_cholesky` warns
    and takes more, or refuses.
    """
    factor, failed = shifted_cholesky(matrix, damping)
    least = damping / 2 if damping > 0 else zero_level(len(matrix), matrix.diagonal().max())
    if failed or not factor.diagonal().min().item() > math.sqrt(least):  # a NaN fails too
        return damped_cholesky(matrix, damping), False
    return factor, True


def chain_inverse(fisher: BlockTridiagonalInverse, damping: float) -> StructuredMatrix:
    """Block-tridiagonal K-FAC's inverse, with factored damping of the diagonal factors. [MartensGrosse2015] sec. 4.3, 6.3."""
    return tridiagonal_tikhonov(fisher, damping).power(-1)


def unit_wise_inverse(fisher: BlockDiagonal, damping: float) -> BlockDiagonal:
    """(M_c + λI)⁻¹ of every unit, exactly: one batched Cholesky a layer."""
    blocks = (torch.cholesky_inverse(batched_cholesky(layer.blocks, damping)) for layer in fisher.blocks)
    return BlockDiagonal(tuple(UnitWise(block) for block in blocks))


INVERSES = {"factored": factored_inverse, "exact": exact_inverse}
USED_ONCE = {factored_inverse: partial(factored_inverse, once=True)}  # what to call instead where every step has its own


@dataclass(frozen=True)
class LevenbergMarquardt:
    """λ by how well the quadratic model predicts: ρ = (h(θ + δ) − h(θ)) / M(δ) on the step's batch.

    ρ > ¾: λ ω. ρ < ¼, a NaN, or an objective that went up: λ / ω. The rate is per step, ω = rate^every.

    Attributes:
        every: T₁, steps between adaptations (each costs one forward pass).
        include_damping: whether M contains ½ λ δᵀδ, as in the paper and its authors' code. ρ then tends to 2 where λ dominates,
            so that λ falls fast from a large start; without it the plain model is judged.
        minimum, maximum: bounds of λ.
    References: [MartensGrosse2015] sec. 6.5.
    """

    every: int = 5
    rate: float = 19 / 20
    include_damping: bool = True
    minimum: float = 0.0
    maximum: float = math.inf

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        _check_rule(self.every, self.rate, self.minimum, self.maximum)

    def is_due(self, step: int) -> bool:
        """Whether step 1, 2, ... ends with an adaptation."""
        return step % self.every == 0

    def adapted(self, damping: float, rho: float) -> float:
        """The next λ."""
        omega = self.rate**self.every
        if rho > 3 / 4:
            damping = damping * omega
        elif not rho >= 1 / 4:
            damping = damping / omega
        return min(max(damping, self.minimum), self.maximum)


@dataclass(frozen=True)
class GammaSearch:
    """γ by trial: of γ ω, γ and γ / ω the one whose best step has the smallest M(δ); ω = rate^every.

    It starts at √(λ + η) and is never below √η.

    Attributes:
        every: T₂, steps between trials (each costs two more inverses and directions).
        maximum: of γ. The authors' code has 1, which takes γ down from any larger start; unbounded here, M decides.
    References: [MartensGrosse2015] sec. 6.6.
    """

    every: int = 20
    rate: float = math.sqrt(19 / 20)
    maximum: float = math.inf

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        _check_rule(self.every, self.rate, 0.0, self.maximum)

    def is_due(self, steps: int) -> bool:
        """Whether γ is tried after so many steps; with the inverses, whose periods count alike."""
        return steps > 0 and steps % self.every == 0

    def candidates(self, gamma: float, weight_decay: float) -> tuple[float, ...]:
        """What to try, the present γ first."""
        omega = self.rate**self.every
        least = math.sqrt(weight_decay)
        tried = (min(max(value, least), self.maximum) for value in (gamma, gamma * omega, gamma / omega))
        return tuple(dict.fromkeys(tried))


def _check_rule(every: int, rate: float, minimum: float, maximum: float) -> None:
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a positive integer; got {every!r}.")
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1); got {rate}. It is the factor per step.")
    if not 0 <= minimum <= maximum:
        raise ValueError(f"bounds must satisfy 0 <= minimum <= maximum; got {minimum} and {maximum}.")
