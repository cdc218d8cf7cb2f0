"""The natural gradient flow: e^(−2t) whatever the network, its breakdown, discrete steps; Saxe's gradient flow beside it."""

import functools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_oracles import best_outputs, crossing_time, gradient_flow, outputs

from natgrad_lab import deep_linear
from natgrad_lab.errors import NumericalWarning


def network(sizes, seed=0, condition=1.0, num_examples=30, bias=False, scale=1.0):
    """Weights with singular values spread over a factor 10, inputs with E[xxᵀ] of the given condition, targets with noise."""
    random = np.random.default_rng(seed)
    layers = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        U, _, Vh = np.linalg.svd(random.normal(size=(fan_out, fan_in)), full_matrices=False)
        W = scale * U * np.linspace(0.4, 1.6, len(Vh)) @ Vh
        layers.append(np.hstack([W, random.normal(size=(fan_out, 1))]) if bias else W)
    U = np.linalg.svd(random.normal(size=(num_examples, sizes[0])), full_matrices=False)[0]
    X = num_examples**0.5 * U * np.logspace(0, -np.log10(condition) / 2, sizes[0])
    X = X @ np.linalg.qr(random.normal(size=(sizes[0], sizes[0])))[0]
    Y = X @ np.linalg.pinv(X) @ random.normal(size=(num_examples, sizes[-1])) + 0.1 * random.normal(
        size=(num_examples, sizes[-1])
    )
    return [torch.from_numpy(W) for W in layers], torch.from_numpy(X), torch.from_numpy(Y)


def excess(layers, X, Y, bias=False):
    """Loss above least squares, in NumPy."""
    off = outputs([layer.numpy() for layer in layers], X.numpy()) - best_outputs(X.numpy(), Y.numpy(), bias)
    return (off**2).sum() / (2 * len(X))


def descend(layers, X, Y, lr, num_steps, formula="exact"):
    """Plain steps; the excess loss before each and after the last."""
    losses = [excess(layers, X, Y)]
    for _ in range(num_steps):
        found = deep_linear.natural_gradient(layers, X, Y, formula=formula)
        layers = [W - lr * V for W, V in zip(layers, found.layers, strict=True)]
        losses.append(excess(layers, X, Y))
    return np.array(losses), layers


def slope(losses, lr):
    return np.polyfit(lr * np.arange(len(losses)), np.log(losses), 1)[0]


# ---- the rate


@pytest.mark.parametrize("sizes, condition, scale", [
    ((4, 3), 1.0, 1.0), ((4, 6, 3), 1e2, 0.3), ((4, 5, 6, 3), 1e4, 1.0), ((3, 4, 5, 4, 4, 4, 3), 1e6, 1.0),
    ((4, 3, 2), 1e2, 1.0),
])  # fmt: skip
def test_small_steps_decay_at_two_whatever_depth_weights_and_conditioning(sizes, condition, scale):
    """−2.00 ± 0.02 per unit of time; lr = 0.0005 alone makes 2 log(1 − lr) / lr = −2.0005, terms of order lr E² the rest."""
    layers, X, Y = network(sizes, condition=condition, scale=scale)
    losses, _ = descend(layers, X, Y, 0.0005, 60)
    assert slope(losses, 0.0005) == pytest.approx(-2.0, abs=0.02)


@pytest.mark.parametrize("sizes", [(4, 6, 3), (4, 3, 2)])
def test_the_shortest_solution_decays_at_the_same_rate(sizes):
    layers, X, Y = network(sizes)
    losses, _ = descend(layers, X, Y, 0.001, 50, "minimum_norm")
    assert slope(losses, 0.001) == pytest.approx(-2.0, abs=0.02)


def test_a_change_that_moves_no_output_changes_no_rate():
    """v + n with F n = 0 is a natural gradient as well."""
    layers, X, Y = network((3, 4, 4, 2))
    losses = [excess(layers, X, Y)]
    for _ in range(50):
        found = deep_linear.natural_gradient(layers, X, Y).layers
        S = 0.3 * torch.randn(4, 4)
        drift = (found[0] + S @ layers[0], found[1] - layers[1] @ S, found[2])  # (W₂ (I + S)⁻¹, (I + S) W₁)
        layers = [W - 0.004 * V for W, V in zip(layers, drift, strict=True)]
        losses.append(excess(layers, X, Y))
    assert slope(losses, 0.004) == pytest.approx(-2.0, abs=0.02)


def test_equal_shares_at_a_bottleneck_and_gradient_descent_have_other_rates():
    layers, X, Y = network((4, 3, 2), condition=1e2)
    wrong, _ = descend(layers, X, Y, 0.004, 50, "equal")
    assert abs(slope(wrong, 0.004) + 2) > 0.05
    L3, X, Y = network((4, 5, 6, 3), condition=1e4)
    for _ in range(50):
        found = deep_linear.natural_gradient(L3, X, Y)
        moved = [W - 0.004 * g for W, g in zip(L3, found.gradient, strict=True)]
    assert abs(math.log(excess(moved, X, Y) / excess(L3, X, Y)) / 0.004 + 2) > 0.1


@pytest.mark.parametrize("lr", [0.0, 0.1, 0.5, 1.0])
def test_rate_says_what_steps_do_in_the_end(lr):
    layers, X, Y = network((3, 4, 5, 2), condition=1e2)
    found = deep_linear.rate(layers, X, Y, lr=lr)
    assert found.onto and found.breakdown == math.inf
    assert found.excess_loss == pytest.approx(excess(layers, X, Y), rel=1e-10)
    if lr == 0:
        assert found.slope == -2.0
    elif lr == 1:
        assert found.slope == -math.inf
    else:
        losses, _ = descend(layers, X, Y, lr, math.ceil(9 / lr))  # E falls by e^9, and the terms of order E² with it
        assert math.log(losses[-1] / losses[-2]) / lr == pytest.approx(found.slope, rel=1e-3)


def test_rate_of_one_layer_is_met_at_every_step_and_of_a_bottleneck_is_unknown():
    layers, X, Y = network((4, 3))
    losses, _ = descend(layers, X, Y, 0.3, 5)
    assert np.allclose(np.diff(np.log(losses)) / 0.3, deep_linear.rate(layers, X, Y, lr=0.3).slope, rtol=1e-8)
    layers, X, Y = network((4, 2, 3))
    found = deep_linear.rate(layers, X, Y)
    assert math.isnan(found.slope) and not found.onto
    with pytest.raises(ValueError, match="lr must be a finite number >= 0 .*got -1"):
        deep_linear.rate(layers, X, Y, lr=-1.0)


# ---- discrete steps of square layers close on their product


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("lr", [0.01, 0.4])
def test_square_layers_follow_the_recursion_of_their_product(num_layers, lr):
    layers, X, Y = network((3,) * (num_layers + 1))
    best = torch.linalg.lstsq(X, Y).solution.T
    start = torch.linalg.multi_dot(layers[::-1]) if num_layers > 1 else layers[0]
    predicted = deep_linear.product_steps(start, best, num_layers, lr, 4)
    assert len(predicted) == 5
    for k in range(5):
        product = torch.linalg.multi_dot(layers[::-1]) if num_layers > 1 else layers[0]
        assert (product - predicted[k]).norm() < 1e-9 * predicted[k].norm()
        _, layers = descend(layers, X, Y, lr, 1)


def test_blocks_without_one_over_l_are_stable_only_below_two_over_l():
    """From near the optimum, where E shrinks by 1 − L lr a step: lr = 1 converges for one layer, diverges from three on."""
    for num_layers, lr, falls in (
        (1, 1.0, True),
        (2, 0.9, True),
        (3, 1.0, False),
        (3, 0.6, True),
        (3, 0.7, False),
        (5, 0.42, False),
    ):
        layers, X, _ = network((3,) * (num_layers + 1), seed=num_layers)
        Y = torch.from_numpy(outputs([W.numpy() for W in layers], X.numpy()))
        layers = [W + 1e-6 * torch.randn(W.shape) for W in layers]
        losses, _ = descend(layers, X, Y, lr, 6, "block_diagonal")
        assert (losses[-1] < losses[0]) == falls, (num_layers, lr)
        if num_layers > 1:
            assert math.sqrt(losses[1] / losses[0]) == pytest.approx(abs(1 - num_layers * lr), rel=1e-2)


# ---- the flow


@pytest.mark.parametrize(
    "sizes, bias", [((3, 2), False), ((3, 5, 4, 2), False), ((3, 5, 4, 2), True), ((4, 3, 2), True), ((2, 3, 2), False)]
)
def test_the_flow_decays_exactly_and_the_function_moves_on_a_line(sizes, bias):
    layers, X, Y = network(sizes, bias=bias, condition=1e2)
    times = torch.tensor([0.0, 0.4, 1.0, 3.0])
    found = deep_linear.flow(layers, X, Y, times)
    assert torch.equal(found.times, times) and found.breakdown == math.inf
    start, best = outputs([W.numpy() for W in layers], X.numpy()), best_outputs(X.numpy(), Y.numpy(), bias)
    assert all(torch.equal(a, b) for a, b in zip(found.weights[0], layers, strict=True))
    for k, time in enumerate(times.tolist()):
        f = outputs([W.numpy() for W in found.weights[k]], X.numpy())
        assert np.abs(f - best - math.exp(-time) * (start - best)).max() < 1e-7 * np.abs(start).max()  # steps to 1e-9 each
        assert float(found.excess_losses[k]) == pytest.approx(excess(found.weights[k], X, Y, bias), rel=1e-9)
        assert float(found.predicted[k]) == pytest.approx(excess(layers, X, Y, bias) * math.exp(-2 * time), rel=1e-9)


def test_the_flow_satisfies_its_differential_equation():
    """Central difference of the weights against −v."""
    layers, X, Y = network((3, 5, 4, 2))
    before, now, after = deep_linear.flow(layers, X, Y, torch.tensor([0.49, 0.5, 0.51])).weights
    for a, b, V in zip(before, after, deep_linear.natural_gradient(now, X, Y).layers, strict=True):
        assert ((b - a) / 0.02 + V).norm() < 1e-4 * V.norm()  # 0.01² / 6 times a third derivative


def test_equivalent_weights_flow_through_the_same_functions():
    layers, X, Y = network((3, 5, 4, 2))
    M = torch.randn(5, 5) + 2 * torch.eye(5)
    other = [M @ layers[0], layers[1] @ torch.linalg.inv(M), layers[2]]
    paths = [deep_linear.flow(each, X, Y, torch.tensor([1.0])).weights[0] for each in (layers, other)]
    here, there = (outputs([W.numpy() for W in path], X.numpy()) for path in paths)
    assert np.abs(here - there).max() < 1e-6 and (paths[0][1] - paths[1][1]).norm() > 1e-2


def test_at_a_bottleneck_the_flow_descends_without_a_predicted_rate():
    layers, X, Y = network((4, 2, 3))
    found = deep_linear.flow(layers, X, Y, torch.linspace(0, 2, 5))
    assert found.predicted.isnan().all() and (found.excess_losses.diff() < 0).all()


def test_the_flow_in_single_precision_and_from_the_optimum():
    layers, X, Y = network((3, 4, 2))
    small = deep_linear.flow([W.float() for W in layers], X.float(), Y.float(), torch.tensor([1.0]))
    assert small.weights[0][0].dtype == torch.float32
    assert float(small.excess_losses[0]) == pytest.approx(float(small.predicted[0]), rel=1e-5)
    fitted = torch.from_numpy(outputs([W.numpy() for W in layers], X.numpy()))
    still = deep_linear.flow(layers, X, fitted, torch.tensor([0.0, 5.0]))
    assert all((a - b).norm() < 1e-12 for a, b in zip(still.weights[1], layers, strict=True))


@pytest.mark.parametrize("times", [[], [1.0, 0.5], [-1.0], [math.nan]])
def test_times_that_do_not_ascend_are_refused(times):
    layers, X, Y = network((3, 4, 2))
    with pytest.raises(ValueError, match="finite numbers >= 0 in ascending order"):
        deep_linear.flow(layers, X, Y, torch.tensor(times))


# ---- where it breaks down


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 4), num_layers=st.integers(2, 3), bias=st.booleans())
def test_the_breakdown_is_the_first_singular_map_on_the_line(seed, dim, num_layers, bias):
    """log(1 + 1/|μ|) against signs of the determinant along the line, by a fine grid and bisection."""
    layers, X, Y = network((dim,) * (num_layers + 1), seed=seed, num_examples=12, bias=bias)
    start = np.linalg.multi_dot([W.numpy()[:, :dim] for W in layers[::-1]])
    extended = np.hstack([X.numpy(), np.ones((12, 1))]) if bias else X.numpy()
    best = np.linalg.lstsq(extended, Y.numpy(), rcond=None)[0].T[:, :dim]
    found, expected = deep_linear.rate(layers, X, Y).breakdown, crossing_time(start, best)
    if math.isfinite(expected):  # later ones are beyond the grid, and two within one cell of it do not change the sign
        assert found <= expected * (1 + 1e-9)
    if math.isfinite(found) and found < 12:
        there = np.linalg.det(best + math.exp(-found) * (start - best))
        assert abs(there) < 1e-10 * max(1.0, np.abs(best).max(), np.abs(start).max()) ** dim
        assert found == pytest.approx(expected, rel=1e-6) or expected > found


@functools.cache
def breaking(num_layers=3, dim=3):
    """A square network whose line crosses det = 0, and when."""
    for seed in range(100):
        layers, X, Y = network((dim,) * (num_layers + 1), seed=seed)
        end = deep_linear.rate(layers, X, Y).breakdown
        if 0.3 < end < 2:
            return layers, X, Y, end
    raise AssertionError("no seed in a hundred; about half should do")


@pytest.mark.parametrize("num_layers, dim", [(2, 1), (3, 3), (4, 2)])
def test_the_flow_ends_where_it_must_and_says_so(num_layers, dim):
    layers, X, Y, end = breaking(num_layers, dim)
    times = torch.tensor([0.0, 0.5 * end, 0.999 * end, 1.001 * end, 2 * end])
    with pytest.warns(NumericalWarning, match=f"ends at t = {end:.6g}, .* 2 of 5 times lie beyond"):
        found = deep_linear.flow(layers, X, Y, times)
    assert found.breakdown == end and len(found.times) == len(found.weights) == len(found.excess_losses) == 3
    assert torch.allclose(found.excess_losses, found.predicted, rtol=1e-6)
    dets = [[abs(float(torch.linalg.det(W))) for W in each] for each in found.weights]
    product = [math.prod(each) for each in dets]
    assert product[2] < 0.02 * product[0]
    # every layer's determinant falls by the same factor: d log|det W_i| / dt = −tr(W⁻¹ E) / L
    factors = [late / early for late, early in zip(dets[2], dets[0], strict=True)]
    assert max(factors) == pytest.approx(min(factors), rel=1e-4)


def test_the_end_is_noticed_without_being_foreseen(monkeypatch):
    layers, X, Y, end = breaking(2, 1)
    monkeypatch.setattr("natgrad_lab.deep_linear.trajectory.breakdown_time", lambda *args: math.inf)
    with pytest.warns(NumericalWarning, match="ends at t ="):
        found = deep_linear.flow(layers, X, Y, torch.tensor([0.9 * end, 1.5 * end]))
    assert found.breakdown == pytest.approx(end, rel=0.02) and len(found.weights) == 1


def test_steps_of_an_even_number_of_square_layers_never_change_the_sign_of_the_determinant():
    """det W gets the factor det(...)^L: positive. An odd number may cross, and then converges."""
    for num_layers in (2, 4):
        layers, X, Y, _ = breaking(num_layers, 1)
        losses, moved = descend(layers, X, Y, 0.3, 40)
        assert math.prod(map(float, moved)) * math.prod(map(float, layers)) > 0 and losses.min() > 1e-3 * losses[0]
    layers, X, Y, _ = breaking(3, 1)
    losses, moved = descend(layers, X, Y, 0.3, 200)
    assert math.prod(map(float, moved)) * math.prod(map(float, layers)) < 0 and losses[-1] < 1e-12 * losses[0]


def test_one_layer_wide_layers_and_matching_maps_have_no_breakdown():
    layers, X, Y, _ = breaking(2, 3)
    product = layers[1] @ layers[0]
    assert deep_linear.rate([product], X, Y).breakdown == math.inf
    wide = [torch.cat([layers[0], torch.randn(2, 3)]), torch.cat([layers[1], torch.zeros(3, 2)], 1)]
    assert deep_linear.rate(wide, X, Y).breakdown == math.inf
    assert deep_linear.rate(layers, X, 0.5 * X @ product.T).breakdown == math.inf  # W* = W(0) / 2 on the same side
    assert deep_linear.rate(layers, X, -X @ product.T).breakdown == pytest.approx(math.log(2))  # μ = −1, by hand


@pytest.mark.slow
@pytest.mark.parametrize("dim, probability", [(1, 0.5), (4, 0.78)])
def test_breakdowns_are_common(dim, probability):
    """W(0) and W* Gaussian: one half at d = 1 by symmetry; 0.78 at d = 4. 200 draws: 3 standard deviations are 0.107."""
    hits = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        layers = [torch.randn(dim, dim, generator=generator), torch.eye(dim)]
        best, X = torch.randn(dim, dim, generator=generator), 2 * torch.eye(dim)
        hits += math.isfinite(deep_linear.rate(layers, X, X @ best.T).breakdown)
    assert abs(hits / 200 - probability) < 0.107


# ---- Saxe's gradient flow


def aligned(modes, start, num_layers, seed=0):
    """Orthogonal U, V, and weights U D Rᵀ … R D Vᵀ whose product has strengths `start`; the cross moment U S Vᵀ."""
    random, size = np.random.default_rng(seed), len(modes)
    bases = [np.linalg.qr(random.normal(size=(size, size)))[0] for _ in range(num_layers + 1)]
    D = np.diag(np.full(size, start) ** (1 / num_layers))
    layers = [bases[i + 1] @ D @ bases[i].T for i in range(num_layers)]
    return layers, bases[-1] @ np.diag(modes) @ bases[0].T, bases[-1], bases[0]


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
def test_modes_are_those_of_the_simulated_network(num_layers):
    modes, times = np.array([3.0, 2.0, 1.0, 0.5]), torch.tensor([0.0, 0.7, 2.0])
    layers, cross, U, V = aligned(modes, 0.05, num_layers)
    found = deep_linear.saxe(torch.from_numpy(modes), 0.05, times, num_layers=num_layers)
    assert found.shape == (3, 4)
    for row, time in zip(found.numpy(), times.tolist(), strict=True):
        simulated = np.diag(U.T @ gradient_flow(layers, cross, time, 400) @ V)
        assert np.abs(row - simulated).max() < 1e-6  # fourth order in steps of 1 / 200


@given(s=st.floats(0.01, 50), start=st.floats(1e-8, 60), time=st.floats(0, 30))
def test_two_layers_take_the_time_of_the_closed_form(s, start, time):
    """t = (1/2s) log[u (s − u₀) / (u₀ (s − u))], Saxe's own form, where it is not 0/0."""
    u = float(deep_linear.saxe(torch.tensor([s]), start, torch.tensor([time]))[0, 0])
    if abs(s - u) > 1e-6 * s and abs(s - start) > 1e-6 * s:
        assert math.log(u * (s - start) / (start * (s - u))) / (2 * s) == pytest.approx(time, rel=1e-6, abs=1e-8 / s)
    else:
        assert min(abs(s - start), abs(s - u)) <= 1e-6 * s + 1e-12


@pytest.mark.parametrize("num_layers", [3, 4, 8])
def test_deeper_networks_take_the_time_of_the_quadrature(num_layers):
    """t = ∫ du / (L u^(2−2/L) (s − u)), by Gauss-Legendre in log u, before u is near s."""
    s, start, power = 2.0, 0.05, 2 - 2 / num_layers
    for time in (0.1, 0.3, 0.5):
        u = float(deep_linear.saxe(torch.tensor([s]), start, torch.tensor([time]), num_layers=num_layers)[0, 0])
        nodes, masses = np.polynomial.legendre.leggauss(200)
        middle, half = (math.log(u) + math.log(start)) / 2, (math.log(u) - math.log(start)) / 2
        w = np.exp(middle + half * nodes)
        assert half * (masses * w / (num_layers * w**power * (s - w))).sum() == pytest.approx(time, rel=1e-7)


def test_gradient_flow_waits_and_natural_gradient_flow_does_not():
    """The plateau of a weak mode, log(s/u₀ − 1) / 2s until half; natural gradient needs log 2 for every mode."""
    times = torch.linspace(0, 8, 801)
    u = deep_linear.saxe(torch.tensor([3.0, 0.5]), 1e-3, times)
    half = [float(times[(u[:, k] >= s / 2).nonzero()[0, 0]]) for k, s in enumerate((3.0, 0.5))]
    assert half == [pytest.approx(math.log(s / 1e-3 - 1) / (2 * s), abs=0.011) for s in (3.0, 0.5)]
    X = 2**0.5 * torch.eye(2)  # E[xxᵀ] = I
    cross = torch.diag(torch.tensor([3.0, 0.5]))
    layers = [1e-3**0.5 * torch.eye(2)] * 2
    W1, W2 = deep_linear.flow(layers, X, X @ cross, torch.tensor([math.log(2)])).weights[0]
    assert torch.allclose((W2 @ W1).diagonal(), torch.tensor([3.0, 0.5]) / 2, rtol=1e-2)


def test_saxe_at_the_edges():
    times = torch.tensor([0.0, 1.0, 1e4])
    u = deep_linear.saxe(torch.tensor([2.0, 0.0, 2.0, 1.0]), torch.tensor([2.0, 0.5, 0.0, 0.5]), times)
    assert torch.equal(u[0], torch.tensor([2.0, 0.5, 0.0, 0.5])) and torch.isfinite(u).all()
    assert torch.allclose(u[:, 0], torch.tensor(2.0)) and not u[:, 2].any()
    assert torch.allclose(u[:, 1], 0.5 / (1 + times))  # du/dt = −2u² at s = 0
    assert float(u[2, 3]) == pytest.approx(1.0)
    assert deep_linear.saxe(torch.ones(2, dtype=torch.float32), 0.1, times).dtype == torch.float32


@pytest.mark.parametrize("choices, words", [
    ({"initial": -0.1}, "initial must hold finite numbers >= 0"),
    ({"num_layers": 0}, "num_layers must be a positive integer; got 0"),
    ({"singular_values": torch.tensor([-1.0])}, "singular_values must be finite and >= 0"),
    ({"times": torch.tensor([2.0, 1.0])}, "ascending order"),
])  # fmt: skip
def test_saxe_refuses(choices, words):
    with pytest.raises(ValueError, match=words):
        deep_linear.saxe(**{"singular_values": torch.ones(1), "initial": 0.1, "times": torch.ones(1)} | choices)


def test_no_warning_where_there_is_no_breakdown():
    layers, X, Y = network((3, 5, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deep_linear.flow(layers, X, Y, torch.tensor([0.5]))
