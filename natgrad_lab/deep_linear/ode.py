"""An ordinary differential equation dx/dt = speed(x), with steps that fit themselves."""

import math
from collections.abc import Callable

import torch

from natgrad_lab.shapes import Float, Tensor

_TOLERANCE = 1e-9  # of a step, relative to x
_SMALLEST_STEP = 1e-9  # a solution that needs shorter ones is about to break down

# Dormand and Prince's embedded pair of orders 5 and 4: stages, and the weights of solution and error.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def integrate(
    speed: Callable[[Tensor], Tensor], start: Float[Tensor, " P"], times: list[float]
) -> tuple[list[Tensor], float | None]:
    """Values at the times of the solution of dx/dt = speed(x), x(0) = start; and the time at which it got stuck, or None."""
    x, now, step, reached = start, 0.0, 0.01, []
    slope = speed(x)
    for time in times:
        while now < time:
            last = time - now <= step
            trial = time - now if last else step
            moved, new_slope, error = _step(speed, x, slope, trial)
            if error <= 1:
                x, slope, now = moved, new_slope, time if last else now + trial
            grown = 5.0 if error == 0 else min(5.0, max(0.2, 0.9 * error**-0.2)) if math.isfinite(error) else 0.2
            step = max(step, trial * grown) if last and error <= 1 else trial * grown
            if step < _SMALLEST_STEP * max(1.0, now):
                return reached, now
        reached.append(x)
    return reached, None


def _step(speed: Callable, x: Tensor, slope: Tensor, step: float) -> tuple[Tensor, Tensor, float]:
    """One step: the new value, the slope there, and the error in units of the tolerance."""
    slopes, moved = [slope], x
    for stage in _STAGES:
        moved = x + step * sum(a * k for a, k in zip(stage, slopes, strict=True))
        if not torch.isfinite(moved).all():
            return moved, slope, math.inf
        slopes.append(speed(moved))
    off = step * sum(e * k for e, k in zip(_ERROR, slopes, strict=True)).norm()
    return moved, slopes[-1], float(off / (_TOLERANCE * torch.maximum(x.norm(), moved.norm()).clamp_min(1e-300)))
