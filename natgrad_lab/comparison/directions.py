"""How good a direction v is: against the exact damped natural gradient, by the quadratic model, and on the batch itself."""

from numbers import Real

import torch

from natgrad_lab.comparison.exact import Problem
from natgrad_lab.comparison.products import NotAvailableError
from natgrad_lab.comparison.rows import Numbers
from natgrad_lab.shapes import Float, Tensor

_DIRECTION = ("efficiency", "cosine", "norm_ratio")
_STEP = ("predicted_decrease", "predicted_undamped", "achieved_decrease", "kl", "kl_quadratic")
_UNIT = ("predicted_decrease_unit", "achieved_decrease_unit", "kl_unit", "kl_quadratic_unit")


def direction_numbers(
    numbers: Numbers, problem: Problem, v: Float[Tensor, " P"], damping: Real, *, steps: str = "both"
) -> None:
    """Everything about v as a step of the whole network; `v` points uphill, the step is -α v.

    Args: steps: "none", "best" or "both": where the network is run, at step length α* and at 1.
    """
    g, best = problem.gradient, problem.natural_gradient(damping).direction
    if not bool(g.any()):
        numbers.refuse("the gradient is zero: there is no direction to judge", *_DIRECTION, "best_step", *_STEP, *_UNIT)
        return
    Fv = problem.exact.matmul(v)
    slope, curvature = float(g @ v), float(v @ Fv)
    damped = curvature + damping * float(v @ v)
    numbers.attempt(lambda: efficiency(slope, damped, float(g @ best)), "efficiency")
    _compare(numbers, v, best)
    numbers.attempt(lambda: slope / _positive(damped), "best_step")
    if slope < 0:
        numbers.notes.append("the direction points against the gradient: its best step length is negative")

    if steps == "none":
        return

    def step(length: float) -> tuple[float, ...]:
        moved = problem.moved(-length * v)
        model = length * slope - length**2 * damped / 2
        undamped = length * slope - length**2 * curvature / 2
        return model, undamped, moved.decrease, moved.kl, length**2 * curvature / 2

    if "best_step" in numbers.values:
        numbers.attempt(lambda: step(numbers.values["best_step"]), *_STEP)
    else:
        numbers.refuse(numbers.not_available["best_step"], *_STEP)
    if steps == "both":
        numbers.attempt(lambda: tuple(value for i, value in enumerate(step(1.0)) if i != 1), *_UNIT)


def layer_numbers(numbers: Numbers, problem: Problem, index: int, v: Tensor, best: Tensor) -> None:
    """The same for layer `index`, as if it alone moved. Args: v, best: the layer's parts of the network's directions."""
    exact, g, damping = problem.layers[index], problem.gradient[problem.layout.layers[index].slice], problem.damping
    if not bool(g.any()):
        numbers.refuse("the layer's gradient is zero", *_DIRECTION)
        return
    damped = float(v @ exact.matmul(v)) + damping * float(v @ v)
    numbers.attempt(lambda: efficiency(float(g @ v), damped, float(g @ problem.layer_natural_gradient(index))), "efficiency")
    _compare(numbers, v, best)


def efficiency(slope: float, curvature: float, best: float) -> float:
    """(gᵀv)² / (vᵀF_λv · gᵀF_λ⁻¹g), at most 1."""
    return min(1.0, slope / _positive(curvature) * slope / _positive(best))


def _compare(numbers: Numbers, v: Tensor, best: Tensor) -> None:
    lengths = float(torch.linalg.vector_norm(v)), float(torch.linalg.vector_norm(best))
    numbers.attempt(lambda: float((v / _positive(lengths[0])) @ (best / _positive(lengths[1]))), "cosine")
    numbers.attempt(lambda: lengths[0] / _positive(lengths[1]), "norm_ratio")


def _positive(value: float) -> float:
    if not value > 0:
        raise NotAvailableError("a length is zero, so the ratio is undefined")
    return value
