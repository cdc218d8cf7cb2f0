"""Several methods train copies of one network from the same weights, in turn: the problem behind the race, for a `LiveRun`."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from natgrad_lab.derivatives import refuse_inputs, refuse_outputs, run_model
from natgrad_lab.errors import NotPositiveDefiniteError
from natgrad_lab.experiments import ExperimentConfig
from natgrad_lab.likelihoods import Likelihood, check_likelihood
from natgrad_lab.names import known
from natgrad_lab.optimizers import METHODS
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Tensor
from natgrad_lab.widgets.training import begin_model, leave_a_core

MOST_POINTS = 1000  # of a curve; when full, every other one is left out
_FOREVER = 10**9
_OWN = ("lr", "damping")  # choices that every method has; all others are its options


@dataclass
class Entrant:
    """One method on its way. Losses in nats per example; `updates`, `seconds` and `examples` are those before each loss."""

    name: str
    method: str
    updates: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    done: int = 0
    spent: float = 0.0
    ended: str = ""  # why it stands still
    stride: int = 1

    def add(self, loss: float, seconds: float, examples: int) -> None:
        """One update: what the loss was before it, and what it took."""
        if self.done % self.stride == 0:
            self.updates.append(self.done)
            self.seconds.append(self.spent)
            self.examples.append(self.done * examples)
            self.losses.append(loss)
            if len(self.losses) >= MOST_POINTS:
                for each in (self.updates, self.seconds, self.examples, self.losses):
                    del each[1::2]
                self.stride *= 2
        self.done, self.spent, self.newest = self.done + 1, self.spent + seconds, loss

    newest: float = math.nan


@dataclass(frozen=True)
class Lap:
    """What one step of the race did; the race goes on while `status` is "ok"."""

    name: str
    loss: float
    status: str = "ok"
    message: str = ""


class RaceProblem:
    """Steps the entrant that has spent the least time, so that all have had the same seconds; see `controller.Problem`.

    Args: entrants: name → choices: "method" (the name, if not given), "lr", "damping", and what the method takes besides.
    Raises: TypeError, ValueError: whatever makes a model, data or a method unfit, before anything is trained.
    """

    restarting = frozenset({"seed"})

    def __init__(
        self, model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor, entrants: Mapping[str, Mapping],
        batch_size: int | None = None,
    ):  # fmt: skip
        """Check everything, and build every method once."""
        check(model, likelihood, inputs, targets)
        self._size = len(inputs) if batch_size is None else batch_size
        if not 1 <= self._size <= len(inputs):
            raise ValueError(f"batch_size must be from 1 to the {len(inputs)} examples, or None for all; got {batch_size}.")
        self._begins: dict[str, Callable] = {}
        self.methods = {}
        for name, choices in entrants.items():
            config = _config(name, dict(choices), batch_size)
            self._begins[name] = begin_model(config, model, likelihood, inputs, targets)
            self._begins[name]({"seed": 0})
            self.methods[name] = config.method

    def reset(self, **choices) -> None:
        """All back to the same weights."""
        leave_a_core()
        self._entrants = {name: Entrant(name, method) for name, method in self.methods.items()}
        self._records = {name: begin({"seed": choices.get("seed", 0)})[1] for name, begin in self._begins.items()}

    def step(self) -> Lap | None:
        """One update of one method. One that diverges or fails stands still, and the others go on."""
        going = [entrant for entrant in self._entrants.values() if not entrant.ended]
        if not going:
            return None
        entrant = min(going, key=lambda each: each.spent)
        try:
            record = next(self._records[entrant.name])
        except (ArithmeticError, ValueError, RuntimeError, NotPositiveDefiniteError) as error:
            entrant.ended = f"{type(error).__name__}: {error}"
        else:
            entrant.add(record.loss, record.seconds, self._size)
            if record.status != "ok":
                entrant.ended = f"{record.status} after {record.step} updates"
        if all(each.ended for each in self._entrants.values()):
            return Lap(entrant.name, entrant.newest, "finished", "no method is left in the race")
        return Lap(entrant.name, entrant.newest)

    def set(self, **choices) -> None:
        """Nothing changes while running; how it is drawn is the panel's."""

    def snapshot(self) -> dict[str, Any]:
        """The curves so far, as arrays."""
        return {"entrants": [_frozen(entrant) for entrant in self._entrants.values()]}


def _frozen(entrant: Entrant) -> dict[str, Any]:
    places = {name: np.array(getattr(entrant, name), dtype=np.float64) for name in ("updates", "seconds", "examples", "losses")}
    names = ("name", "method", "done", "spent", "ended", "newest")
    return {name: getattr(entrant, name) for name in names} | places


def entrants_of(methods: Sequence[str] | Mapping[str, Mapping]) -> dict[str, dict]:
    """Names of METHODS, or name → choices, as name → choices. Raises: ValueError, TypeError."""
    if isinstance(methods, str) or not isinstance(methods, Sequence | Mapping) or not methods:
        raise TypeError(
            f"methods are names, as ('sgd', 'kfac'), or names with choices, as {{'kfac': {{'lr': 0.3}}}}; got {methods!r}."
        )
    return {str(name): dict(methods[name]) if isinstance(methods, Mapping) else {} for name in methods}


def _config(name: str, choices: dict, batch_size: int | None) -> ExperimentConfig:
    method = known(choices.pop("method", name), METHODS, "method")
    own = {key: choices.pop(key) for key in _OWN if key in choices}
    return ExperimentConfig(method=method, options=choices, batch_size=batch_size, steps=_FOREVER, **own)


def made(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """A copy of the module, or what the function makes. Raises: TypeError."""
    built = copy.deepcopy(model) if isinstance(model, nn.Module) else model() if callable(model) else model
    if not isinstance(built, nn.Module):
        raise TypeError(
            f"the model must be a torch.nn.Module, or a function without arguments that makes one; got {type(built).__name__}."
        )
    return built


def check(model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor | None) -> None:
    """Refuse what cannot be trained, with the reason; the model is left as it was. `targets` None: there are none to check."""
    check_likelihood(likelihood)
    layout = ParameterLayout(model)
    refuse_inputs(layout, inputs)
    if targets is not None and (not isinstance(targets, Tensor) or targets.ndim < 1 or len(targets) != len(inputs)):
        given = f"{len(targets)} of them" if isinstance(targets, Tensor) and targets.ndim else type(targets).__name__
        raise ValueError(f"targets must be a tensor with one target for each of the {len(inputs)} inputs; got {given}.")
    few = inputs[:8]
    state, rng = copy.deepcopy(model), torch.get_rng_state()
    try:
        with torch.no_grad():
            outputs = run_model(state, few)
    finally:
        torch.set_rng_state(rng)
    refuse_outputs(layout, few, outputs)
    if targets is not None:
        likelihood.validate(outputs, targets[:8])
