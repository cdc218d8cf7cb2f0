"""The adaptive algorithm's parts by themselves: quadratic model, λ, γ, averages; what is saved and what leaves no trace."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from cases import LIKELIHOODS, random_case
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import GENERIC, LAYERS
from oracles import fisher_from_jacobians, fisher_of_any, gradient, parameters_of
from torch import nn

from natgrad_lab.fisher import kfac
from natgrad_lab.fisher.forward_products import ForwardProducts
from natgrad_lab.fisher.scores import loss_pass, score_pass
from natgrad_lab.optimizers import METHODS, GammaSearch, LevenbergMarquardt, QuadraticModel, exponential_batch, low_rank
from natgrad_lab.optimizers.step_size import minimize_model
from natgrad_lab.parameters import ParameterLayout


def made(case, **choices):
    return METHODS["kfac_adaptive"](case.model, case.likelihood, **{"damping": 0.1} | choices)


# ---- the quadratic model


@given(st.integers(0, 10**6), st.floats(0, 10))
def test_alpha_and_mu_minimize_the_model(seed, damping):
    """Against a least-squares solution of the stationarity conditions, and against every point of a grid around it."""
    generator = np.random.default_rng(seed)
    V, J, g = generator.normal(size=(2, 6)), generator.normal(size=(9, 6)), generator.normal(size=6)
    F = J.T @ J / 5
    tensors = (torch.from_numpy(each.copy()) for each in (V, (J @ V.T).T, g))
    x, curvature, slopes = minimize_model(*tensors, 5, damping)
    B = V @ (F + damping * np.eye(6)) @ V.T
    expected = np.linalg.lstsq(B, -V @ g, rcond=None)[0]
    assert np.abs(np.array(x) - expected).max() <= 1e-8 * np.linalg.cond(B) * max(1, np.abs(expected).max())

    def model(point):
        delta = point @ V
        return g @ delta + delta @ (F + damping * np.eye(6)) @ delta / 2

    best = model(np.array(x))
    for shift in np.stack(np.meshgrid(*[[-1.0, -0.1, 0, 0.1, 1.0]] * 2), -1).reshape(-1, 2):
        assert model(np.array(x) + shift) >= best - 1e-9 * (1 + abs(best))
    assert np.allclose(curvature, V @ F @ V.T) and np.allclose(slopes, V @ g)


@pytest.mark.parametrize("second", ["zero", "the same", "minus twice the first"])
def test_dependent_vectors_cost_nothing(second):
    v = torch.randn(6)
    V = torch.stack([v, {"zero": 0 * v, "the same": v, "minus twice the first": -2 * v}[second]])
    J, g = torch.randn(9, 6), torch.randn(6)
    x, _, _ = minimize_model(V, V @ J.T, g, 5, 0.1)
    alone, _, _ = minimize_model(V[:1], V[:1] @ J.T, g, 5, 0.1)
    assert torch.allclose(torch.tensor(x) @ V, alone[0] * v, atol=1e-8)


EVERY_LAYER = LAYERS | GENERIC


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("name", EVERY_LAYER)
def test_forward_products_are_the_exact_fishers(name):
    """vᵀFv = ‖SᵀJ v‖²/N on every kind of layer, fused recurrent ones included."""
    case = EVERY_LAYER[name]()
    layout = ParameterLayout(case.model)
    fisher = fisher_of_any(case.model, case.density, case.inputs, case.class_dim)
    vectors = torch.randn(2, layout.dim) * (fisher.diagonal() > 0)  # a padding entry has no gradient, whatever it does
    products = ForwardProducts(case.model, case.likelihood, layout, case.inputs)
    with torch.no_grad():
        roots = torch.stack([products(v) for v in vectors])
    expected = vectors @ fisher @ vectors.T
    assert (roots @ roots.T / len(case.inputs) - expected).abs().max() < 1e-10 * expected.abs().max()


def test_forward_products_leave_the_model_alone():
    case = random_case((3, 4, 3))
    before, vector = copy.deepcopy(case.model.state_dict()), torch.randn(ParameterLayout(case.model).dim)
    state = torch.get_rng_state()
    ForwardProducts(case.model, case.likelihood, ParameterLayout(case.model), case.inputs)(vector)
    assert all(map(torch.equal, before.values(), case.model.state_dict().values()))
    assert all(p.requires_grad and p.grad is None for p in case.model.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_first_step_has_the_best_length_and_no_momentum(likelihood):
    case = random_case((3, 4, 3), likelihood=likelihood, num_examples=9)
    start, slope = parameters_of(case.model), gradient(case.model, case.density, case.inputs, case.targets)
    fisher = fisher_from_jacobians(case.model, case.density, case.inputs)
    record = made(case, damping=0.2).step(case.inputs, case.targets)
    update = parameters_of(case.model) - start
    B = fisher + 0.2 * torch.eye(len(fisher))
    assert record.mu == 0
    assert math.isclose(float(slope @ update), -float(update @ B @ update), rel_tol=1e-9)  # ∂M/∂α = 0
    assert math.isclose(record.kl, float(update @ fisher @ update) / 2, rel_tol=1e-9)
    assert math.isclose(record.predicted_decrease, -float(slope @ update) - record.kl, rel_tol=1e-9)


def test_without_rescaling_alpha_is_one():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, quadratic={"rescale": False})
    assert [(r.alpha, r.mu) for r in (optimizer.step(case.inputs, case.targets) for _ in range(3))] == [(1, 0)] * 3


def test_a_fraction_of_the_batch_is_its_first_part():
    one, two = (random_case((3, 4, 3), num_examples=9) for _ in range(2))
    whole = made(one, quadratic={"fraction": 1 / 3}, fisher_type="exact").step(one.inputs, one.targets)
    layout = ParameterLayout(two.model)
    products = ForwardProducts(two.model, two.likelihood, layout, two.inputs[:3])
    update = parameters_of(one.model) - parameters_of(two.model)
    assert math.isclose(whole.kl, float(products(update).square().sum()) / 3 / 2, rel_tol=1e-9)


def test_the_fishers_fraction_is_the_first_part_too():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = METHODS["kfac"](case.model, case.likelihood, fisher_type="exact", fraction=0.4, lr=0.0)
    optimizer.step(case.inputs, case.targets)
    other = METHODS["kfac"](case.model, case.likelihood, fisher_type="exact", lr=0.0)
    other.step(case.inputs[:4], case.targets[:4])
    assert torch.allclose(optimizer.fisher.to_dense(), other.fisher.to_dense(), rtol=1e-13)


@pytest.mark.parametrize("lr", [0.5, "by group"])
def test_learning_rates_come_after_the_model(lr):
    free, held = (random_case((3, 4, 3), num_examples=9) for _ in range(2))
    start = parameters_of(free.model)
    made(free).step(free.inputs, free.targets)
    optimizer = made(held, lr=0.5)
    if lr == "by group":
        group = optimizer.param_groups[0]
        rest = {key: value for key, value in group.items() if key != "params"}
        optimizer.param_groups[:] = [
            {**rest, "params": group["params"][:2]},
            {**rest, "params": group["params"][2:], "lr": 0.25},
        ]
    rates = torch.full_like(start, 0.5)
    if lr == "by group":
        rates[16:] = 0.25
    fisher = fisher_from_jacobians(held.model, held.density, held.inputs)
    record = optimizer.step(held.inputs, held.targets)
    update = parameters_of(held.model) - start
    assert torch.allclose(update, rates * (parameters_of(free.model) - start), rtol=1e-10)
    assert math.isclose(record.kl, float(update @ fisher @ update) / 2, rel_tol=1e-9)


# ---- λ and γ


def test_levenberg_marquardt_by_a_script():
    rule = LevenbergMarquardt(every=5)
    omega = (19 / 20) ** 5
    assert [rule.is_due(step) for step in range(1, 11)] == [False] * 4 + [True] + [False] * 4 + [True]
    for rho, factor in [(0.76, omega), (2.0, omega), (0.75, 1), (0.5, 1), (0.25, 1), (0.24, 1 / omega), (-3.0, 1 / omega)]:
        assert math.isclose(rule.adapted(7.0, rho), 7.0 * factor, rel_tol=1e-15)
    for failure in (math.nan, -math.inf):
        assert math.isclose(rule.adapted(7.0, failure), 7.0 / omega, rel_tol=1e-15)
    bounded = LevenbergMarquardt(minimum=1.0, maximum=2.0)
    assert (bounded.adapted(1.0, 2.0), bounded.adapted(2.0, 0.0)) == (1.0, 2.0)


@pytest.mark.parametrize("change, factor", [(-1e3, 0.95), (1e3, 1 / 0.95), (math.nan, 1 / 0.95), (math.inf, 1 / 0.95)])
def test_lambda_follows_the_objective(change, factor, monkeypatch):
    """The objective after the move scripted: better than predicted, worse, not a number."""
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, levenberg={"every": 1})
    monkeypatch.setattr(optimizer, "_objective_at", lambda now, *rest: now.objective + change)
    record = optimizer.step(case.inputs, case.targets)
    assert record.status == "ok" and record.damping == 0.1
    assert math.isclose(optimizer.param_groups[0]["damping"], 0.1 * factor, rel_tol=1e-12)
    assert record.actual_decrease == -change or math.isnan(change)


def test_a_step_too_long_is_a_failure_even_where_the_model_expected_it(monkeypatch):
    """lr = 9 overshoots: M goes up and so does the (scripted) objective, ρ is positive, and λ grows all the same."""
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, lr=9.0, levenberg={"every": 1})
    monkeypatch.setattr(optimizer, "_objective_at", lambda now, *rest: now.objective + 1e4)
    record = optimizer.step(case.inputs, case.targets)
    assert record.predicted_decrease < 0 and record.rho > 3 / 4
    assert math.isclose(optimizer.param_groups[0]["damping"], 0.1 / 0.95, rel_tol=1e-12)


def test_the_decrease_is_the_objectives():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, levenberg={"every": 1}, weight_decay=0.3)

    def objective():
        nll = case.likelihood.nll(case.model(case.inputs).detach(), case.targets).mean()
        return float(nll) + 0.15 * float(parameters_of(case.model).square().sum())

    for _ in range(3):
        before, start, lam = objective(), parameters_of(case.model), optimizer.param_groups[0]["damping"]
        record = optimizer.step(case.inputs, case.targets)
        moved = parameters_of(case.model) - start
        assert math.isclose(record.actual_decrease, before - objective(), rel_tol=1e-9)
        model = -record.predicted_decrease + lam / 2 * float(moved.square().sum())
        assert math.isclose(record.rho, -record.actual_decrease / model, rel_tol=1e-9)


def test_without_damping_in_the_model_rho_tends_to_one():
    found = {}
    for counted in (True, False):
        case = random_case((3, 4, 3), num_examples=9)
        found[counted] = made(
            case, damping=1e3, levenberg={"every": 1, "include_damping": counted}
        ).step(case.inputs, case.targets).rho  # fmt: skip
    assert abs(found[True] - 2) < 1e-2 and abs(found[False] - 1) < 1e-2


def test_gamma_starts_at_the_root_and_candidates_are_bounded():
    rule = GammaSearch(every=20)
    omega = (19 / 20) ** 10
    assert rule.candidates(0.5, 0.01) == pytest.approx((0.5, 0.5 * omega, 0.5 / omega), rel=1e-12)
    assert rule.candidates(0.1, 0.01) == pytest.approx((0.1, 0.1 / omega), rel=1e-12)  # never below √η
    assert GammaSearch(maximum=1.0).candidates(12.2, 0.0) == pytest.approx((1.0, 12.2 * omega) if 12.2 * omega < 1 else (1.0,))
    assert [rule.is_due(steps) for steps in (0, 1, 19, 20, 21, 40)] == [False, False, False, True, False, True]
    case = random_case((3, 4, 3), num_examples=9)
    record = made(case, damping=0.3, weight_decay=0.06).step(case.inputs, case.targets)
    assert math.isclose(record.gamma, 0.6, rel_tol=1e-12)


@pytest.mark.parametrize("favoured, power", [(max, -1), (min, 1)])
def test_gamma_rises_and_falls_to_what_the_model_prefers(favoured, power, monkeypatch):
    """M scripted so that the largest (smallest) γ wins every time; the direction and its inverse are those of the winner."""
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, damping=4.0, gamma_search={"every": 2}, levenberg=None, fisher_type="exact")
    moves = optimizer._moves

    def scripted(gammas, *rest):
        found = moves(gammas, *rest)
        best = favoured(found)
        monkeypatch.setattr(optimizer, "_model_change", lambda move, _: 0.0 if move is found[best][1] else 1.0)
        return found

    monkeypatch.setattr(optimizer, "_moves", scripted)
    gammas = [optimizer.step(case.inputs, case.targets).gamma for _ in range(7)]
    omega = (19 / 20) ** (power * 1.0)
    assert gammas == pytest.approx([2.0, 2.0] + [2 * omega] * 2 + [2 * omega**2] * 2 + [2 * omega**3], rel=1e-12)
    expected = optimizer.invert(optimizer.fisher, gammas[-1] ** 2)
    assert torch.allclose(optimizer.inverse.to_dense(), expected.to_dense(), rtol=1e-10)


def test_at_the_first_steps_everything_is_refreshed():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = METHODS["kfac"](case.model, case.likelihood, update_every=4, invert_every=6, burn_in=3, fisher_type="exact")
    seen = []
    for _ in range(9):
        optimizer.step(case.inputs, case.targets)
        seen.append((id(optimizer.fisher), id(optimizer.inverse), optimizer.fisher, optimizer.inverse))  # kept, so ids differ
    steps = range(1, 9)
    assert [k for k in steps if seen[k][0] != seen[k - 1][0]] == [1, 2, 4, 8]
    assert [k for k in steps if seen[k][1] != seen[k - 1][1]] == [1, 2, 6]


def test_a_moved_slider_starts_gamma_anew():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, damping=0.25)
    optimizer.step(case.inputs, case.targets)
    optimizer.param_groups[0]["damping"] = 4.0
    record = optimizer.step(case.inputs, case.targets)
    assert (record.damping, record.gamma) == (4.0, 2.0)


# ---- averages, traces, saving


def test_averaged_iterates():
    """ξ = min(1 − 1/(k − start + 1), decay): the mean at first, then exponential; lent and taken back."""
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, averaging={"start": 3, "decay": 0.6})
    layout, expected = ParameterLayout(case.model), None
    for k in range(1, 8):
        optimizer.step(case.inputs, case.targets)
        now = layout.parameter_vector()
        if k < 3:
            assert torch.equal(optimizer.averaged_parameters(), now)
            continue
        weight = min(1 - 1 / (k - 2), 0.6)
        expected = now if expected is None else weight * expected + (1 - weight) * now
        assert torch.allclose(optimizer.averaged_parameters(), expected, rtol=1e-13)
    with optimizer.averaged():
        assert torch.allclose(layout.parameter_vector(), expected, rtol=1e-13)
    assert torch.equal(layout.parameter_vector(), now)
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert torch.equal(layout.parameter_vector(), now)


ALL_PARTS = {
    "levenberg": {"every": 2}, "gamma_search": {"every": 3}, "averaging": {"start": 2}, "weight_decay": 0.01,
    "invert_every": 3, "burn_in": 1, "fraction": 0.5,
}  # fmt: skip


def everything(optimizer):
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("blocks", ["diagonal", "tridiagonal"])
@pytest.mark.parametrize("before", [1, 3, 5])
def test_saved_in_the_middle_it_continues_bit_for_bit(blocks, before):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, blocks=blocks, **ALL_PARTS)
    for _ in range(before):
        optimizer.step(case.inputs, case.targets)
    file = io.BytesIO()
    torch.save({"model": case.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    expected = [optimizer.step(case.inputs, case.targets) for _ in range(5)]
    other = random_case((3, 4, 3), seed=5)
    restored = made(other, blocks=blocks, damping=3.0, **ALL_PARTS)
    other.model.load_state_dict(saved["model"])
    restored.load_state_dict(saved["optimizer"])
    found = [restored.step(case.inputs, case.targets) for _ in range(5)]
    names = ("loss", "damping", "gamma", "alpha", "mu", "rho", "actual_decrease", "kl")
    assert [[repr(getattr(r, n)) for n in names] for r in found] == [[repr(getattr(r, n)) for n in names] for r in expected]
    assert torch.equal(parameters_of(other.model), parameters_of(case.model))
    assert torch.equal(restored.averaged_parameters(), optimizer.averaged_parameters())


def test_a_step_that_fails_late_leaves_no_trace(monkeypatch):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(case, **ALL_PARTS)
    for step in range(7):
        before, weights = everything(optimizer), parameters_of(case.model)
        with monkeypatch.context() as patched:
            ahead = optimizer._look_ahead

            def stop(*args, ahead=ahead):
                ahead(*args)
                raise MemoryError

            patched.setattr(optimizer, "_look_ahead", stop)
            with pytest.raises(MemoryError):
                optimizer.step(case.inputs, case.targets)
        assert str(everything(optimizer)) == str(before) and torch.equal(parameters_of(case.model), weights), step
        optimizer.step(case.inputs, case.targets)


# ---- statistics


STATISTICS = ("kfac", "kfac_block_tridiagonal", "kfac_adaptive", "ekfac", "unit_wise", "diagonal")


@pytest.mark.parametrize("method", STATISTICS)
def test_the_mean_over_two_shards_is_the_whole_batchs_statistic(method):
    """One `map` averages all that an optimizer remembers of its batches (EKFAC's variances, in a common basis)."""
    case = random_case((3, 4, 3), num_examples=8)

    def first_statistics(part, share=lambda statistic: statistic):
        optimizer = METHODS[method](case.model, case.likelihood, lr=0.0, fisher_type="exact", share=share)
        optimizer.step(case.inputs[part], case.targets[part])
        return optimizer.statistics

    whole = first_statistics(slice(8))
    sent = []
    first_statistics(slice(4), lambda statistic: sent.append(statistic) or statistic)
    received = iter(sent)

    def mean(statistic):
        other = next(received)
        if method == "ekfac" and len(means):  # the other machine would have used the common basis
            return statistic
        means.append(statistic.map(lambda a, b: (a + b) / 2, other))
        return means[-1]

    means = []
    first_statistics(slice(4, 8), mean)
    assert torch.allclose(means[0].to_dense(), whole[0].to_dense(), rtol=1e-12, atol=1e-15)
    assert len(sent) == len(whole)


# ---- cheaper routes to the same numbers


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_small_batches_go_through_the_rows(method, monkeypatch):
    """K-FAC's products with a gradient of 2 examples, by rows and by whole matrices."""
    routes, found = [], {}
    by_rows = low_rank._by_rows
    monkeypatch.setattr(low_rank, "_by_rows", lambda *args: routes.append(1) or by_rows(*args))
    for cheaper in (True, False):
        if not cheaper:
            monkeypatch.setattr(low_rank, "_is_cheaper", lambda *args: False)
        case = random_case((6, 5, 6), num_examples=2)
        optimizer = METHODS[method](case.model, case.likelihood, damping=0.1, lr=0.1)
        records = [optimizer.step(case.inputs, case.targets) for _ in range(3)]
        found[cheaper] = parameters_of(case.model), [record.kl for record in records]
        assert len(routes) == (6 if method == "kfac" else 0)
    assert (found[True][0] - found[False][0]).abs().max() < 1e-12
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-11)


@pytest.mark.parametrize("width", [1, 95, 96, 97, 200])
def test_large_factors_by_strips(width, monkeypatch):
    monkeypatch.setattr(kfac, "_LARGE", 0)
    rows = torch.randn(20, width)
    gram = kfac._gram(rows, 5)
    assert torch.allclose(gram, torch.einsum("ni,nj->ij", rows, rows) / 5, rtol=1e-12, atol=1e-12)
    assert torch.equal(gram, gram.T)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("name", EVERY_LAYER)
def test_a_loss_pass_has_the_same_loss_and_gradient(name):
    case = EVERY_LAYER[name]()
    layout = ParameterLayout(case.model)
    plain = loss_pass(case.model, case.likelihood, layout, case.inputs, case.targets)
    full = score_pass(case.model, case.likelihood, case.inputs, loss_targets=case.targets)
    assert torch.allclose(plain.loss, full.loss, rtol=1e-12)
    assert torch.allclose(plain.gradient(), full.gradient(), rtol=1e-9, atol=1e-12)


# ---- invariances of undamped steps


def affine_pair(seed=0):
    """A network, and the same function of inputs mapped by x' = B x + c."""
    one, two = (random_case((3, 4, 3), num_examples=40, seed=seed) for _ in range(2))
    B, c = torch.randn(3, 3) + 2 * torch.eye(3), torch.randn(3)
    with torch.no_grad():
        two.model[0].weight.copy_(one.model[0].weight @ torch.linalg.inv(B))
        two.model[0].bias.copy_(one.model[0].bias - two.model[0].weight @ c)
    return one, one.inputs, two, one.inputs @ B.T + c


def sigmoid_pair(seed=0):
    """tanh(s) = 2 σ(2 s) − 1: the same function with the other activation."""
    one, two = (random_case((3, 4, 3), num_examples=40, seed=seed) for _ in range(2))
    two.model[1] = nn.Sigmoid()
    with torch.no_grad():
        two.model[0].weight.mul_(2), two.model[0].bias.mul_(2)
        two.model[2].bias.sub_(one.model[2].weight.sum(1)), two.model[2].weight.mul_(2)
    return one, one.inputs, two, two.inputs


@pytest.mark.parametrize("pair", [affine_pair, sigmoid_pair])
@pytest.mark.parametrize("method", ["kfac", "kfac_block_tridiagonal"])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_undamped_steps_do_not_depend_on_the_parametrization(pair, method, damping):
    """Bernoulli: its output Fisher is regular, so that nothing has to be damped."""
    pictures = []
    one, inputs, two, mapped = pair()
    for case, x in ((one, inputs), (two, mapped)):
        targets = torch.nn.functional.one_hot(case.targets, 3).double()
        optimizer = METHODS[method](case.model, LIKELIHOODS["bernoulli"], lr=0.3, damping=damping, fisher_type="exact")
        for _ in range(3):
            optimizer.step(x, targets)
        pictures.append(case.model(x).detach())
    difference = (pictures[0] - pictures[1]).abs().max() / pictures[0].abs().max()
    assert difference < 1e-8 if damping == 0 else difference > 1e-4


# ---- schedules, refusals


@given(st.integers(1, 2000), st.integers(1, 10**6), st.integers(2, 700))
def test_growing_batches(first, num_examples, full_at):
    if first > num_examples:
        with pytest.raises(ValueError, match="larger than the"):
            exponential_batch(first, num_examples, full_at)
        return
    size = exponential_batch(first, num_examples, full_at)
    sizes = [size(k) for k in range(1, full_at + 3)]
    assert sizes[0] == first and sizes[full_at - 1 :] == [num_examples] * 3
    assert sizes == sorted(sizes)
    b = (full_at - 1) / math.log2(num_examples / first) if num_examples > first else math.inf
    for k in range(1, full_at):
        exact = first * 2 ** ((k - 1) / b)
        assert abs(sizes[k - 1] - exact) <= 1 + 1e-9 * exact


@pytest.mark.parametrize("choices, words", [
    ({"weight_decay": -1.0}, "weight_decay must be a finite number >= 0; got -1.0"),
    ({"levenberg": {"every": 0}}, "every must be a positive integer; got 0"),
    ({"levenberg": {"rate": 1.0}}, r"rate must be in \(0, 1\); got 1.0"),
    ({"levenberg": {"minimum": 2.0, "maximum": 1.0}}, "bounds must satisfy 0 <= minimum <= maximum; got 2.0 and 1.0"),
    ({"gamma_search": {"every": -3}}, "every must be a positive integer; got -3"),
    ({"quadratic": {"fraction": 0.0}}, r"fraction must be in \(0, 1\]; got 0.0"),
    ({"averaging": {"start": 0}}, "averaging needs start >= 1"),
    ({"fraction": 1.5}, r"fraction must be in \(0, 1\]; got 1.5"),
    ({"burn_in": -1}, "burn_in must be an integer >= 0; got -1"),
    ({"blocks": "diagnal"}, "no blocks 'diagnal'. Did you mean 'diagonal'"),
])  # fmt: skip
def test_bad_choices(choices, words):
    with pytest.raises(ValueError, match=words):
        made(random_case((3, 4, 3)), **choices)
    with pytest.raises(ValueError, match="positive integer|integer >= "):
        exponential_batch(0, 5)


def test_the_quadratic_model_is_plain_data():
    assert QuadraticModel() == QuadraticModel(1.0, True, True)
