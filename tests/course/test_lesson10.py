"""Lesson 10: its blocks against the dense Fisher, its correlations against sums over pairs of places, its races."""

import numpy as np
import pytest
import torch

from natgrad_lab import likelihoods
from natgrad_lab.course.cards import lesson10
from natgrad_lab.course.exercises.lesson10 import kfc_factors
from natgrad_lab.fisher import dense_fisher, kfac_fisher
from natgrad_lab.metrics import efficiency, relative_error
from natgrad_lab.structures import Dense


@pytest.mark.parametrize("readout, unit", [("fully connected", "tanh"), ("global average", "rectifier")])
def test_errors_and_efficiencies_are_those_of_the_dense_block(readout, unit):
    inputs, targets = lesson10.pictures("stripes", 4)
    model = lesson10.convolutional(4, readout, unit)
    size = 3 * 10
    exact = Dense(dense_fisher(model, likelihoods.Categorical(), inputs).to_dense()[:size, :size])
    gradients = torch.autograd.grad(likelihoods.Categorical().loss(model(inputs), targets), list(model[1].parameters()))
    gradient = torch.cat([gradients[0].flatten(1), gradients[1][:, None]], 1).flatten()
    damping = float(exact.to_dense().trace()) / size / 100
    found = lesson10.both_sharings("stripes", 4, readout, unit)
    for name in ("expand", "reduce"):
        block = kfac_fisher(model, likelihoods.Categorical(), inputs, weight_sharing=name).blocks[0]
        want = relative_error(block, exact), efficiency(block.solve(gradient, damping), gradient, exact, damping)
        assert found[name] == pytest.approx(want, rel=1e-8)
    expand = kfac_fisher(model, likelihoods.Categorical(), inputs).blocks[0].to_dense()
    assert found[lesson10.FORGOTTEN][0] == pytest.approx(relative_error(16 * expand, exact.to_dense()), rel=1e-8)


def test_reduce_is_exact_for_a_linear_network_before_an_average_where_scores_are_one_vector():
    """Derivatives equal everywhere: only the independence of scores and inputs is left, which a mean over few scores breaks."""
    found = lesson10.both_sharings("stripes", 8, "global average", "none (linear)")
    assert found["reduce"][0] < 0.02 < found["expand"][0]


def test_correlation_is_the_mean_over_pairs_of_places():
    values = torch.randn(5, 6, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lesson10.correlation_by_shift(values)
    for down, right in ((0, 1), (-2, 3), (4, -4)):
        pairs = [
            float((values[:, i, j] * values[:, i + down, j + right]).mean())
            for i in range(6)
            for j in range(6)
            if 0 <= i + down < 6 and 0 <= j + right < 6
        ]
        want = np.mean(pairs) / float(values.square().mean())
        assert found[down + lesson10.SHIFTS, right + lesson10.SHIFTS] == pytest.approx(want, rel=1e-10)
    assert found[lesson10.SHIFTS, lesson10.SHIFTS] == 1 and np.allclose(found, found[::-1, ::-1])


def test_the_exercise_reference_is_the_packages_block():
    inputs, _ = lesson10.pictures("noise", 4)
    model = lesson10.convolutional(4, "fully connected", "tanh")
    features = model[1](inputs.reshape(-1, 1, 4, 4)).detach().requires_grad_()
    outputs = model[2:](features)
    root = likelihoods.Categorical().fisher_root(outputs.detach())
    blocks = 0
    for k in range(root.shape[2]):
        (s,) = torch.autograd.grad((outputs * root[:, :, k]).sum(), features, retain_graph=True)
        omega, gamma = kfc_factors(inputs.reshape(-1, 1, 4, 4), s, 3, 1)
        blocks = blocks + torch.kron(gamma, omega)
    package = kfac_fisher(model, likelihoods.Categorical(), inputs).blocks[0].to_dense()
    assert torch.allclose(blocks, package, rtol=1e-9, atol=1e-14)


def test_the_race_says_what_the_kept_verdicts_say():
    from natgrad_lab.course.measured import measured

    assert measured("cnn_races")["verdicts"] == {"kfc-cnn": "not reproduced", "prong-fig4-cifar": "partly"}
    assert sum(ratio <= 0.33 for ratio in lesson10.needed("KFC", "momentum")) < 4  # "a third, in four seeds of five"
    assert sum(ratio <= 1 for ratio in lesson10.needed("PRONG+", "SGD + BatchNorm")) >= 4
    assert all(ratio == float("inf") for ratio in lesson10.needed("PRONG", "SGD + BatchNorm"))
