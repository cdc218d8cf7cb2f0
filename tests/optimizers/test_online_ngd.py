"""Online natural gradient: its formula, where it is K-FAC, where it is the closed form of deep linear networks."""

import numpy as np
import pytest
import torch
from cases import LIKELIHOODS, Case, case_of, random_case
from oracles import fisher_of_any, matrices, module_blocks, numpy_factors, numpy_gradients, numpy_weights, parameters_of
from torch import nn

from natgrad_lab import deep_linear, models
from natgrad_lab.errors import NotPositiveDefiniteError
from natgrad_lab.fisher import kfac_fisher
from natgrad_lab.likelihoods import Gaussian
from natgrad_lab.optimizers import METHODS
from natgrad_lab.optimizers.online_ngd import root_inverse
from natgrad_lab.structures import Kronecker


def moved(optimizer, case):
    """What one step adds to the parameters, flat."""
    before = flat(case.model)
    record = optimizer.step(case.inputs, case.targets)
    assert record.status == "ok"
    return flat(case.model) - before


def flat(model):
    pieces = []
    for _, keys, rows in matrices(model):
        tensors = [model.get_parameter(key).detach() for key in keys]
        pieces.append(torch.cat([t.reshape(len(tensors[0]), -1) for t in tensors], 1).flatten() if rows else torch.cat([
            t.flatten() for t in tensors]))  # fmt: skip
    return torch.cat(pieces)


@pytest.mark.parametrize("sizes", [(3, 3), (3, 4, 3), (3, 4, 2, 5, 3)])
@pytest.mark.parametrize("damping", [1e-4, 0.3])
def test_one_step_is_the_formula_with_targets_sampled_from_the_model(sizes, damping):
    case = random_case(sizes, num_examples=9)
    sampled = case.likelihood.sample(case.model(case.inputs).detach(), 1, torch.Generator().manual_seed(3))[0].numpy()
    weights, x = numpy_weights(case.model), case.inputs.numpy()
    _, grads = numpy_gradients(weights, x, case.targets.numpy())
    METHODS["online_ngd"](case.model, case.likelihood, lr=0.2, damping=damping, seed=3).step(case.inputs, case.targets)
    factors = numpy_factors(weights, x, sampled)
    for found, w, g, (G, A) in zip(numpy_weights(case.model), weights, grads, factors, strict=True):
        left, right = G + damping**0.5 * np.eye(len(G)), A + damping**0.5 * np.eye(len(A))
        expected = w - 0.2 / len(weights) * np.linalg.inv(left) @ g @ np.linalg.inv(right)
        assert np.abs(found - expected).max() < 1e-10  # a few hundred roundings of numbers of order one


def balanced_case():
    """A deep linear Gaussian network whose layers have tr A / n = tr G / m, so that K-FAC's π is 1."""
    case = case_of(models.deep_linear((3, 4, 3)), "gaussian", num_examples=12)
    first, last = case.model[0].weight.data, case.model[1].weight.data
    precision = 1 / case.likelihood.variance
    sigma = case.inputs.T @ case.inputs / 12
    first *= (precision * 4 / torch.trace(first @ sigma @ first.T)).sqrt()
    last *= (sigma.trace() / 3 * 4 / (precision * (last.T @ last).trace())).sqrt()
    return case


@pytest.mark.parametrize("damping", [1e-3, 0.5])
def test_it_is_kfac_at_lr_over_the_number_of_layers_where_pi_is_one(damping):
    choices = {"damping": damping, "fisher_type": "exact"}
    case, other = balanced_case(), balanced_case()
    found = moved(METHODS["online_ngd"](case.model, case.likelihood, lr=0.4, **choices), case)
    expected = moved(METHODS["kfac"](other.model, other.likelihood, lr=0.4 / 2, **choices), other)
    assert (found - expected).norm() < 1e-12 * expected.norm()


def test_it_is_not_kfac_where_pi_is_not_one():
    case, other = (case_of(models.deep_linear((3, 4, 3)), "gaussian", num_examples=12) for _ in range(2))
    choices = {"damping": 0.5, "fisher_type": "exact"}
    found = moved(METHODS["online_ngd"](case.model, case.likelihood, lr=0.4, **choices), case)
    expected = moved(METHODS["kfac"](other.model, other.likelihood, lr=0.4 / 2, **choices), other)
    assert (found - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("bias", [False, True])
def test_undamped_on_a_square_deep_linear_network_it_is_the_closed_form(bias):
    """Square layers keep both factors invertible; three of them."""
    case = case_of(models.deep_linear((3, 3, 3, 3), bias=bias), "gaussian", num_examples=12)
    variance = case.likelihood.variance
    expected = deep_linear.natural_gradient(
        case.model, case.inputs, case.targets, output_covariance=variance * torch.eye(3), formula="equal"
    )
    assert expected.exact
    optimizer = METHODS["online_ngd"](case.model, case.likelihood, lr=0.1, damping=0.0, fisher_type="exact")
    found = moved(optimizer, case)
    assert (found + 0.1 * expected.vector).norm() < 1e-8 * expected.vector.norm()  # inverses of factors: eps times condition²


def test_as_the_damping_goes_to_zero_it_becomes_the_closed_form_of_wide_networks_too():
    """Where factors are singular; the distance falls as √λ."""
    distances = []
    for damping in (1e-6, 1e-8, 1e-10):
        case = case_of(models.deep_linear((3, 5, 3)), "gaussian", num_examples=12)
        expected = deep_linear.natural_gradient(case.model, case.inputs, case.targets, formula="equal").vector
        optimizer = METHODS["online_ngd"](case.model, case.likelihood, lr=1.0, damping=damping, fisher_type="exact")
        distances.append(float((moved(optimizer, case) + expected).norm() / expected.norm()))
    assert distances[2] < 1e-3
    for larger, smaller in zip(distances[:-1], distances[1:], strict=True):
        assert 5 < larger / smaller < 15  # 10 to first order in √λ


class Mixed(nn.Module):
    """A grouped convolution, a normalization, a Linear: layers with several factors, without, and with two."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv1d(2, 4, 2, groups=2), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.norm(torch.tanh(self.conv(x.view(-1, 2, 3)).flatten(1))))


def test_layers_of_every_kind_are_damped_by_their_own_rule():
    case = case_of(Mixed(), "categorical", num_inputs=6)
    damping, root = 0.04, 0.2
    fisher = kfac_fisher(*case.data)
    inverse = root_inverse(fisher, damping)
    groups, norm, last = fisher.blocks
    whole = fisher_of_any(case.model, case.density, case.inputs)
    expected = [torch.kron(*(torch.linalg.inv(factor + root * torch.eye(len(factor))) for factor in (kron.left, kron.right)))
                for kron in (*groups.blocks, last) if isinstance(kron, Kronecker)]  # fmt: skip
    exact = whole[module_blocks(case.model)[1], module_blocks(case.model)[1]]
    expected.insert(2, torch.linalg.inv(exact + damping * torch.eye(len(exact))))
    assert len(expected) == 4 and norm.dim == 16
    assert (inverse.to_dense() - torch.block_diag(*expected) / 3).norm() < 1e-12 * inverse.to_dense().norm()
    assert "L = 3" in repr(inverse) and "0.04" in repr(inverse)
    optimizer = METHODS["online_ngd"](case.model, case.likelihood, lr=0.1, damping=damping)
    losses = [optimizer.step(case.inputs, case.targets).loss for _ in range(20)]
    assert losses[-1] < losses[0]


def test_singular_factors_need_damping():
    case = random_case((3, 4, 3))
    with pytest.raises(NotPositiveDefiniteError, match="give damping > 0"):
        METHODS["online_ngd"](case.model, case.likelihood, damping=0.0).step(case.inputs, case.targets)
    with pytest.raises(ValueError, match="damping must be a finite number >= 0; got -1"):
        root_inverse(kfac_fisher(*case.data), -1.0)


def test_one_example_one_class_and_a_dead_layer():
    for sizes, num_examples in (((3, 4, 3), 1), ((3, 4, 1), 5)):
        case = random_case(sizes, num_examples=num_examples)
        assert METHODS["online_ngd"](case.model, case.likelihood, lr=0.1).step(case.inputs, case.targets).status == "ok"
    model = nn.Sequential(nn.Linear(3, 4), nn.Hardtanh(9.0, 9.5), nn.Linear(4, 3))
    case = Case(model, LIKELIHOODS["gaussian"], torch.randn(5, 3), torch.randn(5, 3))
    start = parameters_of(model)
    assert METHODS["online_ngd"](model, Gaussian(), lr=0.1).step(case.inputs, case.targets).status == "ok"
    assert torch.equal(parameters_of(model)[:16], start[:16]) and not torch.equal(parameters_of(model), start)
