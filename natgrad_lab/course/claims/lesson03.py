"""The numbers of lesson 03."""

import numpy as np

from natgrad_lab.course.cards.lesson03 import gap, judged, judgements, slope

HARD = np.array([2.0, 0.5])  # mean and standard deviation from which the quadratic model promises far too much


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


def gd_step_slope() -> float:
    """The same of one step of gradient descent."""
    return slope("gradient descent", "log σ", one_step=True)


def ngd_step_slope() -> float:
    """The same of one step of the natural gradient."""
    return slope("natural gradient", "log σ", one_step=True)


def promised() -> float:
    """Decrease in nats that the quadratic model promises of the full undamped step from (2, 0.5)."""
    return judged(HARD, 0.0, 1.0)["promised"]


def delivered() -> float:
    """What that step delivers."""
    return judged(HARD, 0.0, 1.0)["real"]


def delivered_damped() -> float:
    """What the step with damping 10 delivers."""
    return judged(HARD, 10.0, 1.0)["real"]


def kl_quadratic() -> float:
    """KL of the undamped step as the Fisher has it."""
    return judged(HARD, 0.0, 1.0)["quadratic"]


def kl_real() -> float:
    """KL of the undamped step."""
    return judged(HARD, 0.0, 1.0)["kl"]


def kfac_cosine() -> float:
    """Cosine of K-FAC's update to the natural gradient before training, damping 0.001."""
    return judgements(0, 1e-3)[0]["K-FAC"]


def kfac_share() -> float:
    """Percent of the possible decrease that it reaches."""
    return 100 * judgements(0, 1e-3)[1]["K-FAC"]


def gradient_cosine() -> float:
    """Cosine of the gradient to the natural gradient after 20 steps."""
    return judgements(20, 1e-3)[0]["gradient"]


def gradient_share() -> float:
    """Percent of the possible decrease that it reaches."""
    return 100 * judgements(20, 1e-3)[1]["gradient"]


def gradient_cosine_in_other_units() -> float:
    """The cosine with layer 1 counted in units of 10."""
    return judgements(20, 1e-3, 10.0)[0]["gradient"]
