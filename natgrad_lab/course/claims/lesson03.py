"""The numbers of lesson 03."""

from natgrad_lab.course.cards.lesson03 import gap, slope


def gd_gap() -> float:
    """Gap of gradient descent between σ and log σ, learning rate 0.01."""
    return gap("gradient descent", "log σ", 0.01)


def ngd_gap() -> float:
    """The same of the natural gradient."""
    return gap("natural gradient", "log σ", 0.01)


def gd_slope() -> float:
    """Power of the learning rate in the gap of gradient descent."""
    return slope("gradient descent", "log σ")


def ngd_slope() -> float:
    """The same of the natural gradient."""
    return slope("natural gradient", "log σ")
