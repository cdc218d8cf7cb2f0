"""Lesson 02's matrices by other ways: the package's estimators, loops over targets, second derivatives."""

import numpy as np
import pytest
import torch

from natgrad_lab import fisher, likelihoods
from natgrad_lab.course.cards import lesson02 as lesson
from natgrad_lab.course.diagnose import Mistake
from natgrad_lab.course.exercises import lesson02 as exercises
from natgrad_lab.parameters import ParameterLayout

NETWORK = "6-8-8-4"
exact = lambda steps: lesson.matrix(NETWORK, steps, "exact Fisher")  # noqa: E731


@pytest.mark.parametrize("steps", [0, 20])
def test_recipes_are_those_of_the_package(steps):
    stage, likelihood = lesson.stages(NETWORK)[steps], likelihoods.Categorical()
    dense = fisher.dense_fisher(stage.model, likelihood, stage.inputs)
    assert torch.allclose(dense.to_dense(), exact(steps), rtol=1e-9, atol=1e-12)
    assert torch.equal(lesson.matrix(NETWORK, steps, "Gauss-Newton"), exact(steps))
    empirical = fisher.dense_fisher(stage.model, likelihood, stage.inputs, "empirical", stage.targets)
    assert torch.allclose(empirical.to_dense(), lesson.matrix(NETWORK, steps, "empirical Fisher"), rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(3)
    sampled = fisher.dense_fisher(stage.model, likelihood, stage.inputs, "monte_carlo", None, 10, generator)
    mine = lesson.from_outputs(stage.jacobian, lesson.output_matrices(stage, "sampled labels, 10 each", 3))
    assert torch.allclose(sampled.to_dense(), mine, rtol=1e-9, atol=1e-12)


def test_jacobian_by_reverse_mode():
    stage = lesson.stages(NETWORK)[20]
    layout, n, c = ParameterLayout(stage.model), 7, 2
    gradients = torch.autograd.grad(stage.model(stage.inputs[n : n + 1])[0, c], list(stage.model.parameters()))
    flat = layout.from_torch(torch.cat([g.flatten() for g in gradients]))
    assert torch.allclose(stage.jacobian[n, c], flat, rtol=1e-10, atol=1e-14)
    assert torch.allclose(stage.gradient, _gradient_of_loss(stage, layout), rtol=1e-9, atol=1e-12)


def _gradient_of_loss(stage, layout):
    loss = torch.nn.functional.cross_entropy(stage.model(stage.inputs), stage.targets)
    return layout.from_torch(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(stage.model.parameters()))]))


def test_hessian_by_differences_of_gradients():
    stage = lesson.stages(NETWORK)[20]
    layout = ParameterLayout(stage.model)
    H, v = (
        lesson.matrix(NETWORK, 20, "Hessian"),
        torch.randn(164, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    h, sides = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, part in layout.split(v):
                parameter += sign * h * part
        sides.append(_gradient_of_loss(stage, layout))
        with torch.no_grad():
            for parameter, part in layout.split(v):
                parameter -= sign * h * part
    # central differences: error h² times a fourth derivative, and rounding 1e-16 / h
    assert torch.allclose(H @ v, (sides[0] - sides[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    assert torch.allclose(H, H.mT, atol=1e-12)


def test_sampled_labels_beat_the_data_s_before_training_on_every_seed():
    stage = lesson.stages(NETWORK)[0]
    far = lesson.numbers(NETWORK, 0, "empirical Fisher")["error"]
    for seed in range(10):
        made = lesson.from_outputs(stage.jacobian, lesson.output_matrices(stage, "sampled labels, 1 each", seed))
        assert float((made - exact(0)).norm() / exact(0).norm()) < far / 2


def test_one_example_is_a_kronecker_product_and_its_order_matters():
    assert lesson.kronecker_order(1, "G ⊗ A")["error"] < 1e-12
    wrong = lesson.kronecker_order(1, "A ⊗ G")
    assert wrong["error"] > 1 and wrong["sorted"] < 1e-15, "the same entries at other places"


def test_sums_together_are_harmless_and_each_factor_is_a_formula():
    state = {"examples": 10, "gradient": "sum over examples", "fisher": "sum of outer products", "damping": "N λ"}
    assert lesson.where_did_n_go(state)["worst"] == pytest.approx(1)
    F, g, N, damping = np.diag([0.5, 2e-3]), np.array([1.0, -2.0]), 10, lesson.WANTED
    step = np.linalg.solve(F / N + damping * np.eye(2), g)  # squares of gradients of the mean loss, summed
    state = {"examples": N, "gradient": "mean over examples", "damping": "λ", "fisher": list(lesson.FISHERS)[2]}
    found = lesson.where_did_n_go(state)
    assert step == pytest.approx(found["factor"] * np.linalg.solve(F + found["damping"] * np.eye(2), g))


def test_the_trap_s_efficiency_is_that_of_the_package():
    x, y = exercises.empirical_trap(0.3, -1.0)
    assert exercises.trap_efficiency(x, y, 0.3, -1.0) == pytest.approx(4 / (2 + 400 + 1 / 400), rel=1e-4)
    with pytest.raises(Mistake, match="2-flat"):
        exercises.trap_efficiency(x, 0.3 * x - 1.0, 0.3, -1.0)
