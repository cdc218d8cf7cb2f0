"""The numbers of lesson 04."""

import math
from functools import cache

import torch

from natgrad_lab import deep_linear
from natgrad_lab.course.cards import lesson04 as lesson


@cache
def _rate(depth: int) -> float:
    """Of the natural gradient, learning rate 0.01, inputs of condition number 10⁴, 16 hidden units."""
    return lesson.fitted_rate(lesson.descent("natural gradient", depth, 16, 1e4, 0.01, 200), 0.01)


def rate_of_three() -> float:
    """Fitted rate with 3 layers."""
    return _rate(3)


def rate_of_eight() -> float:
    """Fitted rate with 8 layers."""
    return _rate(8)


def rate_of_theory() -> float:
    """2 log(1 − lr) / lr at lr = 0.01."""
    return 2 * math.log(0.99) / 0.01


def plateau() -> float:
    """How many times longer the weakest mode takes than the strongest: gradient flow, two layers."""
    first, *_, last = lesson.half_times("gradient", 2, 0.01)
    return last / first


def plateau_of_natural() -> float:
    """The same of natural gradient flow."""
    first, *_, last = lesson.half_times("natural gradient", 2, 0.01)
    return last / first


def cosine_of_three() -> float:
    """Cosine of the formula's update and the shortest one, 3 layers of 6 hidden units."""
    return lesson.CARDS[1].result({"depth": 3})["cosine"]


def cosine_of_seven() -> float:
    """The same with 7 layers."""
    return lesson.CARDS[1].result({"depth": 7})["cosine"]


def bottleneck_residual() -> float:
    """‖F v − g‖ / ‖g‖ of the formula with two hidden units, 3 layers."""
    weights, inputs, targets = lesson.problem(3, 2, 100.0)
    return deep_linear.natural_gradient(weights, inputs, targets, formula="equal").residual


def first_crossing() -> float:
    """t* of the pair with seed 0."""
    return lesson.breakdown(*lesson.crossing_problem(0))


def crossing_share() -> float:
    """Percent of 2000 random pairs of 4 × 4 maps whose line meets a singular map."""
    pairs = torch.randn(2000, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 100 * sum(math.isfinite(lesson.breakdown(*pair)) for pair in pairs) / len(pairs)
