"""RNGD, what SNGD's authors released: steps in NumPy, its gates, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from cases import random_case
from oracles import parameters_of
from torch import nn

from natgrad_lab.errors import NotPositiveDefiniteError, UnsupportedLayerError
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.models import convnet
from natgrad_lab.optimizers.rngd import GATES, rngd


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def numpy_rngd(weights, x, y, *, lr, damping, decay, every, steps):
    """The released algorithm for a ReLU network with biases: [[W | b], ...] after so many steps on one batch."""
    metrics = [np.eye(w.shape[1])[None].repeat(1 if i in (0, len(weights) - 1) else len(w), 0) for i, w in enumerate(weights)]
    inverses = [m.copy() for m in metrics]

    def run(weights):
        inputs, sums, a = [], [], x
        for w in weights:
            inputs.append(np.hstack([a, np.ones((len(a), 1))]))
            sums.append(inputs[-1] @ w.T)
            a = np.maximum(sums[-1], 0)
        return inputs, sums

    for step in range(steps):
        inputs, sums = run(weights)
        p = np.exp(sums[-1]) / np.exp(sums[-1]).sum(1, keepdims=True)
        back, gradients = (p - np.eye(p.shape[1])[y]) / len(x), []
        for i in reversed(range(len(weights))):
            gradients.insert(0, back.T @ inputs[i])
            back = (back @ weights[i][:, :-1]) * (sums[i - 1] > 0) if i else None
        weights = [
            np.stack([w[j] - lr * inverse[j if len(inverse) > 1 else 0] @ g[j] for j in range(len(w))])
            for w, g, inverse in zip(weights, gradients, inverses, strict=True)
        ]
        inputs, sums = run(weights)  # the same batch at the new weights
        for i, m in enumerate(metrics):
            for j in range(len(m)):
                nu = 1.0 if i in (0, len(weights) - 1) else sigmoid(sums[i][:, j : j + 1]) ** 2
                m[j] = decay * m[j] + (1 - decay) * (nu * inputs[i]).T @ inputs[i] / len(x)
        if step % every == 0:
            inverses = [
                np.stack([np.linalg.inv(each + damping * np.trace(each) * np.eye(len(each))) for each in m]) for m in metrics
            ]
    return weights


def numpy_weights(model):
    layers = [m for m in model if isinstance(m, nn.Linear)]
    return [np.hstack([m.weight.detach().numpy(), m.bias.detach().numpy()[:, None]]) for m in layers]


@pytest.mark.parametrize("every", [1, 3])
def test_seven_steps_equal_numpy(every):
    case = random_case((3, 4, 5, 4, 3), "relu", num_examples=9)
    start, x, y = numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy()
    optimizer = rngd(case.model, case.likelihood, lr=0.1, damping=1e-2, ema_decay=0.7, invert_every=every)
    for _ in range(7):
        optimizer.step(case.inputs, case.targets)
    expected = numpy_rngd(start, x, y, lr=0.1, damping=1e-2, decay=0.7, every=every, steps=7)
    for found, wanted in zip(numpy_weights(case.model), expected, strict=True):
        assert np.abs(found - wanted).max() < 1e-12
    assert [tuple(m.shape) for m in optimizer.metrics.values()] == [(1, 4, 4), (5, 5, 5), (4, 6, 6), (1, 5, 5)]


def test_the_released_numbers_are_the_defaults():
    case = random_case((3, 4, 5, 3), "relu", num_examples=9)
    start = numpy_weights(case.model)
    optimizer = rngd(case.model, case.likelihood)
    for _ in range(3):
        optimizer.step(case.inputs, case.targets)
    expected = numpy_rngd(
        start, case.inputs.numpy(), case.targets.numpy(), lr=0.1, damping=1e-4, decay=0.995, every=100, steps=3
    )
    for found, wanted in zip(numpy_weights(case.model), expected, strict=True):
        assert np.abs(found - wanted).max() < 1e-13


def test_the_first_step_is_gradient_descent():
    case, plain = (random_case((3, 4, 3), "relu", num_examples=9) for _ in range(2))
    rngd(case.model, case.likelihood, lr=0.1).step(case.inputs, case.targets)
    descent = torch.optim.SGD(plain.model.parameters(), lr=0.1)
    plain.likelihood.loss(plain.model(plain.inputs), plain.targets).backward()
    descent.step()
    assert (parameters_of(case.model) - parameters_of(plain.model)).abs().max() < 1e-15


SMOOTH = {**{kind: kind() for kind in GATES}, nn.ReLU: nn.Softplus()}  # the gate of ReLU is that of softplus


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
def test_a_gate_is_the_squared_derivative_of_the_activation(kind):
    z = torch.linspace(-4, 4, 81) + 0.03
    z.requires_grad_()
    (slope,) = torch.autograd.grad(SMOOTH[kind](z).sum(), z)
    assert (GATES[kind](z.detach()) - slope.square()).abs().max() < 1e-14


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "elu", "softplus", "identity"])
def test_other_activations_take_their_own_gate(activation):
    case = random_case((3, 4, 4, 3), activation, num_examples=9)
    optimizer = rngd(case.model, case.likelihood, ema_decay=0.0)
    optimizer.step(case.inputs, case.targets)
    x = case.model[:2](case.inputs).detach()
    z, x = case.model[2](x).detach(), torch.cat([x, torch.ones(9, 1)], 1)
    expected = [x.T @ (GATES[type(case.model[3])](z)[:, j : j + 1] * x) / 9 for j in range(4)]
    found = optimizer.metrics["2"]
    assert all((m - e).abs().max() < 1e-14 for m, e in zip(found.expand(4, 5, 5), expected, strict=True))


def test_frozen_layers_and_missing_biases():
    case = random_case((3, 4, 4, 4, 3), "relu", num_examples=9)
    case.model[2].requires_grad_(False)
    case.model[4].bias.requires_grad_(False)
    optimizer = rngd(case.model, case.likelihood)
    kept = case.model[2].weight.clone(), case.model[4].bias.clone()
    for _ in range(3):
        assert optimizer.step(case.inputs, case.targets).status == "ok"
    assert {name: tuple(m.shape) for name, m in optimizer.metrics.items()} == {"0": (1, 4, 4), "4": (4, 4, 4), "6": (1, 5, 5)}
    assert torch.equal(case.model[2].weight, kept[0]) and torch.equal(case.model[4].bias, kept[1])


def test_a_bare_layer_and_nested_sequentials():
    case = random_case((3, 3), num_examples=9)
    for model in (case.model[0], nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 3))):
        optimizer = rngd(model, Categorical())
        losses = [optimizer.step(case.inputs, case.targets).loss for _ in range(10)]
        assert losses[-1] < losses[0]


def test_saved_between_inversions_it_continues_bit_for_bit():
    case, other = (random_case((3, 4, 4, 3), "relu", num_examples=9) for _ in range(2))
    optimizer, restored = (rngd(each.model, each.likelihood, invert_every=3) for each in (case, other))
    for _ in range(5):
        optimizer.step(case.inputs, case.targets)
    restored.load_state_dict(optimizer.state_dict())
    other.model.load_state_dict(case.model.state_dict())
    for _ in range(4):
        optimizer.step(case.inputs, case.targets)
        restored.step(other.inputs, other.targets)
    assert torch.equal(parameters_of(case.model), parameters_of(other.model))


# ---- refusals


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.layer(x)


@pytest.mark.parametrize("model, words", [
    (convnet((1, 4, 4), (2,), 3), r"RNGD is for nn.Sequential MLPs .* got '0' \(_Reshape\)"),
    (Residual(), r"got 'a model' \(Residual\)"),
    (nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3)), r"got '1' \(GELU\)"),
    (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Tanh(), nn.Linear(3, 3)), "layer '0' is followed by 2 activations"),
    (nn.Sequential(nn.Linear(3, 700), nn.ReLU(), nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 3)), "700 metrics of 701"),
])  # fmt: skip
def test_other_models_are_refused(model, words):
    with pytest.raises(UnsupportedLayerError, match=words):
        rngd(model, Categorical())


def test_sequences_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = rngd(model, Categorical(class_dim=-1))
    with pytest.raises(UnsupportedLayerError, match="layer '0' sees inputs of several positions"):
        optimizer.step(torch.randn(5, 2, 3), torch.zeros(5, 2, dtype=torch.long))


def test_a_singular_metric_is_an_error_not_a_step_with_the_identity():
    case = random_case((6, 4, 3), "relu", num_examples=3)
    optimizer = rngd(case.model, case.likelihood, damping=0.0, ema_decay=0.0)
    optimizer.step(case.inputs, case.targets)
    before, metrics = parameters_of(case.model), optimizer.metrics
    with pytest.raises(NotPositiveDefiniteError, match="a metric of layer '0' is singular at damping 0"):
        optimizer.step(case.inputs, case.targets)
    assert torch.equal(parameters_of(case.model), before) and optimizer.metrics is metrics


@pytest.mark.parametrize("choices, words", [
    ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\); got 1.0"),
    ({"ema_decay": math.nan}, r"ema_decay must be in \[0, 1\); got nan"),
    ({"invert_every": 0}, "invert_every must be a positive integer; got 0"),
])  # fmt: skip
def test_bad_choices(choices, words):
    case = random_case((3, 4, 3))
    with pytest.raises(ValueError, match=words):
        rngd(case.model, case.likelihood, **choices)
