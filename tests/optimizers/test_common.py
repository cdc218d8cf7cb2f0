"""What every method owes: METHODS x {descends, repeats, equals NumPy, survives save and load, schedules, refuses, ends}."""

import copy
import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import LIKELIHOODS, random_case
from oracles import (
    fisher_from_jacobians,
    flatten,
    gradient,
    linears,
    numpy_factors,
    numpy_fisher,
    numpy_gradients,
    numpy_kfac_direction,
    numpy_weights,
    parameters_of,
    unflatten,
)
from torch import nn

from natgrad_lab.errors import NonFiniteError, NotPositiveDefiniteError, UnsupportedLayerError
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.optimizers import METHODS, StepRecord

methods = pytest.mark.parametrize("method", METHODS)
SECOND_ORDER = [name for name in METHODS if name not in ("sgd", "momentum", "adam")]
natural = pytest.mark.parametrize("method", SECOND_ORDER)
LR = {
    "sgd": 0.3,
    "momentum": 0.1,
    "adam": 0.02,
    "exact_ngd": 0.3,
    "kfac": 0.1,
    "online_ngd": 0.1,
    "diagonal": 0.02,
    "unit_wise": 0.05,
    "kfac_block_tridiagonal": 0.1,
    "kfac_adaptive": 1.0,
    "ekfac": 0.05,
    "sngd": 0.05,
    "rngd": 0.3,
    "prong": 0.3,
    "prong_plus": 0.3,
}
# those with a running estimate of the Fisher, whose options are FisherEstimate's
AVERAGED = ("kfac", "online_ngd", "diagonal", "unit_wise", "kfac_block_tridiagonal", "kfac_adaptive", "ekfac")

WITHOUT_SCORES = ("rngd", "prong", "prong_plus")  # those with no choice of a Fisher


def made(method, case, **choices):
    return METHODS[method](case.model, case.likelihood, **{"lr": LR[method], "damping": 0.05} | choices)


def trained(method, steps, case=None, **choices):
    """The parameters and the records after so many steps."""
    case = case or random_case((3, 4, 3), num_examples=9)
    optimizer = made(method, case, **choices)
    records = [optimizer.step(case.inputs, case.targets) for _ in range(steps)]
    return parameters_of(case.model), records


# ---- steps


@methods
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_descends(method, likelihood, dtype):
    case = random_case((3, 4, 3), likelihood=likelihood, num_examples=9)
    case.model.to(dtype)
    targets = case.targets if likelihood == "categorical" else case.targets.to(dtype)
    optimizer = made(method, case, lr=LR[method] / (10 if likelihood == "gaussian" else 1))
    records = [optimizer.step(case.inputs.to(dtype), targets) for _ in range(10)]
    assert all(record.status == "ok" for record in records)
    assert records[-1].loss < 0.95 * records[0].loss  # 0.925 at most, with the smallest of the learning rates
    assert [record.step for record in records] == list(range(1, 11))


@methods
def test_repeats_bit_for_bit_whatever_the_global_random_state(method):
    torch.manual_seed(1)
    first, records = trained(method, 4)
    torch.manual_seed(2)
    second, again = trained(method, 4)
    assert torch.equal(first, second)
    assert [r.loss for r in records] == [r.loss for r in again]


@methods
def test_records_say_what_happened(method):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer, start = made(method, case), parameters_of(case.model)
    slope = gradient(case.model, case.density, case.inputs, case.targets)
    record = optimizer.step(case.inputs, case.targets)
    assert isinstance(record, StepRecord) and record.step == 1 and record.status == "ok" and record.message == ""
    assert math.isclose(record.loss, float(case.likelihood.nll(outputs_at(case, start), case.targets).mean()), rel_tol=1e-13)
    assert math.isclose(record.grad_norm, float(slope.norm()), rel_tol=1e-12)
    assert math.isclose(record.update_norm, float((parameters_of(case.model) - start).norm()), rel_tol=1e-12)
    assert record.lr == LR[method] and record.seconds > 0
    assert record.damping == 0.05 if method in SECOND_ORDER else math.isnan(record.damping)
    assert all(value >= 0 for value in record.phases.values()) and sum(record.phases.values()) <= record.seconds * 1.001


def outputs_at(case, vector):
    return torch.func.functional_call(case.model, unflatten(case.model, vector), (case.inputs,)).detach()


def numpy_step(method, weights, x, y, lr, damping, state):
    """One step in NumPy from [[W | b], ...]; `state` is carried from step to step."""
    _, grads = numpy_gradients(weights, x, y)
    state["t"] = t = state.get("t", 0) + 1
    if method == "momentum":
        state["m"] = grads = [0.9 * m + g for m, g in zip(state.get("m", [0] * len(grads)), grads, strict=True)]
    if method == "adam":
        state["m"] = [0.9 * m + 0.1 * g for m, g in zip(state.get("m", [0] * len(grads)), grads, strict=True)]
        state["v"] = [0.999 * v + 0.001 * g**2 for v, g in zip(state.get("v", [0] * len(grads)), grads, strict=True)]
        hats = [(m / (1 - 0.9**t), v / (1 - 0.999**t)) for m, v in zip(state["m"], state["v"], strict=True)]
        grads = [m / (np.sqrt(v) + 1e-8) for m, v in hats]
    if method == "exact_ngd":
        flat = np.concatenate([g.ravel() for g in grads])
        flat = np.linalg.solve(numpy_fisher(weights, x) + damping * np.eye(len(flat)), flat)
        ends = np.cumsum([g.size for g in grads])[:-1]
        grads = [part.reshape(g.shape) for part, g in zip(np.split(flat, ends), grads, strict=True)]
    if method.startswith(("kfac", "online_ngd")):
        new, decay = numpy_factors(weights, x), min(1 - 1 / t, 0.95)
        old = state.get("factors", new)
        state["factors"] = [
            tuple(decay * a + (1 - decay) * b for a, b in zip(*pair, strict=True)) for pair in zip(old, new, strict=True)
        ]
        grads = numpy_kfac_direction(state["factors"], grads, damping, method.partition(" ")[2] or "root")
    return [w - lr * g for w, g in zip(weights, grads, strict=True)]


VARIANTS = {
    "sgd": {},
    "momentum": {},
    "adam": {},
    "exact_ngd": {},
    "kfac factored": {"fisher_type": "exact", "damping_form": "factored"},
    "kfac exact": {"fisher_type": "exact", "damping_form": "exact"},
    "online_ngd": {"fisher_type": "exact"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("damping", [1e-3, 0.3])
def test_steps_equal_the_formulas_in_numpy(variant, damping):
    """Three of them, so that momenta and running averages count."""
    method = variant.split()[0]
    case, state = random_case((3, 4, 3), num_examples=9), {}
    optimizer = made(method, case, damping=damping, **VARIANTS[variant])
    weights, x, y = numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy()
    for _ in range(3):
        loss, _ = numpy_gradients(weights, x, y)
        record = optimizer.step(case.inputs, case.targets)
        weights = numpy_step(variant, weights, x, y, LR[method], damping, state)
        assert math.isclose(record.loss, loss, rel_tol=1e-10)
        for found, expected in zip(numpy_weights(case.model), weights, strict=True):
            assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


def test_monte_carlo_kfac_uses_the_targets_its_generator_draws():
    case = random_case((3, 4, 3), num_examples=9)
    generator = torch.Generator().manual_seed(3)
    sampled = case.likelihood.sample(case.model(case.inputs).detach(), 1, generator)[0].numpy()
    weights = numpy_weights(case.model)
    _, grads = numpy_gradients(weights, case.inputs.numpy(), case.targets.numpy())
    factors = numpy_factors(weights, case.inputs.numpy(), sampled)
    expected = numpy_kfac_direction(factors, grads, 0.05, "factored")
    made("kfac", case, seed=3).step(case.inputs, case.targets)
    for found, w, d in zip(numpy_weights(case.model), weights, expected, strict=True):
        assert np.abs(found - (w - 0.1 * d)).max() < 1e-10


@pytest.mark.parametrize("bias", [False, True])
def test_one_undamped_exact_step_solves_linear_regression(bias):
    case = random_case((4, 2), likelihood="gaussian", bias=bias, num_examples=12)
    made("exact_ngd", case, lr=1.0, damping=0.0).step(case.inputs, case.targets)
    assert gradient(case.model, case.density, case.inputs, case.targets).norm() < 1e-10


# ---- the records of natural gradient steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("damping", [1e-4, 1e-1, 1e3])
@pytest.mark.parametrize("fisher_type", ["exact", "empirical"])
def test_exact_ngd_predicts_with_the_fisher_itself(dtype, damping, fisher_type):
    """kl = ½ δᵀFδ and predicted decrease −(gᵀδ + ½ δᵀFδ), also where λ is a thousand times F."""
    case = random_case((3, 4, 3), num_examples=9)
    case.model.to(dtype)
    start = parameters_of(case.model)
    inputs = case.inputs.to(dtype)
    fisher = dense_fisher(case.model, case.likelihood, inputs, fisher_type, targets=case.targets).to_dense().double()
    slope = gradient(case.model, case.density, inputs, case.targets).double()
    record = made("exact_ngd", case, damping=damping, fisher_type=fisher_type).step(inputs, case.targets)
    update = -0.3 * torch.linalg.solve(fisher + damping * torch.eye(len(fisher)), slope)
    kl = float(update @ fisher @ update) / 2
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    assert math.isclose(record.kl, kl, rel_tol=tolerance)
    assert math.isclose(record.predicted_decrease, -float(slope @ update) - kl, rel_tol=tolerance)
    moved = (parameters_of(case.model) - start).double()
    assert (moved - update).norm() < max(tolerance, 1e-3 * (dtype == torch.float32)) * update.norm() + 1e-6 * (
        dtype == torch.float32
    )


def test_kfac_predicts_with_its_own_blocks():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made("kfac", case, fisher_type="exact")
    for _ in range(2):
        slope, start = gradient(case.model, case.density, case.inputs, case.targets), parameters_of(case.model)
        record = optimizer.step(case.inputs, case.targets)
        update = parameters_of(case.model) - start
        kl = float(update @ optimizer.fisher.to_dense() @ update) / 2
        assert math.isclose(record.kl, kl, rel_tol=1e-9)
        assert math.isclose(record.predicted_decrease, -float(slope @ update) - kl, rel_tol=1e-9)


def test_the_predicted_decrease_comes_true_for_small_steps():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made("exact_ngd", case, lr=1e-3)
    first, second = (optimizer.step(case.inputs, case.targets) for _ in range(2))
    assert math.isclose(first.loss - second.loss, first.predicted_decrease, rel_tol=1e-2)


@natural
def test_max_kl_bounds_the_step_and_only_then(method):
    for bound in (1e-4, 1e3):
        free, held = (random_case((3, 4, 3), num_examples=9) for _ in range(2))
        unbounded = made(method, free).step(free.inputs, free.targets)
        record = made(method, held, max_kl=bound).step(held.inputs, held.targets)
        assert math.isclose(record.kl, min(bound, unbounded.kl), rel_tol=1e-9)
        factor = min(1.0, (bound / unbounded.kl) ** 0.5)
        assert math.isclose(record.update_norm, factor * unbounded.update_norm, rel_tol=1e-9)


@pytest.mark.parametrize("every", [1, 3])
def test_kfac_refreshes_and_inverts_when_asked(every):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made("kfac", case, update_every=every, invert_every=2 * every, fisher_type="exact")
    fishers, inverses = [], []
    for _ in range(12):
        optimizer.step(case.inputs, case.targets)
        fishers.append(id(optimizer.fisher))
        inverses.append(id(optimizer.inverse))
    assert [fishers[i] != fishers[i - 1] for i in range(1, 12)] == [i % every == 0 for i in range(1, 12)]
    assert [inverses[i] != inverses[i - 1] for i in range(1, 12)] == [i % (2 * every) == 0 for i in range(1, 12)]
    optimizer.step(case.inputs, case.targets)
    due = optimizer.inverse
    optimizer.step(case.inputs, case.targets)
    assert optimizer.inverse is due
    optimizer.param_groups[0]["damping"] = 1.0  # a moved slider counts at once
    optimizer.step(case.inputs, case.targets)
    assert optimizer.inverse is not due


# ---- saving


@methods
@pytest.mark.parametrize("before", [0, 1, 3])
def test_saved_and_loaded_it_continues_bit_for_bit(method, before):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(method, case)
    for _ in range(before):
        optimizer.step(case.inputs, case.targets)
    file = io.BytesIO()
    torch.save({"model": case.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = [optimizer.step(case.inputs, case.targets) for _ in range(3)]
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = random_case((3, 4, 3), seed=5)
    restored = made(method, other, lr=9.0, damping=7.0)
    other.model.load_state_dict(saved["model"])
    restored.load_state_dict(saved["optimizer"])
    found = [restored.step(case.inputs, case.targets) for _ in range(3)]
    assert torch.equal(parameters_of(other.model), parameters_of(case.model))
    assert [(r.step, r.loss, r.update_norm, r.lr) for r in found] == [(r.step, r.loss, r.update_norm, r.lr) for r in expected]


@methods
def test_a_state_dict_is_a_copy_of_its_moment(method):
    """Steps afterwards do not reach into a state taken before."""
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(method, case)
    optimizer.step(case.inputs, case.targets)
    state = optimizer.state_dict()["natgrad_lab"]  # (PyTorch shares its own buffers, in "state")
    before = copy.deepcopy(state)
    optimizer.step(case.inputs, case.targets)
    assert state["num_steps"] == 1 and str(state) == str(before)


@natural
def test_a_foreign_state_is_refused(method):
    case = random_case((3, 4, 3))
    foreign = torch.optim.SGD(case.model.parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match="no state of .*'natgrad_lab' is missing"):
        made(method, case).load_state_dict(foreign)


# ---- it is a torch optimizer


@methods
def test_a_scheduler_moves_the_learning_rate(method):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(method, case)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    rates = []
    for _ in range(5):
        rates.append(optimizer.step(case.inputs, case.targets).lr)
        scheduler.step()
    assert rates == [LR[method] * factor for factor in (1, 1, 0.5, 0.5, 0.25)]


@methods
def test_hooks_run_once_a_step(method):
    case, calls = random_case((3, 4, 3), num_examples=9), []
    torch.optim.SGD(case.model.parameters(), lr=1.0), torch.optim.Adam(case.model.parameters())  # PyTorch wraps their step now
    optimizer = made(method, case)
    optimizer.register_step_post_hook(lambda *args: calls.append(1))
    optimizer.step(case.inputs, case.targets)
    assert calls == [1]


@methods
def test_groups_have_their_own_learning_rate(method):
    """A layer at rate 0 stays, the rest moves as it would have."""
    case, plain = (random_case((3, 4, 3), num_examples=9) for _ in range(2))
    optimizer = made(method, case)
    group = optimizer.param_groups[0]
    rest = {key: value for key, value in group.items() if key != "params"}
    optimizer.param_groups[:] = [{**rest, "params": group["params"][2:]}, {**rest, "params": group["params"][:2], "lr": 0.0}]
    start = parameters_of(case.model)
    record = optimizer.step(case.inputs, case.targets)
    made(method, plain).step(case.inputs, case.targets)
    assert torch.equal(parameters_of(case.model)[:16], start[:16])
    assert torch.equal(parameters_of(case.model)[16:], parameters_of(plain.model)[16:])
    assert math.isclose(record.update_norm, float((parameters_of(case.model) - start).norm()), rel_tol=1e-12)


@methods
def test_frozen_parameters_do_not_move(method):
    case = random_case((3, 4, 4, 3), num_examples=9)
    case.model[2].requires_grad_(False)
    kept = [p.detach().clone() for p in case.model[2].parameters()]
    optimizer = made(method, case)
    for _ in range(3):
        assert optimizer.step(case.inputs, case.targets).status == "ok"
    assert all(map(torch.equal, kept, case.model[2].parameters()))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


@methods
def test_a_layer_frozen_later_does_not_move_either(method):
    case = random_case((3, 4, 4, 3), num_examples=9)
    optimizer = made(method, case, **({"ema_decay": 0.0} if method in AVERAGED else {}))
    optimizer.step(case.inputs, case.targets)
    case.model[2].requires_grad_(False)
    case.model[2].weight.grad = torch.ones(4, 4)
    kept = [p.detach().clone() for p in case.model[2].parameters()]
    assert optimizer.step(case.inputs, case.targets).status == "ok"
    assert all(map(torch.equal, kept, case.model[2].parameters()))


@methods
def test_a_step_leaves_grad_modes_and_random_state_alone(method):
    case = random_case((3, 4, 3), num_examples=9)
    mine = torch.ones(4, 3)
    case.model[0].weight.grad = mine
    state, training = torch.get_rng_state(), [m.training for m in case.model.modules()]
    made(method, case).step(case.inputs, case.targets)
    assert case.model[0].weight.grad is mine and torch.equal(mine, torch.ones(4, 3))
    assert case.model[2].weight.grad is None
    assert torch.equal(state, torch.get_rng_state()) and training == [m.training for m in case.model.modules()]
    assert torch.is_grad_enabled() and not any(m._forward_hooks for m in case.model.modules())
    assert all(p.requires_grad for p in case.model.parameters())


@methods
def test_inside_no_grad_it_steps_the_same(method):
    expected, _ = trained(method, 2)
    with torch.no_grad():
        found, _ = trained(method, 2)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["sgd", "momentum", "adam"])
def test_first_order_methods_train_what_has_no_fisher(method):
    """Convolutions, batch norm in train mode, dropout: only the loss is needed."""
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.BatchNorm1d(6), nn.Dropout(0.1))
    model.append(nn.Linear(6, 3))
    optimizer = METHODS[method](model, LIKELIHOODS["categorical"], lr=0.05)
    inputs, targets = torch.randn(16, 4), torch.arange(16) % 3
    losses = [optimizer.step(inputs, targets).loss for _ in range(40)]
    assert losses[-1] < losses[0]


# ---- refusals and ends


@methods
@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_bad_learning_rates(method, lr):
    case = random_case((3, 4, 3), num_examples=9)
    with pytest.raises(ValueError, match=f"lr must be a finite number >= 0; got {lr}"):
        made(method, case, lr=lr)
    optimizer = made(method, case)
    optimizer.param_groups[0]["lr"] = lr
    before = parameters_of(case.model)
    with pytest.raises(ValueError, match=f"lr must be a finite number >= 0; got {lr}"):
        optimizer.step(case.inputs, case.targets)
    assert torch.equal(parameters_of(case.model), before)


@natural
@pytest.mark.parametrize("choices, words", [
    ({"damping": -1.0}, "damping must be a finite number >= 0; got -1.0"),
    ({"damping": math.nan}, "damping must be a finite number >= 0; got nan"),
    ({"max_kl": 0.0}, "max_kl must be a positive number of nats, or None; got 0.0"),
    ({"max_kl": math.nan}, "max_kl must be a positive number"),
    ({"fisher_type": "exat"}, "no fisher_type 'exat'. Did you mean 'exact'"),
])  # fmt: skip
def test_bad_choices(method, choices, words):
    if method in WITHOUT_SCORES and "fisher_type" in choices:
        choices, words = {"lr": -1.0}, "lr must be a finite number >= 0; got -1.0"
    with pytest.raises(ValueError, match=words):
        made(method, random_case((3, 4, 3)), **choices)


@pytest.mark.parametrize("choices, words", [
    ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\); got 1.0"),
    ({"ema_decay": -0.1}, r"ema_decay must be in \[0, 1\)"),
    ({"update_every": 0}, "update_every must be a positive integer; got 0"),
    ({"invert_every": -2}, "invert_every must be a positive integer; got -2"),
    ({"num_samples": 0}, "num_samples must be a positive integer; got 0"),
])  # fmt: skip
def test_bad_choices_of_kfac(choices, words):
    with pytest.raises(ValueError, match=words):
        made("kfac", random_case((3, 4, 3)), **choices)


@natural
def test_a_damping_moved_to_a_bad_value_is_refused(method):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(method, case)
    optimizer.param_groups[0]["damping"] = -1.0
    with pytest.raises(ValueError, match="damping must be a finite number >= 0; got -1.0"):
        optimizer.step(case.inputs, case.targets)


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [1e10, 1e38, 1e300])
@pytest.mark.filterwarnings("ignore::natgrad_lab.errors.NumericalWarning")
def test_a_diverging_run_ends_with_a_record_and_finite_parameters(method, dtype, lr):
    """Or with the error that names the singular system; in either case the parameters are the last good ones."""
    case = random_case((3, 8, 3), "relu", likelihood="gaussian", num_examples=9)
    case.model.to(dtype)
    optimizer = made(method, case, lr=lr)
    for _ in range(50):
        before = parameters_of(case.model)
        try:
            record = optimizer.step(case.inputs.to(dtype), case.targets.to(dtype))
        except NotPositiveDefiniteError:
            break
        if record.status != "ok":
            assert record.status == "diverged" and record.message
            break
        assert torch.isfinite(parameters_of(case.model)).all()
    else:
        assert method == "adam" or method in AVERAGED  # Adam's steps are bounded by lr, which float64 can bear
        return
    assert torch.equal(parameters_of(case.model), before)


@natural
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_step_leaves_no_trace(method, interruption, monkeypatch):
    """Sampled targets and running averages included: the next step is the one it would have been."""
    expected, _ = trained(method, 3)
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(method, case)
    optimizer.step(case.inputs, case.targets)

    before_the_update = optimizer._look_ahead

    def stop(*args):
        before_the_update(*args)
        raise interruption

    with monkeypatch.context() as patched:
        patched.setattr(optimizer, "_look_ahead", stop)
        with pytest.raises(interruption):
            optimizer.step(case.inputs, case.targets)
    for _ in range(2):
        optimizer.step(case.inputs, case.targets)
    assert torch.equal(parameters_of(case.model), expected)


@methods
def test_weights_broken_between_steps_end_the_run(method):
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made(method, case)
    optimizer.step(case.inputs, case.targets)
    with torch.no_grad():
        case.model[0].weight[1, 1] = math.nan
    record = optimizer.step(case.inputs, case.targets)
    assert record.status == "diverged" and record.step == 2 and record.message and math.isnan(record.loss)


@methods
def test_a_first_step_on_broken_weights_is_an_error(method):
    case = random_case((3, 4, 3), num_examples=9)
    with torch.no_grad():
        case.model[0].weight[1, 1] = math.nan
    with pytest.raises(NonFiniteError, match="0.weight"):
        made(method, case).step(case.inputs, case.targets)


@methods
def test_models_without_a_flat_order_are_refused_when_made(method):
    shared = nn.Linear(3, 3)
    with pytest.raises(UnsupportedLayerError, match="tied weights"):
        METHODS[method](nn.Sequential(shared, nn.Tanh(), shared), LIKELIHOODS["categorical"])


@methods
def test_a_larger_damping_means_a_shorter_step(method):
    norms, steps = [], 2 if method == "rngd" else 1  # whose first step is gradient descent
    for damping in (1e-3, 1e-1, 10.0):
        _, records = trained(method, steps, damping=damping)
        norms.append(records[-1].update_norm)
    assert norms == sorted(norms, reverse=True) and (norms[0] > norms[-1]) == (method in SECOND_ORDER)


def test_exact_ngd_says_its_route_and_residual():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = made("exact_ngd", case)
    optimizer.step(case.inputs, case.targets)
    fisher = fisher_from_jacobians(random_case((3, 4, 3), num_examples=9).model, case.density, case.inputs)
    solution = optimizer.solution
    residual = (fisher @ solution.direction + 0.05 * solution.direction - solution.gradient).norm() / solution.gradient.norm()
    assert solution.route in ("dense", "gram (range form)") and residual < 1e-13 and solution.residual < 1e-13


def test_methods_are_these_and_flatten_is_what_it_says():
    assert list(METHODS)[:10] == [
        *("sgd", "momentum", "adam", "exact_ngd", "diagonal", "unit_wise"),
        *("kfac", "kfac_block_tridiagonal", "kfac_adaptive", "ekfac"),
    ]
    model = nn.Linear(2, 2)
    assert torch.equal(flatten(model, list(model.parameters())), torch.cat([model.weight, model.bias[:, None]], 1).flatten())
    assert linears(model) == [model]


def test_no_method_loads_the_compiler_of_pytorch():
    """torch._dynamo takes longer to import than a lesson's steps take; PyTorch's own optimizers load it when they are made."""
    code = """
import sys, torch
from natgrad_lab import datasets, likelihoods, models, optimizers
data = datasets.digits().select(slice(20))
for name in ("sgd", "momentum", "adam", "exact_ngd", "kfac", "kfac_adaptive", "prong", "sngd"):
    optimizer = optimizers.METHODS[name](models.mlp((64, 10)), likelihoods.Categorical(), lr=0.1, damping=0.1)
    assert optimizer.step(data.inputs, data.targets).status == "ok", name
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stdout + done.stderr
