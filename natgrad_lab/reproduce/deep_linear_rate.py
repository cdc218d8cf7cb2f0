"""How fast does the natural gradient train a deep linear network? [Bernacchia2018]: as e^(−2t), whatever the network and data.

Networks of several depths, inputs of several condition numbers, random weights and targets. The published formula with steps of
length 0.01, time t = 0.01 x steps; beside it gradient descent at the best of many learning rates, batched.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from natgrad_lab import deep_linear
from natgrad_lab.reproduce.base import Check, Reproduction, Scale, Work, span
from natgrad_lab.reproduce.invariance import slope
from natgrad_lab.shapes import Float, Tensor

RATE, WITHIN = -2.0, 0.03  # d log(excess loss) / dt
SOLVES = 1e-8  # ‖F v − g‖ / ‖g‖ along the way
SLOWER, ILL = 10.0, 1e3  # updates of gradient descent against natural gradient, to 0.01 % of the excess, from this condition on
DEPTH_MATTERS = 1.5  # most against fewest of its updates over depths


def run(seed: int, work: Work) -> dict:
    """One entry per (depth, condition number)."""
    found = []
    for depth in work.config["depths"]:
        for condition in work.config["conditions"]:
            weights, inputs, targets = problem(depth, condition, work.config["widths"], seed)
            weights, inputs, targets = [w.to(work.device) for w in weights], inputs.to(work.device), targets.to(work.device)
            excess, residual = descend(weights, inputs, targets, work.config["lr"], work.config["steps"])
            fast, _ = descend(weights, inputs, targets, work.config["race_lr"], work.config["race_steps"])
            found.append(
                {
                    "depth": depth, "condition": condition, "residual": residual, "excess": excess[:: work.config["every"]],
                    "rate": slope([work.config["lr"] * k for k in range(len(excess))], [math.log(each) for each in excess]),
                    "natural updates": [steps_to(fast, goal, len(fast)) for goal in work.config["goals"]],
                    "gradient updates": gradient_updates(weights, inputs, targets, work.config),
                }
            )  # fmt: skip
    return {"networks": found, "times": [work.config["lr"] * work.config["every"] * k for k in range(len(found[0]["excess"]))]}


def problem(
    depth: int, condition: float, widths: Sequence[int], seed: int
) -> tuple[list[Tensor], Float[Tensor, "N D"], Float[Tensor, "N C"]]:
    """Weights N(0, 1 / fan-in), inputs whose second moment has eigenvalues from 1 to 1 / condition, a random linear target.

    Args: widths: (inputs, hidden, outputs); hidden layers are wider than both, so that no layer is a bottleneck.
    """
    generator = torch.Generator().manual_seed(1000 * seed + depth)
    into, hidden, out = widths
    sizes = (into, *[hidden] * (depth - 1), out)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [draw(above, below) / math.sqrt(below) for below, above in pairwise(sizes)]
    axes, spread = torch.linalg.qr(draw(into, into)).Q, torch.logspace(0, -math.log10(condition), into, dtype=torch.float64)
    second = (axes * spread) @ axes.mT
    return weights, *deep_linear.data_from_moments(second, draw(out, into) @ second)


def descend(weights: list[Tensor], inputs: Tensor, targets: Tensor, lr: float, steps: int) -> tuple[list[float], float]:
    """Excess losses under steps by the published formula, the first before any step; and the largest residual met."""
    excess, residual = [], 0.0
    for _ in range(steps + 1):
        found = deep_linear.natural_gradient(weights, inputs, targets, formula="equal")
        excess.append(found.excess_loss)
        residual = max(residual, found.residual)
        weights = [w - lr * v for w, v in zip(weights, found.layers, strict=True)]
    return excess, residual


def gradient_updates(weights: list[Tensor], inputs: Tensor, targets: Tensor, config: Mapping) -> list[int]:
    """Updates that gradient descent needs to each goal at the best of its learning rates, all run at once; at most the cap."""
    rates = torch.tensor(config["gradient_lrs"], dtype=inputs.dtype, device=inputs.device)
    layers = [w.expand(len(rates), *w.shape).clone().requires_grad_() for w in weights]
    best = torch.linalg.lstsq(inputs, targets).solution.mT
    first, cap, found = None, config["gradient_cap"], []
    for step in range(cap + 1):
        product = layers[0]
        for layer in layers[1:]:
            product = layer @ product
        losses = ((product - best) @ inputs.mT).square().sum((1, 2)) / (2 * len(inputs))
        first = float(losses[0].detach()) if first is None else first
        while len(found) < len(config["goals"]) and (losses <= config["goals"][len(found)] * first).any():
            found.append(step)
        if len(found) == len(config["goals"]):
            return found
        gradients = torch.autograd.grad(losses.sum(), layers)
        with torch.no_grad():
            layers = [(w - rates[:, None, None] * g).requires_grad_() for w, g in zip(layers, gradients, strict=True)]
    return found + [cap] * (len(config["goals"]) - len(found))


def steps_to(excess: Sequence[float], goal: float, cap: int) -> int:
    """The first step at which the excess is at most `goal` times the first; `cap` if none is."""
    return next((step for step, each in enumerate(excess) if each <= goal * excess[0]), cap)


def judge(seeds: Sequence[dict]) -> list[Check]:
    """Rate, exactness, and gradient descent's slowness and dependence on depth."""
    networks = [each for seed in seeds for each in seed["networks"]]

    def check(text: str, values: Sequence[float | None], ok: Callable[[float], bool]) -> Check:
        return Check(text, span(values, 4), all(value is not None and ok(value) for value in values))

    ill = [each for each in networks if each["condition"] >= ILL]
    loose, strict = ([each["gradient updates"][i] / each["natural updates"][i] for each in ill] for i in (0, 1))
    slow = check(f"gradient descent needs ≥ {SLOWER:g} times the updates to 0.01 % of the excess (condition ≥ {ILL:g})",
                 strict, lambda x: x >= SLOWER)  # fmt: skip
    slow = replace(slow, measured=f"{slow.measured}; to 1 %, not judged: {span(loose, 4)}")
    by_depth = [
        max(counts) / min(counts)
        for seed in seeds
        for condition in {each["condition"] for each in seed["networks"]}
        for counts in [[e["gradient updates"][0] for e in seed["networks"] if e["condition"] == condition]]
        if condition < ILL  # beyond, the cap hides it
    ]
    return [
        check(f"d log(excess loss) / dt = {RATE:g} ± {WITHIN:g}, every depth, condition number and seed",
              [each["rate"] for each in networks], lambda x: abs(x - RATE) <= WITHIN),
        check(f"the formula solves F v = g: relative residual < {SOLVES:g} all along",
              [each["residual"] for each in networks], lambda x: x < SOLVES),
        slow,
        check(f"and how many to 1 % depends on depth: most against fewest ≥ {DEPTH_MATTERS:g} (well-conditioned inputs)",
              by_depth, lambda x: x >= DEPTH_MATTERS),
    ]  # fmt: skip


def figure(seeds: Sequence[dict]) -> object:
    """Excess loss against time for all networks, with e^(−2t)."""
    from natgrad_lab.plots.reproduce import deep_linear_figure

    return deep_linear_figure(seeds)


CONFIG = {
    "depths": (2, 4, 8), "conditions": (1.0, 1e3, 1e5), "widths": (6, 8, 4), "lr": 0.01, "steps": 300, "every": 10,
    "goals": (0.01, 1e-4), "race_lr": 0.1, "race_steps": 100, "gradient_cap": 2000,
    "gradient_lrs": tuple(round(10 ** (k / 2), 6) for k in range(-5, 4)),
}  # fmt: skip
DEEP_LINEAR_RATE = Reproduction(
    name="deep-linear-rate",
    title="Does the natural gradient feel the depth of a linear network?",
    claim="The natural gradient of a deep linear network has a closed form per layer, and its loss falls exponentially at a "
    "rate that depends neither on depth nor on the inputs.",
    source="[Bernacchia2018]",
    criterion=f"d log(excess loss) / dt = {RATE:g} ± {WITHIN:g} for 3 depths x 3 condition numbers, all seeds, no bottleneck; "
    f"‖F v − g‖ / ‖g‖ < {SOLVES:g}; gradient descent at the best of {len(CONFIG['gradient_lrs'])} learning rates needs at "
    f"least {SLOWER:g} times the updates of the natural gradient with lr {CONFIG['race_lr']:g} to 0.01 % of the excess at "
    f"condition numbers ≥ {ILL:g} (counted up to {CONFIG['gradient_cap']}; 1 %, for which the few large directions of the "
    f"inputs suffice, is shown but not judged), and its number of updates to 1 % differs over depths by a factor ≥ "
    f"{DEPTH_MATTERS:g}",
    scales={name: Scale(CONFIG) for name in ("small", "full")},  # a theorem has no scale
    run=run,
    judge=judge,
    figure=figure,
)
