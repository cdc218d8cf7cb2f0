"""The numbers of lesson 01."""

import numpy as np

from natgrad_lab.course.cards.lesson01 import (
    arc,
    degrees_between,
    error_power,
    kl,
    length,
    rao,
    straight,
    walked,
)

_NORTH_EAST = np.array([1.0, 1.0]) / np.sqrt(2)
_FIRST, _SECOND = (1.0, 1.0), (3.0, 1.0)


def equirectangular_angle() -> float:
    """Degrees by which the gradient of an equirectangular map misses north-east at 60° north."""
    return degrees_between(_NORTH_EAST, walked("equirectangular", 60, _NORTH_EAST))


def map_angle() -> float:
    """Degrees from east of the step on the ground."""
    return equirectangular_angle() + 45


def lambert_angle() -> float:
    """The same on an equal-area map at 60° north."""
    return degrees_between(_NORTH_EAST, walked("Lambert equal-area", 60, _NORTH_EAST))


def mercator_length() -> float:
    """How long the step of a Mercator map's gradient is on the ground, relative to the true one, at 60° north."""
    return float(np.linalg.norm(walked("Mercator", 60, _NORTH_EAST)))


def rao_narrow() -> float:
    """Rao distance of a shift of 0.5 at σ = 0.1."""
    return rao((0, 0.1), (0.5, 0.1))


def rao_wide() -> float:
    """The same at σ = 10."""
    return rao((0, 10), (0.5, 10))


def rao_ratio() -> float:
    """Their ratio."""
    return rao_narrow() / rao_wide()


def shortest() -> float:
    """Length of the shortest path from N(1, 1) to N(3, 1)."""
    return length(arc(_FIRST, _SECOND))


def circle() -> float:
    """Length of the half circle drawn in (μ, σ)."""
    return length(arc(_FIRST, _SECOND, 1.0))


def straight_line() -> float:
    """Length of the straight line."""
    return length(straight(_FIRST, _SECOND, "(μ, σ)"))


def without_half() -> float:
    """What the formula gives for these two if the ½ is forgotten."""
    gap = (_FIRST[0] - _SECOND[0]) ** 2 + (_FIRST[1] - _SECOND[1]) ** 2
    return float(np.sqrt(2) * np.arccosh(1 + gap / (2 * _FIRST[1] * _SECOND[1])))


def natural_path() -> float:
    """Length of the path of natural gradient flow from N(1, 1) when the data are N(3, 1)."""
    at = np.linspace(0, 1, 4001)
    mean = 1 + 2 * at
    second_moment = 2 + 8 * at  # the means of x and of x² move straight to those of the data
    return length(np.stack([mean, np.sqrt(second_moment - mean**2)], 1))


def power_one_way() -> float:
    """Power of the step in the difference between KL and its quadratic."""
    return error_power("(μ, log σ)", 60)


def power_both_ways() -> float:
    """The same for the mean over a step and its opposite."""
    return error_power("(μ, log σ)", 60, True)


def kl_narrow() -> float:
    """KL, in nats, of a shift of the mean by 0.01 at σ = 0.1."""
    return kl((0, 0.1), (0.01, 0.1))


def kl_wide() -> float:
    """The same at σ = 10."""
    return kl((0, 10), (0.01, 10))
