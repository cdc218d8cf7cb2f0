"""Every number of a report against dense NumPy, by each of the three routes: spectrum, factors, products."""

import functools
import math

import numpy as np
import pytest
import torch
from cases import CASES, case_of, random_case
from oracles import (
    blocks_of,
    example_gradients,
    fisher_from_jacobians,
    gradient,
    kfac_blocks,
    kl,
    log_density,
    parameters_of,
    unflatten,
)

from natgrad_lab import comparison, fisher, models
from natgrad_lab.comparison import exact, matrices, products

DAMPING = 0.05
NAMES = ["block_diagonal", "kfac", "diagonal", "identity", "empirical"]
ROUTES = {"spectrum": (600, 4096), "factors": (0, 4096), "products": (0, 0)}  # LARGEST_SPECTRUM, LARGEST_DENSE
NEED_THE_INVERSE = {"condition_mean", "laplace_kl"}
BY_EVERY_ROUTE = NEED_THE_INVERSE | {"frobenius_error", "spectral_error", "block_frobenius_error", "condition"}
ONLY_FROM_SPECTRUM = {"affine_distance", "condition_nonzero"}
PROBLEMS = {
    "categorical": lambda: random_case((4, 5, 3), num_examples=7, likelihood="categorical"),
    "bernoulli, three layers": lambda: random_case((3, 3, 3, 2), num_examples=6, likelihood="bernoulli"),
    "gaussian, fewer rows than parameters": lambda: random_case((4, 4, 3), num_examples=3, likelihood="gaussian"),
}


def approximations(case):
    """What the approximations are, by definition, as dense NumPy matrices."""
    F = fisher_from_jacobians(*case_of_oracle(case)).numpy()
    blocks = np.zeros_like(F)
    for where in blocks_of(case.model):
        blocks[where, where] = F[where, where]
    kfac = torch.block_diag(*[torch.kron(G, A) for G, A in kfac_blocks(*case_of_oracle(case))]).numpy()
    scores = example_gradients(case.model, case.density, case.inputs, case.targets).numpy()
    matrices = (blocks, kfac, np.diag(np.diag(F)), np.eye(len(F)) * np.trace(F) / len(F), scores.T @ scores / len(scores))
    return F, dict(zip(NAMES, matrices, strict=True))


def case_of_oracle(case):
    return case.model, case.density, case.inputs


def loss_and_kl(case, update):
    """(fall of the mean loss, KL) after adding `update`, by loops."""
    before = case.model(case.inputs).detach()
    moved = unflatten(case.model, parameters_of(case.model) + torch.from_numpy(update))
    after = torch.func.functional_call(case.model, moved, (case.inputs,)).detach()
    pairs = zip(before, after, case.targets, strict=True)
    falls = [float(log_density(case.density, new, y) - log_density(case.density, old, y)) for old, new, y in pairs]
    return np.mean(falls), float(kl(case.density, before, after))


def expected(case, F, M, g):
    """All numbers about one approximation, from the definitions."""
    identity = np.eye(len(F))
    Fd, Md = F + DAMPING * identity, M + DAMPING * identity
    best, v = np.linalg.solve(Fd, g), np.linalg.solve(Md, g)
    slope, curved = g @ v, v @ Fd @ v
    step = slope / curved
    s, U = np.linalg.eigh(Md)
    half = U / np.sqrt(s) @ U.T
    spectrum, undamped = np.linalg.eigvalsh(half @ Fd @ half), np.linalg.eigvalsh(half @ F @ half)
    nonzero = undamped[undamped > 1e-12 * undamped.max()]
    blocks = np.zeros_like(F)
    for where in blocks_of(case.model):
        blocks[where, where] = F[where, where]
    fall, moved = loss_and_kl(case, -step * v)
    fall_one, moved_one = loss_and_kl(case, -v)
    return {
        "efficiency": (best @ Fd @ v) ** 2 / (best @ Fd @ best) / (v @ Fd @ v),  # as a squared cosine in F_λ
        "cosine": best @ v / np.linalg.norm(best) / np.linalg.norm(v),
        "norm_ratio": np.linalg.norm(v) / np.linalg.norm(best),
        "frobenius_error": np.linalg.norm(M - F) / np.linalg.norm(F),
        "spectral_error": np.linalg.norm(M - F, 2) / np.linalg.norm(F, 2),
        "block_frobenius_error": np.linalg.norm(M - blocks) / np.linalg.norm(blocks),
        "condition": spectrum[-1] / spectrum[0],
        "condition_mean": spectrum[-1] / spectrum.mean(),
        "condition_nonzero": nonzero[-1] / nonzero[0],
        "affine_distance": np.linalg.norm(np.log(spectrum)),
        "laplace_kl": (spectrum.sum() - len(F) - np.log(spectrum).sum()) / 2,
        "best_step": step,
        "predicted_decrease": step * slope - step**2 * curved / 2,
        "predicted_undamped": step * slope - step**2 * (v @ F @ v) / 2,
        "achieved_decrease": fall,
        "kl": moved,
        "kl_quadratic": step**2 * (v @ F @ v) / 2,
        "predicted_decrease_unit": slope - curved / 2,
        "achieved_decrease_unit": fall_one,
        "kl_unit": moved_one,
        "kl_quadratic_unit": v @ F @ v / 2,
    }


@functools.cache
def dense_numbers(problem):
    """The case of that name, and for every approximation its numbers from the definitions."""
    case = PROBLEMS[problem]()
    F, dense = approximations(case)
    g = gradient(case.model, case.density, case.inputs, case.targets).numpy()
    return case, {name: expected(case, F, M, g) for name, M in dense.items()}


@pytest.mark.parametrize("problem, route", [(problem, route) for problem in PROBLEMS for route in ROUTES])
def test_every_number_is_the_dense_one(problem, route, monkeypatch):
    case, values = dense_numbers(problem)
    monkeypatch.setattr(matrices, "LARGEST_SPECTRUM", ROUTES[route][0])
    for module in (matrices, exact, products):
        monkeypatch.setattr(module, "LARGEST_DENSE", ROUTES[route][1])
    report = comparison.compare(*case.data, case.targets, DAMPING, NAMES)
    assert report.failures == {}
    for name in NAMES:
        row = report.row(name)
        for metric, value in values[name].items():
            given = getattr(row, metric)
            if given is None:
                inverse = name == "block_diagonal" and metric in NEED_THE_INVERSE  # of dense blocks
                assert route != "spectrum" and (metric in ONLY_FROM_SPECTRUM or (route == "products" and inverse))
                assert row.not_available[metric]
                continue
            # Lanczos on products stops at a residual of 1e-3, squared in the value; the others at 1e-5
            rough = route == "products" and metric in ("condition", "condition_mean", "spectral_error")
            # products: ‖F‖² - 2⟨F, M⟩ + ‖M‖² cancels to 1e-7
            assert math.isclose(given, value, rel_tol=1e-4 if rough else 2e-6, abs_tol=3e-7), (name, metric)


def of_every_approximation():
    case = random_case((4, 4, 3), num_examples=7)
    return comparison.compare(*case.data, case.targets, DAMPING)


by_spectra = functools.cache(of_every_approximation)  # before a route is chosen


@pytest.mark.parametrize("route", ["factors", "products"])
def test_every_approximation_has_the_same_numbers_by_every_route(route, monkeypatch):
    whole = by_spectra()
    assert whole.failures == {}
    monkeypatch.setattr(matrices, "LARGEST_SPECTRUM", ROUTES[route][0])
    for module in (matrices, exact, products):
        monkeypatch.setattr(module, "LARGEST_DENSE", ROUTES[route][1])
    other = of_every_approximation()
    for one, two in zip(whole.totals, other.totals, strict=True):
        for metric in BY_EVERY_ROUTE:
            values = getattr(one, metric), getattr(two, metric)
            if None not in values:
                assert math.isclose(*values, rel_tol=1e-4, abs_tol=3e-7), (one.approximation, metric)
            elif values[0] is not None:
                assert route == "products" and two.not_available[metric], (one.approximation, metric)
        frobenius = two.frobenius_error is None
        assert frobenius == (two.memory_numbers is None), two.approximation  # every matrix has it at every size


@pytest.mark.parametrize("route, spectrum", [("factors", 0), ("products", 0), ("products", 600)])
def test_layers_are_judged_against_their_own_blocks(route, spectrum, monkeypatch):
    case = PROBLEMS["categorical"]()
    F, dense = approximations(case)
    g = gradient(case.model, case.density, case.inputs, case.targets).numpy()
    best = np.linalg.solve(F + DAMPING * np.eye(len(F)), g)
    monkeypatch.setattr(matrices, "LARGEST_SPECTRUM", spectrum)
    for module in (matrices, exact, products):
        monkeypatch.setattr(module, "LARGEST_DENSE", ROUTES[route][1])
    report = comparison.compare(*case.data, case.targets, DAMPING, ["kfac", "diagonal", "empirical", "low_rank", "krylov"])
    dense["low_rank"] = fisher.low_rank_fisher(*case.data).to_dense().numpy()
    dense["krylov"] = fisher.krylov_fisher(*case.data, "exact", case.targets).to_dense().numpy()
    for name in ("kfac", "diagonal", "empirical", "low_rank", "krylov"):
        M = dense[name]
        v = np.linalg.solve(M + DAMPING * np.eye(len(M)), g)
        for layer, where in zip(("0", "2"), blocks_of(case.model), strict=True):
            row, Fl, Ml = report.row(name, layer), F[where, where], M[where, where]
            Fd = Fl + DAMPING * np.eye(len(Fl))
            vl, gl, bl = v[where], g[where], best[where]
            value = (gl @ vl) ** 2 / (vl @ Fd @ vl) / (gl @ np.linalg.solve(Fd, gl))
            assert math.isclose(row.efficiency, value, rel_tol=1e-9)
            assert math.isclose(row.cosine, vl @ bl / np.linalg.norm(vl) / np.linalg.norm(bl), rel_tol=1e-9)
            spectral = np.linalg.norm(Ml - Fl, 2) / np.linalg.norm(Fl, 2)
            assert math.isclose(row.spectral_error, spectral, rel_tol=1e-4, abs_tol=1e-12)
            assert math.isclose(row.frobenius_error, np.linalg.norm(Ml - Fl) / np.linalg.norm(Fl), rel_tol=2e-6, abs_tol=3e-7)


def test_a_layer_known_by_products_alone_has_what_products_give(monkeypatch):
    case = PROBLEMS["categorical"]()
    problem = comparison.Problem(comparison.Batch(*case.data, case.targets), DAMPING)
    M = fisher.dense_fisher(*case.data, "monte_carlo")
    where, F = blocks_of(case.model)[1], problem.layers[1].gram.to_dense().numpy()
    block = M.matrix[where, where].numpy()
    for small, frobenius in ((600, np.linalg.norm(block - F) / np.linalg.norm(F)), (0, None)):
        monkeypatch.setattr(matrices, "LARGEST_SPECTRUM", small)
        numbers = comparison.rows.Numbers()
        matrices.error_numbers(numbers, matrices.Pair(problem.layers[1], matrices.Restricted(M, where)))
        assert math.isclose(numbers.values["spectral_error"], np.linalg.norm(block - F, 2) / np.linalg.norm(F, 2), rel_tol=1e-4)
        if frobenius is None:
            assert "products only" in numbers.not_available["frobenius_error"]
        else:
            assert math.isclose(numbers.values["frobenius_error"], frobenius, rel_tol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_efficiency_is_the_formula_on_every_case(name):
    case = CASES[name]()
    F = fisher.dense_fisher(*case.data).matrix
    report = comparison.compare(*case.data, case.targets, DAMPING, ["kfac", "diagonal"])
    gradient = comparison.Problem(comparison.Batch(*case.data, case.targets), DAMPING).gradient
    if not gradient.any():
        assert "gradient is zero" in report.row("kfac").not_available["efficiency"]
        assert "gradient is zero" in report.headline()
        return
    damped = F + DAMPING * torch.eye(len(F))
    for each, estimate in (("kfac", fisher.kfac_fisher), ("diagonal", fisher.diagonal_fisher)):
        v = torch.linalg.solve(estimate(*case.data).to_dense() + DAMPING * torch.eye(len(F)), gradient)
        value = float((gradient @ v) ** 2 / (v @ damped @ v) / (gradient @ torch.linalg.solve(damped, gradient)))
        assert math.isclose(report.row(each).efficiency, value, rel_tol=1e-9)


# ---- theorems


def test_efficiency_is_the_fraction_of_the_decrease_that_is_achievable():
    report = comparison.compare(*PROBLEMS["categorical"]().data, PROBLEMS["categorical"]().targets, DAMPING, NAMES)
    possible = report.row("exact").predicted_decrease
    for name in NAMES:
        row = report.row(name)
        assert math.isclose(row.efficiency, row.predicted_decrease / possible, rel_tol=1e-10)
        assert 0 < row.efficiency < 1 and row.predicted_decrease >= row.predicted_decrease_unit


def test_the_exact_natural_gradient_has_efficiency_one_and_no_errors():
    case = PROBLEMS["categorical"]()
    report = comparison.compare(*case.data, case.targets, DAMPING, {"again": "dense", "rows": "gram"})
    for name in ("exact", "again", "rows"):
        row = report.row(name)
        for metric in ("efficiency", "cosine", "norm_ratio", "best_step", "condition"):
            assert math.isclose(getattr(row, metric), 1, rel_tol=1e-9), (name, metric)
        assert max(row.frobenius_error, row.spectral_error, abs(row.laplace_kl)) < 1e-12


@pytest.mark.parametrize("num_layers", [2, 3])
def test_the_blocks_of_a_deep_linear_net_are_too_long_by_the_number_of_layers(num_layers):
    case = case_of(models.deep_linear((3,) * (num_layers + 1)), "gaussian", num_examples=9)
    report = comparison.compare(*case.data, case.targets, 1e-8, ["block_diagonal", "kfac"])
    for name in ("block_diagonal", "kfac"):  # they are equal here
        assert math.isclose(report.row(name).best_step, 1 / num_layers, rel_tol=1e-4)
        assert math.isclose(report.row(name).efficiency, 1, rel_tol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 1e6, 1e-6])
def test_scaling_a_direction_changes_its_length_and_nothing_else(scale):
    case = PROBLEMS["categorical"]()
    kfac = fisher.kfac_fisher(*case.data)
    mine = {"one": lambda g: kfac.solve(g, DAMPING), "scaled": lambda g: scale * kfac.solve(g, DAMPING), "kfac": "kfac"}
    report = comparison.compare(*case.data, case.targets, DAMPING, mine)
    one, scaled, given = (report.row(name) for name in ("one", "scaled", "kfac"))
    for metric in ("efficiency", "cosine", "predicted_decrease", "achieved_decrease", "kl", "kl_quadratic"):
        assert math.isclose(getattr(one, metric), getattr(scaled, metric), rel_tol=1e-9), metric
        assert math.isclose(getattr(one, metric), getattr(given, metric), rel_tol=1e-9), metric
    assert math.isclose(scaled.norm_ratio, scale * one.norm_ratio, rel_tol=1e-9)
    assert math.isclose(scaled.best_step, one.best_step / scale, rel_tol=1e-9)
    assert one.frobenius_error is None and "direction" in one.not_available["frobenius_error"]


def test_copied_data_change_no_number():
    case = PROBLEMS["categorical"]()
    one = comparison.compare(*case.data, case.targets, DAMPING, ["kfac", "block_diagonal"])
    twice = comparison.compare(case.model, case.likelihood, case.inputs.repeat(2, 1), case.targets.repeat(2), DAMPING,
                               ["kfac", "block_diagonal"])  # fmt: skip
    for name in ("exact", "kfac", "block_diagonal"):
        for metric in ("efficiency", "norm_ratio", "achieved_decrease", "kl", "frobenius_error", "condition"):
            assert math.isclose(getattr(one.row(name), metric), getattr(twice.row(name), metric), rel_tol=1e-9, abs_tol=1e-14)


def test_quality_is_judged_in_float64_and_rounding_is_a_number_of_its_own():
    case = PROBLEMS["categorical"]()
    wide = comparison.compare(*case.data, case.targets, 1e-4, ["kfac", "diagonal"])
    narrow = comparison.compare(
        case.model.float(), case.likelihood, case.inputs.float(), case.targets, 1e-4, ["kfac", "diagonal"]
    )
    for name in ("kfac", "diagonal"):
        one, two = wide.row(name), narrow.row(name)
        assert math.isclose(one.efficiency, two.efficiency, rel_tol=1e-5)  # weights and inputs are rounded to float32
        assert one.rounding == 0 and 1e-9 < two.rounding < 1e-3
        assert (one.dtype, two.dtype) == ("float64", "float32")
        assert two.residual > one.residual
