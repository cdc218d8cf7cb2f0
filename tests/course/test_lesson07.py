"""The mathematics of lesson 07's cards, each number by a second way."""

import numpy as np
import pytest
import torch

from natgrad_lab import likelihoods
from natgrad_lab.course.cards import lesson07 as lesson
from natgrad_lab.course.checkpoints import small_digits
from natgrad_lab.reproduce.invariance import gap


@pytest.fixture(scope="module")
def now():
    return lesson.moment(50)


def test_the_exact_fisher_and_gradient_are_those_of_autograd(now):
    data, likelihood = small_digits(), likelihoods.Categorical()
    last = now.layers[-1]
    model, inputs = now.model, data.inputs
    hidden = model[:-1](inputs).detach()
    p = torch.softmax(model(inputs).detach(), 1)
    ones = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=hidden.dtype)], 1)
    cov = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    block = torch.einsum("nkl,ni,nj->kilj", cov, ones, ones).reshape(last.stop - last.start, -1) / len(inputs)
    assert torch.allclose(now.exact[last, last], block, atol=1e-12)
    loss = likelihood.loss(model(inputs), data.targets)
    grads = torch.autograd.grad(loss, [model[-1].weight, model[-1].bias])
    assert torch.allclose(now.gradient[last], torch.cat([grads[0], grads[1][:, None]], 1).flatten(), atol=1e-12)
    kron = np.kron(cov.mean(0).numpy(), (ones.T @ ones / len(inputs)).numpy())
    assert np.allclose(now.kronecker[last, last].numpy(), kron, atol=1e-12)


def test_blocks_between_layers_are_products_of_mixed_moments(now):
    rows, columns = now.layers[0], now.layers[2]
    assert np.allclose(now.kronecker[rows, columns].numpy(), np.kron(now.G[0][2].numpy(), now.A[0][2].numpy()))
    assert torch.allclose(now.kronecker, now.kronecker.T)
    assert torch.linalg.eigvalsh(now.kronecker)[0] > -1e-10


def test_the_switches(now):
    assert lesson.assumed(now, False, False, False) is now.exact
    assert lesson.step_efficiency(now, now.exact) == pytest.approx(1, abs=1e-9)
    diagonal = lesson.assumed(now, False, True, True)
    assert torch.equal(diagonal, torch.diag(now.exact.diagonal()))
    blocks = lesson.assumed(now, False, True, False)
    assert blocks[now.layers[0], now.layers[1]].abs().max() == 0
    F, g = now.exact + 0.01 * torch.eye(len(now.exact), dtype=now.exact.dtype), now.gradient
    best = float(g @ torch.linalg.solve(F, g))
    assert lesson.step_efficiency(now, None) == pytest.approx(float((g @ g) ** 2 / (g @ F @ g)) / best, rel=1e-9)


def test_a_cell_is_the_root_mean_square_of_a_pair_of_units(now):
    picture = lesson.unit_picture(now, now.exact)
    i, j = now.units[3], now.units[25]
    assert picture.shape == (30, 30)
    assert picture[3, 25] == pytest.approx(float(now.exact[i, j].square().mean().sqrt()), rel=1e-12)


@pytest.mark.parametrize("scheme", lesson.SCHEMES)
def test_damped_steps_against_dense_blocks(now, scheme):
    damping, units, parts = 0.01, 10.0, []
    for i, layer in enumerate(now.layers):
        A, G = (each.numpy() for each in (now.A[i][i] * units, now.G[i][i] / units))
        pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G))) if scheme == "√λ split by π" else 1.0
        root = damping if scheme == "λ on each factor" else np.sqrt(damping)
        if scheme == "λ on the product":
            block = np.kron(G, A) + damping * np.eye(len(A) * len(G))
        else:
            block = np.kron(G + root / pi * np.eye(len(G)), A + root * pi * np.eye(len(A)))
        parts.append(np.linalg.solve(block, now.gradient[layer].numpy()))
        least = min(np.linalg.eigvalsh(block)[0], least if i else np.inf)
    v, g = np.concatenate(parts), now.gradient.numpy()
    F = now.exact.numpy() + damping * np.eye(len(g))
    share = (g @ v) ** 2 / (v @ F @ v) / (g @ np.linalg.solve(F, g))
    assert lesson.damped_step(50, scheme, damping, units) == pytest.approx((share, least), rel=1e-7)


@pytest.mark.parametrize("method, name, choices", [
    ("gradient descent", "sgd", {}), ("K-FAC", "kfac", {"damping": 0.01, "fisher_type": "exact", "ema_decay": 0.0}),
    ("exact natural gradient", "exact_ngd", {"damping": 0.01}),
])  # fmt: skip
def test_gaps_are_those_of_the_optimizers(method, name, choices):
    for change in lesson.CHANGES:
        one, other, targets = lesson._pair(change)
        assert lesson.one_step(change, method, 0.01)["gap"] == pytest.approx(
            gap(one, other, targets, name, choices, 0.1), rel=1e-6
        )


def test_whitened_inputs_are_white_and_the_twin_is_the_same_function():
    (model, inputs), (twin, white), _ = lesson._pair("inputs centred and whitened")
    assert torch.allclose(twin(white), model(inputs), atol=1e-12)
    assert white.mean(0).abs().max() < 1e-12
    assert torch.allclose(torch.cov(white.T, correction=0), torch.eye(white.shape[1], dtype=white.dtype), atol=1e-10)
