"""The mathematics of lesson 08's cards, each number by a second way."""

import numpy as np
import pytest
import torch

from natgrad_lab.course.cards import lesson08 as lesson
from natgrad_lab.course.checkpoints import small_digits
from natgrad_lab.fisher.forward_products import ForwardProducts
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.optimizers.step_size import QuadraticModel
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import BlockTridiagonalInverse, tridiagonal_tikhonov


@pytest.mark.parametrize("steps", [0, 30])
def test_the_chain_is_the_package_s(steps):
    now = lesson.moment(steps)
    own = [tuple(M[i][i] for i in range(5)) for M in (now.G, now.A)]
    beside = [tuple(M[i][i + 1] for i in range(4)) for M in (now.G, now.A)]
    theirs = tridiagonal_tikhonov(BlockTridiagonalInverse(*own, *beside), 0.01)
    ours = lesson.chain_inverse(lesson.damped(steps, 0.01, "kronecker", "factored"), now.layers, 1)
    dense = torch.linalg.inv(theirs.to_dense())
    assert (ours - dense).norm() < 1e-8 * dense.norm()  # inverses of matrices of condition number 1e4


@pytest.mark.parametrize("bandwidth", range(5))
def test_the_chain_keeps_what_is_near_and_has_zeros_beyond(bandwidth):
    now, whole = lesson.moment(10), lesson.damped(10, 0.01)
    inverse = lesson.chain_inverse(whole, now.layers, bandwidth)
    near = lambda i, j: abs(i - j) <= bandwidth  # noqa: E731
    assert torch.equal(now.only(inverse, near), inverse)
    filled = torch.linalg.inv(inverse)
    assert (now.only(filled - whole, near)).norm() < 1e-8 * whole.norm()
    assert torch.linalg.eigvalsh(inverse)[0] > 0
    if bandwidth == 4:
        assert torch.allclose(filled, whole, atol=1e-8)


def test_the_cut_and_its_numbers():
    now, whole = lesson.moment(0), lesson.damped(0, 0.01).numpy()
    cut = whole.copy()
    for i, rows in enumerate(now.layers):
        for j, columns in enumerate(now.layers):
            if abs(i - j) > 1:
                cut[rows, columns] = 0
    found = lesson.truncated("cut F", 1, 0.01, 0)
    values = np.linalg.eigvalsh(cut)
    assert found["least"] == pytest.approx(values[0], rel=1e-9) and found["negative"] == (values < 0).sum() > 0
    g, v = now.gradient.numpy(), np.linalg.solve(cut, now.gradient.numpy())
    assert found["efficiency"] == pytest.approx((g @ v) ** 2 / (v @ whole @ v) / (g @ np.linalg.solve(whole, g)), rel=1e-7)


def test_the_ladder_ends_at_the_exact_step_and_climbs():
    rungs = lesson.ladder(30, 0.01)
    assert rungs["exact"] == pytest.approx(1, abs=1e-9)
    assert rungs["gradient"] < rungs["exact blocks"] < rungs["exact chain"] < 1
    g, F = lesson.moment(30).gradient, lesson.damped(30, 0.01)
    best = float(g @ torch.linalg.solve(F, g))
    assert rungs["gradient"] == pytest.approx(float((g @ g) ** 2 / (g @ F @ g)) / best, rel=1e-9)


def test_shares_beyond_the_neighbours():
    now, matrix = lesson.moment(10), lesson.damped(10, 0.1, "kronecker", "factored")
    sums = np.array([[float(matrix[i, j].abs().sum()) for j in now.layers] for i in now.layers])
    far = sum(sums[i, j] for i in range(5) for j in range(5) if abs(i - j) > 1)
    assert lesson.far_share(10, 0.1, "factored")[0] == pytest.approx(far / sums.sum(), rel=1e-12)


def test_alpha_and_mu_are_those_of_the_optimizer_s_model():
    now, data = lesson.moment(10), small_digits()
    layout = ParameterLayout(now.model)
    products = ForwardProducts(now.model, Categorical(), layout, data.inputs)
    pair = torch.stack(lesson.two_directions(10, 0.01))
    roots = torch.stack([products(each) for each in pair])
    move = QuadraticModel().move(pair, roots, now.gradient, products.num_examples, 1e-3)
    result = lesson.PLANE.result({"damping": 1e-3, "gamma": 1e-2})
    assert result["best"] == pytest.approx([move.alpha, move.mu], rel=1e-7)
    assert result["decrease"] == pytest.approx(-(move.predicted_change + 1e-3 / 2 * float(move.update @ move.update)), rel=1e-7)
    assert result["loss"].shape == result["model"].shape
    origin = np.abs(result["mu"]).argmin(), 0
    assert result["alpha"][0] == 0 and abs(result["loss"][origin] - result["model"][origin]) < 0.05
