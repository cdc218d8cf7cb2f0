"""The core of every training race: the same network, data and batches for each method, tuned with equally many trials.

A race is plain values: problems (network, data, likelihood), entrants (method, fixed settings, a grid of settings to try) and
a budget. Settings are chosen on seed 0 alone, each entrant's best by its training error at the end of the budget; then the
seeds 1, 2, ... are run with them. Time is that of the steps: making batches and evaluating are outside the clock, which
counts CPU seconds of the process on a CPU (a busy machine does not slow it) and seconds on a GPU.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab import datasets
from natgrad_lab.errors import NonFiniteError, NotPositiveDefiniteError
from natgrad_lab.experiments.evaluation import loss_and_error
from natgrad_lab.experiments.training import Training
from natgrad_lab.likelihoods import LIKELIHOODS, Likelihood
from natgrad_lab.optimizers import METHODS
from natgrad_lab.reproduce.base import Check, Reproduction, Scale, Work
from natgrad_lab.reproduce.race_networks import NETWORKS
from natgrad_lab.reproduce.race_results import or_inf
from natgrad_lab.shapes import Tensor

TUNING_SEED = 0


@dataclass(frozen=True)
class Problem:
    """A network to train: made from (seed, whether with batch normalization), on data that are there."""

    make: Callable[[int, bool], nn.Module]
    likelihood: Likelihood
    inputs: Tensor
    targets: Tensor
    batch_size: int


def load(config: Mapping, device: torch.device) -> Problem:
    """The problem of plain values: dataset, data, num_examples, image_size, network, likelihood, batch_size.

    Raises: FileNotFoundError if the data can be had nowhere.
    """
    data = datasets.load(config["dataset"], **config.get("data", {}))
    if config.get("num_examples"):
        data = data.select(slice(config["num_examples"]))
    if config.get("image_size"):
        data = datasets.resize(data, config["image_size"])
    network = config["network"]
    if network["kind"] == "autoencoder":
        data = datasets.autoencoding(data)
    inputs, targets = data.inputs.to(device), data.targets.to(device)

    def make(seed: int, batch_norm: bool) -> nn.Module:
        options = {name: value for name, value in network.items() if name != "kind"}
        return NETWORKS[network["kind"]](data, seed, batch_norm, **options).to(device)

    return Problem(make, LIKELIHOODS[config["likelihood"]](), inputs, targets, config["batch_size"])


def trials(entrants: Mapping[str, Mapping]) -> int:
    """How many settings every entrant tries; refuses a race in which they differ."""
    counts = {label: len(each["grid"]) for label, each in entrants.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"every entrant of a race must try the same number of settings, at least one; got {counts}.")
    return next(iter(counts.values()))


def tune(work: Work) -> dict:
    """For every problem and entrant: all trials with the error they end at, and the setting of the best one."""
    config, found = work.config, {}
    trials(config["entrants"])
    for name, problem in _problems(work):
        found[name] = {}
        for label, entrant in config["entrants"].items():
            tried = []
            for number, setting in enumerate(entrant["grid"]):
                key = f"tune-{name}-{label}-{number}".replace(" ", "_")
                curve = work.keep(key, lambda p=problem, e=entrant, s=setting: race_one(p(), e, s, TUNING_SEED, config))
                tried.append({"setting": setting, "error": curve["errors"][-1], "status": curve["status"]})
            best = min(tried, key=lambda trial: or_inf(trial["error"]))
            found[name][label] = {"setting": best["setting"], "trials": tried}
    return found


def run(seed: int, work: Work) -> dict:
    """Curves of every entrant on every problem with the tuned settings: {"curves": {problem: {entrant: curve}}}."""
    curves: dict[str, dict] = {}
    for name, problem in _problems(work):
        curves[name] = {}
        for label, entrant in work.config["entrants"].items():
            setting = work.tuned[name][label]["setting"]
            key = f"seed-{seed}-{name}-{label}".replace(" ", "_")
            curves[name][label] = work.keep(
                key, lambda p=problem, e=entrant, s=setting: race_one(p(), e, s, seed, work.config)
            )  # fmt: skip
    return {"curves": curves}


def pieces(config: Mapping, num_seeds: int) -> int:
    """How many single runs a race has."""
    return len(config["problems"]) * len(config["entrants"]) * (trials(config["entrants"]) + num_seeds)


def _problems(work: Work) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Names, and a function that loads the problem once, when the first run that is not kept needs it."""
    for name, config in work.config["problems"].items():
        loaded: list[Problem] = []

        def problem(config: Mapping = config, loaded: list = loaded) -> Problem:
            if not loaded:
                loaded.append(load(config, work.device))
            return loaded[0]

        yield name, problem


def race_one(problem: Problem, entrant: Mapping, setting: Mapping, seed: int, budget: Mapping) -> dict:
    """Train one network by one method until the budget's `updates` or `seconds` are used up, whichever is first.

    An entrant may have fewer `updates` than the budget: what it has not reached by then counts as never.

    Args: budget: updates, seconds, evaluations (checkpoints, in even steps), evaluate_examples, measure ("error" or "loss").
    Returns: updates, seconds and errors at the checkpoints (error: ‖y − mean‖² or the fraction wrong; loss: nats), and how it
        ended: "ok", "out of time", or "diverged", whose last error is then None.
    """
    batch_norm = bool(entrant.get("batch_norm", False))
    model = problem.make(seed, batch_norm).train()
    choices = {**entrant.get("fixed", {}), **setting}
    optimizer = METHODS[entrant["method"]](model, problem.likelihood, **_seeded(entrant["method"], choices, seed))
    training = Training(model, problem.likelihood, problem.inputs, problem.targets, optimizer, problem.batch_size, seed)
    updates = entrant.get("updates", budget["updates"])
    clock, used, status = _clock(problem.inputs.device), 0.0, "ok"
    curve: dict[str, list] = {"updates": [], "seconds": [], "errors": []}
    marks = checkpoints(updates, budget["evaluations"])

    def note(step: int, error: float) -> None:
        for name, value in (("updates", step), ("seconds", used), ("errors", error)):
            curve[name].append(value)

    note(0, measure(model, problem, budget))
    for step in range(updates):
        inputs, targets = training.batch(step)
        started = clock()
        failed = _failed_step(optimizer, inputs, targets)
        used += clock() - started
        if failed:
            status = f"diverged at update {step + 1}: {failed}"
            note(step, math.inf)
            break
        out_of_time = used >= budget["seconds"]
        if step + 1 in marks or out_of_time:
            note(step + 1, measure(model, problem, budget))
        if out_of_time and step + 1 < updates:
            status = "out of time"
            break
    return curve | {"status": status}


def checkpoints(updates: int, evaluations: int) -> set[int]:
    """`evaluations` updates: about half of them in equal ratios from 1, half in equal steps, the last one always."""
    ratios = {round(updates ** (k / (evaluations // 2))) for k in range(evaluations // 2 + 1)}
    steps = {round(updates * (k + 1) / (evaluations - evaluations // 2)) for k in range(evaluations - evaluations // 2)}
    return {each for each in ratios | steps if 1 <= each <= updates}


def measure(model: nn.Module, problem: Problem, budget: Mapping) -> float:
    """Error or loss on the first examples of the training set, in eval mode."""
    part = slice(budget["evaluate_examples"])
    loss, error = loss_and_error(model, problem.likelihood, problem.inputs[part], problem.targets[part])
    return {"loss": loss, "error": error}[budget["measure"]]


def _failed_step(optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> str:
    """Step; "" or why it was none."""
    try:
        record = optimizer.step(inputs, targets)
    except (NonFiniteError, NotPositiveDefiniteError) as error:
        return str(error)
    return "" if record.status == "ok" else record.message


def _seeded(method: str, choices: Mapping, seed: int) -> dict:
    """Methods that sample targets take a seed; first-order ones do not."""
    return dict(choices) if method in ("sgd", "momentum", "adam") else {**choices, "seed": seed}


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def figure(seeds: Sequence[dict]) -> object:
    """Error against updates and against seconds, a row a problem."""
    from natgrad_lab.plots.reproduce_race import race_figure

    return race_figure(seeds)


def race_reproduction(
    *,
    scales: Mapping[str, Scale],
    judge: Callable[[Sequence[dict]], list[Check]],
    run: Callable[[int, Work], dict] = run,
    pieces: Callable[[Mapping, int], int] = pieces,
    **texts: str,
) -> Reproduction:
    """A reproduction that is a race; methods and data sets are those its scales name."""
    configs = [scale.config for scale in scales.values()]
    methods = sorted({each["method"] for config in configs for each in config["entrants"].values()})
    data = sorted({each["dataset"] for config in configs for each in config["problems"].values()})
    return Reproduction(
        **texts, scales=scales, run=run, judge=judge, figure=figure, tune=tune, pieces=pieces, methods=tuple(methods),
        data=tuple(data),
    )  # fmt: skip
