"""PRONG on the model's own weights: formulas in NumPy, its equalities with other methods, statistics, momenta, refusals."""

import copy
import io
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from cases import LIKELIHOODS, case_of, random_case
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import layer_case, pictures
from oracles import flat_gradient, gradient, numpy_gradients, numpy_pass, numpy_weights
from torch import nn

from natgrad_lab import fisher
from natgrad_lab.errors import NonFiniteError, NotPositiveDefiniteError, NumericalWarning, UnsupportedLayerError
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.optimizers import METHODS
from natgrad_lab.optimizers.prong import Prong, prong, prong_plus
from natgrad_lab.optimizers.whitening import InputMoments, whitened_layers
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import BlockDiagonal, Dense, bias_free_damping

TIGHT = 1e-10  # float64, sizes below 10, variances and dampings within 1e-3 .. 1e2: 1e-16 times condition numbers


def vector(model):
    return ParameterLayout(model).parameter_vector()


def moved(optimizer, case):
    """The update of one step in the flat order, and its record."""
    before = vector(case.model)
    record = optimizer.step(case.inputs, case.targets)
    return vector(case.model) - before, record


# ---- formulas


def numpy_prong(weights, x, y, statistics, lr, damping, variance_damping=None):
    """One step from [[W | b], ...] with moments of the inputs that `statistics` gave; the second term is D²."""
    _, grads = numpy_gradients(weights, x, y)
    _, inputs, _ = numpy_pass(weights, x)
    after = []
    for w, g, own, seen in zip(weights, grads, inputs, statistics, strict=True):
        h, c = seen[:, :-1], seen[:, :-1].mean(0)
        covariance = (h - c).T @ (h - c) / len(h)
        if variance_damping is None:
            inverse = np.linalg.inv(covariance + damping * np.eye(len(c)))
        else:
            values, vectors = np.linalg.eigh(covariance)
            U = (vectors / np.sqrt(values + damping)).T
            D = 1 / np.sqrt(((own[:, :-1] - c) @ U.T).var(0) + variance_damping)
            inverse = (D[:, None] * U).T @ (D[:, None] * U)
        dW = -lr * (g[:, :-1] - np.outer(g[:, -1], c)) @ inverse
        after.append(w + np.hstack([dW, (-lr * g[:, -1] - dW @ c)[:, None]]))
    return after


@pytest.mark.parametrize("variance_damping", [None, 0.2])
@pytest.mark.parametrize("damping", [1e-3, 0.3, 100.0])
@pytest.mark.parametrize("every", [1, 3])
def test_steps_equal_the_formulas_in_numpy(variance_damping, damping, every):
    """Five steps on three different batches; more examples than units, so that eigenvectors are unique."""
    case = random_case((3, 4, 3), num_examples=36)
    optimizer = Prong(
        case.model, case.likelihood, lr=0.3, damping=damping, reparametrize_every=every, variance_damping=variance_damping
    )
    weights = numpy_weights(case.model)
    for step in range(5):
        batch = slice(12 * (step % 3), 12 * (step % 3) + 12)
        x, y = case.inputs[batch], case.targets[batch]
        if step % every == 0:
            _, statistics, _ = numpy_pass(weights, x.numpy())
        loss, _ = numpy_gradients(weights, x.numpy(), y.numpy())
        record = optimizer.step(x, y)
        weights = numpy_prong(weights, x.numpy(), y.numpy(), statistics, 0.3, damping, variance_damping)
        assert math.isclose(record.loss, loss, rel_tol=1e-10)
        for found, expected in zip(numpy_weights(case.model), weights, strict=True):
            assert np.abs(found - expected).max() < TIGHT * np.abs(expected).max()


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_it_is_kfac_with_white_scores(damping, likelihood):
    """Update, kl and predicted decrease by the one-sided Fisher I ⊗ A; with damping 0 that is g A⁻¹, homogeneous inputs."""
    case = random_case((3, 4, 3), num_examples=20, likelihood=likelihood)
    F = fisher.one_sided_input_fisher(*case.data, scale="one")
    g = score_pass(*case.data, loss_targets=case.targets).gradient()
    damped = BlockDiagonal(tuple(bias_free_damping(block, damping) for block in F.blocks))
    optimizer = prong(case.model, case.likelihood, lr=0.2, damping=damping, reparametrize_every=1)
    update, record = moved(optimizer, case)
    expected = -0.2 * damped.solve(g)
    assert (update - expected).norm() < TIGHT * expected.norm()
    assert (optimizer.fisher.to_dense() - F.to_dense()).norm() < TIGHT * F.to_dense().norm()
    kl = float(update @ F.matmul(update)) / 2
    assert math.isclose(record.kl, kl, rel_tol=1e-9)
    assert math.isclose(record.predicted_decrease, -float(g @ update) - kl, rel_tol=1e-9)
    if damping == 0:
        assert (update + 0.2 * F.solve(g)).norm() < TIGHT * update.norm()


def test_undamped_it_is_kfac_without_G_and_not_kfac():
    """g A⁻¹ per layer where K-FAC has G⁻¹ g A⁻¹."""
    case = random_case((3, 4, 3), num_examples=20)
    K = fisher.kfac_fisher(*case.data)
    g = score_pass(*case.data, loss_targets=case.targets).gradient()
    update, _ = moved(prong(case.model, case.likelihood, lr=1.0, damping=0.0), case)
    sizes = [block.dim for block in K.blocks]
    matrices = [part.reshape(len(block.left), -1) for part, block in zip(g.split(sizes), K.blocks, strict=True)]
    parts = torch.cat([(V @ block.right.inverse()).flatten() for V, block in zip(matrices, K.blocks, strict=True)])
    assert (update + parts).norm() < TIGHT * parts.norm()
    kfac = K.blocks[0].solve(g[: K.blocks[0].dim], 0.0)
    assert (update[: len(kfac)] + kfac).norm() > 0.1 * kfac.norm()


@pytest.mark.parametrize("bias", [False, True])
def test_one_undamped_step_solves_linear_regression(bias):
    """One layer, Gaussian of variance 1: G = I, so PRONG is the natural gradient."""
    case = case_of(nn.Linear(4, 2, bias=bias), "gaussian", num_examples=12, num_inputs=4, num_outputs=2)
    unit = type(case.likelihood)(1.0)
    prong(case.model, unit, lr=1.0, damping=0.0).step(case.inputs, case.targets)
    assert gradient(case.model, ("gaussian", 1.0), case.inputs, case.targets).norm() < TIGHT


@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_without_a_bias_inputs_are_not_centred(damping):
    case = random_case((3, 4, 3), bias=False, num_examples=20)
    g = gradient(case.model, case.density, case.inputs, case.targets)
    with torch.no_grad():
        hidden = [case.inputs, case.model[:2](case.inputs)]
    update, _ = moved(prong(case.model, case.likelihood, lr=1.0, damping=damping), case)
    for part, slope, h, out in zip(update.split([12, 12]), g.split([12, 12]), hidden, (4, 3), strict=True):
        expected = -slope.view(out, -1) @ torch.linalg.inv(h.T @ h / 20 + damping * torch.eye(h.shape[1]))
        assert (part.view(out, -1) - expected).norm() < TIGHT * expected.norm()


def test_a_frozen_bias_is_not_moved_and_inputs_are_not_centred():
    case = random_case((3, 4, 3), num_examples=20)
    case.model[0].bias.requires_grad_(False)
    kept = case.model[0].bias.clone()
    before = case.model[0].weight.detach().clone()
    slope = torch.autograd.grad(case.likelihood.loss(case.model(case.inputs), case.targets), case.model[0].weight)[0]
    moved(prong(case.model, case.likelihood, lr=1.0, damping=0.1), case)
    second = case.inputs.T @ case.inputs / 20
    expected = -slope @ torch.linalg.inv(second + 0.1 * torch.eye(3))
    assert torch.equal(case.model[0].bias, kept)
    assert (case.model[0].weight - before - expected).norm() < TIGHT


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_undamped_at_every_step_it_is_sngd(momentum):
    """Both descend on the weights of white inputs; the root is another one, and the constant is whitened along or centred."""
    ends = []
    for method, options in (("prong", {"reparametrize_every": 1}), ("sngd", {"metric": "inputs", "update_every": 1})):
        case = random_case((3, 4, 3), num_examples=20)
        optimizer = METHODS[method](case.model, case.likelihood, lr=0.2, damping=0.0, momentum=momentum, **options)
        for _ in range(5):
            optimizer.step(case.inputs, case.targets)
        ends.append(vector(case.model))
    assert (ends[0] - ends[1]).norm() < 1e-9 * ends[0].norm()


# ---- layers


def convolution_direction(module, images, slope_W, slope_b, damping, bias=True):
    """By loops over places of the kernel: channels whitened by pixels inside the picture, the bias takes up the mean."""
    pixels = images.movedim(1, -1).reshape(-1, images.shape[1])
    c = pixels.mean(0) if bias else torch.zeros(images.shape[1])
    inverse = torch.linalg.inv((pixels - c).T @ (pixels - c) / len(pixels) + damping * torch.eye(len(c)))
    W, b = torch.zeros_like(slope_W), slope_b.clone()
    for k in np.ndindex(*slope_W.shape[2:]):
        at = (slice(None), slice(None), *k)
        W[at] = (slope_W[at] - torch.outer(slope_b, c)) @ inverse if bias else slope_W[at] @ inverse
        b -= W[at] @ c
    return W, b


CONVOLUTIONS = {
    "1d": lambda: pictures(nn.Conv1d(2, 3, 3, padding=1), shape=(2, 6), num_examples=9),
    "2d, padded and strided": lambda: pictures(nn.Conv2d(2, 3, (3, 2), padding=1, stride=2), num_examples=9),
    "2d, reflected": lambda: pictures(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), num_examples=9),
    "2d, no bias": lambda: pictures(nn.Conv2d(2, 3, 3, padding="same", bias=False), num_examples=9),
    "3d": lambda: pictures(nn.Conv3d(2, 2, 2, padding=1), shape=(2, 2, 2, 3), num_examples=9),
    "one place": lambda: pictures(nn.Conv2d(2, 3, 1), num_examples=9),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_whiten_their_channels(name):
    case = CONVOLUTIONS[name]()
    module, bias = case.model[0], case.model[0].bias is not None
    wanted = list(module.parameters())
    slopes = torch.autograd.grad(case.likelihood.loss(case.model(case.inputs), case.targets), wanted)
    before = [p.detach().clone() for p in wanted]
    slope_b = slopes[1] if bias else torch.zeros(len(slopes[0]))
    expected = convolution_direction(module, case.inputs, slopes[0], slope_b, 0.1, bias)
    optimizer = prong(case.model, case.likelihood, lr=0.5, damping=0.1)
    update, record = moved(optimizer, case)
    for p, old, d in zip(wanted, before, expected, strict=False):
        assert (p - old + 0.5 * d).norm() < TIGHT * d.norm()
    blocks = BlockDiagonal(tuple(bias_free_damping(b, 0.1) if bias or i else
                                 type(b)(b.left, b.right + 0.1 * torch.eye(len(b.right)))
                                 for i, b in enumerate(optimizer.fisher.blocks)))  # fmt: skip
    g = flat_gradient(case.model, case.likelihood.loss(case.model(case.inputs), case.targets))
    with torch.no_grad():  # its metric, formed, says the same: update = −lr (metric + damping)⁻¹ g at the old weights
        for parameter, part in ParameterLayout(case.model).split(update):
            parameter.sub_(part)
    g = flat_gradient(case.model, case.likelihood.loss(case.model(case.inputs), case.targets))
    assert (blocks.solve(g) * -0.5 - update).norm() < 1e-9 * update.norm()
    assert math.isclose(record.kl, float(update @ optimizer.fisher.matmul(update)) / 2, rel_tol=1e-9)


def test_a_convolution_over_one_place_is_a_linear_layer():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, 5, generator=generator), torch.randint(2, (6,), generator=generator)
    linear = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2))
    conv = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2))
    with torch.no_grad():
        conv[0].weight.copy_(linear[0].weight[:, :, None])
        conv[0].bias.copy_(linear[0].bias)
        conv[3].bias.copy_(linear[3].bias)  # inputs come channel by channel here, position by position there
        conv[3].weight.copy_(linear[3].weight.view(2, 5, 4).mT.reshape(2, 20))
    one, other = (prong(model, LIKELIHOODS["categorical"], damping=0.1, reparametrize_every=2) for model in (linear, conv))
    for _ in range(5):
        a, b = one.step(x.mT, y), other.step(x, y)
        assert math.isclose(a.loss, b.loss, rel_tol=1e-11) and math.isclose(a.kl, b.kl, rel_tol=1e-9)
    assert (conv[0].weight[:, :, 0] - linear[0].weight).norm() < TIGHT


def test_normalizations_get_the_plain_gradient_and_what_plain_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 3))
    case = case_of(model, "categorical", num_examples=20)
    slope = flat_gradient(model, case.likelihood.loss(model(case.inputs), case.targets))
    optimizer = prong(model, case.likelihood, lr=1.0, damping=0.1, plain=("3",))
    update, record = moved(optimizer, case)
    assert (update[16:] + slope[16:]).norm() < TIGHT and (update[:16] + slope[:16]).norm() > 0.1 * slope[:16].norm()
    assert [layer.name for layer in whitened_layers(ParameterLayout(model), ("3",))] == ["0"]
    F = optimizer.fisher.to_dense()
    assert torch.equal(F[16:, 16:], torch.eye(len(F) - 16))
    assert math.isclose(record.kl, float(update @ F @ update) / 2, rel_tol=1e-10)


def test_everything_plain_is_gradient_descent():
    case = random_case((3, 4, 3), num_examples=9)
    slope = gradient(case.model, case.density, case.inputs, case.targets)
    update, _ = moved(prong(case.model, case.likelihood, lr=0.3, plain=("",) + ("0", "2")), case)
    assert (update + 0.3 * slope).norm() < TIGHT


def test_batch_norm_and_dropout_may_train():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 3))
    optimizer = prong(model, LIKELIHOODS["categorical"], lr=0.1, statistics_inputs=torch.randn(10, 4), reparametrize_every=3)
    inputs, targets = torch.randn(16, 4), torch.arange(16) % 3
    losses = [optimizer.step(inputs, targets).loss for _ in range(30)]
    assert losses[-1] < losses[0]
    assert int(model[1].num_batches_tracked) == 30  # statistics passes leave running averages alone


# ---- statistics


def test_statistics_are_taken_every_so_many_steps():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer, seen = prong(case.model, case.likelihood, reparametrize_every=3), []
    for _ in range(7):
        optimizer.step(case.inputs, case.targets)
        seen.append(id(optimizer.moments["0"]))
    assert [a != b for a, b in zip(seen, seen[1:], strict=False)] == [False, False, True, False, False, True]


def test_statistics_of_other_inputs_and_of_some_of_them():
    """All of them; three of them, which the seed chooses; and the batch is then not looked at."""
    case, other = random_case((3, 4, 3), num_examples=9), 2 + torch.randn(12, 3)
    optimizer = prong(case.model, case.likelihood, statistics_inputs=other)
    optimizer.step(case.inputs, case.targets)
    assert (optimizer.moments["0"].mean - other.mean(0)).norm() < TIGHT
    few = [
        prong(random_case((3, 4, 3)).model, case.likelihood, num_samples=3, statistics_inputs=other, seed=s) for s in (0, 0, 1)
    ]
    for each in few:
        each.step(case.inputs, case.targets)
    means = [each.moments["0"].mean for each in few]
    triples = [other[list(t)].mean(0) for t in itertools.combinations(range(12), 3)]
    assert all(min(float((mean - each).norm()) for each in triples) < TIGHT for mean in means)
    assert torch.equal(means[0], means[1]) and not torch.equal(means[0], means[2])


def test_a_moved_damping_counts_at_once():
    """The next step is that of whitening with the new damping by the statistics there are."""
    case, twin = (random_case((3, 4, 3), num_examples=20) for _ in range(2))
    optimizer = prong(case.model, case.likelihood, damping=0.1, reparametrize_every=100)
    optimizer.step(case.inputs, case.targets)
    weights, x, y = numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy()
    _, statistics, _ = numpy_pass(numpy_weights(twin.model), x)
    optimizer.param_groups[0]["damping"] = 2.0
    optimizer.step(case.inputs, case.targets)
    for found, expected in zip(numpy_weights(case.model), numpy_prong(weights, x, y, statistics, 0.3, 2.0), strict=True):
        assert np.abs(found - expected).max() < TIGHT


@given(
    st.integers(1, 8), st.integers(1, 5), st.floats(-6, 6), st.floats(-6, 6), st.floats(-3, 3), st.integers(0, 2**16)
)  # fmt: skip
def test_white_inputs_have_the_variances_that_damping_leaves(count, width, scale, shift, log_damping, seed):
    """T-3b: mean 0 and covariance diag(λ/(λ + damping)), for inputs of any size, also fewer than units, and dead ones."""
    generator = torch.Generator().manual_seed(seed)
    h = 10**scale * torch.randn(count, width, generator=generator) + 10**shift
    h[:, 0] = 10**shift  # dead
    damping = 10 ** (log_damping + 2 * scale)
    moments = InputMoments.of(h, True, "layer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        whitening = moments.whitening(damping, torch.float64, "layer")
    white = whitening.whiten(h)
    expected = (moments.eigenvalues / (moments.eigenvalues + damping)).diag()
    # h − c carries 1e-16 of the shift, which U multiplies by at most damping^-½; the rest is rounding of numbers up to 1
    tolerance = 1e-12 + 1e-14 * 10**shift / damping**0.5
    tolerance = max(tolerance, 10 * tolerance**2)
    assert float((white.mT @ white / count - expected).abs().max()) < tolerance
    assert float(white.mean(0).abs().max()) < tolerance
    assert torch.linalg.matrix_norm(whitening.U @ whitening.U_inverse - torch.eye(width)) < 1e-11


def test_after_whitening_the_input_factor_is_white():
    """T-3e: in coordinates (V, d) the metric of every layer is I ⊗ diag(λ/(λ + damping), 1); undamped it is I."""
    case = random_case((3, 4, 3), num_examples=20)
    for damping in (0.0, 0.5):
        optimizer = prong(copy.deepcopy(case.model), case.likelihood, damping=damping)
        optimizer.step(case.inputs, case.targets)
        for name, block in zip(("0", "2"), optimizer.fisher.blocks, strict=True):
            whitening, values = optimizer.whitenings[name], optimizer.moments[name].eigenvalues
            size = len(values)
            M = torch.eye(size + 1)  # [V | d] ↦ [W | b] on rows
            M[:size, :size], M[:size, -1] = whitening.U, -whitening.U @ whitening.c
            left = torch.cat([values / (values + damping), torch.ones(1)])
            assert (M @ block.right @ M.T - left.diag()).abs().max() < TIGHT


def test_prong_plus_has_unit_variances_on_every_batch():
    """Var[D U (h − c)] = v/(v + variance_damping) on the step's own batch, whatever the last reparametrization saw."""
    case = random_case((3, 4, 3), num_examples=40)
    optimizer = prong_plus(case.model, case.likelihood, variance_damping=1e-9, reparametrize_every=10)
    for start in (0, 20):
        batch = slice(start, start + 20)
        optimizer.step(case.inputs[batch], case.targets[batch])
        white = optimizer.whitenings["0"].whiten(case.inputs[batch])
        D = (optimizer.metrics["0"].covariance[1] + 1e-9).rsqrt()
        assert ((D * white).var(0, correction=0) - 1).abs().max() < 1e-7
        F = optimizer.fisher.blocks[0].right
        h, c = case.inputs[batch], optimizer.whitenings["0"].c
        E = optimizer.moments["0"].eigenvectors
        along = E @ ((h - h.mean(0)) @ E).var(0, correction=0).diag() @ E.T
        assert (F[:3, :3] - along - torch.outer(c, c)).abs().max() < TIGHT


@pytest.mark.parametrize("variance_damping", [None, 0.1])
def test_dead_units_and_fewer_samples_than_units_do_no_harm(variance_damping):
    """Dead inputs have no gradient in white coordinates: their weights stay as they are, whatever 1/damping is."""
    case = random_case((8, 6, 3), "relu", num_examples=4)
    case.inputs[:, :3] = torch.tensor([0.0, 1.0, -2.0])
    with torch.no_grad():
        case.model[0].bias[0] = -100.0  # a dead hidden unit
    optimizer = Prong(case.model, case.likelihood, lr=0.1, damping=1e-3, variance_damping=variance_damping)
    before = case.model[0].weight.detach().clone()
    records = [optimizer.step(case.inputs, case.targets) for _ in range(20)]
    assert records[-1].loss < records[0].loss and all(record.status == "ok" for record in records)
    # the eigenvectors of the null space carry rounding of 1e-16, times 1/damping, times 20 steps
    assert (case.model[0].weight[:, :3] - before[:, :3]).abs().max() < 1e-9


@pytest.mark.parametrize("variance_damping", [None, 0.1])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_without_damping_the_scale_of_inputs_does_not_matter(variance_damping, scale):
    """h → s h with W → W / s: the same function before and after. (variance_damping acts on white inputs.)"""
    paths = []
    for s in (1.0, scale):
        case = random_case((3, 4, 3), num_examples=20)
        with torch.no_grad():
            case.model[0].weight.div_(s)
        optimizer = Prong(case.model, case.likelihood, lr=0.3, damping=0.0, variance_damping=variance_damping)
        paths.append([optimizer.step(s * case.inputs, case.targets).loss for _ in range(5)])
    assert np.allclose(*paths, rtol=1e-9)


# ---- momentum, records, saving


@pytest.mark.parametrize("variance_damping", [None, 0.2])
def test_momentum_is_heavy_ball_on_the_weights(variance_damping):
    case = random_case((3, 4, 3), num_examples=20)
    optimizer = Prong(
        case.model, case.likelihood, lr=0.1, damping=0.1, momentum=0.9, reparametrize_every=1, variance_damping=variance_damping
    )
    weights, x, y, velocity = numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy(), [0.0, 0.0]
    for _ in range(4):
        _, statistics, _ = numpy_pass(weights, x)
        stepped = numpy_prong(weights, x, y, statistics, 1.0, 0.1, variance_damping)
        velocity = [0.9 * v + w - s for v, w, s in zip(velocity, weights, stepped, strict=True)]
        weights = [w - 0.1 * v for w, v in zip(weights, velocity, strict=True)]
        before = vector(case.model)
        g = gradient(case.model, case.density, case.inputs, case.targets)
        record = optimizer.step(case.inputs, case.targets)
        for found, expected in zip(numpy_weights(case.model), weights, strict=True):
            assert np.abs(found - expected).max() < TIGHT
        update = vector(case.model) - before
        kl = float(update @ optimizer.fisher.matmul(update)) / 2
        assert math.isclose(record.kl, kl, rel_tol=1e-9)
        assert math.isclose(record.predicted_decrease, -float(g @ update) - kl, rel_tol=1e-9)


OPTIONS = [{"momentum": 0.9, "num_samples": 5}, {"variance_damping": 0.1, "momentum": 0.5}, {"max_kl": 1e-3}]


@pytest.mark.parametrize("options", OPTIONS, ids=["momentum", "plus", "clipped"])
@pytest.mark.parametrize("before", [0, 1, 3, 4])
def test_saved_and_loaded_it_continues_bit_for_bit(options, before):
    """In the middle of a period, with momenta and drawn samples; the file holds tensors and numbers only."""
    case = random_case((3, 4, 3), num_examples=9)
    make = {"lr": 0.1, "damping": 0.05, "reparametrize_every": 3, **options}
    optimizer = Prong(case.model, case.likelihood, **make)
    for _ in range(before):
        optimizer.step(case.inputs, case.targets)
    file = io.BytesIO()
    torch.save([case.model.state_dict(), optimizer.state_dict()], file)
    expected = [optimizer.step(case.inputs, case.targets).loss for _ in range(5)]
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = random_case((3, 4, 3), seed=5)
    restored = Prong(other.model, other.likelihood, **make)
    other.model.load_state_dict(weights)
    restored.load_state_dict(state)
    assert [restored.step(case.inputs, case.targets).loss for _ in range(5)] == expected
    assert torch.equal(vector(other.model), vector(case.model))


def test_layers_that_train_later_are_whitened_at_once_and_start_at_rest():
    case = random_case((3, 4, 4, 3), num_examples=20)
    case.model[2].requires_grad_(False)
    optimizer = Prong(case.model, case.likelihood, lr=0.1, damping=0.1, momentum=0.9, reparametrize_every=100)
    optimizer.add_param_group({"params": list(case.model[2].parameters())})
    optimizer.step(case.inputs, case.targets)
    assert list(optimizer.moments) == ["0", "4"]
    velocity = optimizer.velocity["0"]
    case.model[2].requires_grad_(True)
    optimizer.step(case.inputs, case.targets)
    assert list(optimizer.moments) == ["0", "2", "4"] and all(each.centred for each in optimizer.moments.values())
    assert (optimizer.velocity["0"] - 0.9 * velocity).norm() < 2 * velocity.norm() and "2" in optimizer.velocity
    case.model[2].bias.requires_grad_(False)
    optimizer.step(case.inputs, case.targets)
    assert not optimizer.moments["2"].centred and optimizer.moments["2"].mean.norm() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("num_examples", [1, 9])
def test_every_dtype_likelihood_and_a_single_example(dtype, likelihood, num_examples):
    case = random_case((3, 4, 2), likelihood=likelihood, num_examples=num_examples)
    case.model.to(dtype)
    targets = case.targets if likelihood == "categorical" else case.targets.to(dtype)
    optimizer = prong(case.model, case.likelihood, lr=0.03, damping=0.1)
    records = [optimizer.step(case.inputs.to(dtype), targets) for _ in range(20)]
    assert records[-1].loss < records[0].loss and all(parameter.dtype == dtype for parameter in case.model.parameters())


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_float32_follows_float64(shift):
    """Statistics are taken in float64; the centred gradient loses the digits of |mean| / √variance."""
    ends = []
    for dtype in (torch.float32, torch.float64):
        case = random_case((3, 4, 3), num_examples=20)
        case.model.to(dtype)
        optimizer = prong(case.model, case.likelihood, lr=0.1, damping=1e-2)
        for _ in range(5):
            optimizer.step((case.inputs + shift).to(dtype), case.targets)
        ends.append(case.model((case.inputs + shift).to(dtype)).detach().double())
    assert (ends[0] - ends[1]).norm() < 1e-5 * (1 + shift) * ends[1].norm()


# ---- refusals


def singular_inputs():
    case = random_case((3, 4, 3), num_examples=20)
    case.inputs[:, 1] = 0.5
    return case


@pytest.mark.parametrize("method", [prong, prong_plus])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_damping_and_a_direction_without_variance_is_refused_by_name(method, dtype):
    case = singular_inputs()
    case.model.to(dtype)
    before = vector(case.model)
    words = "the inputs of layer '0' cannot be whitened: a direction of them has no variance.*give damping > 0"
    optimizer = method(case.model, case.likelihood, damping=0.0)
    with pytest.raises(NotPositiveDefiniteError, match=words):
        optimizer.step(case.inputs.to(dtype), case.targets)
    assert torch.equal(vector(case.model), before) and not optimizer.moments and optimizer.num_steps == 0


def test_a_damping_below_rounding_is_said():
    case = singular_inputs()
    with pytest.warns(NumericalWarning, match="layer '0' have variances from .* damping 1.0e-18 is below the rounding"):
        prong(case.model, case.likelihood, damping=1e-18).step(case.inputs, case.targets)


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return nn.functional.linear(x, self.fc.weight, self.fc.bias)


REFUSED = {
    "recurrent": (lambda: nn.Sequential(nn.LSTM(3, 3), nn.Linear(3, 3)), "LSTM", "there is no rule"),
    "embedding": (lambda: nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3)), "Embedding", "there is no rule"),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(3, 3, 1)), "ConvTranspose1d", "there is no rule"),
    "groups": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), "Conv1d", "its channels are in groups"),
    "own forward": (lambda: nn.Sequential(Own(3, 3)), "Own", "it redefines forward"),
    "attention": (lambda: nn.Sequential(nn.MultiheadAttention(4, 2)), "MultiheadAttention", "there is no rule"),
}


@pytest.mark.parametrize("make, kind, why", REFUSED.values(), ids=REFUSED.keys())
def test_layers_it_cannot_whiten_are_named_and_can_be_left_plain(make, kind, why):
    model = make()
    with pytest.raises(UnsupportedLayerError) as error:
        prong(model, LIKELIHOODS["categorical"])
    assert f"'0' ({kind}) cannot be whitened: {why}" in str(error.value) and "plain=('0',), or freeze it" in str(error.value)
    prong(model, LIKELIHOODS["categorical"], plain=("0",))
    model[0].requires_grad_(False)
    if len(model) > 1:
        prong(model, LIKELIHOODS["categorical"])


def test_weights_that_are_used_without_calling_their_layer():
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(UnsupportedLayerError, match=r"'fc' \(Linear\) did not run.*plain=\('fc',\)"):
        prong(Uncalled(), LIKELIHOODS["categorical"]).step(x, y)
    assert prong(Uncalled(), LIKELIHOODS["categorical"], plain=("fc",)).step(x, y).status == "ok"


def test_attention_trains_with_what_it_holds_left_plain():
    """`plain` covers the modules inside; the readout is whitened over all positions."""

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.attention(x, x, x, need_weights=False)[0]).mean(1)

    case = layer_case(Attending(), (3, 4), num_examples=8)
    optimizer = prong(case.model, case.likelihood, lr=0.1, plain=("attention",))
    losses = [optimizer.step(case.inputs, case.targets).loss for _ in range(10)]
    assert losses[-1] < losses[0] and list(optimizer.moments) == ["out"]


@pytest.mark.parametrize("choices, words", [
    ({"reparametrize_every": 0}, "reparametrize_every must be a positive integer; got 0"),
    ({"num_samples": 0}, "num_samples must be a positive integer; got 0"),
    ({"momentum": 1.0}, r"momentum must be in \[0, 1\); got 1.0"),
    ({"momentum": math.nan}, r"momentum must be in \[0, 1\); got nan"),
    ({"variance_damping": 0.0}, "variance_damping must be a positive number, or None"),
    ({"plain": ("fist",)}, "no module of the model named 'fist'"),
])  # fmt: skip
def test_bad_choices(choices, words):
    with pytest.raises(ValueError, match=words):
        Prong(random_case((3, 4, 3)).model, LIKELIHOODS["categorical"], lr=0.1, damping=0.1, **choices)


def test_more_samples_than_there_are():
    case = random_case((3, 4, 3), num_examples=9)
    with pytest.raises(ValueError, match="num_samples = 10 examples are to be drawn from 9"):
        prong(case.model, case.likelihood, num_samples=10).step(case.inputs, case.targets)


def test_inputs_whose_covariance_overflows_end_the_run():
    """A first step says so; later it is a record. tanh keeps the loss finite."""
    model = nn.Sequential(nn.Tanh(), nn.Linear(3, 3))
    model.insert(0, nn.Linear(3, 3))
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(NonFiniteError, match="covariance of the inputs of layer '0' is not finite"):
        prong(model, LIKELIHOODS["categorical"]).step(1e200 * x, y)
    optimizer = prong(model, LIKELIHOODS["categorical"], reparametrize_every=1)
    optimizer.step(x, y)
    before = vector(model)
    record = optimizer.step(1e200 * x, y)
    assert record.status == "diverged" and "covariance" in record.message and torch.equal(vector(model), before)


def test_the_metric_is_a_matrix_like_others():
    case = random_case((3, 4, 3), num_examples=20)
    optimizer = prong(case.model, case.likelihood)
    optimizer.step(case.inputs, case.targets)
    F = optimizer.fisher
    assert isinstance(F, BlockDiagonal) and F.dim == ParameterLayout(case.model).dim
    x = torch.randn(F.dim)
    assert (F.solve(x, 0.1) - Dense(F.to_dense()).solve(x, 0.1)).norm() < TIGHT * x.norm()
