"""SNGD: steps in NumPy, equalities with other methods, drift, roots, and the reconstructed network that steps alike."""

import copy
import math

import numpy as np
import pytest
import torch
from cases import LIKELIHOODS, case_of, random_case
from layer_cases import GENERIC, LAYERS, Recurrent, layer_case
from oracles import numpy_gradients, numpy_pass, numpy_weights, parameters_of
from torch import nn

from natgrad_lab.errors import NotPositiveDefiniteError, UnsupportedLayerError
from natgrad_lab.fisher import block_diagonal_fisher, dense_fisher
from natgrad_lab.fisher.one_sided import one_sided_from_scores
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.models import convnet, lstm
from natgrad_lab.optimizers import METHODS
from natgrad_lab.optimizers.reconstruction import LocalFisherLayer, reconstruct
from natgrad_lab.optimizers.sngd import path_drift, sngd
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import BlockDiagonal, Kronecker, input_damping


def stepped(case, steps=1, **choices):
    """Parameters after so many steps, and the optimizer."""
    optimizer = sngd(case.model, case.likelihood, **choices)
    for _ in range(steps):
        assert optimizer.step(case.inputs, case.targets).status == "ok"
    return ParameterLayout(case.model).parameter_vector(), optimizer


def directions(make, **choices):
    """The direction of one step in the flat order, and the case it was taken in (weights as before)."""
    case, before = make(), make()
    start = ParameterLayout(case.model).parameter_vector()
    after, optimizer = stepped(case, lr=1.0, **choices)
    return start - after, before, optimizer


# ---- steps


@pytest.mark.parametrize("choices", [
    {"update_every": 1}, {"update_every": 3}, {"update_every": 2, "ema_decay": 0.6}, {"update_every": 2, "momentum": 0.7},
])  # fmt: skip
def test_five_steps_equal_numpy(choices):
    """W ← W − lr V, V ← momentum V + ∇W (E[x̄ x̄ᵀ] + εI)⁻¹ with the statistics of the last refresh."""
    case = random_case((3, 4, 4, 3), num_examples=9)
    weights, x, y = numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy()
    optimizer = sngd(case.model, case.likelihood, lr=0.1, damping=0.03, **choices)
    second, running, velocity = None, None, [0.0] * 3
    for step in range(5):
        _, gradients = numpy_gradients(weights, x, y)
        now = [a.T @ a / len(a) for a in numpy_pass(weights, x)[1]]
        if decay := choices.get("ema_decay"):
            weight = min(1 - 1 / (step + 1), decay)
            now = now if running is None else [weight * m + (1 - weight) * n for m, n in zip(running, now, strict=True)]
            running = now
        if step % choices["update_every"] == 0:
            second = now
        steps = [g @ np.linalg.inv(m + 0.03 * np.eye(len(m))) for g, m in zip(gradients, second, strict=True)]
        velocity = [choices.get("momentum", 0.0) * v + s for v, s in zip(velocity, steps, strict=True)]
        weights = [w - 0.1 * v for w, v in zip(weights, velocity, strict=True)]
        optimizer.step(case.inputs, case.targets)
        for found, expected in zip(numpy_weights(case.model), weights, strict=True):
            assert np.abs(found - expected).max() < 1e-11


def test_records_predict_with_the_metric():
    case = random_case((3, 4, 3), num_examples=9)
    start, (_, gradients) = parameters_of(case.model), numpy_gradients(
        numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy()
    )  # fmt: skip
    second = [a.T @ a / len(a) for a in numpy_pass(numpy_weights(case.model), case.inputs.numpy())[1]]
    record = sngd(case.model, case.likelihood, lr=0.1).step(case.inputs, case.targets)
    update = (parameters_of(case.model) - start).numpy()
    parts = [update[:16].reshape(4, 4), update[16:].reshape(3, 5)]
    half = sum(np.trace(d @ m @ d.T) for d, m in zip(parts, second, strict=True)) / 2
    slope = sum((d * g).sum() for d, g in zip(parts, gradients, strict=True))
    assert math.isclose(record.kl, half, rel_tol=1e-10)
    assert math.isclose(record.predicted_decrease, -slope - half, rel_tol=1e-10)


@pytest.mark.parametrize("dense_up_to", [512, 1])
def test_float32_takes_the_same_path(dense_up_to):
    exact, _ = stepped(random_case((3, 4, 3), num_examples=9), 5, update_every=1)
    case = random_case((3, 4, 3), num_examples=9)
    case.model.float()
    optimizer = sngd(case.model, case.likelihood, update_every=1, dense_up_to=dense_up_to)
    for _ in range(5):
        optimizer.step(case.inputs.float(), case.targets)
    assert optimizer.roots[0].inverse_root.dtype == torch.float32
    assert (parameters_of(case.model).double() - exact).norm() < 1e-5 * exact.norm()


def test_a_moved_damping_counts_at_once_with_the_metric_frozen():
    case = random_case((3, 4, 3), num_examples=9)
    _, optimizer = stepped(case, 2, update_every=10)
    kept, roots = optimizer.fishers, optimizer.roots
    optimizer.step(case.inputs, case.targets)
    assert optimizer.fishers is kept and optimizer.roots is roots
    optimizer.param_groups[0]["damping"] = 1.0
    optimizer.step(case.inputs, case.targets)
    assert optimizer.fishers is kept and optimizer.roots is not roots
    root = optimizer.roots[0].inverse_root.to_dense()
    assert (root @ root @ (kept[0].matrix.to_dense() + torch.eye(4)) - torch.eye(4)).norm() < 1e-13


def test_other_layers_to_train_mean_a_refresh_at_once():
    case = random_case((3, 4, 4, 3), num_examples=9)
    _, optimizer = stepped(case, 1, update_every=100, ema_decay=0.9, momentum=0.9)
    case.model[2].requires_grad_(False)
    assert optimizer.step(case.inputs, case.targets).status == "ok"
    assert [fisher.name for fisher in optimizer.fishers] == ["0", "4"] and len(optimizer.velocity) == 16 + 15


# ---- what it is equal to


def prong_direction(gradient, inputs):
    """∇V in whitened, centred coordinates, mapped back: undamped PRONG. Rows of [W | b]; inputs (N, n) without the one."""
    W, b = gradient[:, :-1], gradient[:, -1]
    mean = inputs.mean(0)
    values, vectors = np.linalg.eigh(np.cov(inputs.T, bias=True))
    U = (vectors / np.sqrt(values)).T  # white inputs are U (h − mean)
    new_V = (W - np.outer(b, mean)) @ U.T  # ∂/∂V of V U (h − mean) + d
    step_W = new_V @ U
    return np.hstack([step_W, (b - step_W @ mean)[:, None]])


def test_undamped_it_is_prong_and_one_sided_kfac():
    found, case, _ = directions(lambda: random_case((3, 4, 3), num_examples=30), damping=0.0, update_every=1)
    weights, x = numpy_weights(case.model), case.inputs.numpy()
    _, gradients = numpy_gradients(weights, x, case.targets.numpy())
    inputs = numpy_pass(weights, x)[1]
    prong = [prong_direction(g, a[:, :-1]).ravel() for g, a in zip(gradients, inputs, strict=True)]
    assert np.abs(found.numpy() - np.concatenate(prong)).max() < 1e-10 * np.abs(found.numpy()).max()
    scores = score_pass(*case.data, loss_targets=case.targets)
    kronecker = one_sided_from_scores(scores, "right", "one").solve(scores.gradient())
    assert (found - kronecker).norm() < 1e-10 * found.norm()


def test_damped_it_is_not_prong():
    """ε is added to E[x̄ x̄ᵀ], its constant included, not to the covariance."""
    found, case, _ = directions(lambda: random_case((3, 3), num_examples=30), damping=0.3, update_every=1)
    scores = score_pass(*case.data, loss_targets=case.targets)
    (block,) = one_sided_from_scores(scores, "right", "one").blocks
    from natgrad_lab.structures import bias_free_damping

    assert (found - input_damping(block, 0.3).solve(scores.gradient())).norm() < 1e-12 * found.norm()
    assert (found - bias_free_damping(block, 0.3).solve(scores.gradient())).norm() > 1e-2 * found.norm()


def damped_solve(block, x, damping):
    """Of a one-sided block: λ on the inputs' factor; (M + λI)⁻¹ for a layer without factors."""
    if isinstance(block, BlockDiagonal):
        parts = x.split([inner.dim for inner in block.blocks])
        return torch.cat([damped_solve(inner, part, damping) for inner, part in zip(block.blocks, parts, strict=True)])
    if not isinstance(block, Kronecker):
        return block.solve(x, damping)
    if torch.equal(block.left, torch.eye(len(block.left))):
        return input_damping(block, damping).solve(x)
    flipped = Kronecker(block.left + damping * torch.eye(len(block.left)), block.right)  # an Embedding: A ⊗ I
    return flipped.solve(x)


@pytest.mark.parametrize("name", [*LAYERS, *GENERIC])
def test_every_kind_of_layer_is_whitened_by_its_inputs(name):
    found, case, optimizer = directions((LAYERS | GENERIC)[name], damping=0.1)
    scores = score_pass(*case.data, loss_targets=case.targets)
    blocks = one_sided_from_scores(scores, "right", "one")
    expected = damped_solve(BlockDiagonal(blocks.blocks), scores.gradient(), 0.1)
    assert (found - expected).norm() < 1e-10 * expected.norm()
    assert {fisher.name.partition("[")[0] for fisher in optimizer.fishers} == {each.layer.name for each in scores.layers}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_the_whole_fisher_refreshed_at_every_step_it_is_natural_gradient_descent(likelihood):
    choices = {"lr": 0.1, "damping": 0.05}
    one, two = (random_case((3, 4, 3), likelihood=likelihood, num_examples=9) for _ in range(2))
    stepped(one, 10, metric="exact", update_every=1, **choices)
    natural = METHODS["exact_ngd"](two.model, two.likelihood, **choices)
    for _ in range(10):
        natural.step(two.inputs, two.targets)
    assert (parameters_of(one.model) - parameters_of(two.model)).norm() < 1e-10 * parameters_of(two.model).norm()


def test_gradient_descent_on_the_transformed_weights_is_natural_gradient_descent():
    """T-10a with nothing of the package but the Fisher: L(G^−½ w') descended by autograd from w' = G^½ w."""
    case = random_case((3, 4, 3), num_examples=9)
    fisher = dense_fisher(*case.data).to_dense() + 0.05 * torch.eye(31)
    values, vectors = torch.linalg.eigh(fisher)
    root, inverse_root = (vectors * values.sqrt()) @ vectors.mT, (vectors / values.sqrt()) @ vectors.mT
    from oracles import unflatten

    w = (root @ parameters_of(case.model)).requires_grad_()
    for _ in range(5):
        outputs = torch.func.functional_call(case.model, unflatten(case.model, inverse_root @ w), (case.inputs,))
        (slope,) = torch.autograd.grad(case.likelihood.loss(outputs, case.targets), w)
        w = (w - 0.1 * slope).detach().requires_grad_()
    found, _ = stepped(case, 5, metric="exact", update_every=5, lr=0.1, damping=0.05)
    assert (found - inverse_root @ w.detach()).norm() < 1e-12 * found.norm()


def test_blocks_are_the_layers_blocks():
    found, case, _ = directions(lambda: random_case((3, 4, 3), num_examples=9), metric="blocks", damping=0.05)
    gradient = score_pass(*case.data, loss_targets=case.targets).gradient()
    expected = block_diagonal_fisher(*case.data).solve(gradient, 0.05)
    assert (found - expected).norm() < 1e-12 * expected.norm()
    whole, *_ = directions(lambda: random_case((3, 4, 3), num_examples=9), metric="exact", damping=0.05)
    assert (found - whole).norm() > 0.05 * whole.norm()


def test_for_one_layer_blocks_are_the_whole_fisher():
    blocks, *_ = directions(lambda: random_case((3, 3), num_examples=9), metric="blocks")
    whole, *_ = directions(lambda: random_case((3, 3), num_examples=9), metric="exact")
    assert (blocks - whole).norm() < 1e-13 * whole.norm()


def test_empirical_metric_uses_the_observed_targets():
    choices = {"metric": "exact", "fisher_type": "empirical", "damping": 0.05}
    found, case, _ = directions(lambda: random_case((3, 4, 3), num_examples=9), **choices)
    fisher = dense_fisher(*case.data, "empirical", targets=case.targets)
    gradient = score_pass(*case.data, loss_targets=case.targets).gradient()
    assert (found - fisher.solve(gradient, 0.05)).norm() < 1e-11 * found.norm()


# ---- the path with G frozen


def drifts(update_every, metric, steps=8):
    case = random_case((3, 4, 3), num_examples=30)
    before = parameters_of(case.model)
    found = list(
        path_drift(*case.data, case.targets, update_every=update_every, steps=steps, metric=metric, lr=0.1, damping=0.1)
    )
    assert torch.equal(parameters_of(case.model), before)
    return found


@pytest.mark.parametrize("metric", ["exact", "inputs"])
def test_refreshed_less_often_it_leaves_the_path(metric):
    """None at T = 1 nor in the first step; more the longer G is kept, at every step from the second on."""
    assert drifts(1, metric) == [0.0] * 8
    curves = [drifts(every, metric) for every in (2, 4, 8)]
    assert all(curve[0] == 0.0 for curve in curves)
    assert 1e-2 < curves[0][-1] < curves[1][-1] < curves[2][-1] < 1
    assert all(a < b for a, b in zip(curves[2], curves[2][1:], strict=False))


# ---- roots


def test_roots_say_how_they_were_made():
    case = random_case((5, 4, 3), num_examples=30)
    _, optimizer = stepped(case, dense_up_to=5, landmarks=3)
    first, second = optimizer.roots
    assert (first.name, first.method) == ("0", "Nystrom, 3 landmarks") and 0.01 < first.residual < 0.5
    assert (second.name, second.method) == ("2", "Denman-Beavers") and second.residual < 1e-14 > second.inverse_residual
    G = case.inputs.new_ones(30, 6)
    G[:, :5] = case.inputs
    G = G.mT @ G / 30
    stand_in = first.root.to_dense() @ first.root.to_dense() - 0.01 * torch.eye(6)
    assert first.residual == pytest.approx(1 - (stand_in.trace() / G.trace()).item(), rel=1e-8)


def test_enough_landmarks_change_nothing():
    dense, _ = stepped(random_case((5, 4, 3), num_examples=9), 3)
    low_rank, optimizer = stepped(random_case((5, 4, 3), num_examples=9), 3, dense_up_to=1, landmarks=6)
    assert {root.method.partition(",")[0] for root in optimizer.roots} == {"Nystrom"}
    assert (low_rank - dense).norm() < 1e-11 * dense.norm()
    fewer, _ = stepped(random_case((5, 4, 3), num_examples=9), 3, dense_up_to=1, landmarks=2)
    assert (fewer - dense).norm() > 1e-2 * dense.norm()


def test_float32_networks_wider_than_their_batch():
    """G has rank 7 and is taken from float32 inputs; landmarks beyond the rank are not looked for in rounding."""
    case = random_case((40, 4, 3), num_examples=7)
    case.model.float()
    optimizer = sngd(case.model, case.likelihood, dense_up_to=8, landmarks=30)
    record = optimizer.step(case.inputs.float(), case.targets)
    assert record.status == "ok" and optimizer.roots[0].method == "Nystrom, 7 landmarks"
    assert optimizer.roots[0].residual < 1e-14


def test_an_embedding_has_the_frequencies_of_its_entries():
    case = LAYERS["Embedding"]()
    _, optimizer = stepped(case)
    tokens = next(fisher for fisher in optimizer.fishers if fisher.name == "tokens")
    counts = np.bincount(case.inputs.numpy().ravel(), minlength=5) / case.inputs.numel()
    assert np.allclose(tokens.matrix.values.numpy(), counts, rtol=1e-15)
    assert optimizer.roots[0].method == "diagonal"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_metric_without_damping_is_refused(dtype):
    case = random_case((12, 3), num_examples=5)  # five examples for thirteen inputs
    case.model.to(dtype)
    before = parameters_of(case.model)
    with pytest.raises(NotPositiveDefiniteError, match="13 x 13 system at damping 0 is singular"):
        sngd(case.model, case.likelihood, damping=0.0).step(case.inputs.to(dtype), case.targets)
    with pytest.raises(NotPositiveDefiniteError):
        optimizer = sngd(case.model, case.likelihood, damping=0.0, dense_up_to=4, landmarks=4)
        optimizer.step(case.inputs.to(dtype), case.targets)
    assert torch.equal(parameters_of(case.model), before)


@pytest.mark.parametrize("choices, words", [
    ({"metric": "input"}, "no metric 'input'. Did you mean 'inputs'"),
    ({"update_every": 0}, "update_every must be a positive integer; got 0"),
    ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\); got 1.0"),
    ({"momentum": -0.1}, r"momentum must be in \[0, 1\); got -0.1"),
    ({"momentum": math.nan}, r"momentum must be in \[0, 1\); got nan"),
    ({"landmarks": 0}, "landmarks must be a positive integer; got 0"),
    ({"dense_up_to": -1}, "dense_up_to must be a positive integer; got -1"),
])  # fmt: skip
def test_bad_choices(choices, words):
    case = random_case((3, 4, 3))
    with pytest.raises(ValueError, match=words):
        sngd(case.model, case.likelihood, **choices)


def test_a_metric_too_large_to_form_is_refused():
    case = random_case((80, 60, 3))
    with pytest.raises(UnsupportedLayerError, match="would be a matrix of 4860 x 4860 parameters .*metric='inputs'"):
        sngd(case.model, case.likelihood, metric="blocks").step(case.inputs, case.targets)


@pytest.mark.parametrize(
    "choices", [{"momentum": 0.8, "ema_decay": 0.5}, {"dense_up_to": 1, "landmarks": 2}, {"metric": "blocks"}]
)
def test_saved_in_the_middle_of_a_period_it_continues_bit_for_bit(choices):
    case = LAYERS["Embedding"]()
    _, optimizer = stepped(case, 3, update_every=4, **choices)
    other = copy.deepcopy(case.model)
    restored = sngd(other, case.likelihood, update_every=4, **choices)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        optimizer.step(case.inputs, case.targets)
        restored.step(case.inputs, case.targets)
    assert all(map(torch.equal, case.model.parameters(), other.parameters()))


# ---- the reconstructed network


RECONSTRUCTED = {
    "MLP": lambda: random_case((3, 4, 4, 3), num_examples=9),
    "without bias": lambda: random_case((3, 4, 3), bias=False, num_examples=9),
    "one layer": lambda: case_of(nn.Linear(3, 3), "gaussian", num_examples=9),
    "frozen layer": lambda: freeze(random_case((3, 4, 4, 3), num_examples=9), "2.weight", "2.bias"),
    "frozen bias": lambda: freeze(random_case((3, 4, 3), num_examples=9), "0.bias"),
    "convnet": lambda: case_of(convnet((1, 4, 4), (2, 3), 3), "categorical", 7, num_inputs=16),
    "GRU without bias": lambda: layer_case(Recurrent(nn.GRU, bias=False, batch_first=True), (3, 2)),
    "LSTM language model's core": lambda: LAYERS["LSTM, classes at every step"](),
    **{
        name: LAYERS[name]
        for name in (
            "Linear on a sequence", "Conv1d", "Conv1d, dilated, same, reflect", "Conv2d", "Conv2d, stride and padding",
            "Conv2d, dilation, same", "Conv2d, valid", "Conv2d, circular", "Conv2d, frozen bias", "LSTM",
            "LSTM, two layers, both directions", "GRU", "GRU, both directions, a state", "RNN",
            "RNN, relu, one step", "a layer run twice", "siamese towers",
        )
    },
}  # fmt: skip


def freeze(case, *names):
    for name in names:
        case.model.get_parameter(name).requires_grad_(False)
    return case


@pytest.mark.parametrize("name", RECONSTRUCTED)
def test_insertion_and_refreshes_leave_the_function_alone(name):
    case = RECONSTRUCTED[name]()
    expected, state = case.model(case.inputs), copy.deepcopy(case.model.state_dict())
    net = reconstruct(case.model)
    assert (net(case.inputs) - expected).abs().max() < 1e-13
    for damping, part in ((1e-2, slice(None)), (1e-4, slice(0, 2))):
        net.damping = damping
        net.refresh(case.inputs[part])
        assert (net(case.inputs) - expected).abs().max() < 1e-10 and net.roots
    assert (net.canonical()(case.inputs) - expected).abs().max() < 1e-10
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())


@pytest.mark.parametrize("name, momentum", [("MLP", 0.0), ("LSTM", 0.0), *((name, 0.8) for name in RECONSTRUCTED)])
def test_plain_sgd_on_it_is_sngd_on_the_model(name, momentum):
    """Over 9 steps with three refreshes; momentum is carried over into the new coordinates."""
    case = RECONSTRUCTED[name]()
    net = reconstruct(case.model, damping=0.05)
    plain = torch.optim.SGD(net.parameters(), lr=0.02, momentum=momentum)
    optimizer = sngd(case.model, case.likelihood, lr=0.02, damping=0.05, update_every=3, momentum=momentum)
    for step in range(9):
        if step % 3 == 0:
            net.refresh(case.inputs, plain)
        plain.zero_grad()
        case.likelihood.loss(net(case.inputs), case.targets).backward()
        plain.step()
        optimizer.step(case.inputs, case.targets)
    found, expected = (ParameterLayout(model).parameter_vector() for model in (net.canonical(), case.model))
    assert (found - expected).norm() < 1e-10 * expected.norm()


def test_momentum_left_behind_is_another_path():
    def path(carried):
        case = random_case((3, 4, 3), num_examples=9)
        net = reconstruct(case.model, case.inputs)
        plain = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(2):
            plain.zero_grad()
            case.likelihood.loss(net(case.inputs), case.targets).backward()
            plain.step()
            net.refresh(case.inputs[:4], plain if carried else None)
        plain.step()
        return parameters_of(net.canonical())

    assert (path(True) - path(False)).norm() > 1e-3


def test_a_local_fisher_layer_is_a_fixed_matrix_before_the_weights():
    case = random_case((3, 4, 3), num_examples=9)
    net = reconstruct(case.model, case.inputs, damping=0.1)
    first = net.network[0]
    x = np.hstack([case.inputs.numpy(), np.ones((9, 1))])
    values, vectors = np.linalg.eigh(x.T @ x / 9 + 0.1 * np.eye(4))
    inverse_root = (vectors / np.sqrt(values)) @ vectors.T
    assert np.abs(first.fishers[0](case.inputs).numpy() - x @ inverse_root).max() < 1e-13
    W = numpy_weights(case.model)[0]
    assert np.abs(first.weights[0].detach().numpy() - W @ np.linalg.inv(inverse_root)).max() < 1e-12
    assert [name for name, _ in net.named_parameters()] == ["network.0.weights.0", "network.2.weights.0"]
    assert not any(buffer.requires_grad for buffer in net.buffers())
    case.likelihood.loss(net(case.inputs), case.targets).backward()
    _, gradients = numpy_gradients(numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy())
    assert np.abs(first.weights[0].grad.numpy() - gradients[0] @ inverse_root).max() < 1e-13


def test_a_local_fisher_layer_starts_as_the_identity():
    layer, x = LocalFisherLayer(3, True), torch.randn(2, 5, 3)
    assert torch.equal(layer(x)[..., :3], x) and (layer(x)[..., 3] == 1).all() and not list(layer.parameters())


def test_a_reconstructed_network_is_copied_saved_and_loaded():
    for make in (RECONSTRUCTED["convnet"], RECONSTRUCTED["LSTM"]):
        case = make()
        net = reconstruct(case.model, case.inputs)
        outputs = net(case.inputs)
        other = reconstruct(case.model)
        other.load_state_dict(net.state_dict())
        assert torch.equal(copy.deepcopy(net)(case.inputs), outputs) and torch.equal(other(case.inputs), outputs)


@pytest.mark.parametrize("name, words", [
    ("Embedding", "before layer 'tokens' \\(Embedding\\): there are forms for Linear, Conv1d, Conv2d, LSTM"),
    ("LayerNorm", "before layer '1' \\(LayerNorm\\)"),
    ("Conv2d of groups", "before layer '0' \\(Conv2d\\): it has 2 groups"),
    ("Conv3d", "before layer '0' \\(Conv3d\\)"),
    ("partly frozen LSTM", "before layer 'core' \\(LSTM\\): it trains only some"),
    ("transformer", "METHODS\\['sngd'\\]"),
])  # fmt: skip
def test_layers_without_a_form_are_refused_by_name(name, words):
    with pytest.raises(UnsupportedLayerError, match=words):
        reconstruct((LAYERS | GENERIC)[name]().model)


def test_a_frozen_embedding_is_left_as_it_is():
    model = lstm(3, 4, 5, vocabulary=5)
    model.embedding.requires_grad_(False)
    tokens = torch.arange(12).reshape(3, 4) % 5
    net = reconstruct(model, tokens)
    assert (net(tokens) - model(tokens)).abs().max() < 1e-12
    assert sorted(root.name for root in net.roots) == ["readout", "recurrent.hh_l0", "recurrent.ih_l0"]


def test_a_state_that_has_no_meaning_in_other_coordinates_is_refused():
    case = random_case((3, 4, 3), num_examples=9)
    net = reconstruct(case.model, case.inputs)
    adam = torch.optim.Adam(net.parameters())
    case.likelihood.loss(net(case.inputs), case.targets).backward()
    adam.step()
    with pytest.raises(ValueError, match="the state 'exp_avg' of Adam has no meaning in other coordinates"):
        net.refresh(case.inputs, adam)


def test_the_language_model_trains():
    """Embedding, LSTM and decoder, all by local Fisher matrices."""
    model, tokens = lstm(3, 4, 5, vocabulary=5), torch.arange(40).reshape(4, 10) % 5
    optimizer = sngd(model, LIKELIHOODS["categorical"], lr=0.05, damping=0.1, update_every=5)
    losses = [optimizer.step(tokens[:, :-1], tokens[:, 1:]).loss for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert {root.name for root in optimizer.roots} == {"embedding", "recurrent.ih_l0", "recurrent.hh_l0", "readout"}
