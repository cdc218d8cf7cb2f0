"""The mathematics of lesson 11's cards, each by a second way."""

import math

import numpy as np
import pytest

from natgrad_lab.course.cards import lesson11 as lesson

ONE = np.ones(1)


def second_moments(steps, batch, rate, h, c, q):
    """E θ² after so many steps, one step after the other."""
    second = np.ones_like(h)
    for _ in range(steps):
        second = (1 - rate * q * h) ** 2 * second + (rate * q) ** 2 * c / batch
    return second


@pytest.mark.parametrize("power, rate", [(0.0, 0.3), (0.5, 1.5), (1.0, 0.9), (0.0, 2.5)])
def test_risk_is_the_recursion(power, rate):
    h = np.array([1.0, 0.4, 0.05])
    c, q = h**0.5, h**-power
    for steps in (0, 1, 7):
        want = 0.5 * (2 * h * second_moments(steps, 6, rate, h, c, q)).sum()
        assert lesson.risk(steps * ONE, 6, rate * ONE, h, c, q, 2 * np.ones(3))[0] == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_groups_stand_for_all_ten_thousand_coordinates(exponent):
    h, counts = lesson.spectrum(exponent)
    full = np.arange(1, lesson.DIM + 1) ** -exponent
    assert counts.sum() == lesson.DIM and (counts * h).sum() == pytest.approx(full.sum(), rel=1e-9)
    for steps, rate in ((10, 1.0), (2000, 0.3)):  # within a group curvatures differ by 4 % at most
        grouped = lesson.risk(steps * ONE, 64, rate * ONE, h, h, np.ones_like(h), counts)[0]
        every = lesson.risk(steps * ONE, 64, rate * ONE, full, full, np.ones_like(full), np.ones_like(full))[0]
        assert grouped == pytest.approx(every, rel=2e-3)


@pytest.mark.parametrize("batch, power", [(256, 0.0), (4096, 0.5), (2**18, 1.0)])
def test_no_step_fewer_would_do(batch, power):
    h, counts = lesson.spectrum(1.0)
    q = h**-power
    steps = lesson.steps_to_target(batch, 0.1, h, h, q, counts)
    rates = lesson.RATES[lesson.RATES * (q * h).max() < 2]
    risks = [lesson.risk(np.full(len(rates), float(n)), batch, rates, h, h, q, counts).min() for n in (steps - 1, steps)]
    assert risks[1] <= 0.1 < risks[0]


def test_out_of_reach_is_infinite():
    h, counts = lesson.spectrum(1.0)
    assert math.isinf(lesson.steps_to_target(1, 1e-9, h, h, h**-1, counts))
    assert math.isinf(lesson.steps_to_target(1, 0.1, h, h, 100 / h, counts, np.array([1.0])))


def test_critical_batch_of_a_curve_made_for_it():
    batches = np.array(lesson.BATCHES, float)
    floor = 1000.0
    steps = 1e6 / batches + floor  # efficiency (1e6 + 16 floor) / (1e6 + B floor)
    want = max(b for b in lesson.BATCHES if (1e6 + 16 * floor) / (1e6 + b * floor) >= 0.8)
    assert lesson.critical_batch(steps) == want and lesson.last_efficient(batches, steps, 0.8) == want
    assert lesson.critical_batch(1e6 / batches) == lesson.BATCHES[-1]


def test_the_preconditioner_moves_the_critical_batch():
    critical = [lesson.critical_batch(lesson.steps_curve(p, 1.0, 1.0, 0.01)) for p in (0.0, 0.5, 1.0)]
    assert critical[1] >= 16 * critical[0] and critical[2] >= 16 * critical[1]


def test_staleness_costs_updates_and_nothing_else_at_age_0():
    fresh, old, older = (lesson.stale_steps(2048.0, age, 1.0) for age in (0, 10, 40))
    assert fresh < old < older
    assert lesson.stale_steps(2048.0, 40, 0.0) == lesson.stale_steps(2048.0, 0, 0.0)  # gradient descent has no preconditioner
    h, counts = lesson.spectrum(1.0)
    assert fresh == lesson.steps_to_target(2048.0, 0.01, h, h, 1 / h, counts)


@pytest.mark.parametrize("mode", lesson.MODES)
def test_the_bars_of_a_cluster_fill_its_updates(mode):
    result = lesson.CARDS[1].result({"mode": mode, "workers": 64, "inverse": 1000})
    assert result["time"] == result["updates"] * result["update"]
    ends = {}
    for row, _, start, length in result["bars"]:
        assert length > 0 and start >= ends.get(row, 0) - 1e-9  # no worker does two things at once
        ends[row] = start + length
    assert all(end <= 4 * result["update"] + 1e-9 for end in ends.values())
    if mode == lesson.MODES[1]:
        work = sum(length for *_, length in result["bars"])
        assert work == pytest.approx(4 * result["update"])


def test_the_kept_sweep_scales_further_with_kfac():
    result = lesson.batch_sweep({"axis": "steps", "efficiency": 0.8})
    assert result["critical"]["kfac"] >= result["critical"]["sgd"]
    assert all(np.isfinite(each).all() and len(each) == len(result["batches"]) for each in result["steps"].values())
