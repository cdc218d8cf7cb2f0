"""Each likelihood against its density: scores are −∂nll/∂f, roots square to the Fisher, KL is the expected log ratio."""

import math

import pytest
import torch
from cases import LIKELIHOODS, targets_for
from oracles import enumerated_targets, log_density, output_fisher
from oracles import kl as mean_kl

from natgrad_lab.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, check_likelihood

likelihoods = pytest.mark.parametrize("name", LIKELIHOODS)
SCALES = pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])


def made(name, scale=1.0, num_examples=6, num_outputs=3):
    likelihood, generator = LIKELIHOODS[name], torch.Generator().manual_seed(1)
    outputs = scale * torch.randn(num_examples, num_outputs, generator=generator)
    density = (name, getattr(likelihood, "variance", 1.0))
    return likelihood, density, outputs, targets_for(likelihood, num_examples, num_outputs, generator)


@likelihoods
@SCALES
def test_nll_is_minus_the_log_density(name, scale):
    likelihood, density, outputs, targets = made(name, scale)
    expected = torch.stack([-log_density(density, f, y) for f, y in zip(outputs, targets, strict=True)])
    assert torch.allclose(likelihood.nll(outputs, targets), expected, rtol=1e-13, atol=1e-14)


@likelihoods
@SCALES
def test_a_score_is_minus_the_slope_of_nll(name, scale):
    likelihood, _, outputs, targets = made(name, scale)
    outputs.requires_grad_()
    (slope,) = torch.autograd.grad(likelihood.nll(outputs, targets).sum(), outputs)
    assert torch.allclose(likelihood.score(outputs.detach(), targets), -slope, rtol=1e-12, atol=1e-15)


@likelihoods
@SCALES
def test_roots_square_to_the_mean_outer_product_of_scores(name, scale):
    likelihood, density, outputs, _ = made(name, scale)
    found = likelihood.output_fisher(outputs)
    for matrix, output in zip(found, outputs, strict=True):
        mean = 0
        for target, probability in enumerated_targets(density, output):
            score = likelihood.score(output[None], target[None])[0]
            mean = mean + probability * torch.outer(score, score)
        assert torch.allclose(matrix, mean, rtol=1e-11, atol=1e-15)
        assert torch.allclose(matrix, output_fisher(density, output), rtol=1e-11, atol=1e-15)


@likelihoods
def test_the_mean_score_is_zero(name):
    likelihood, density, outputs, _ = made(name)
    for output in outputs:
        points = enumerated_targets(density, output)
        assert sum(p * likelihood.score(output[None], y[None]) for y, p in points).abs().max() < 1e-15


@likelihoods
def test_the_output_fisher_is_the_mean_second_derivative_of_nll(name):
    likelihood, density, outputs, _ = made(name)
    for output in outputs:
        mean = 0
        for target, probability in enumerated_targets(density, output):
            curvature = torch.func.jacrev(torch.func.jacrev(lambda f, y=target: -log_density(density, f, y)))(output)
            mean = mean + probability * curvature
        assert torch.allclose(likelihood.output_fisher(output[None])[0], mean, rtol=1e-12, atol=1e-15)


@likelihoods
@SCALES
def test_root_coordinates_solve_for_scores(name, scale):
    likelihood, _, outputs, targets = made(name, min(scale, 10.0))
    score = likelihood.score(outputs, targets)
    u = likelihood.root_coordinates(outputs, score)
    assert torch.allclose(torch.einsum("ncd,nd->nc", likelihood.fisher_root(outputs), u), score, rtol=1e-9, atol=1e-12)


@likelihoods
@SCALES
def test_products_with_the_root_need_no_root(name, scale):
    likelihood, _, outputs, _ = made(name, scale)
    root, v = likelihood.fisher_root(outputs), torch.randn_like(outputs)
    u = v[:, : root.shape[2]]
    size = dict(rtol=1e-12, atol=1e-14 * float(v.abs().max()))  # v − p · v cancels where p is almost 1
    assert torch.allclose(likelihood.root_product(outputs, u), torch.einsum("ncd,nd->nc", root, u), **size)
    assert torch.allclose(likelihood.transposed_root_product(outputs, v), torch.einsum("ncd,nc->nd", root, v), **size)
    assert torch.equal(Likelihood.root_product(likelihood, outputs, u), (root @ u.unsqueeze(2)).squeeze(2))


@SCALES
@pytest.mark.parametrize("num_classes", [1, 2, 3, 7])
def test_the_root_of_a_softmax_has_as_many_columns_as_its_rank(num_classes, scale):
    outputs = scale * torch.randn(5, num_classes)
    p = outputs.softmax(-1)
    root = LIKELIHOODS["categorical"].fisher_root(outputs)
    assert root.shape == (5, num_classes, max(num_classes - 1, 1))
    assert torch.allclose(root @ root.mT, torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1), rtol=1e-11, atol=1e-15)
    if num_classes > 1:
        assert (torch.linalg.svdvals(root)[:, -1] > 0).all()
    else:
        v = torch.ones(5, 1)
        assert not root.any() and not LIKELIHOODS["categorical"].root_product(outputs, v).any()
        assert not LIKELIHOODS["categorical"].transposed_root_product(outputs, v).any()


@likelihoods
def test_kl_is_the_mean_log_ratio_and_zero_only_at_home(name):
    likelihood, density, outputs, _ = made(name)
    others = outputs + 0.3 * torch.randn_like(outputs)
    found = likelihood.kl(outputs, others)
    assert math.isclose(found.mean(), mean_kl(density, outputs, others), rel_tol=1e-12)
    for value, f, g in zip(found, outputs, others, strict=True):
        points = enumerated_targets(density, f)
        ratio = sum(p * (log_density(density, f, y) - log_density(density, g, y)) for y, p in points)
        assert math.isclose(value, ratio, rel_tol=1e-12)
    assert (found > 0).all() and torch.allclose(likelihood.kl(outputs, outputs), torch.zeros(6), atol=1e-15)


@likelihoods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [50.0, 1e3, 1e8])
def test_saturated_outputs_stay_finite(name, dtype, size):
    likelihood = LIKELIHOODS[name]
    outputs = size * torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.0]], dtype=dtype)
    targets = torch.tensor([0, 2]) if name == "categorical" else torch.tensor([[1.0, 0, 1], [1, 0, 0]], dtype=dtype)
    for value in (
        likelihood.nll(outputs, targets),
        likelihood.score(outputs, targets),
        likelihood.fisher_root(outputs),
        likelihood.kl(outputs, outputs.flip(0)),
    ):
        assert torch.isfinite(value).all() and value.dtype == dtype
    assert likelihood.nll(outputs, targets).min() >= 0 and likelihood.kl(outputs, outputs.flip(0)).min() >= 0


@likelihoods
def test_samples_have_the_shape_of_targets_and_are_valid(name):
    likelihood, _, outputs, targets = made(name)
    samples = likelihood.sample(outputs, 4, torch.Generator().manual_seed(0))
    assert samples.shape == (4, *targets.shape) and not torch.equal(samples[0], samples[1])
    for sample in samples:
        likelihood.validate(outputs, sample)
    state = torch.get_rng_state()
    assert torch.equal(likelihood.sample(outputs), likelihood.sample(outputs)) and torch.equal(state, torch.get_rng_state())


def test_grey_targets_of_a_bernoulli_mix_the_densities_of_zero_and_one():
    outputs, grey = torch.randn(4, 3), torch.rand(4, 3)
    one, zero = (Bernoulli().score(outputs, torch.full((4, 3), v)) for v in (1.0, 0.0))
    assert torch.allclose(Bernoulli().score(outputs, grey), grey * one + (1 - grey) * zero)
    Bernoulli().validate(outputs, grey)


def test_a_gaussian_at_a_perfect_fit_has_loss_zero_and_its_variance_scales():
    outputs, targets = torch.randn(2, 4, 3).unbind()
    assert not Gaussian(0.3).nll(outputs, outputs).any()
    assert torch.allclose(Gaussian(4.0).nll(outputs, targets), Gaussian().nll(outputs, targets) / 4)
    assert torch.allclose(Gaussian().nll(outputs, targets).mean() * 2 / 3, torch.nn.functional.mse_loss(outputs, targets))


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf])
def test_a_variance_is_positive(variance):
    with pytest.raises(ValueError, match=f"variance that is a positive number; got {variance}"):
        Gaussian(variance)


def test_what_is_no_likelihood():
    for wrong in (Categorical, "categorical", None, torch.nn.MSELoss()):
        with pytest.raises(TypeError, match="likelihood must be one of natgrad_lab.likelihoods"):
            check_likelihood(wrong)
    with pytest.raises(TypeError, match="abstract"):
        Likelihood()
    assert Gaussian(2.0) == Gaussian(2.0) != Gaussian(1.0)  # values, as a config needs them
