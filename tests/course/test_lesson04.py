"""The mathematics of lesson 04's cards, each by a second way."""

import math

import numpy as np
import pytest
import torch

from natgrad_lab import deep_linear
from natgrad_lab.course.cards import lesson04 as lesson


def excess_by_hand(weights, inputs, targets):
    product = weights[0]
    for W in weights[1:]:
        product = W @ product
    best = torch.linalg.lstsq(inputs, targets).solution.mT
    return float(((product - best) @ inputs.mT).square().sum() / (2 * len(inputs)))


@pytest.mark.parametrize("method", ["gradient descent", "natural gradient", "shortest natural gradient", "damped K-FAC"])
def test_the_first_losses_of_a_descent(method):
    weights, inputs, targets = lesson.problem(3, 8, 100.0)
    excess = lesson.descent(method, 3, 8, 100.0)
    assert excess[0] == pytest.approx(excess_by_hand(weights, inputs, targets))
    assert len(excess) == lesson.STEPS + 1 and excess[-1] < excess[0]


def test_gradient_descent_follows_autograd_at_one_of_its_rates():
    weights, inputs, targets = lesson.problem(2, 8, 1.0)
    excess = lesson.descent("gradient descent", 2, 8, 1.0)
    layers = [W.clone().requires_grad_() for W in weights]
    loss = (inputs @ layers[0].mT @ layers[1].mT - targets).square().sum() / (2 * len(inputs))
    gradients = torch.autograd.grad(loss, layers)
    seconds = [
        excess_by_hand([(W - lr * g).detach() for W, g in zip(layers, gradients, strict=True)], inputs, targets)
        for lr in lesson.GRADIENT_LRS
    ]
    assert min(abs(each / excess[1] - 1) for each in seconds) < 1e-9


def test_damped_kfac_solves_the_damped_block():
    weights, inputs, targets = lesson.problem(3, 8, 100.0)
    found = deep_linear.natural_gradient(weights, inputs, targets)
    layers = lesson.damped_kfac(weights, inputs, found.gradient)
    A, x = weights[2], inputs @ weights[0].mT
    block = torch.kron(A.mT @ A, x.mT @ x / len(x)) + lesson.DAMPING * torch.eye(layers[1].numel(), dtype=torch.float64)
    torch.testing.assert_close(3 * block @ layers[1].flatten(), found.gradient[1].flatten(), rtol=1e-9, atol=1e-12)


def test_a_rate_is_the_slope_before_rounding():
    excess = np.append(5 * np.exp(-1.7 * 0.05 * np.arange(20)), [0.0, 0.0])
    assert lesson.fitted_rate(excess) == pytest.approx(-1.7)


def test_one_rate_for_depths_and_inputs_and_not_for_a_bottleneck():
    rates = [lesson.fitted_rate(lesson.descent("natural gradient", d, 16, c)) for d in (1, 3, 8) for c in (1.0, 1e4)]
    assert max(rates) - min(rates) < 0.05 and rates[0] == pytest.approx(2 * math.log(1 - lesson.LR) / lesson.LR)
    assert lesson.fitted_rate(lesson.descent("natural gradient", 3, 2, 1.0)) > -1


def test_two_updates_move_the_function_alike_by_finite_differences():
    result = lesson.CARDS[1].result()
    weights, inputs, targets = lesson.problem(3, 6, 100.0, 0)
    layers = deep_linear.natural_gradient(weights, inputs, targets, formula="minimum_norm").layers
    size = 1e-6
    moved = [torch.linalg.multi_dot([W + s * size * V for W, V in zip(weights, layers, strict=True)][::-1]) for s in (1, -1)]
    np.testing.assert_allclose(((moved[0] - moved[1]) / (2 * size)).flatten(), result["changes"][1], rtol=1e-6, atol=1e-8)
    assert result["difference"] < 1e-10 and result["cosine"] < 0.99


@pytest.mark.parametrize("flow, layers", [("gradient", 2), ("gradient", 3), ("natural gradient", 3)])
def test_modes_obey_their_equation(flow, layers):
    u, s, dt = lesson.modes(flow, layers, 0.1), np.array(lesson.MODES), lesson.TIMES[1]
    speed = (lambda u: s - u) if flow == "natural gradient" else (lambda u: layers * u ** (2 - 2 / layers) * (s - u))
    now = u[:-1]  # one Runge-Kutta step from every time to the next: local error dt⁵
    k1 = speed(now)
    k2 = speed(now + dt / 2 * k1)
    k3 = speed(now + dt / 2 * k2)
    k4 = speed(now + dt * k3)
    np.testing.assert_allclose(u[1:], now + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), atol=2e-3)


def test_half_times_are_where_the_curve_is_half():
    assert lesson.half_times("natural gradient", 2, 0.01)[0] == pytest.approx(math.log(3.99 / 2), abs=1e-3)
    assert math.isinf(lesson.half_times("gradient", 5, 0.001)[-1])


@pytest.mark.parametrize("seed", range(10))
def test_breakdown_is_where_the_determinant_first_vanishes(seed):
    start, best = lesson.crossing_problem(seed)
    end = lesson.breakdown(start, best)
    times = np.linspace(0, min(end, 6) * 0.999, 400)
    signs = {float(torch.linalg.det(best + math.exp(-t) * (start - best)).sign()) for t in times}
    assert len(signs) == 1
    if math.isfinite(end):
        assert float(torch.linalg.svdvals(best + math.exp(-end) * (start - best))[-1]) < 1e-10
