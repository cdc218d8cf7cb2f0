"""Named problems: (model, likelihood, inputs, targets), small enough for the oracles, among them those where theory says equal.

`random_case` draws one of any size; CASES names the ones with a particular structure. A new case is one line in a table and
owes every test that runs over the table.
"""

from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab.likelihoods import Bernoulli, Categorical, Gaussian
from natgrad_lab.models import deep_linear, mlp

LIKELIHOODS = {"categorical": Categorical(), "bernoulli": Bernoulli(), "gaussian": Gaussian(0.3)}


@dataclass(frozen=True)
class Case:
    model: nn.Module
    likelihood: object
    inputs: torch.Tensor
    targets: torch.Tensor

    @property
    def density(self):
        """What the oracles call the likelihood."""
        return type(self.likelihood).__name__.lower(), getattr(self.likelihood, "variance", 1.0)

    @property
    def data(self):
        return self.model, self.likelihood, self.inputs


def targets_for(likelihood, num_examples, num_outputs, generator):
    if isinstance(likelihood, Categorical):
        return torch.randint(num_outputs, (num_examples,), generator=generator)
    if isinstance(likelihood, Bernoulli):
        return torch.rand(num_examples, num_outputs, generator=generator).round()
    return torch.randn(num_examples, num_outputs, generator=generator)


def randomized(model, generator, scale=1.0):
    """Every parameter drawn anew, biases too (zero biases hide mistakes)."""
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


def case_of(model, likelihood, num_examples=5, seed=0, num_inputs=3, num_outputs=3, scale=1.0):
    """The model with drawn parameters and drawn data."""
    generator = torch.Generator().manual_seed(seed)
    likelihood = LIKELIHOODS[likelihood]
    inputs = torch.randn(num_examples, num_inputs, generator=generator)
    targets = targets_for(likelihood, num_examples, num_outputs, generator)
    return Case(randomized(model, generator, scale), likelihood, inputs, targets)


def random_case(sizes, activation="tanh", bias=True, likelihood="categorical", num_examples=5, seed=0, scale=1.0):
    return case_of(mlp(sizes, activation, bias), likelihood, num_examples, seed, sizes[0], sizes[-1], scale)


class Residual(nn.Module):
    """x + W₂ tanh(W₁ x), then out; one branch skips a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(3, 4), nn.Linear(4, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(x + self.second(torch.tanh(self.first(x))))


class Reordered(nn.Module):
    """Registered in another order than run, branching, with a product of branches and an unnamed reshape."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.parts = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])

    def forward(self, x):
        gate = torch.sigmoid(self.parts[1](x))
        return self.last((gate * self.parts[0](x)).view(len(x), 2, 2).flatten(1))


class InPlace(nn.Module):
    """Activations that overwrite what the layer returned."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu_(self.first(x))
        x = self.second(x)
        x += 1.5
        return self.third(x.tanh_())


class Dead(nn.Module):
    """A layer that runs and does not reach the outputs."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.out = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(4, 3)

    def forward(self, x):
        self.unused(x)
        return self.out(torch.tanh(self.used(x)))


def frozen(model, *names):
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def eval_batch_norm():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3))
    model[1].running_mean.copy_(torch.linspace(-1, 1, 4))
    return model.eval()


CASES = {
    "one layer, one output": lambda: random_case((3, 1), likelihood="bernoulli"),
    "one input": lambda: random_case((1, 4, 2)),
    "width one": lambda: random_case((3, 1, 3)),
    "one example": lambda: random_case((3, 4, 3), num_examples=1),
    "one class": lambda: random_case((3, 4, 1)),
    "four layers without bias": lambda: random_case((3, 3, 3, 3, 3), "gelu", bias=False),
    "more rows than parameters": lambda: random_case((2, 2, 2), "sigmoid", num_examples=9, likelihood="gaussian"),
    "residual": lambda: case_of(Residual(), "categorical"),
    "registered in another order": lambda: case_of(Reordered(), "gaussian"),
    "in place": lambda: case_of(InPlace(), "bernoulli"),
    "in-place ReLU modules": lambda: case_of(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ELU(inplace=True), nn.Linear(4, 3)),
        "categorical",
    ),
    "a layer that reaches no output": lambda: case_of(Dead(), "categorical"),
    "dead ReLU": lambda: case_of(
        nn.Sequential(nn.Linear(3, 4), nn.Hardtanh(9.0, 9.5), nn.Linear(4, 3)), "gaussian"
    ),
    "frozen layer": lambda: case_of(
        frozen(mlp((3, 4, 4, 3)), "2.weight", "2.bias"), "categorical"
    ),
    "frozen bias": lambda: case_of(frozen(mlp((3, 4, 3)), "0.bias"), "gaussian"),
    "nested modules": lambda: case_of(
        nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(3, 4)), nn.SiLU()), nn.Identity(), nn.Linear(4, 3)), "bernoulli"
    ),
    "batch norm and dropout in eval mode": lambda: case_of(eval_batch_norm(), "categorical"),
    "softmax saturated": lambda: random_case((3, 4, 3), scale=20.0),
    "deep linear": lambda: case_of(deep_linear((3, 4, 3), bias=True), "gaussian"),
    "bare Linear": lambda: case_of(nn.Linear(3, 3), "categorical"),
}  # fmt: skip

# K-FAC's blocks equal the exact ones here ...
KFAC_IS_EXACT = {
    "one example, categorical": lambda: random_case((3, 4, 2, 3), num_examples=1),
    "one example, bernoulli, relu": lambda: random_case((3, 4, 2), "relu", likelihood="bernoulli", num_examples=1),
    "deep linear Gaussian": lambda: case_of(deep_linear((3, 4, 2, 3)), "gaussian", num_examples=7),
    "deep linear Gaussian with bias": lambda: case_of(deep_linear((3, 4, 3), bias=True), "gaussian", num_examples=7),
    "one linear layer, Gaussian": lambda: random_case((4, 2), likelihood="gaussian", num_examples=6),
}
# ... and differ here, each by one condition taken away
KFAC_DIFFERS = {
    "two examples": lambda: random_case((3, 4, 2, 3), num_examples=2),
    "nonlinear Gaussian": lambda: random_case((3, 4, 3), likelihood="gaussian"),
    "deep linear categorical": lambda: case_of(deep_linear((3, 4, 3)), "categorical"),
    "deep linear bernoulli": lambda: case_of(deep_linear((3, 4, 3)), "bernoulli"),
}
