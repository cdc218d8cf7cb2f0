"""The reparametrized network: the same function at every projection, the same steps as `Prong`, padding, momenta, refusals."""

import copy

import pytest
import torch
from cases import InPlace, Residual, case_of, random_case
from layer_cases import Siamese, Twice, layer_case, pictures
from torch import nn
from torch.nn import functional

from natgrad_lab.errors import NotPositiveDefiniteError, UnsupportedLayerError
from natgrad_lab.models import convnet
from natgrad_lab.optimizers.prong import Prong
from natgrad_lab.optimizers.whitened import WhitenedLayer, WhitenedNetwork

TIGHT = 1e-10  # float64, numbers up to 10, dampings down to 1e-3


class Sequences(nn.Module):
    """Linear layers on (N, T, D), LayerNorm between, all positions read out together."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second, self.out = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.norm(self.first(x)))))).mean(1)


def sequences():
    return layer_case(Sequences(), (5, 3), num_examples=8)


NETWORKS = {
    "mlp": lambda: random_case((3, 4, 4, 3), num_examples=20),
    "without bias": lambda: random_case((3, 4, 3), bias=False, num_examples=20),
    "a frozen bias and a frozen layer": lambda: frozen(
        random_case((3, 4, 4, 3), num_examples=20), "2.bias", "4.weight", "4.bias"
    ),
    "residual": lambda: case_of(Residual(), "bernoulli", num_examples=20),
    "in place": lambda: case_of(InPlace(), "gaussian", num_examples=20),
    "bare layer": lambda: case_of(nn.Linear(3, 3), "categorical", num_examples=20),
    "one layer twice": lambda: layer_case(Twice(), (3,), num_examples=20),
    "sequences": sequences,
    "padded convolution": lambda: pictures(nn.Conv2d(2, 3, 3, padding=1), num_examples=9),
    "same padding, dilated": lambda: pictures(nn.Conv2d(2, 3, 3, padding="same", dilation=2), shape=(2, 5, 6), num_examples=9),
    "strided, oblong, no bias": lambda: pictures(
        nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0), bias=False), num_examples=9
    ),
    "reflected": lambda: pictures(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), num_examples=9),
    "circular": lambda: pictures(nn.Conv2d(2, 3, 3, padding=(0, 1), padding_mode="circular"), num_examples=9),
    "1d": lambda: pictures(nn.Conv1d(2, 3, 3, padding=2), shape=(2, 5), num_examples=9),
    "3d": lambda: pictures(nn.Conv3d(2, 2, 2, padding=1), shape=(2, 2, 2, 3), num_examples=9),
    "two pictures, one tower": lambda: layer_case(Siamese(), (1, 4, 8), num_examples=9),
    "convnet with group norm": lambda: pictures(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.PReLU(), nn.Conv2d(4, 3, 3, padding=1), num_examples=9
    ),
}  # fmt: skip
# at least as many samples as units everywhere: eigenvectors are then unique, which D of PRONG+ needs
UNIQUE = ["mlp", "without bias", "a frozen bias and a frozen layer", "residual", "in place", "bare layer", "one layer twice",
          "sequences", "two pictures, one tower"]  # fmt: skip


def frozen(case, *names):
    for name in names:
        case.model.get_parameter(name).requires_grad_(False)
    return case


def off(model, other):
    """The largest difference of two models' parameters."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def sgd_step(network, optimizer, case):
    optimizer.zero_grad()
    case.likelihood.loss(network(case.inputs), case.targets).backward()
    optimizer.step()


def perturbed(network, scale=0.1):
    """V and d as training may leave them."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape))


# ---- the function


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_preserved_at_every_projection(name):
    """T-3a, while it trains: by damping down to 1e-3, by D of PRONG+, back to the canonical network, and again."""
    case = NETWORKS[name]()
    network = WhitenedNetwork(case.model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    assert torch.equal(network.to_canonical()(case.inputs), case.model(case.inputs))
    change = lambda: float((network(case.inputs) - before).detach().abs().max())  # noqa: E731
    for step in range(4):
        before = network(case.inputs)
        network.reparametrize(case.inputs, damping=10.0**-step, optimizer=optimizer)
        assert change() < TIGHT
        network.normalize(case.inputs, variance_damping=0.1, optimizer=optimizer)
        assert change() < TIGHT
        assert float((network.to_canonical()(case.inputs) - before).detach().abs().max()) < TIGHT
        sgd_step(network, optimizer, case)
        assert change() > 1e-8, "the step did something"


@pytest.mark.parametrize("name", ["padded convolution", "same padding, dilated", "strided, oblong, no bias", "circular"])
def test_whitened_first_and_padded_with_the_white_zero(name):
    """The same sums in another order: U as a 1 x 1 convolution on the unpadded picture, −U c around it, then V; any V and d."""
    case = NETWORKS[name]()
    network = WhitenedNetwork(case.model)
    network.reparametrize(case.inputs, damping=0.1)
    perturbed(network)
    layer, old = network.network[0], case.model[0]
    white = torch.einsum("ij,njhw->nihw", layer.U, case.inputs - layer.c[:, None, None])
    border = -layer.U @ layer.c
    if old.padding_mode == "zeros":
        around = old._reversed_padding_repeated_twice
        ones = functional.pad(torch.ones_like(white[:, :1]), around)
        padded = functional.pad(white, around) + (1 - ones) * border[:, None, None]
    else:
        padded = functional.pad(white, old._reversed_padding_repeated_twice, mode=old.padding_mode)
    expected = functional.conv2d(padded, layer.V, layer.d, stride=old.stride, dilation=old.dilation)
    assert (layer(case.inputs) - expected).detach().abs().max() < TIGHT
    W = torch.einsum("oihw,ij->ojhw", layer.V, layer.U)
    b = None if layer.d is None else layer.d - W.sum((2, 3)) @ layer.c
    assert torch.allclose(layer.canonical().weight, W, atol=TIGHT, rtol=0)
    assert layer.d is None or torch.allclose(layer.canonical().bias, b, atol=TIGHT, rtol=0)


def test_what_it_computes_is_V_times_white_inputs():
    """Written out; with as many samples the inputs are white up to what damping leaves, and U⁻¹ is U's inverse."""
    case = random_case((3, 4, 3), num_examples=20)
    network = WhitenedNetwork(case.model)
    network.reparametrize(case.inputs, damping=0.2)
    layer = network.network[0]
    white = (case.inputs - case.inputs.mean(0)) @ layer.U.T
    covariance = torch.cov(case.inputs.T, correction=0)
    values = torch.linalg.eigvalsh(covariance)
    assert (white.T @ white / 20 - (values / (values + 0.2)).diag()).abs().max() < TIGHT
    assert (layer.U.T @ layer.U - torch.linalg.inv(covariance + 0.2 * torch.eye(3))).abs().max() < TIGHT
    assert (layer.U @ layer.U_inverse - torch.eye(3)).abs().max() < TIGHT
    assert (layer(case.inputs) - (white @ layer.V.T + layer.d)).abs().max() < TIGHT
    network.normalize(case.inputs, variance_damping=1e-12)
    assert ((layer.D * white).var(0, correction=0) - 1).abs().max() < 1e-9
    assert (layer(case.inputs) - (layer.D * white @ layer.V.T + layer.d)).abs().max() < TIGHT


# ---- the steps


PLANS = [(name, every, momentum) for name in ("mlp", "padded convolution") for every in (1, 3, 10) for momentum in (0.0, 0.9)]
PLANS += [(name, 3, 0.9) for name in NETWORKS if name not in ("mlp", "padded convolution")]


@pytest.mark.parametrize("name, every, momentum", PLANS)
def test_gradient_descent_on_it_is_prong(name, every, momentum):
    """T-3c: steps of torch's SGD on (V, d) and of `Prong` on (W, b) give the same weights."""
    case = NETWORKS[name]()
    model, network = copy.deepcopy(case.model), WhitenedNetwork(case.model)
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.01, momentum=momentum)
    prong = Prong(model, case.likelihood, lr=0.01, damping=0.05, momentum=momentum, reparametrize_every=every)
    for step in range(max(7, every + 2)):
        if step % every == 0:
            network.reparametrize(case.inputs, damping=0.05, optimizer=optimizer)
        sgd_step(network, optimizer, case)
        prong.step(case.inputs, case.targets)
        assert off(network.to_canonical(), model) < TIGHT
    assert off(model, case.model) > 1e-3


@pytest.mark.parametrize("name, every, momentum", [("mlp", 1, 0.0), *((name, 3, 0.9) for name in UNIQUE)])
def test_with_D_on_every_batch_it_is_prong_plus(name, every, momentum):
    case = NETWORKS[name]()
    model, network = copy.deepcopy(case.model), WhitenedNetwork(case.model)
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.01, momentum=momentum)
    choices = {"momentum": momentum, "reparametrize_every": every, "variance_damping": 0.3}
    prong = Prong(model, case.likelihood, lr=0.01, damping=0.05, **choices)
    for step in range(7):
        if step % every == 0:
            network.reparametrize(case.inputs, damping=0.05, optimizer=optimizer)
        network.normalize(case.inputs, variance_damping=0.3, optimizer=optimizer)
        sgd_step(network, optimizer, case)
        prong.step(case.inputs, case.targets)
        assert off(network.to_canonical(), model) < TIGHT


def test_momenta_left_in_the_old_coordinates_bend_the_path():
    """Without optimizer=... the next update is another one; with it, it is the old velocity times momentum."""
    case = random_case((3, 4, 3), num_examples=20)
    updates = {}
    for mapped in (True, False):
        network = WhitenedNetwork(case.model)
        network.reparametrize(case.inputs[:10], damping=0.05)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        start = network.to_canonical()
        sgd_step(network, optimizer, case)
        middle = network.to_canonical()
        network.reparametrize(case.inputs, damping=0.5, optimizer=optimizer if mapped else None)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        end = network.to_canonical()
        updates[mapped] = max(
            float((c - b - 0.9 * (b - a)).detach().abs().max())
            for a, b, c in zip(start.parameters(), middle.parameters(), end.parameters(), strict=True)
        )
    assert updates[True] < TIGHT and updates[False] > 1e-3


def test_any_optimizer_trains_it():
    case = random_case((3, 4, 3), num_examples=20)
    network = WhitenedNetwork(case.model)
    network.reparametrize(case.inputs, damping=0.1)
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=0.05), []
    for _ in range(20):
        losses.append(float(case.likelihood.loss(network(case.inputs), case.targets).detach()))
        sgd_step(network, optimizer, case)
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(UnsupportedLayerError, match="Adam keeps 'exp_avg' for layer '0'.*Use torch.optim.SGD"):
        network.reparametrize(case.inputs, damping=0.1, optimizer=optimizer)


# ---- a module like others


def test_the_model_is_copied_and_what_comes_back_is_its_kind():
    class Mine(nn.Linear):
        """Inherits forward."""

    model = nn.Sequential(Mine(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    before = copy.deepcopy(model.state_dict())
    network = WhitenedNetwork(model)
    network.reparametrize(torch.randn(9, 3), damping=0.1)
    perturbed(network)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    back = network.to_canonical()
    assert [type(module) for module in back] == [Mine, nn.Tanh, nn.Linear] and back[2].bias is None
    assert [key for key, _ in back.named_parameters()] == [key for key, _ in model.named_parameters()]


def test_parameters_are_V_and_d_and_the_rest_is_saved_with_them():
    network = WhitenedNetwork(convnet((1, 4, 4), (3,), 2).double())
    assert [name.split(".")[-1] for name, _ in network.named_parameters()] == ["V", "d", "V", "d"]
    inputs = torch.randn(9, 16)
    network.reparametrize(inputs, damping=0.1)
    network.normalize(inputs, variance_damping=0.5)
    other = WhitenedNetwork(convnet((1, 4, 4), (3,), 2).double())
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(inputs), network(inputs)) and torch.equal(copy.deepcopy(network)(inputs), network(inputs))
    single = network.float()
    assert single(inputs.float()).dtype == torch.float32 and single.to_canonical()(inputs.float()).dtype == torch.float32


def test_statistics_leave_modes_running_averages_hooks_and_chance_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    network, inputs, state = WhitenedNetwork(model), torch.randn(9, 3), torch.get_rng_state()
    network.reparametrize(inputs, damping=0.1)
    network.normalize(inputs, variance_damping=0.1)
    assert torch.equal(state, torch.get_rng_state()) and network.training
    assert int(network.network[1].num_batches_tracked) == 0
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_unbatched_pictures():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())
    network, picture = WhitenedNetwork(model), torch.randn(2, 5, 6)
    network.reparametrize(picture, damping=0.1)
    assert (network(picture) - model(picture)).detach().abs().max() < TIGHT
    assert (network.network[0].c - picture.flatten(1).mean(1)).abs().max() < TIGHT


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_in_float32_the_function_is_preserved_to_rounding(shift):
    case = random_case((3, 4, 3), num_examples=20)
    model, inputs = case.model.float(), (case.inputs + shift).float()
    network = WhitenedNetwork(model)
    before = network(inputs).detach()
    for _ in range(10):
        network.reparametrize(inputs, damping=1e-2)
        # W h is a sum of numbers of size `shift`, in 1e-7 of which the function is defined; ten times over
        assert (network(inputs) - before).detach().abs().max() < 1e-5 * (1 + shift)


# ---- refusals


def hooked():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_forward_hook(lambda *args: None)
    return model


def tied():
    shared = nn.Linear(3, 3)
    return nn.Sequential(shared, nn.Tanh(), shared)


REFUSED = {
    "hooks": (hooked, r"layer '0' \(Linear\) has hooks.*plain=\('0',\)"),
    "tied": (tied, "tied weights"),
    "recurrent": (lambda: nn.Sequential(nn.GRU(3, 3)), r"'0' \(GRU\) cannot be whitened.*plain=\('0',\), or freeze it"),
    "groups": (lambda: nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), "its channels are in groups"),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), "parametrized"),
}


@pytest.mark.parametrize("make, words", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_whitened_is_named(make, words):
    with pytest.raises(UnsupportedLayerError, match=words):
        WhitenedNetwork(make())


def test_plain_layers_stay_as_they_are():
    network = WhitenedNetwork(nn.Sequential(nn.GRU(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))), plain=("0", "1.0"))
    kinds = [type(network.network[0]), *(type(module) for module in network.network[1])]
    assert kinds == [nn.GRU, nn.Linear, WhitenedLayer]
    with pytest.raises(ValueError, match="no module of the model named '2'"):
        WhitenedNetwork(nn.Sequential(nn.Linear(3, 3)), plain=("2",))


def test_no_damping_and_no_variance_is_refused_and_nothing_changes():
    """Also in the layers that could have been whitened."""
    case = random_case((3, 4, 3), "relu", num_examples=20)
    with torch.no_grad():
        case.model[0].bias[1] = -100.0
    network = WhitenedNetwork(case.model)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(NotPositiveDefiniteError, match="inputs of layer '2' cannot be whitened"):
        network.reparametrize(case.inputs, damping=0.0)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    with pytest.raises(ValueError, match="damping must be a finite number >= 0; got -1"):
        network.reparametrize(case.inputs, damping=-1.0)


def test_a_layer_that_does_not_run_has_no_statistics():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(UnsupportedLayerError, match=r"layer 'spare' \(Linear\) did not run.*plain=\('spare',\)"):
        WhitenedNetwork(Skipping()).reparametrize(torch.randn(5, 3), damping=0.1)
