"""Sampled Fishers: right in the mean, within the error that their variance predicts, and reproducible."""

import pytest
import torch
from cases import LIKELIHOODS, random_case
from oracles import enumerated_targets, example_gradients, fisher_from_jacobians

from natgrad_lab.fisher import ESTIMATORS, dense_fisher, output_scores

estimators = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def sample(case, num_samples=1, seed=0, estimate=dense_fisher, copies=1):
    """Copied data have the same Fisher and independent samples: `copies` estimates averaged in one call."""
    generator, inputs = torch.Generator().manual_seed(seed), case.inputs.repeat(copies, 1)
    choices = {"num_samples": num_samples, "generator": generator}
    return estimate(case.model, case.likelihood, inputs, "monte_carlo", **choices).to_dense()


def variance_of_one_sample(case):
    """Of each entry of a one-sample Fisher: by enumeration of all targets of each example, (1/N²) Σ_n Var(s_i s_j)."""
    total = 0
    for example in case.inputs:
        output = case.model(example[None])[0].detach()
        mean = square = 0
        for target, probability in enumerated_targets(case.density, output):
            score = example_gradients(case.model, case.density, example[None], target[None])[0]
            outer = torch.outer(score, score)
            mean, square = mean + probability * outer, square + probability * outer.square()
        total = total + (square - mean.square()).clamp(min=0)
    return total / len(case.inputs) ** 2


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("num_samples, copies", [(1, 1600), (64, 25)])
def test_the_mean_of_samples_is_the_exact_fisher(likelihood, num_samples, copies):
    """1600 samples either way; the error of vᵀFv and of the trace within 4 standard errors, which are computed.

    This finds a factor 1/num_samples (64), 1/N (5) or a missing one, and biases from 5 % on.
    """
    case = random_case((2, 3, 3), likelihood=likelihood)
    exact = fisher_from_jacobians(case.model, case.density, case.inputs)
    mean = sample(case, num_samples, copies=copies)
    deviation = (variance_of_one_sample(case) / (num_samples * copies)).sqrt()
    assert ((mean - exact).abs() <= 4.5 * deviation + 1e-12).all()  # the largest of 250 correlated entries: 4.5 instead of 4
    assert abs(mean.trace() - exact.trace()) <= 4 * deviation.diagonal().sum()
    assert deviation.diagonal().sum() < 0.1 * exact.trace()


@pytest.mark.parametrize("num_samples, copies", [(1, 2000), (64, 30)])
def test_gaussian_samples_have_the_stated_variance(num_samples, copies):
    """The trace of one example and one layer is ‖[x; 1]‖² ‖y − f‖² / σ⁴, a χ² of C degrees: relative deviation √(2 / C)."""
    case = random_case((2, 3), likelihood="gaussian", num_examples=1)
    exact = dense_fisher(*case.data).trace()
    mean = sample(case, num_samples, copies=copies).trace()
    assert abs(mean / exact - 1) < 4 * (2 / (3 * num_samples * copies)) ** 0.5


def test_the_error_falls_as_the_root_of_the_number_of_samples():
    case = random_case((2, 3, 3))
    exact = dense_fisher(*case.data).to_dense()
    errors = [sum((sample(case, n, seed) - exact).norm() ** 2 for seed in range(30)) / 30 for n in (1, 16, 256)]
    assert 8 < errors[0] / errors[1] < 32 and 8 < errors[1] / errors[2] < 32  # 16, ± twice: 30 repeats of a heavy-tailed norm


@estimators
@pytest.mark.parametrize("num_samples", [1, 64])
def test_a_generator_makes_samples_repeatable(estimate, num_samples):
    case = random_case((3, 4, 3))
    first, again, other = (sample(case, num_samples, seed, estimate) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


@estimators
def test_samples_do_not_depend_on_the_global_random_state(estimate):
    case = random_case((3, 4, 3))
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(estimate(*case.data, "monte_carlo", num_samples=3).to_dense())
    assert torch.equal(*results)


def test_one_generator_gives_new_samples_each_time():
    case, generator = random_case((3, 4, 3)), torch.Generator().manual_seed(0)
    first, second = (dense_fisher(*case.data, "monte_carlo", generator=generator).to_dense() for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_samples_follow_the_density(likelihood):
    """Mean and variance of 20,000 targets within 4 standard errors of those enumerated."""
    outputs = torch.tensor([[0.3, -1.0, 2.0]])
    density = (likelihood, getattr(LIKELIHOODS[likelihood], "variance", 1.0))
    drawn = LIKELIHOODS[likelihood].sample(outputs, 20_000, torch.Generator().manual_seed(0))[:, 0].double()
    points = enumerated_targets(density, outputs[0])
    mean = sum(p * y.double() for y, p in points)
    variance = sum(p * (y.double() - mean) ** 2 for y, p in points)
    assert ((drawn.mean(0) - mean).abs() <= 4 * (variance / 20_000).sqrt()).all()
    # the variance of a squared deviation is at most 2 σ⁴ for a Gaussian, and less for bounded targets of this skewness
    assert ((drawn.var(0) / variance - 1).abs() <= 4 * (2 / 20_000) ** 0.5 + 0.03).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_output_scores_sum_to_the_output_fisher(likelihood):
    outputs = torch.randn(4, 3)
    scores = output_scores(LIKELIHOODS[likelihood], outputs.unsqueeze(1))
    expected = LIKELIHOODS[likelihood].output_fisher(outputs)
    assert scores.shape == (2 if likelihood == "categorical" else 3, 4, 1, 3)  # the rank of a softmax is C − 1
    assert torch.allclose(torch.einsum("knsc,knsd->ncd", scores, scores), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_output_scores_at_positions_are_independent(likelihood):
    """The output Fisher of one example is block-diagonal over its positions, with the blocks of each position alone."""
    outputs = torch.randn(4, 2, 3)
    scores = output_scores(LIKELIHOODS[likelihood], outputs)
    found = torch.einsum("knsc,kntd->nsctd", scores, scores)
    assert (
        scores.shape == (4 if likelihood == "categorical" else 6, 4, 2, 3)
        and not found[:, 0, :, 1].any()
        and not found[:, 1, :, 0].any()
    )
    for s in range(2):
        assert torch.allclose(found[:, s, :, s], LIKELIHOODS[likelihood].output_fisher(outputs[:, s]), rtol=1e-13, atol=1e-15)
