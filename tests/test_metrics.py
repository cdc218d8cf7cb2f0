"""Metrics against their definitions by hand, and what makes them undefined."""

import math

import pytest
import torch

from natgrad_lab import metrics
from natgrad_lab.errors import NotPositiveDefiniteError
from natgrad_lab.structures import Dense, Diagonal, Kronecker

NAN = torch.tensor([1.0, float("nan")])


def random_psd(n):
    root = torch.randn(n, n)
    return root @ root.mT


def test_relative_error_by_hand():
    exact, approx = torch.diag(torch.tensor([3.0, 4])), torch.diag(torch.tensor([3.0, 2]))
    assert metrics.relative_error(approx, exact) == pytest.approx(2 / 5)
    assert metrics.relative_error(approx, exact, "spectral") == pytest.approx(2 / 4)
    assert metrics.relative_error(Diagonal(torch.tensor([3.0, 2])), Dense(exact)) == pytest.approx(2 / 5)
    assert metrics.relative_error(torch.tensor([3.0, 0]), torch.tensor([3.0, 4])) == pytest.approx(4 / 5)
    assert metrics.relative_error(exact * 0, exact) == 1 and metrics.relative_error(exact, exact) == 0


def test_direction_cosine_by_hand():
    v, w = torch.tensor([1.0, 0]), torch.tensor([1.0, 1])
    assert metrics.direction_cosine(v, w) == pytest.approx(math.sqrt(0.5))
    assert metrics.direction_cosine(v, -3 * v) == -1
    assert metrics.direction_cosine(v, w, Diagonal(torch.tensor([4.0, 0]))) == pytest.approx(1)
    assert metrics.direction_cosine(1e-200 * v, 1e200 * w) == pytest.approx(math.sqrt(0.5))  # squares would under- and overflow


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_efficiency_is_the_share_of_the_possible_decrease(damping):
    F, g = Dense(random_psd(5)), torch.randn(5)
    damped = F.matrix + damping * torch.eye(5)
    best = 0.5 * (g @ torch.linalg.solve(damped, g)).item()
    for v in (g, torch.randn(5), g.sign()):
        lengths = torch.linspace(-20, 20, 400_001)  # the best step length by search instead of calculus
        slope, curvature = (g @ v).item(), (v @ damped @ v).item()
        found = -(lengths * slope / curvature + 0.5 * (lengths / curvature) ** 2 * curvature).min().item()
        assert metrics.efficiency(v, g, F, damping) == pytest.approx(found / best, rel=1e-4)
    exact = F.solve(g, damping)
    assert metrics.efficiency(exact, g, F, damping) == pytest.approx(1)
    assert metrics.efficiency(-1e-9 * exact, g, F, damping) == pytest.approx(1)
    v = torch.randn(5)
    cosine = metrics.direction_cosine(v, exact, Dense(damped))
    assert metrics.efficiency(v, g, F, damping) == pytest.approx(cosine**2)


def test_norm_ratio_by_hand():
    assert metrics.norm_ratio(torch.tensor([3.0, 4]), torch.tensor([0.0, 2])) == 2.5


def test_condition_numbers_by_hand():
    values = torch.tensor([0.0, 1.0, 3.0, 8.0])
    assert metrics.condition_number(values) == 8
    assert metrics.condition_number(values, "nonzero", 1.0) == 9 / 2
    assert metrics.condition_number(values, "mean") == 8 / 3
    assert metrics.condition_number(values, "mean", dim=12) == 8
    assert metrics.condition_number(values, "damped", 1.0) == 9
    assert metrics.condition_number(values[1:], "damped") == 8
    assert metrics.condition_number(values[1:], "damped", 0.5, dim=10) == 8.5 / 0.5
    assert metrics.condition_number(torch.full((5,), 2.0), "mean") == 1


def test_rank_and_effective_dimension_by_hand():
    values = torch.tensor([0.0, 1e-17, 1.0, 3.0])
    assert metrics.numerical_rank(values) == 2 and metrics.numerical_rank(values.float()) == 2
    assert metrics.numerical_rank(torch.zeros(3)) == 0
    assert metrics.effective_dimension(values, 1.0) == pytest.approx(0.5 + 0.75)
    assert metrics.effective_dimension(values, 1e-9) == pytest.approx(2, abs=1e-7)


def test_effective_dimension_is_the_trace_of_the_damped_projection():
    F = Kronecker(random_psd(2), random_psd(3))
    trace = F.solve(F.to_dense(), 0.3).trace().item()
    assert metrics.effective_dimension(F.eigvalsh(), 0.3) == pytest.approx(trace)


I2, ONE, ZERO = torch.eye(2), torch.ones(2), torch.zeros(2)
REFUSALS = {
    "error norm": (lambda: metrics.relative_error(I2, I2, "nuclear"), "one of 'frobenius', 'spectral'; got 'nuclear'"),
    "error zero": (lambda: metrics.relative_error(I2, 0 * I2), "exact must not be zero"),
    "error nan": (lambda: metrics.relative_error(NAN, ONE), "approx must hold finite"),
    "error shapes": (lambda: metrics.relative_error(I2, torch.eye(3)), r"got \(2, 2\) and \(3, 3\)"),
    "cosine zero": (lambda: metrics.direction_cosine(ONE, ZERO), "w must not be zero"),
    "cosine metric": (lambda: metrics.direction_cosine(ONE, ONE, Diagonal(ZERO)), "v must not be zero"),
    "cosine inf": (lambda: metrics.direction_cosine(ONE / 0, ONE), "v must hold finite"),
    "efficiency zero": (lambda: metrics.efficiency(ZERO, ONE, Dense(I2), 0.1), "direction must not be zero"),
    "efficiency gradient": (lambda: metrics.efficiency(ONE, ZERO, Dense(I2), 0.1), "gradient must not be zero"),
    "efficiency nan": (lambda: metrics.efficiency(NAN, ONE, Dense(I2)), "direction must hold finite"),
    "efficiency singular": (lambda: metrics.efficiency(ONE, ONE, Diagonal(ONE - I2[0])), "give damping > 0"),
    "efficiency damping": (lambda: metrics.efficiency(ONE, ONE, Dense(I2), -1.0), "damping must be .* got -1.0"),
    "ratio zero": (lambda: metrics.norm_ratio(ONE, ZERO), "w must not be zero"),
    "kind": (lambda: metrics.condition_number(ONE, "max"), "one of 'nonzero', 'mean', 'damped'; got 'max'"),
    "spectrum zero": (lambda: metrics.condition_number(ZERO), "spectrum must not be zero"),
    "spectrum nan": (lambda: metrics.condition_number(NAN), "eigenvalues must hold finite"),
    "spectrum empty": (lambda: metrics.numerical_rank(torch.ones(0)), "at least one eigenvalue"),
    "spectrum negative": (lambda: metrics.numerical_rank(-ONE), "no negative eigenvalues"),
    "dim": (lambda: metrics.condition_number(ONE, dim=1), "at least the 2 eigenvalues given; got 1"),
    "effective undamped": (lambda: metrics.effective_dimension(ONE, 0.0), "needs damping > 0; got 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_undefined_numbers_are_refused(name):
    attempt, text = REFUSALS[name]
    with pytest.raises(ValueError, match=text):
        attempt()


def test_an_infinite_condition_number_is_refused():
    with pytest.raises(NotPositiveDefiniteError, match="kind 'damped' is infinite.*Give damping > 0"):
        metrics.condition_number(torch.tensor([0.0, 1.0]), "damped")
