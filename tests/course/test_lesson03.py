"""The mathematics of lesson 03's cards, each by a second way."""

import numpy as np
import pytest
import torch

from natgrad_lab.course.cards import lesson03 as lesson


def by_quadrature(theta, other):
    """KL(N(θ) ‖ N(other)) by the trapezoidal rule over ten standard deviations."""
    x = np.linspace(theta[0] - 10 * theta[1], theta[0] + 10 * theta[1], 20001)
    log_p = lambda t: -np.log(t[1]) - (x - t[0]) ** 2 / (2 * t[1] ** 2)  # noqa: E731
    p = np.exp(log_p(theta)) / np.sqrt(2 * np.pi)
    return np.trapezoid(p * (log_p(theta) - log_p(other)), x)


def differences(f, theta, size=1e-4):
    return np.array([(f(theta + size * e) - f(theta - size * e)) / (2 * size) for e in np.eye(2)])


def test_kl_fisher_and_gradient_of_the_gaussian():
    theta, other = np.array([2.0, 0.7]), np.array([0.5, 1.3])
    assert lesson.kl(theta, other) == pytest.approx(by_quadrature(theta, other), abs=1e-10)
    # second differences of the KL: truncation 1e-8, rounding 1e-8
    hessian = np.array([differences(lambda t, i=i: differences(lambda u: lesson.kl(theta, u), t)[i], theta) for i in (0, 1)])
    np.testing.assert_allclose(lesson.fisher(theta), hessian, atol=1e-5)
    np.testing.assert_allclose(lesson.gradient(theta), differences(lesson.loss, theta), rtol=1e-6)


@pytest.mark.parametrize("name", lesson.MAPS)
def test_a_map_its_inverse_and_its_jacobian(name):
    into, back, jacobian = lesson.MAPS[name]
    theta = np.array([1.7, 0.6])
    np.testing.assert_allclose(back(into(theta)), theta, rtol=1e-12)
    z = into(theta)
    steps = 1e-6 * np.eye(2)
    numeric = np.stack([(back(z + e) - back(z - e)) / 2e-6 for e in steps], 1)
    np.testing.assert_allclose(jacobian(theta), numeric, rtol=1e-6, atol=1e-8)


def test_orders_of_the_gaps():
    for name in lesson.MAPS:
        assert lesson.slope("gradient descent", name, True) == pytest.approx(1, abs=0.15)
        if name == "affine":
            assert lesson.gap("natural gradient", name, 0.1) < 1e-13
        else:
            assert lesson.slope("natural gradient", name, True) == pytest.approx(2, abs=0.15)
            assert lesson.slope("natural gradient", name) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("state", [{}, {"sigma": 3.0, "lr": 0.5}, {"sigma": 0.3}])
def test_ball_and_ellipse_are_where_they_should_be(state):
    result = lesson.CARDS[1].result(state)
    theta, radius = result["theta"], result["kl"]
    inner = result["ball"][np.abs(result["ball"][:, 0] - theta[0]) > 1e-3]  # the two poles are known to the root of rounding
    assert len(inner) > 300
    np.testing.assert_allclose([lesson.kl(theta, point) for point in inner], radius, rtol=1e-9)
    deltas = result["ellipse"] - theta
    np.testing.assert_allclose(0.5 * np.einsum("ni,ij,nj->n", deltas, lesson.fisher(theta), deltas), radius, rtol=1e-9)
    assert lesson.kl(theta, theta + result["delta"]) == pytest.approx(radius)


@pytest.mark.parametrize("metric", ["full", "diagonal"])
def test_the_dial_takes_the_step_of_the_dense_fisher(metric):
    w, scale, power, lr = np.array([0.2, 1.5]), 10.0, 0.75, 0.01
    row = w[::-1]
    F = scale * np.outer(row, row) if metric == "full" else np.diag(scale * row**2)
    values, basis = np.linalg.eigh(F + 1e-8 * np.eye(2))
    step = basis @ np.diag(values**-power) @ basis.T @ (scale * (w.prod() - 1) * row)
    np.testing.assert_allclose(lesson.product_path(power, metric, lr, scale)[1], w - lr * step, rtol=1e-10)
    assert lesson.steps_needed(0.0, metric, 1.0, 100.0) == np.inf


def test_a_change_of_units_moves_the_cosine_and_not_the_share():
    one, other = lesson.judgements(0, 1e-3, 1.0), lesson.judgements(0, 1e-3, 10.0)
    assert one[1] == other[1] and abs(one[0]["gradient"] - other[0]["gradient"]) > 1e-2
    g, exact, updates, fisher = lesson.updates(0, 1e-3)
    F = fisher.to_dense() + 1e-3 * torch.eye(len(g), dtype=g.dtype)
    torch.testing.assert_close(F @ exact, g, rtol=1e-9, atol=1e-12)
    v = updates["K-FAC"]
    best = 0.5 * (g @ v) ** 2 / (v @ F @ v) / (0.5 * g @ torch.linalg.solve(F, g))
    assert one[1]["K-FAC"] == pytest.approx(float(best), rel=1e-9)
