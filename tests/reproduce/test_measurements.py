"""What the reproductions measure, held to slow and obvious formulas: twins, blocks between layers, white coordinates."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from natgrad_lab import datasets, likelihoods, models
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.reproduce import REPRODUCTIONS, Work, deep_linear_rate, invariance, kfac_fisher_quality, prong_fig2

CPU = torch.device("cpu")


# ---- invariance


def test_the_twins_compute_the_same_function(generator):
    model = models.mlp((4, 5, 3, 2), "tanh", generator=generator)
    inputs = torch.randn(7, 4, generator=generator)
    twin = invariance.logistic_twin(model)
    assert [type(each) for each in twin] == [nn.Linear, nn.Sigmoid, nn.Linear, nn.Sigmoid, nn.Linear]
    moved, other = invariance.affine_image(model, inputs, generator)
    torch.testing.assert_close(twin(inputs), model(inputs), rtol=0, atol=1e-14)
    torch.testing.assert_close(other(moved), model(inputs), rtol=0, atol=1e-13)
    assert not torch.allclose(moved, inputs)
    torch.testing.assert_close(model(inputs), models.mlp((4, 5, 3, 2), generator=torch.Generator().manual_seed(0))(inputs))


def test_a_gap_is_that_of_the_functions_relative_to_the_step(generator):
    """Gradient descent by hand on both networks."""
    model, targets = models.mlp((3, 4, 2), "tanh", generator=generator), torch.ones(5, 2)
    inputs, twin = torch.randn(5, 3, generator=generator), invariance.logistic_twin(model)
    found = invariance.gap((model, inputs), (twin, inputs), targets, "sgd", {}, lr=0.1)
    outputs = []
    for each in (invariance.copied(model), invariance.logistic_twin(model)):
        loss = nn.functional.binary_cross_entropy_with_logits(each(inputs), targets, reduction="none").sum(1).mean()
        gradients = torch.autograd.grad(loss, list(each.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(each.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        outputs.append(each(inputs).detach())
    moved = (outputs[0] - model(inputs)).norm()
    expected = (outputs[0] - outputs[1]).norm() / moved
    assert found == pytest.approx(float(expected.detach()), rel=1e-10) and found > 0.01


def test_a_missing_constant_input_would_be_noticed(generator):
    """Without biases K-FAC is not invariant to shifts: the homogeneous coordinate is what makes it so."""
    model = models.mlp((3, 4, 2), "tanh", generator=generator)
    inputs, targets = torch.randn(40, 3, generator=generator), torch.ones(40, 2)
    exact = invariance.METHODS_SHOWN["kfac 0"]
    assert invariance.gap((model, inputs), (invariance.logistic_twin(model), inputs), targets, *exact, lr=0.1) < 1e-9
    wrong = invariance.logistic_twin(model)
    with torch.no_grad():
        wrong[0].weight.mul_(1.01)
    with pytest.raises(AssertionError, match="not the same function"):
        invariance.gap((model, inputs), (wrong, inputs), targets, *exact, lr=0.1)


@pytest.mark.parametrize("name", invariance.COORDINATES)
def test_coordinates_are_inverse_to_each_other_and_the_jacobian_is_theirs(name):
    into, back, jacobian = invariance.COORDINATES[name]
    for sigma in (0.6, 1.3, 2.4):
        z = into(sigma)
        assert back(z) == pytest.approx(sigma, rel=1e-14)
        assert jacobian(z) == pytest.approx((back(z + 1e-6) - back(z - 1e-6)) / 2e-6, rel=1e-8)
    found = invariance.slopes(name, 3)
    assert abs(found["gradient"] - 1) < 0.05 and abs(found["natural"] - 2) < 0.05


def test_slope_is_numpys():
    x, y = [0.0, 1.0, 2.5, 3.0], [1.0, -1.0, 0.5, 2.0]
    assert invariance.slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-12)


# ---- K-FAC's matrices


@pytest.fixture
def matrices(generator, monkeypatch):
    """Three middle layers of a small network on 9 examples, with the model and the data."""
    monkeypatch.setattr(kfac_fisher_quality, "MIDDLE", slice(1, 4))
    monkeypatch.setattr(kfac_fisher_quality, "CHUNK", 4)  # the last chunk is smaller
    model = models.mlp((3, 3, 2, 3, 2, 3), "tanh", generator=generator)
    inputs, targets = torch.randn(9, 3, generator=generator), torch.arange(9) % 3
    return kfac_fisher_quality.Matrices(model, inputs, targets, 0.1), model, inputs, targets


def test_the_exact_part_is_that_of_the_dense_fisher(matrices):
    each, model, inputs, targets = matrices
    full = dense_fisher(model, likelihoods.Categorical(), inputs).to_dense()
    first = 3 * 4
    inside = slice(first, first + sum(each.sizes))
    torch.testing.assert_close(each.exact, full[inside, inside], rtol=1e-10, atol=1e-14)
    loss = likelihoods.Categorical().loss(model(inputs), targets)
    rows = [torch.cat([w.grad, b.grad[:, None]], 1).flatten() for w, b in _after_backward(loss, model)[1:4]]
    torch.testing.assert_close(each.gradient, torch.cat(rows), rtol=1e-10, atol=1e-14)


def _after_backward(loss, model):
    loss.backward()
    return [(layer.weight, layer.bias) for layer in model if isinstance(layer, nn.Linear)]


def test_blocks_are_products_of_means_over_examples_and_classes(matrices):
    """F̃ by loops: A_ij over examples, G_ij with the expectation over classes enumerated."""
    each, model, inputs, _ = matrices
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    A, G = {}, {}
    for x in inputs:
        activity, seen, outs = x, [], []
        for layer in model:
            if isinstance(layer, nn.Linear):
                seen.append(torch.cat([activity.detach(), torch.ones(1)]))
                activity = layer(activity)
                activity.retain_grad()
                outs.append(activity)
            else:
                activity = layer(activity)
        logs = activity.log_softmax(0)
        scores = [torch.autograd.grad(logs[c], outs, retain_graph=True) for c in range(3)]
        for i in (1, 2, 3):
            for j in (1, 2, 3):
                A[i, j] = A.get((i, j), 0) + torch.outer(seen[i], seen[j]) / len(inputs)
                mean = sum(logs[c].exp().detach() * torch.outer(scores[c][i], scores[c][j]) for c in range(3))
                G[i, j] = G.get((i, j), 0) + mean / len(inputs)
    rows = [torch.cat([torch.kron(G[i, j], A[i, j]) for j in (1, 2, 3)], 1) for i in (1, 2, 3)]
    torch.testing.assert_close(each.kronecker, torch.cat(rows), rtol=1e-10, atol=1e-14)
    assert len(linear) == 5


def test_damped_matrices_and_their_inverses(matrices):
    each = matrices[0]
    identity = torch.eye(len(each.exact))
    torch.testing.assert_close(each.inverse @ each.damped, identity, rtol=0, atol=1e-9)
    torch.testing.assert_close(each.chain_inverse @ each.filled, identity, rtol=0, atol=1e-9)
    near = each.only(torch.ones_like(each.damped), lambda i, j: abs(i - j) <= 1).bool()
    torch.testing.assert_close(each.filled[near], each.damped[near], rtol=1e-9, atol=1e-12)
    assert each.chain_inverse[~near].abs().max() < 1e-10 * each.chain_inverse.abs().max()
    block = each.only(each.damped, lambda i, j: i == j)
    torch.testing.assert_close(each.block_inverse @ block, identity, rtol=0, atol=1e-9)
    off = each.only(torch.ones_like(each.damped), lambda i, j: i != j).bool()
    torch.testing.assert_close(each.damped[off], each.kronecker[off])  # only the diagonal blocks are damped


def test_numbers_of_kfac_do_not_depend_on_the_order_they_are_asked_in(matrices):
    each = matrices[0]
    first = kfac_fisher_quality.measured(each)
    assert kfac_fisher_quality.measured(each) == first
    assert 0 < first["far share of inverse"] < 1 and first["efficiency"].keys() == {"0.01", "0.1", "1"}


# ---- white coordinates


def test_the_fisher_in_white_coordinates_is_that_of_the_whitened_network(generator):
    """Through the Jacobian of (V, d) by autograd, with the categorical output Fisher written out."""
    model = models.mlp((3, 4, 3), "tanh", generator=generator)
    inputs = torch.randn(8, 3, generator=generator)
    network = prong_fig2.whitened(model)
    network.reparametrize(inputs, 1e-3)
    layers = list(network.whitened().values())
    expected = torch.zeros(sum(each.V.numel() + each.d.numel() for each in layers), requires_grad=False)
    expected = torch.outer(expected, expected)
    for x in inputs:
        outputs = network(x[None])[0]
        rows = []
        for output in outputs:
            gradients = torch.autograd.grad(output, [p for each in layers for p in (each.V, each.d)], retain_graph=True)
            pairs = zip(gradients[::2], gradients[1::2], strict=True)
            rows.append(torch.cat([torch.cat([V, d[:, None]], 1).flatten() for V, d in pairs]))
        J, p = torch.stack(rows), outputs.detach().softmax(0)
        expected += J.mT @ (p.diag() - torch.outer(p, p)) @ J / len(inputs)
    torch.testing.assert_close(prong_fig2.fisher_in_white(network, inputs), expected, rtol=1e-9, atol=1e-13)


def test_numbers_of_a_spectrum(generator):
    model = models.mlp((2, 2, 1), generator=generator)  # layers of 6 and 3 parameters
    values = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 90])
    found = prong_fig2.numbers(values.diag(), model)
    assert found["mean"] == pytest.approx(90 / 14) and found["top"] == pytest.approx(1.0)  # a tenth of 9 is the first
    assert found["damped"] == pytest.approx((90 + 0.014) / (1 + 0.014)) and found["off diagonal"] == pytest.approx(0.0)
    ones = prong_fig2.numbers(torch.ones(9, 9) + torch.eye(9), model)
    assert ones["off diagonal"] == pytest.approx(1 - 36 / (36 + 30 + 6))  # blocks of 6 and 3: 30 + 6 entries of 1 off it


# ---- deep linear networks


def test_the_problem_has_the_condition_number_it_says():
    weights, inputs, targets = deep_linear_rate.problem(3, 1e4, (4, 6, 2), seed=1)
    values = torch.linalg.eigvalsh(inputs.mT @ inputs / len(inputs))
    assert float(values[-1] / values[0]) == pytest.approx(1e4, rel=1e-6) and float(values[-1]) == pytest.approx(1.0)
    assert [tuple(w.shape) for w in weights] == [(6, 4), (6, 6), (2, 6)]
    residual = torch.linalg.lstsq(inputs, targets).solution
    torch.testing.assert_close(inputs @ residual, targets, rtol=0, atol=1e-9)  # the target is linear


def test_natural_steps_follow_the_theory_and_gradient_descent_counts_its_updates():
    weights, inputs, targets = deep_linear_rate.problem(2, 10.0, (3, 4, 2), seed=2)
    excess, residual = deep_linear_rate.descend(weights, inputs, targets, 0.01, 50)
    assert len(excess) == 51 and residual < 1e-10
    rate = (math.log(excess[50]) - math.log(excess[25])) / 0.25
    assert rate == pytest.approx(2 * math.log(0.99) / 0.01, abs=0.02)
    config = {"gradient_lrs": (1e-3, 0.1), "goals": (0.5, 0.1, 1e-30), "gradient_cap": 400}
    counted = deep_linear_rate.gradient_updates(weights, inputs, targets, config)
    slow = [_gradient_descent(weights, inputs, targets, lr, 400) for lr in config["gradient_lrs"]]
    firsts = [min(next((k for k, e in enumerate(run) if e <= goal * run[0]), 400) for run in slow) for goal in config["goals"]]
    assert counted == firsts and counted[2] == 400 and counted[0] < counted[1]


def _gradient_descent(weights, inputs, targets, lr, steps):
    """Excess losses in NumPy, gradients by the chain of products."""
    W, X, Y = [w.numpy().copy() for w in weights], inputs.numpy(), targets.numpy()
    best, losses = np.linalg.lstsq(X, Y, rcond=None)[0].T, []
    for _ in range(steps + 1):
        product = W[1] @ W[0]
        E, second = product - best, X.T @ X / len(X)
        losses.append(0.5 * np.trace(E @ second @ E.T))
        gradient = E @ second
        W = [W[0] - lr * W[1].T @ gradient, W[1] - lr * gradient @ W[0].T]
    return losses


# ---- every reproduction that is no race, once, as small as it gets

SMALLEST = {
    "invariance": {"sizes": (3, 4, 2), "num_examples": 60},
    "deep-linear-rate": {"depths": (2,), "conditions": (1.0, 1e3), "widths": (3, 4, 2), "steps": 20, "every": 5,
                         "race_steps": 5, "gradient_cap": 10},
    "kfac-fisher-quality": {"batch_size": 50, "most_steps": 1, "image_size": 2},
    "prong-fig2": {"num_examples": 60, "image_size": 3, "hidden": (5, 4), "steps": 2, "every": 1, "batch_size": 20},
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST)
def test_every_measurement_is_judged_and_drawn(name, monkeypatch):
    whole = datasets.load
    monkeypatch.setattr(kfac_fisher_quality, "HIDDEN", (3,) * 5)
    monkeypatch.setattr(kfac_fisher_quality, "CELLS", 8)
    monkeypatch.setattr(datasets, "load", lambda name, **options: whole(name, **options).select(slice(80)))
    each = REPRODUCTIONS[name]
    work = Work({**each.scales["small"].config, **SMALLEST[name]}, CPU, lambda key, make: make())
    one, again, other = each.run(1, work), each.run(1, work), each.run(2, work)
    assert one == again != other
    checks = each.judge([one, other])
    assert checks and all(check.measured for check in checks)
    assert each.figure([one, other]).data
