"""What theory says equals, equals to rounding; what it says differs, differs. The oracles share no code with the package.

Tolerances are relative to the largest entry: 1e-12 for sums of a few products in float64, 1e-10 behind two of them.
"""

import math

import pytest
import torch
from cases import CASES, KFAC_DIFFERS, KFAC_IS_EXACT, LIKELIHOODS, Case, case_of, random_case, randomized, targets_for
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    blocks_of,
    empirical_fisher,
    enumerated_targets,
    example_gradients,
    fisher_by_enumeration,
    fisher_from_jacobians,
    fisher_from_kl,
    gradient,
    jacobian,
    kfac_blocks,
    kl,
    parameters_of,
    unflatten,
)
from torch import nn

from natgrad_lab.fisher import ESTIMATORS, dense, dense_fisher, kfac_fisher, natural_gradient, score_pass
from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.models import deep_linear

cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
estimators = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def off(found, expected):
    """Largest difference, relative to the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def block_part(matrix, model):
    return torch.block_diag(*(matrix[block, block] for block in blocks_of(model)))


def expected_of(name, fisher, model):
    """What each estimator is of the whole Fisher (K-FAC apart)."""
    return {
        "dense": fisher,
        "gram": fisher,
        "block_diagonal": block_part(fisher, model),
        "diagonal": torch.diag(fisher.diagonal()),
    }[name]


random_networks = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 4), min_size=2, max_size=5),
        "activation": st.sampled_from(["tanh", "relu", "sigmoid", "gelu"]),
        "bias": st.booleans(),
        "likelihood": st.sampled_from(list(LIKELIHOODS)),
        "num_examples": st.integers(1, 9),
        "seed": st.integers(0, 1000),
    }
)


# ---- three oracles, and everything against them


@given(random_networks)
def test_estimators_equal_the_loops_on_random_networks(choices):
    case = random_case(**choices)
    fisher = fisher_from_jacobians(case.model, case.density, case.inputs)
    scale = fisher.abs().max() + 1e-300
    for name in ("dense", "gram", "block_diagonal", "diagonal"):
        found = ESTIMATORS[name](*case.data).to_dense()
        assert (found - expected_of(name, fisher, case.model)).abs().max() <= 1e-12 * scale, name


@cases
@pytest.mark.parametrize("name", ["dense", "gram", "block_diagonal", "diagonal"])
def test_estimators_equal_the_loops(make, name):
    case = make()
    fisher = fisher_from_jacobians(case.model, case.density, case.inputs)
    assert off(ESTIMATORS[name](*case.data).to_dense(), expected_of(name, fisher, case.model)) < 1e-12


@cases
def test_the_three_oracles_agree(make):
    case = make()
    fishers = [f(case.model, case.density, case.inputs) for f in (fisher_from_jacobians, fisher_by_enumeration, fisher_from_kl)]
    # saturated softmaxes lose digits in the second derivative of log-probabilities of order 100
    assert off(fishers[1], fishers[0]) < 1e-11 and off(fishers[2], fishers[0]) < 1e-9


@cases
def test_kfac_factors_are_the_loops_factors(make):
    case = make()
    found = kfac_fisher(*case.data)
    for block, (G, A) in zip(found.blocks, kfac_blocks(case.model, case.density, case.inputs), strict=True):
        assert (block.left - G).abs().max() <= 1e-12 * G.abs().max() and off(block.right, A) < 1e-12


@cases
def test_the_empirical_fisher_is_the_mean_of_outer_products(make):
    case = make()
    expected = empirical_fisher(case.model, case.density, case.inputs, case.targets)
    for name in ("dense", "gram", "block_diagonal", "diagonal"):
        found = ESTIMATORS[name](*case.data, "empirical", targets=case.targets).to_dense()
        assert off(found, expected_of(name, expected, case.model)) < 1e-12, name


@cases
def test_loss_and_gradient_are_those_of_the_loops(make):
    case = make()
    found = natural_gradient(*case.data, case.targets, 1e-2)
    expected = gradient(case.model, case.density, case.inputs, case.targets)
    assert (found.gradient - expected).abs().max() <= 1e-12 * expected.abs().max()


# ---- where K-FAC is exact, and where not


@pytest.mark.parametrize("make", KFAC_IS_EXACT.values(), ids=KFAC_IS_EXACT.keys())
def test_kfac_equals_the_exact_blocks(make):
    case = make()
    exact = block_part(fisher_from_jacobians(case.model, case.density, case.inputs), case.model)
    assert off(kfac_fisher(*case.data).to_dense(), exact) < 1e-10


@pytest.mark.parametrize("make", KFAC_DIFFERS.values(), ids=KFAC_DIFFERS.keys())
def test_kfac_differs_from_the_exact_blocks(make):
    case = make()
    exact = block_part(fisher_from_jacobians(case.model, case.density, case.inputs), case.model)
    found = kfac_fisher(*case.data).to_dense()
    assert off(found, exact) > 1e-3
    assert 0.1 < found.trace() / exact.trace() < 10  # an approximation all the same: of the right size


def test_block_diagonal_is_not_the_whole_fisher():
    case = random_case((3, 4, 3))
    assert off(ESTIMATORS["block_diagonal"](*case.data).to_dense(), dense_fisher(*case.data).to_dense()) > 1e-3


# ---- scales: nothing but the mean over examples, and the variance


@estimators
@pytest.mark.parametrize("fisher_type", ["exact", "empirical"])
@pytest.mark.parametrize("copies", [2, 7])
def test_copied_data_change_no_fisher(estimate, fisher_type, copies):
    case = random_case((3, 4, 3))
    once = estimate(*case.data, fisher_type, targets=case.targets).to_dense()
    inputs, targets = case.inputs.repeat(copies, 1), case.targets.repeat(copies)
    assert off(estimate(case.model, case.likelihood, inputs, fisher_type, targets=targets).to_dense(), once) < 1e-12


@estimators
def test_the_order_of_examples_changes_no_fisher(estimate):
    case = random_case((3, 4, 3), num_examples=8)
    shuffled = case.inputs[torch.randperm(8)]
    found = estimate(case.model, case.likelihood, shuffled).to_dense()
    assert off(found, estimate(*case.data).to_dense()) < 1e-12


@pytest.mark.parametrize("name", ["dense", "gram", "block_diagonal", "diagonal"])
@pytest.mark.parametrize("pieces", [[4, 4], [1] * 8, [3, 3, 2]], ids=str)
def test_batches_average_to_the_whole(name, pieces):
    """Weighted by their sizes; also for a ragged last batch. (K-FAC's products of means do not.)"""
    case = random_case((3, 4, 3), num_examples=8)
    parts = [ESTIMATORS[name](case.model, case.likelihood, x).to_dense() * len(x) / 8 for x in case.inputs.split(pieces)]
    assert off(sum(parts), ESTIMATORS[name](*case.data).to_dense()) < 1e-12


@estimators
@pytest.mark.parametrize("variance", [0.25, 9.0])
def test_a_fisher_is_proportional_to_one_over_the_variance(estimate, variance):
    case = random_case((3, 4, 2), likelihood="gaussian")
    unit, scaled = (estimate(case.model, type(case.likelihood)(v), case.inputs).to_dense() for v in (1.0, variance))
    assert off(scaled, unit / variance) < 1e-12


def test_the_empirical_fisher_is_not_the_fisher_and_vanishes_at_a_perfect_fit():
    case = random_case((3, 4, 2), likelihood="gaussian")
    exact, empirical = (dense_fisher(*case.data, kind, targets=case.targets).to_dense() for kind in ("exact", "empirical"))
    assert off(empirical, exact) > 0.1
    perfect = case.model(case.inputs).detach()
    assert not dense_fisher(*case.data, "empirical", targets=perfect).to_dense().any()


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@estimators
def test_the_mean_of_the_empirical_fisher_over_all_targets_is_exact(estimate, likelihood):
    """One example, all its targets, weighted by their probabilities."""
    case = random_case((3, 4, 3), likelihood=likelihood, num_examples=1)
    output = case.model(case.inputs)[0].detach()
    mean = sum(
        probability * estimate(*case.data, "empirical", targets=target[None]).to_dense()
        for target, probability in enumerated_targets(case.density, output)
    )
    assert off(mean, estimate(*case.data).to_dense()) < 1e-12


# ---- KL and steps


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_kl_is_half_the_fisher_form_to_third_order(likelihood):
    """The error of ½ δᵀFδ falls as the third power of ‖δ‖: eight times when δ halves."""
    case = random_case((3, 4, 3), likelihood=likelihood)
    fisher, start = dense_fisher(*case.data), parameters_of(case.model)
    step = torch.randn(len(start))
    outputs, errors = case.model(case.inputs).detach(), []
    for size in (1e-2, 5e-3, 2.5e-3):
        moved = torch.func.functional_call(case.model, unflatten(case.model, start + size * step), (case.inputs,))
        quadratic = 0.5 * size**2 * step @ fisher.matmul(step)
        errors.append(abs(float(kl(case.density, outputs, moved.detach()) - quadratic)))
        assert errors[-1] < 0.2 * quadratic
    orders = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert all(2.7 < order < 4.3 for order in orders), orders  # 4 where the cubic term happens to vanish


@pytest.mark.parametrize("bias", [False, True])
def test_one_undamped_exact_step_solves_linear_regression(bias):
    case = case_of(deep_linear((4, 3), bias=bias), "gaussian", num_examples=12, num_inputs=4)
    found = natural_gradient(*case.data, case.targets, 0.0)
    design = torch.cat([case.inputs, torch.ones(12, 1)], 1) if bias else case.inputs
    solution = torch.linalg.lstsq(design, case.targets).solution.T.flatten()
    assert off(parameters_of(case.model) - found.direction, solution) < 1e-10


def test_the_natural_gradient_does_not_depend_on_the_parametrization():
    """The last layer in other coordinates, W = mix W': the same function, and the same change of the function."""
    case, scaled = (random_case((2, 3, 2), likelihood="gaussian", num_examples=20) for _ in range(2))
    with torch.no_grad():
        mix = torch.tensor([[2.0, 0.5], [0.0, 0.25]])
        scaled.model[2].weight.copy_(mix.inverse() @ case.model[2].weight)
        scaled.model[2].bias.copy_(mix.inverse() @ case.model[2].bias)
    mixed = nn.Sequential(*scaled.model, nn.Linear(2, 2, bias=False).requires_grad_(False))
    with torch.no_grad():
        mixed[3].weight.copy_(mix)

    def change(model):
        direction = natural_gradient(model, case.likelihood, case.inputs, case.targets, 0.0).direction
        return jacobian(model, case.inputs) @ direction

    assert off(change(mixed), change(case.model)) < 1e-8  # condition numbers of 1e4 to 1e6


# ---- the exact natural gradient, by every route


ROUTES = ("dense", "gram", "cg")


def exact_solution(case, damping):
    fisher = fisher_from_jacobians(case.model, case.density, case.inputs)
    slope = gradient(case.model, case.density, case.inputs, case.targets)
    return torch.linalg.solve(fisher + damping * torch.eye(len(fisher)), slope), fisher, slope


@cases
@pytest.mark.parametrize("damping", [1e-6, 1e-2, 1e3])
def test_all_routes_give_the_dense_solution(make, damping):
    case = make()
    expected, fisher, slope = exact_solution(case, damping)
    condition = 1 + float(torch.linalg.eigvalsh(fisher)[-1]) / damping
    for route in (None, *ROUTES):
        found = natural_gradient(*case.data, case.targets, damping, route=route)
        tolerance = (1e-13 if route != "cg" else 2e-8) * condition  # cg stops at a residual of 1e-8
        assert (found.direction - expected).norm() <= tolerance * expected.norm(), (route, found.route)
        assert found.route.startswith(route or "")
        residual = (fisher @ found.direction + damping * found.direction - slope).norm() / slope.norm().clamp(min=1e-300)
        assert abs(residual - found.residual) < 1e-9 + 1e-3 * residual


@cases
def test_a_direction_descends(make):
    case = make()
    for damping in (1e-8, 1e-2, 1e3):
        found = natural_gradient(*case.data, case.targets, damping)
        assert found.gradient @ found.direction > 0 or not found.gradient.any()


@pytest.mark.parametrize("fisher_type", ["monte_carlo", "empirical"])
@pytest.mark.parametrize("route", ROUTES)
def test_routes_agree_on_the_other_fisher_types(fisher_type, route):
    case = random_case((3, 4, 3), num_examples=6)
    estimate = dense_fisher(*case.data, fisher_type, targets=case.targets, num_samples=2).to_dense()
    found = natural_gradient(*case.data, case.targets, 1e-3, fisher_type, num_samples=2, route=route)
    expected = torch.linalg.solve(estimate + 1e-3 * torch.eye(len(estimate)), found.gradient)
    assert off(found.direction, expected) < 1e-6


def test_the_cheapest_route_depends_on_the_sizes():
    few_rows, few_parameters = random_case((4, 30, 3), num_examples=2), random_case((2, 2, 3), num_examples=40)
    assert natural_gradient(*few_rows.data, few_rows.targets, 1e-2).route == "gram (range form)"
    assert natural_gradient(*few_parameters.data, few_parameters.targets, 1e-2).route == "dense"


@pytest.mark.parametrize("make", [lambda **k: random_case((5, 20, 4), **k), lambda **k: random_case((2, 2, 4), **k)])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("damping", [1e-6, 1e-4, 1e-2, 1.0, 1e3])
def test_float32_keeps_its_accuracy_at_every_damping(make, route, damping):
    """Against float64 at the same (rounded) weights and data.

    A gradient known to float32 may have a part eps ‖g‖ outside the range of F, which 1/λ amplifies: relative to the rest by
    at most λ_max / λ. In the range form it is R that is known to float32, and Rᵀ(RRᵀ + λ)⁻¹ amplifies by √(λ_max / λ) at most.
    """
    case = make(num_examples=8)
    case.model.float()
    single = Case(case.model, case.likelihood, case.inputs.float(), case.targets)
    found = natural_gradient(*single.data, single.targets, damping, route=route)
    double = Case(case.model.double(), case.likelihood, single.inputs.double(), case.targets)
    expected, fisher, _ = exact_solution(double, damping)
    condition = 1 + float(torch.linalg.eigvalsh(fisher)[-1]) / damping
    tolerance = 1e-6 * (condition**0.5 if found.route == "gram (range form)" else condition)
    assert (found.direction.double() - expected).norm() < min(tolerance, 0.1) * expected.norm()
    assert found.direction.dtype == torch.float32


@pytest.mark.parametrize("scale", [3.0, 10.0, 20.0])
@pytest.mark.parametrize("damping", [1e-7, 1e-6, 1e-5])
def test_float32_where_its_cholesky_passes_and_its_corrections_fail(scale, damping):
    """λ_max / λ above 1 / eps: factored in float32 the direction was off by a third, and by all of it.

    The bound: residuals of 1e-8 ‖g‖ are accepted (the float32 gradient is known to 6e-8), and 1/λ amplifies them.
    """
    case = random_case((5, 30, 4), num_examples=8)
    with torch.no_grad():
        case.model[2].weight.mul_(scale)
    case.model.float()
    single = Case(case.model, case.likelihood, case.inputs.float(), case.targets)
    found = natural_gradient(*single.data, single.targets, damping, route="dense")
    same = score_pass(*single.data, loss_targets=single.targets)  # the very rows: others would differ by eps λ_max / λ
    rows = torch.cat([block.map(torch.Tensor.double).to_dense() for block in gram_from_scores(same).blocks], 1)
    fisher = rows.T @ rows
    expected = torch.linalg.solve(fisher + damping * torch.eye(len(fisher)), found.gradient.double())
    bound = 1e-6 * expected.norm() + 1e-8 * found.gradient.norm() / damping
    assert (found.direction.double() - expected).norm() < bound < 0.3 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gap", [40.0, 600.0, 1400.0])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("damping", [1e-6, 1e-2])
@pytest.mark.filterwarnings("ignore:cg stopped:natgrad_lab.errors.NumericalWarning")
def test_saturated_softmaxes_with_wrong_targets(dtype, gap, route, damping):
    """Logits `gap` apart, targets of probability down to exp(-1400): the coordinates of the range form overflow there."""
    case = random_case((5, 30, 4), num_examples=8)
    with torch.no_grad():
        outputs = case.model(case.inputs)
        case.model[2].weight.mul_(gap / float((outputs.amax(1) - outputs.amin(1)).max()))
        case.model[2].bias.zero_()
    case.model.to(dtype)
    single = Case(case.model, case.likelihood, case.inputs.to(dtype), case.targets)
    found = natural_gradient(*single.data, single.targets, damping, route=route)
    double = Case(case.model.double(), case.likelihood, single.inputs.double(), case.targets)
    expected, *_ = exact_solution(double, damping)
    assert torch.isfinite(found.direction).all()
    assert (found.direction.double() - expected).norm() < (1e-3 if dtype == torch.float32 else 1e-4) * expected.norm()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_weights_of_any_scale(scale, likelihood):
    case = random_case((3, 4, 3), "relu", likelihood=likelihood, scale=scale)
    damping = 1e-3 * max(scale, 1.0) ** 4
    expected, *_ = exact_solution(case, damping)
    found = natural_gradient(*case.data, case.targets, damping)
    assert off(found.direction, expected) < 1e-8 and found.residual < 1e-10


def test_separable_data_give_finite_steps():
    """At a perfect, certain fit gradient and Fisher vanish together; the damped direction stays finite and small."""
    model = nn.Linear(1, 2)
    inputs, targets = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    for weight in (10.0, 100.0, 1000.0):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-weight], [weight]]))
            model.bias.zero_()
        found = natural_gradient(model, LIKELIHOODS["categorical"], inputs, targets, 1e-6)
        assert torch.isfinite(found.direction).all() and found.direction.norm() < 1


# ---- buffers and chunks


def test_dense_fisher_writes_into_the_buffer_it_is_given():
    case = random_case((3, 4, 3))
    expected = dense_fisher(*case.data).to_dense()
    dim = len(expected)
    wide = torch.full((dim + 2, 2 * dim + 3), math.nan)
    for out in (torch.full((dim, dim), math.nan), wide[1 : dim + 1, 2 : dim + 2]):
        found = dense_fisher(*case.data, out=out)
        assert found.matrix is out and torch.equal(out, expected)
    assert torch.isnan(wide[0]).all() and torch.isnan(wide[:, :2]).all() and torch.isnan(wide[:, dim + 2 :]).all()


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_chunks_of_examples_sum_to_the_whole(monkeypatch, chunk, likelihood):
    case = random_case((3, 4, 2, 3), likelihood=likelihood, num_examples=7)
    whole = dense_fisher(*case.data).to_dense()
    monkeypatch.setattr(dense, "_WORKSPACE", chunk * len(whole))
    assert off(dense_fisher(*case.data).to_dense(), whole) < 1e-14
    assert off(dense_fisher(*case.data, out=torch.full_like(whole, math.nan)).to_dense(), whole) < 1e-14


def test_dense_and_gram_are_symmetric_and_psd():
    case = random_case((3, 5, 3))
    for name in ("dense", "gram"):
        matrix = ESTIMATORS[name](*case.data).to_dense()
        assert off(matrix, matrix.T) < 1e-15 and torch.linalg.eigvalsh(matrix)[0] > -1e-14


# ---- a call leaves everything as it was


def snapshot(model):
    return {
        "parameters": [(p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "rng": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a is b or (isinstance(b, torch.Tensor) and torch.equal(a, b))
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


CALLS = {
    **{
        f"{name}, {kind}": lambda c, estimate=estimate, kind=kind: estimate(*c.data, kind, targets=c.targets)
        for name, estimate in ESTIMATORS.items()
        for kind in ("exact", "monte_carlo", "empirical")
    },
    **{f"natural gradient, {r}": lambda c, r=r: natural_gradient(*c.data, c.targets, 1e-2, route=r) for r in ROUTES},
    "score_pass": lambda c: score_pass(*c.data, loss_targets=c.targets),
    "refused": lambda c: pytest.raises(ValueError, dense_fisher, *c.data, "empirical", targets=c.targets[:2]),
    "refused late": lambda c: pytest.raises(ValueError, dense_fisher, c.model, c.likelihood, c.inputs[:, :2]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_leaves_the_model_and_the_world_as_they_were(call):
    case = CASES["batch norm and dropout in eval mode"]()
    case.model[2].train()  # harmless, and to be kept
    case.model[4].weight.grad = torch.ones(3, 4)
    case.model[0].bias.requires_grad_(False)
    case.model[0].register_forward_hook(lambda *args: None)
    case.inputs.requires_grad_()
    before, data = snapshot(case.model), [case.inputs.detach().clone(), case.targets.clone()]
    call(case)
    assert same(before, snapshot(case.model))
    assert same(data, [case.inputs.detach(), case.targets]) and case.inputs.grad is None


@estimators
def test_results_do_not_change_when_the_model_does(estimate):
    """What is returned holds copies: a step afterwards must not move an estimate made before."""
    case = random_case((3, 4, 3))
    estimated = estimate(*case.data)
    before = estimated.to_dense()
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(1.0)
    assert torch.equal(estimated.to_dense(), before)
    assert not any(tensor.requires_grad for _, tensor in estimated.tensors())


def test_gradient_modes_and_odd_inputs_change_nothing():
    case = random_case((3, 4, 3))
    expected = natural_gradient(*case.data, case.targets, 1e-2).direction
    strided = torch.empty(3, len(case.inputs)).T.copy_(case.inputs)
    with torch.inference_mode():
        frozen = case.inputs.clone(), case.targets.clone()
    for inputs, targets in ((strided, case.targets), (case.inputs.clone().requires_grad_(), case.targets.int()), frozen):
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                found = natural_gradient(case.model, case.likelihood, inputs, targets, 1e-2).direction
            assert off(found, expected) < 1e-13 and not found.requires_grad


def test_targets_that_require_gradients_are_only_numbers():
    case = random_case((3, 4, 2), likelihood="gaussian")
    expected = natural_gradient(*case.data, case.targets, 1e-2)
    found = natural_gradient(*case.data, case.targets.clone().requires_grad_(), 1e-2)
    assert torch.equal(found.direction, expected.direction) and not found.direction.requires_grad


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel, lambda m: nn.Sequential(nn.Identity(), nn.Sequential(m))])
def test_wrapping_a_model_changes_nothing(wrap):
    case = random_case((3, 4, 3))
    assert torch.equal(dense_fisher(wrap(case.model), *case.data[1:]).to_dense(), dense_fisher(*case.data).to_dense())


@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.filterwarnings("default")
def test_a_compiled_model_gives_the_same_or_is_refused(run_before):
    """The eager backend needs no compiler; a graph compiled before may have forgotten that hooks exist."""
    case = random_case((3, 4, 3))
    compiled = torch.compile(case.model, backend="eager")
    if run_before:
        compiled(case.inputs)
    assert off(dense_fisher(compiled, *case.data[1:]).to_dense(), dense_fisher(*case.data).to_dense()) < 1e-14


def test_one_example_many_examples_and_huge_batches_of_one_row():
    case = random_case((2, 2, 2), num_examples=1)
    many = case.inputs.expand(5000, 2)
    assert off(dense_fisher(case.model, case.likelihood, many).to_dense(), dense_fisher(*case.data).to_dense()) < 1e-11


def test_huge_logits_are_finite():
    case = random_case((3, 3), scale=1e200)
    found = natural_gradient(*case.data, case.targets, 1e-2)
    assert torch.isfinite(found.direction).all() and found.residual < 1e-12


def test_a_randomized_case_is_what_it_says(generator):
    """Guards the cases themselves: no zero biases, targets in range."""
    model = randomized(nn.Linear(3, 3), generator)
    assert model.bias.abs().min() > 0
    assert set(targets_for(LIKELIHOODS["bernoulli"], 50, 2, generator).unique().tolist()) == {0.0, 1.0}
    scores = example_gradients(*[random_case((2, 2)).model], ("categorical", 1.0), torch.randn(3, 2), torch.tensor([0, 1, 1]))
    assert scores.shape == (3, 6)
