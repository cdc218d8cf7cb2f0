"""The numbers of lesson 07."""

from functools import cache

import torch

from natgrad_lab import fisher, likelihoods
from natgrad_lab.course.cards.lesson07 import assumed, block_errors, damped_step, moment, one_step, step_efficiency
from natgrad_lab.course.checkpoints import small_digits


@cache
def _squares(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each digit: squared length of the last layer's input, mean squared length of the scores at its output."""
    rows = fisher.score_pass(moment(steps).model, likelihoods.Categorical(), small_digits().inputs).layers[-1].rows
    return rows.inputs.square().sum(1), rows.scores.square().sum(2).sum(0)


def _ratio(steps: int) -> float:
    a2, s2 = _squares(steps)
    return float((a2 * s2).mean() / a2.mean() / s2.mean())


def ratio_at_start() -> float:
    """Mean of the product over product of the means, at initialization."""
    return _ratio(0)


def ratio_trained() -> float:
    """The same after 50 steps."""
    return _ratio(50)


def share_of_uncertain_tenth() -> float:
    """Percentage of all squared scores that the tenth of the digits with the largest ones carries, after 50 steps."""
    values = _squares(50)[1].sort(descending=True).values
    return 100 * float(values[: len(values) // 10].sum() / values.sum())


@cache
def _kfac(steps: int) -> torch.Tensor:
    return assumed(moment(steps), True, True, False)


def last_block_error_at_start() -> float:
    """Relative error of K-FAC's last block at initialization."""
    return block_errors(moment(0), _kfac(0))[-1]


def last_block_error_trained() -> float:
    """The same after 50 steps."""
    return block_errors(moment(50), _kfac(50))[-1]


def kfac_efficiency_percent() -> float:
    """Of K-FAC's step after 50 steps, λ = 0.01."""
    return 100 * step_efficiency(moment(50), _kfac(50))


def gradient_efficiency_percent() -> float:
    """Of the gradient."""
    return 100 * step_efficiency(moment(50), None)


def diagonal_efficiency_percent() -> float:
    """Of the diagonal of K-FAC."""
    return 100 * step_efficiency(moment(50), assumed(moment(50), True, True, True))


def independence_alone_percent() -> float:
    """With blocks between layers too, G_ij ⊗ A_ij."""
    return 100 * step_efficiency(moment(50), assumed(moment(50), True, False, False))


def even_in_own_units_percent() -> float:
    """√λ on both factors, λ = 0.01, after 50 steps."""
    return 100 * damped_step(50, "√λ on each factor", 0.01, 1.0)[0]


def even_in_other_units_percent() -> float:
    """The same with A × 100 and G / 100."""
    return 100 * damped_step(50, "√λ on each factor", 0.01, 100.0)[0]


def gradient_gap() -> float:
    """Gradient descent, tanh against logistic units."""
    return one_step("tanh to logistic", "gradient descent", 0.0)["gap"]


def gap_at_small_damping() -> float:
    """K-FAC with λ = 1e-4."""
    return one_step("tanh to logistic", "K-FAC", 1e-4)["gap"]


def gap_at_large_damping() -> float:
    """K-FAC with λ = 0.1."""
    return one_step("tanh to logistic", "K-FAC", 1e-1)["gap"]


def gap_with_bias_apart() -> float:
    """K-FAC without the cross terms of weights and bias, λ = 0."""
    return one_step("tanh to logistic", "K-FAC, bias apart", 0.0)["gap"]


def label_trace_ratio() -> float:
    """Trace of K-FAC's factors with the data's labels over that with drawn ones, after 50 steps."""
    arguments = moment(50).model, likelihoods.Categorical(), small_digits().inputs
    wrong = fisher.kfac_fisher(*arguments, "empirical", small_digits().targets)
    return float(wrong.trace() / fisher.kfac_fisher(*arguments).trace())
