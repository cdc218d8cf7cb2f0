"""Lesson 06: its paths against the package's, its iteration against the package's roots and closed forms, its landmarks."""

import numpy as np
import pytest
import torch

from natgrad_lab import likelihoods, metrics, models
from natgrad_lab.course.cards import lesson06
from natgrad_lab.optimizers import METHODS
from natgrad_lab.optimizers.sngd import path_drift
from natgrad_lab.roots import denman_beavers
from natgrad_lab.structures import Dense, Kronecker


def logistic(condition):
    inputs, targets = (torch.as_tensor(part) for part in lesson06.logistic_data(condition))
    model = models.mlp((2, 1), bias=False, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.copy_(torch.as_tensor(lesson06.START))
    return model, inputs, targets[:, None]


@pytest.mark.parametrize("period, lr, condition", [(1, 0.2, 10.0), (5, 0.1, 100.0), (1000, 0.4, 1.0)])
def test_the_paths_are_the_packages(period, lr, condition):
    model, inputs, targets = logistic(condition)
    choices = {"lr": lr, "damping": lesson06.DAMPING}
    ours, theirs = lesson06.white_path(lr, condition, period), lesson06.natural_path(lr, condition)
    drifts = list(
        path_drift(model, likelihoods.Bernoulli(), inputs, targets, update_every=period, steps=lesson06.STEPS, **choices)
    )
    assert np.allclose(lesson06.drift(ours, theirs), drifts, rtol=1e-6, atol=1e-10)
    exact = METHODS["exact_ngd"](model, likelihoods.Bernoulli(), **choices)
    for _ in range(lesson06.STEPS):
        exact.step(inputs, targets)
    assert np.allclose(model[0].weight.detach().numpy()[0], theirs[-1], rtol=1e-8)
    assert np.linalg.cond(inputs.numpy().T @ inputs.numpy()) == pytest.approx(condition)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_iteration_is_the_packages_and_finds_the_root(scaled):
    matrix = lesson06.matrix_of_condition(1e4)
    assert np.linalg.cond(matrix.numpy()) == pytest.approx(1e4, rel=1e-6)
    ours, theirs = lesson06.iterate(matrix, scaled, lesson06.UPDATES[0]), denman_beavers(matrix, scaled=scaled)
    assert torch.allclose(ours["Y"], theirs.root, atol=1e-12) and torch.allclose(ours["Z"], theirs.inverse_root, atol=1e-8)
    values, vectors = torch.linalg.eigh(matrix)
    assert torch.allclose(ours["Y"], vectors @ torch.diag(values.sqrt()) @ vectors.mT, atol=1e-12)


def test_the_wrong_order_ends_with_inverses_that_are_no_roots():
    matrix = lesson06.matrix_of_condition(1e4)
    found = lesson06.iterate(matrix, False, lesson06.UPDATES[1], 40)
    assert found["product"][-1] < 1e-10 and found["root"][-1] > 0.1


def test_efficiency_is_that_of_the_metrics():
    A, V = lesson06.inputs_and_gradient()
    low_rank, left = lesson06.stand_ins(lesson06.CHOICES[0])[10][0]
    direction = low_rank.solve(V.mT, 1e-2).mT
    metric = Kronecker(torch.eye(10, dtype=torch.float64), A)
    want = metrics.efficiency(direction.flatten(), V.flatten(), metric, 1e-2)
    assert lesson06.efficiencies(lesson06.CHOICES[0], 1e-2)[0][lesson06.COUNTS.index(10)] == pytest.approx(want, rel=1e-8)
    assert left == pytest.approx(float((A - low_rank.to_dense()).trace() / A.trace()), rel=1e-9)
    assert metrics.efficiency(V.flatten(), V.flatten(), Dense(metric.to_dense()), 1e-2) == pytest.approx(
        lesson06.landmarks({"count": 10, "choice": lesson06.CHOICES[0], "damping": 1e-2})["plain"], rel=1e-8
    )
