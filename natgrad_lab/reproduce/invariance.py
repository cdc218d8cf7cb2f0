"""Who notices that the network was written in other coordinates? [MartensGrosse2015] sec. 10.

Two networks that compute the same function, from the same weights in other coordinates: tanh units against logistic ones,
and inputs against an affine image of them. One step of a method on each; the gap is how far the two functions then are
apart, relative to how far the step moved. And one nonlinear change of coordinates, of a Gaussian's deviation, where the
natural gradient is invariant to first order only: its gap shrinks with the square of the step, gradient descent's with
the step.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from natgrad_lab import datasets, likelihoods, models
from natgrad_lab.optimizers import METHODS
from natgrad_lab.reproduce.base import Check, Reproduction, Scale, Work, span
from natgrad_lab.shapes import Float, Tensor

INVARIANT = 1e-8  # relative gap of a method that is invariant: rounding in float64
NOTICED = 1e-2  # relative gap of one that is not
FIRST_ORDER, SECOND_ORDER, WITHIN = 1.0, 2.0, 0.15  # slope of log gap against log step: gradient, natural gradient

EXACT = {"fisher_type": "exact", "ema_decay": 0.0}
METHODS_SHOWN: dict[str, tuple[str, dict]] = {
    "sgd": ("sgd", {}),
    "kfac 0": ("kfac", EXACT | {"damping": 0.0}),
    "kfac 1e-4": ("kfac", EXACT | {"damping": 1e-4}),
    "kfac 1e-2": ("kfac", EXACT | {"damping": 1e-2}),
    "kfac 1e-1": ("kfac", EXACT | {"damping": 1e-1}),
    "exact_ngd 0": ("exact_ngd", {"damping": 0.0}),
    "exact_ngd 1e-2": ("exact_ngd", {"damping": 1e-2}),
}
COORDINATES = {  # of a Gaussian's deviation σ: z(σ), σ(z), dσ/dz
    "log σ": (math.log, math.exp, math.exp),
    "σ²": (lambda s: s * s, math.sqrt, lambda z: 0.5 / math.sqrt(z)),
    "1 / σ": (lambda s: 1 / s, lambda z: 1 / z, lambda z: -1 / z**2),
}


def run(seed: int, work: Work) -> dict:
    """Gaps of every method for both changes of the network, and the slopes of the Gaussian."""
    sizes, lr = work.config["sizes"], work.config["lr"]
    blobs = datasets.gaussian_blobs(work.config["num_examples"], sizes[-1], sizes[0], seed=seed, dtype=torch.float64)
    targets = nn.functional.one_hot(blobs.targets, sizes[-1]).double()
    generator = torch.Generator().manual_seed(seed)
    tanh = models.mlp(sizes, "tanh", generator=generator, dtype=torch.float64)
    moved, first = affine_image(tanh, blobs.inputs, generator)
    pairs = {"tanh to logistic": (logistic_twin(tanh), blobs.inputs), "affine inputs": (first, moved)}
    gaps = {
        change: {label: gap((tanh, blobs.inputs), twin, targets, *how, lr=lr) for label, how in METHODS_SHOWN.items()}
        for change, twin in pairs.items()
    }
    return {"gaps": gaps, "slopes": {name: slopes(name, seed) for name in COORDINATES}}


def gap(one: tuple, other: tuple, targets: Tensor, method: str, choices: dict, lr: float) -> float:
    """‖f₁ − f₂‖ / ‖f₁ − f‖ on the inputs after one step on each of two networks (and inputs) that both compute f."""
    outputs, before = [], []
    for model, inputs in (one, other):
        model = copied(model)
        before.append(model(inputs).detach())
        METHODS[method](model, likelihoods.Bernoulli(), lr=lr, **choices).step(inputs, targets)
        outputs.append(model(inputs).detach())
    same = torch.linalg.vector_norm(before[0] - before[1]) / torch.linalg.vector_norm(before[0])
    assert same < 1e-12, f"the two networks are not the same function: {same:.1e}"
    moved = torch.linalg.vector_norm(outputs[0] - before[0])
    return float(torch.linalg.vector_norm(outputs[0] - outputs[1]) / moved)


def copied(model: nn.Sequential) -> nn.Sequential:
    """The same network with parameters of its own."""
    return copy.deepcopy(model)


@torch.no_grad()
def logistic_twin(tanh: nn.Sequential) -> nn.Sequential:
    """The same function with logistic units: tanh(s) = 2 logistic(2s) − 1."""
    layers = [copied(tanh)[i] if isinstance(tanh[i], nn.Linear) else nn.Sigmoid() for i in range(len(tanh))]
    linear = [each for each in layers if isinstance(each, nn.Linear)]
    for below, above in zip(linear, linear[1:], strict=False):
        below.weight.mul_(2), below.bias.mul_(2)
        above.bias.sub_(above.weight.sum(1))
        above.weight.mul_(2)
    return nn.Sequential(*layers)


@torch.no_grad()
def affine_image(
    model: nn.Sequential, inputs: Float[Tensor, "N D"], generator: torch.Generator
) -> tuple[Float[Tensor, "N D"], nn.Sequential]:
    """Inputs x M + c, with a random M of condition number 100 and a random c, and the network that undoes it."""
    dim = inputs.shape[1]
    left, right = torch.linalg.qr(torch.randn(2, dim, dim, generator=generator, dtype=torch.float64)).Q
    spread = torch.logspace(-1, 1, dim, dtype=torch.float64)
    shift = torch.randn(dim, generator=generator, dtype=torch.float64)
    inverse = right.mT @ (left / spread).mT  # of M = left diag(spread) right
    twin = copied(model)
    twin[0].weight.copy_(model[0].weight @ inverse.mT)
    twin[0].bias.sub_(twin[0].weight @ shift)
    return inputs @ (left * spread) @ right + shift, twin


def slopes(name: str, seed: int) -> dict[str, float]:
    """Slope of log gap against log η for one step on a Gaussian's σ, taken in σ and in another coordinate.

    The data's variance v is drawn with `seed`; the loss is log σ + v / 2σ², its Fisher in σ is 2/σ².
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    variance, start = 0.5 + 0.5 * first, 1.25 + second  # away from the optimum, and from dσ/dz = 1, where nobody notices
    rates = [10.0**-k for k in (2.0, 2.5, 3.0, 3.5)]
    into, back, jacobian = COORDINATES[name]
    gradient, fisher = 1 / start - variance / start**3, 2 / start**2
    j = jacobian(into(start))
    steps = {"gradient": (gradient, j * gradient), "natural": (gradient / fisher, gradient / fisher / j)}
    found = {}
    for kind, (own, other) in steps.items():
        gaps = [abs((start - rate * own) - back(into(start) - rate * other)) for rate in rates]
        found[kind] = slope([math.log(rate) for rate in rates], [math.log(each) for each in gaps])
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def judge(seeds: Sequence[dict]) -> list[Check]:
    """Invariant methods, methods that notice, and the two orders."""

    def gaps(label: str) -> list[float | None]:
        return [change[label] for seed in seeds for change in seed["gaps"].values()]

    checks = [
        _check(f"undamped {title}: gap below {INVARIANT:g}", gaps(label), lambda value: value < INVARIANT)
        for label, title in (("kfac 0", "K-FAC"), ("exact_ngd 0", "exact natural gradient"))
    ]
    checks += [
        _check(f"{title}: gap above {NOTICED:g}", gaps(label), lambda value: value > NOTICED)
        for label, title in (("sgd", "gradient descent"), ("kfac 1e-2", "K-FAC damped with λ = 0.01"))
    ]
    for kind, order, title in (("gradient", FIRST_ORDER, "gradient descent"), ("natural", SECOND_ORDER, "natural gradient")):
        found = [each[kind] for seed in seeds for each in seed["slopes"].values()]
        text = f"nonlinear change of coordinates, {title}: gap ∝ step^{order:g}, ± {WITHIN:g} in the exponent"
        checks.append(_check(text, found, lambda value, order=order: abs(value - order) <= WITHIN))
    return checks


def _check(text: str, values: Sequence[float | None], ok: Callable[[float], bool]) -> Check:
    return Check(text, span(values), all(value is not None and ok(value) for value in values))


def figure(seeds: Sequence[dict]) -> object:
    """Gaps by method, on a log axis."""
    from natgrad_lab.plots.reproduce import invariance_figure

    return invariance_figure(seeds)


INVARIANCE = Reproduction(
    name="invariance",
    title="Who notices a change of coordinates?",
    claim="Undamped K-FAC and the exact natural gradient take the same step in function space when tanh units become logistic "
    "ones or inputs are transformed affinely; gradient descent does not, and damping breaks it. Under nonlinear changes the "
    "natural gradient is invariant to first order.",
    source="[MartensGrosse2015] sec. 10; [Martens2020] sec. 12",
    criterion=f"relative gap of the functions after one step, all seeds, both changes: undamped K-FAC and exact natural "
    f"gradient < {INVARIANT:g}; gradient descent and K-FAC with λ = 0.01 > {NOTICED:g}; a Gaussian's σ in three other "
    f"coordinates: gap ∝ step¹ for gradient descent and step² for the natural gradient, ± {WITHIN:g} in the exponent",
    scales={
        name: Scale({"sizes": (6, 8, 8, 3), "num_examples": 300, "lr": 0.1}) for name in ("small", "full")
    },  # a theorem has no scale
    run=run,
    judge=judge,
    figure=figure,
)
