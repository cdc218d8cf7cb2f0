"""The closed-form natural gradient against F, g and changes of the function, each formed the slow way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_oracles import best_outputs, change_of_outputs, fisher_and_gradient, one_bottleneck, products
from torch import nn

from natgrad_lab import deep_linear
from natgrad_lab.errors import NotPositiveDefiniteError, UnsupportedLayerError
from natgrad_lab.fisher import dense_fisher, kfac_fisher
from natgrad_lab.likelihoods import Gaussian
from natgrad_lab.models import mlp
from natgrad_lab.parameters import ParameterLayout


def network(sizes, bias=False, seed=0, num_examples=12, biases=None):
    """Layers N(0, 1 / fan-in), biases N(0, 1); inputs and targets N(0, 1) with a mean, so that biases matter."""
    generator = torch.Generator().manual_seed(seed)
    biases = biases or [bias] * (len(sizes) - 1)
    layers = []
    for fan_in, fan_out, has_bias in zip(sizes[:-1], sizes[1:], biases, strict=True):
        weight = torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5
        layers.append(torch.cat([weight, torch.randn(fan_out, 1, generator=generator)], 1) if has_bias else weight)
    inputs = torch.randn(num_examples, sizes[0], generator=generator) + 0.3
    return layers, inputs, torch.randn(num_examples, sizes[-1], generator=generator) - 0.5


def as_numpy(layers):
    return [layer.double().numpy() for layer in layers]


def covariance(size, seed=1):
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.5 * torch.eye(size)


WIDE = [(3, 3), (4, 6, 3), (4, 5, 6, 4), (2, 4, 4, 4, 3)]  # every hidden width ≥ inputs (and the constant), outputs
NARROW = [(4, 3, 2), (2, 3, 4), (4, 2, 3), (5, 2, 6, 4), (4, 2, 6, 1, 3), (3, 1, 1, 3)]


# ---- the natural gradient solves F v = g


@given(data=st.data())
def test_the_exact_formula_solves_for_any_widths_depth_data_and_biases(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=6))
    biases = data.draw(st.lists(st.booleans(), min_size=len(sizes) - 1, max_size=len(sizes) - 1))
    num_examples, seed = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 10**6))
    layers, X, Y = network(sizes, seed=seed, num_examples=num_examples, biases=biases)
    gamma = covariance(sizes[-1], seed)
    found = deep_linear.natural_gradient(layers, X, Y, output_covariance=gamma)
    F, g = fisher_and_gradient(as_numpy(layers), X.numpy(), Y.numpy(), gamma.numpy())
    v = found.vector.numpy()
    # rounding, times what nearly dependent layers magnify: F v is a sum of terms as large as ‖F‖ ‖v‖
    tolerance = 1e-8 * np.linalg.norm(g) + 1e-12 * np.linalg.norm(F) * np.linalg.norm(v)
    assert np.linalg.norm(F @ v - g) <= tolerance
    assert np.allclose(np.concatenate([each.numpy().ravel() for each in found.gradient]), g, rtol=1e-9, atol=1e-12)
    assert found.exact == (found.residual <= 1e-8)


@pytest.mark.parametrize("sizes", WIDE + NARROW)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_solves_with_the_packages_own_dense_fisher(sizes, bias, dtype):
    """A model in, the flat order out, and the Gaussian's variance as Γ."""
    model = mlp(sizes, "identity", bias).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    X, Y = torch.randn(12, sizes[0], dtype=dtype), torch.randn(12, sizes[-1], dtype=dtype)
    found = deep_linear.natural_gradient(model, X, Y, output_covariance=0.3 * torch.eye(sizes[-1], dtype=dtype))
    F = dense_fisher(model, Gaussian(0.3), X).to_dense()
    loss = Gaussian(0.3).loss(model(X), Y)
    g = ParameterLayout(model).from_torch(torch.cat([t.flatten() for t in torch.autograd.grad(loss, list(model.parameters()))]))
    assert found.vector.dtype == dtype and found.exact
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    assert (F @ found.vector - g).norm() < tolerance * g.norm()
    assert (torch.cat([layer.flatten() for layer in found.gradient]) - g).norm() < tolerance * g.norm()


@pytest.mark.parametrize("sizes", WIDE + NARROW)
def test_the_residual_is_that_of_f_and_g(sizes):
    layers, X, Y = network(sizes)
    F, g = fisher_and_gradient(as_numpy(layers), X.numpy(), Y.numpy())
    for formula in deep_linear.FORMULAS:
        found = deep_linear.natural_gradient(layers, X, Y, formula=formula)
        expected = np.linalg.norm(F @ found.vector.numpy() - g) / np.linalg.norm(g)
        assert found.residual == pytest.approx(expected, rel=1e-6, abs=1e-10)
        assert found.formula == formula and found.exact == (expected < 1e-8)


def test_undamped_kfac_blocks_are_the_factors_of_the_formula():
    """Fisher blocks are AᵀΓ⁻¹A ⊗ BΣBᵀ, exactly; K-FAC's. The closed form is their inverse over L."""
    model = mlp((3, 3, 3, 3), "identity")
    X, Y = torch.randn(12, 3), torch.randn(12, 3)
    found = deep_linear.natural_gradient(model, X, Y, formula="equal")
    fisher = kfac_fisher(model, Gaussian(), X)
    whole = dense_fisher(model, Gaussian(), X).to_dense()
    for layer, block in zip(ParameterLayout(model).layers, fisher.blocks, strict=True):
        assert (whole[layer.slice, layer.slice] - block.to_dense()).norm() < 1e-12 * whole.norm()
    g = torch.cat([each.flatten() for each in found.gradient])
    assert (fisher.solve(g) / 3 - found.vector).norm() < 1e-8 * found.vector.norm()  # eps times condition of the factors


# ---- what it does to the function


@pytest.mark.parametrize("sizes", WIDE)
@pytest.mark.parametrize("bias", [False, True])
def test_all_solutions_move_the_function_by_the_whole_error_and_blocks_by_l_times_it(sizes, bias):
    layers, X, Y = network(sizes, bias)
    error = np.einsum("nc->nc", outputs_of(layers, X) - best_outputs(X.numpy(), Y.numpy(), bias))
    for formula in deep_linear.FORMULAS:
        found = deep_linear.natural_gradient(layers, X, Y, formula=formula)
        change = change_of_outputs(as_numpy(layers), as_numpy(found.layers), X.numpy())
        factor = len(layers) if formula == "block_diagonal" else 1
        assert np.abs(change - factor * error).max() < 1e-9 * np.abs(error).max()
        assert found.onto and found.equal_shares


def outputs_of(layers, X):
    above, below, total = products(as_numpy(layers), X.shape[1])
    return np.hstack([X.numpy(), np.ones((len(X), 1))]) @ total.T


@pytest.mark.parametrize("sizes", WIDE)
def test_wide_layers_are_pinv_a_e_pinv_b_over_l_whatever_the_data_and_the_noise(sizes):
    """Σ and Γ drop out: other inputs with targets of the same best map, and any Γ, give the same layers."""
    layers, X, _ = network(sizes)
    above, below, total = products(as_numpy(layers), sizes[0])
    best = np.random.default_rng(3).normal(size=(sizes[-1], sizes[0]))
    E = total[:, :-1] - best
    expected = [np.linalg.pinv(A) @ E @ np.linalg.pinv(B[:, :-1]) / len(layers) for A, B in zip(above, below, strict=True)]
    stretched = X * torch.logspace(-2, 2, sizes[0])
    for inputs, gamma in ((X, None), (stretched, None), (X, covariance(sizes[-1]))):
        targets = inputs @ torch.from_numpy(best).T
        found = deep_linear.natural_gradient(layers, inputs, targets, output_covariance=gamma)
        for V, W in zip(found.layers, expected, strict=True):
            assert np.abs(V.numpy() - W).max() < 1e-9 * np.abs(W).max()  # condition 1e4 of the stretched inputs


def test_the_shortest_solution_is_shorter_and_another_one():
    layers, X, Y = network((4, 6, 6, 3))
    closed, shortest = (deep_linear.natural_gradient(layers, X, Y, formula=name).vector for name in ("equal", "minimum_norm"))
    F, g = fisher_and_gradient(as_numpy(layers), X.numpy(), Y.numpy())
    assert np.abs(shortest.numpy() - np.linalg.pinv(F, rcond=1e-10, hermitian=True) @ g).max() < 1e-8
    assert shortest.norm() < 0.95 * closed.norm()


def test_the_best_length_of_a_block_diagonal_step_is_one_over_l():
    """α* = gᵀd / dᵀFd, what K-FAC's rescaling by the exact Fisher finds."""
    for sizes in WIDE[1:]:
        layers, X, Y = network(sizes)
        F, g = fisher_and_gradient(as_numpy(layers), X.numpy(), Y.numpy())
        d = deep_linear.natural_gradient(layers, X, Y, formula="block_diagonal").vector.numpy()
        assert g @ d / (d @ F @ d) == pytest.approx(1 / len(layers), rel=1e-9)


@pytest.mark.parametrize("sizes", [(3, 5, 4, 3), (5, 4, 2, 3)])
def test_equivalent_weights_change_the_function_alike(sizes):
    """(W₂ M⁻¹, M W₁): other directions, the same first-order change; after a step of length α, differences of order α²."""
    layers, X, Y = network(sizes)
    M = torch.randn(sizes[1], sizes[1]) + 2 * torch.eye(sizes[1])
    other = [M @ layers[0], layers[1] @ torch.linalg.inv(M), *layers[2:]]
    gaps = {}
    changes, steps = [], {alpha: [] for alpha in (1e-3, 1e-4)}
    for weights in (layers, other):
        found = deep_linear.natural_gradient(weights, X, Y)
        changes.append(change_of_outputs(as_numpy(weights), as_numpy(found.layers), X.numpy()))
        for alpha in steps:
            moved = [W - alpha * V for W, V in zip(weights, found.layers, strict=True)]
            steps[alpha].append(outputs_of(moved, X))
    assert np.abs(changes[0] - changes[1]).max() < 1e-9 * np.abs(changes[0]).max()
    gaps = {alpha: np.abs(a - b).max() for alpha, (a, b) in steps.items()}
    assert 80 < gaps[1e-3] / gaps[1e-4] < 125 and gaps[1e-3] > 1e-9  # 10² and above rounding


# ---- where 1/L is not exact


@pytest.mark.parametrize("sizes", NARROW)
def test_equal_shares_are_not_exact_at_a_narrow_layer_and_say_so(sizes):
    layers, X, Y = network(sizes)
    found = deep_linear.natural_gradient(layers, X, Y, formula="equal")
    assert not found.exact and not found.equal_shares and found.residual > 1e-3
    assert "NOT exact: residual" in repr(found)


@pytest.mark.parametrize("sizes, onto", [
    ((4, 3, 2), True), ((2, 3, 4), True), ((4, 2, 3), False), ((5, 2, 6, 4), False), ((4, 4), True), ((3, 1, 1), True),
])  # fmt: skip
def test_onto_is_the_rank_of_the_jacobian(sizes, onto):
    for bias in (False, True):
        layers, X, Y = network(sizes, bias, num_examples=9)
        found = deep_linear.natural_gradient(layers, X, Y)
        J = np.concatenate(list(change_basis(layers, X)))
        full = np.linalg.matrix_rank(J) == sizes[-1] * min(9, sizes[0] + bias)
        assert found.onto == full
        if not bias:
            assert found.onto == onto


def change_basis(layers, X):
    """The Jacobian on the data as rows (N·C, P), by unit changes of every weight."""
    zero = [np.zeros(layer.shape) for layer in layers]
    columns = []
    for i, layer in enumerate(layers):
        for place in np.ndindex(*layer.shape):
            unit = [each.copy() for each in zero]
            unit[i][place] = 1.0
            columns.append(change_of_outputs(as_numpy(layers), unit, X.numpy()).ravel())
    return [np.stack(columns, axis=1)]


@pytest.mark.parametrize("sizes, k", [((5, 2, 4), 1), ((5, 6, 2, 4), 2), ((5, 2, 6, 6, 4), 1), ((4, 5, 5, 3, 6, 5), 3)])
def test_one_bottleneck_changes_the_function_as_the_published_split_does(sizes, k):
    """Another split of the overlap P E Q among the layers, the same change of the function."""
    layers, X, Y = network(sizes)
    sigma, best = (X.T @ X / len(X)).numpy(), np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)[0].T
    expected = one_bottleneck(as_numpy(layers), sigma, best, k)
    F, g = fisher_and_gradient(as_numpy(layers), X.numpy(), Y.numpy())
    assert np.linalg.norm(F @ np.concatenate([V.ravel() for V in expected]) - g) < 1e-10 * np.linalg.norm(g)
    found = deep_linear.natural_gradient(layers, X, Y)
    there, here = (change_of_outputs(as_numpy(layers), each, X.numpy()) for each in (expected, as_numpy(found.layers)))
    assert np.abs(here - there).max() < 1e-9 * np.abs(there).max()
    assert found.exact and not found.onto


def test_fewer_examples_than_dimensions():
    """Only the data's own directions count: three examples in five dimensions need three hidden units, not five."""
    layers, X, Y = network((5, 3, 2), num_examples=3)
    found = deep_linear.natural_gradient(layers, X, Y, formula="equal")
    assert found.exact and found.equal_shares
    layers, X, Y = network((5, 3, 2), num_examples=4)
    assert not deep_linear.natural_gradient(layers, X, Y, formula="equal").exact


def test_a_bias_above_a_layer_without_takes_the_shortest_solution():
    layers, X, Y = network((3, 4, 3), biases=[False, True])
    exact, shortest = (deep_linear.natural_gradient(layers, X, Y, formula=name) for name in ("exact", "minimum_norm"))
    assert exact.exact and torch.equal(exact.vector, shortest.vector)
    J = change_basis(layers, X)[0]
    assert exact.onto == (np.linalg.matrix_rank(J) == 12) and exact.onto


# ---- robust


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_scales_of_data_and_weights(scale):
    layers, X, Y = network((3, 4, 4, 2))
    plain = deep_linear.natural_gradient(layers, X, Y)
    scaled = deep_linear.natural_gradient(layers, scale * X, scale * Y)
    assert scaled.exact and (scaled.vector - plain.vector).norm() < 1e-9 * plain.vector.norm()
    uneven = [layers[0] * scale, layers[1], layers[2] / scale]
    assert deep_linear.natural_gradient(uneven, X, Y).exact


def test_zero_weights_perfect_fits_and_one_example():
    layers, X, Y = network((3, 4, 2))
    at_zero = deep_linear.natural_gradient([torch.zeros(4, 3), torch.zeros(2, 4)], X, Y)
    assert at_zero.exact and at_zero.residual == 0 and not at_zero.onto and not at_zero.vector.any()
    half = deep_linear.natural_gradient([torch.zeros(4, 3), layers[1]], X, Y)  # only the first layer can move the function
    assert half.exact and half.layers[0].any() and not half.layers[1].any()
    fitted = deep_linear.natural_gradient(layers, X, X @ layers[0].T @ layers[1].T)
    assert fitted.excess_loss < 1e-28 and fitted.vector.norm() < 1e-13
    single = deep_linear.natural_gradient(layers, X[:1], Y[:1])
    assert single.exact and single.onto


def test_the_excess_loss_is_the_loss_above_least_squares():
    for bias in (False, True):
        layers, X, Y = network((3, 4, 2), bias)
        gamma = covariance(2)
        inverse = np.linalg.inv(gamma.numpy())
        best, now = best_outputs(X.numpy(), Y.numpy(), bias), outputs_of(layers, X)

        def loss(f, inverse=inverse, Y=Y):
            return np.einsum("nc,cd,nd->", Y.numpy() - f, inverse, Y.numpy() - f) / (2 * len(Y))

        found = deep_linear.natural_gradient(layers, X, Y, output_covariance=gamma).excess_loss
        assert found == pytest.approx(loss(now) - loss(best), rel=1e-10)


def test_copied_data_change_nothing_and_the_callers_tensors_stay():
    layers, X, Y = network((3, 4, 2))
    layers[0].requires_grad_(True)
    kept = [layer.detach().clone() for layer in layers]
    first = deep_linear.natural_gradient(layers, X, Y)
    again = deep_linear.natural_gradient(layers, X.repeat(3, 1), Y.repeat(3, 1))
    assert (first.vector - again.vector).norm() < 1e-12 * first.vector.norm()
    assert not first.vector.requires_grad and layers[0].grad is None
    assert all(torch.equal(a, b) for a, b in zip(layers, kept, strict=True))


# ---- models in, refusals


def test_layers_of_a_model_are_its_flat_order():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Identity()), nn.Linear(4, 2, bias=False))
    layers = deep_linear.layers_of(model)
    assert [tuple(layer.shape) for layer in layers] == [(4, 4), (2, 4)]
    assert torch.equal(torch.cat([layer.flatten() for layer in layers]), ParameterLayout(model).parameter_vector())
    layers[0].zero_()
    assert model[0][0].weight.any(), "a copy"
    assert len(deep_linear.layers_of(nn.Linear(3, 3))) == 1


@pytest.mark.parametrize("model, words", [
    (mlp((3, 4, 2)), r"1 \(Tanh\) makes the network no product of matrices"),
    (nn.Conv1d(3, 2, 1), r"the model \(Conv1d\) makes"),
    (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False)), "layer '1' is frozen"),
])  # fmt: skip
def test_models_that_are_no_deep_linear_networks_are_refused(model, words):
    with pytest.raises(UnsupportedLayerError, match=words):
        deep_linear.natural_gradient(model, torch.randn(5, 3), torch.randn(5, 2))


@pytest.mark.parametrize("change, words", [
    (lambda W, X, Y: ([], X, Y), "at least one layer"),
    (lambda W, X, Y: (W[::-1], X, Y), r"layer 1 has shape \(2, 5\) and receives 3 numbers: it needs 3 columns, or 4 as"),
    (lambda W, X, Y: (W[:1], X, Y), "the last layer has 5 outputs and the targets 2"),
    (lambda W, X, Y: (W, X[:5], Y), "the same examples; got 5 and 12"),
    (lambda W, X, Y: (W, X[:0], Y[:0]), "inputs is empty"),
    (lambda W, X, Y: (W, X.float(), Y), "inputs is torch.float32 on cpu, layer 1 torch.float64"),
    (lambda W, X, Y: ([W[0] * torch.nan, W[1]], X, Y), "layer 1 must hold finite numbers"),
    (lambda W, X, Y: (W, X, Y.clone().fill_(torch.inf)), "targets must hold finite numbers"),
    (lambda W, X, Y: ([W[0].half(), W[1]], X, Y), r"layer 1 must be a float32 or float64 matrix .*torch.float16"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        deep_linear.natural_gradient(*change(*network((3, 5, 2))))


def test_bad_choices():
    layers, X, Y = network((3, 4, 2))
    with pytest.raises(ValueError, match="no formula 'eqal'. Did you mean 'equal'"):
        deep_linear.natural_gradient(layers, X, Y, formula="eqal")
    with pytest.raises(ValueError, match=r"must be a \(2, 2\) tensor, the covariance .*got \(3, 3\)"):
        deep_linear.natural_gradient(layers, X, Y, output_covariance=torch.eye(3))
    with pytest.raises(NotPositiveDefiniteError):
        deep_linear.natural_gradient(layers, X, Y, output_covariance=-torch.eye(2))


# ---- second moments in place of data


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_examples", [2, 12])
def test_moments_give_the_direction_of_the_data(bias, num_examples):
    layers, X, Y = network((3, 4, 2), bias, num_examples=num_examples)
    means = (X.mean(0), Y.mean(0)) if bias else ()
    inputs, targets = deep_linear.data_from_moments(X.T @ X / len(X), Y.T @ X / len(X), *means)
    expected, found = (deep_linear.natural_gradient(layers, *data) for data in ((X, Y), (inputs, targets)))
    assert (found.vector - expected.vector).norm() < 1e-8 * expected.vector.norm()
    assert found.excess_loss == pytest.approx(expected.excess_loss, rel=1e-9)


@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 5),
    outs=st.integers(1, 4),
    num_examples=st.integers(1, 9),
    means=st.booleans(),
)
def test_made_data_have_the_moments(seed, dim, outs, num_examples, means):
    generator = torch.Generator().manual_seed(seed)
    X, Y = (torch.randn(num_examples, size, generator=generator) for size in (dim, outs))
    given = [X.T @ X / num_examples, Y.T @ X / num_examples] + ([X.mean(0), Y.mean(0)] if means else [])
    inputs, targets = deep_linear.data_from_moments(*given)
    made = [inputs.T @ inputs / len(inputs), targets.T @ inputs / len(inputs), inputs.mean(0), targets.mean(0)]
    for a, b in zip(made, given, strict=False):
        assert (a - b).abs().max() < 1e-7  # square roots of eigenvalues near the zero level


def test_moments_of_nobody_are_refused():
    with pytest.raises(NotPositiveDefiniteError):
        deep_linear.data_from_moments(torch.diag(torch.tensor([1.0, -1.0])), torch.ones(1, 2))
    with pytest.raises(ValueError, match="in directions in which second_moment says there are no inputs"):
        deep_linear.data_from_moments(torch.diag(torch.tensor([1.0, 0.0])), torch.ones(1, 2))
    with pytest.raises(ValueError, match="give both means or neither"):
        deep_linear.data_from_moments(torch.eye(2), torch.ones(1, 2), torch.zeros(2))
