"""Lesson 01's geometry: Jacobians by finite differences, the Fisher by autograd, lengths by a numerical integral."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad_lab.course.cards import lesson01 as lesson
from natgrad_lab.course.claims import lesson01 as claims

means, sigmas = st.floats(-3, 3), st.floats(0.2, 5)


@pytest.mark.parametrize("name", lesson.PROJECTIONS)
@pytest.mark.parametrize("latitude, longitude", [(0, 0), (37, 0), (60, 25), (80, -50)])
def test_the_jacobian_of_a_map_is_its_derivative(name, latitude, longitude):
    place, phi, lam, h = lesson.PROJECTIONS[name], np.radians(latitude), np.radians(longitude), 1e-6
    east = np.subtract(place(phi, lam + h / np.cos(phi)), place(phi, lam - h / np.cos(phi))) / (2 * h)
    north = np.subtract(place(phi + h, lam), place(phi - h, lam)) / (2 * h)
    # central differences: h² times a third derivative (at most about 500 at 80°), and rounding 1e-16 / h
    assert lesson.map_jacobian(name, latitude, longitude) == pytest.approx(np.stack([east, north], 1), abs=1e-8, rel=1e-8)


@pytest.mark.parametrize("degrees", [10, 45, 60, 80])
def test_closed_forms_of_the_two_arrows(degrees):
    slope, cos = np.array([1.0, 1.0]), np.cos(np.radians(degrees))
    angle = lambda name: lesson.degrees_between(slope, lesson.walked(name, degrees, slope))  # noqa: E731
    assert angle("equirectangular") == pytest.approx(np.degrees(np.arctan(1 / cos**2)) - 45, abs=1e-6)
    assert max(angle("Mercator"), angle("stereographic")) < 1e-12
    assert lesson.walked("Mercator", degrees, slope) == pytest.approx(cos**2 * slope)
    assert np.linalg.det(lesson.map_jacobian("Lambert equal-area", degrees)) == pytest.approx(1)


@pytest.mark.parametrize("name", lesson.COORDINATES)
@pytest.mark.parametrize("mean, sigma", [(1.0, 0.5), (-2.0, 3.0)])
def test_the_metric_is_the_hessian_of_the_kl_in_every_coordinates(name, mean, sigma):
    _, there, _ = lesson.COORDINATES[name]
    back = {
        "(μ, σ)": lambda a, b: (a, b), "(μ, log σ)": lambda a, b: (a, b.exp()), "(μ, σ²)": lambda a, b: (a, b.sqrt()),
        "(μ/σ², −1/2σ²)": lambda a, b: (-a / (2 * b), (-0.5 / b).sqrt()),
    }[name]  # fmt: skip
    theta = torch.tensor([float(each) for each in there(mean, sigma)], dtype=torch.float64)
    here = torch.distributions.Normal(torch.tensor(mean), torch.tensor(sigma))
    hessian = torch.autograd.functional.hessian(
        lambda at: torch.distributions.kl_divergence(here, torch.distributions.Normal(*back(*at), validate_args=False)), theta
    )
    assert lesson.gaussian_metric(name, mean, sigma) == pytest.approx(hessian.numpy(), rel=1e-9, abs=1e-9)
    assert lesson.COORDINATES[name][2](*there(mean, sigma)) == pytest.approx((mean, sigma))


@settings(max_examples=30, deadline=None)
@given(means, sigmas, means, sigmas)
def test_the_shortest_path_is_as_long_as_the_closed_form_and_no_other_is_shorter(m1, s1, m2, s2):
    p, q = (m1, s1), (m2, s2)
    if abs(m1 - m2) < 1e-3:
        m2 = m1
        q = (m2, s2)
    want = lesson.rao(p, q)
    path = lesson.arc(p, q)
    # midpoint rule, 2000 pieces: relative error about (distance / 2000)² / 24
    assert lesson.length(path) == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert path[0] == pytest.approx(np.array(p), abs=1e-9) and path[-1] == pytest.approx(np.array(q), abs=1e-9)
    for other in (lesson.arc(p, q, 1.0), *(lesson.straight(p, q, name) for name in lesson.COORDINATES)):
        assert lesson.length(other) >= want * (1 - 1e-4)  # uneven pieces: the midpoint rule is coarser
    moved = [(2.5 * m - 3, 2.5 * s) for m, s in (p, q)]
    assert lesson.rao(*moved) == pytest.approx(want) == lesson.rao(q, p)


@given(means, sigmas, means, sigmas)
def test_kl_is_that_of_torch(m1, s1, m2, s2):
    normal = lambda m, s: torch.distributions.Normal(torch.tensor(m).double(), torch.tensor(s).double())  # noqa: E731
    want = float(torch.distributions.kl_divergence(normal(m1, s1), normal(m2, s2)))
    assert lesson.kl((m1, s1), (m2, s2)) == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_equal_means_give_a_logarithm():
    assert lesson.rao((1, 0.5), (1, 4)) == pytest.approx(np.sqrt(2) * np.log(8))


@pytest.mark.parametrize("name", lesson.COORDINATES)
def test_powers_of_the_kl(name):
    for degrees in (30, 60, 90, 120, 150):
        assert lesson.error_power(name, degrees) == pytest.approx(3, abs=0.05)  # the next power shows at steps of 0.03
        assert lesson.error_power(name, degrees, True) == pytest.approx(4, abs=0.01)


def test_numbers_that_others_published():
    assert claims.equirectangular_angle() == pytest.approx(np.degrees(np.arctan(4)) - 45)
    assert claims.rao_ratio() == pytest.approx(75.5, abs=0.05)
    assert claims.shortest() < claims.circle() < claims.straight_line() < claims.without_half()
