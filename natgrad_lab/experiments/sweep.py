"""Several runs one after the other: seeds and grids of choices, each in a folder of its own, and what came out of them."""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from natgrad_lab.errors import NonFiniteError, NotPositiveDefiniteError
from natgrad_lab.experiments.config import ExperimentConfig
from natgrad_lab.experiments.evaluation import Evaluation
from natgrad_lab.experiments.run import run
from natgrad_lab.experiments.storage import RunFolder
from natgrad_lab.experiments.training import prepare
from natgrad_lab.names import known
from natgrad_lab.optimizers import StepRecord


@dataclass(frozen=True)
class Outcome:
    """What a run gave. `message` says why it could not take its first step; "" for all others."""

    config: ExperimentConfig
    records: Sequence[StepRecord]
    evaluations: Sequence[Evaluation] = ()
    message: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether it took all its steps and they went well."""
        return not self.message and (not self.records or self.records[-1].status == "ok")


def grid(config: ExperimentConfig, **choices: Iterable) -> list[ExperimentConfig]:
    """`config` with every combination of `choices`, as grid(config, lr=(0.1, 0.3), seed=range(3)); the last varies fastest."""
    for name in choices:
        known(name, [field.name for field in fields(ExperimentConfig)], "field of ExperimentConfig")
    combinations = itertools.product(*choices.values())
    return [replace(config, **dict(zip(choices, values, strict=True))) for values in combinations]


def race(
    configs: Iterable[ExperimentConfig],
    folder: str | os.PathLike | None = None,
    *,
    checkpoint_every: int = 50,
    tick: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run every config to its end; a run that diverges, or fails at its first step, is an outcome like others.

    Args:
        folder: each run is kept in a folder of its own below it, named by `run_name`. A race that was interrupted goes on
            where it was, and what is finished is read, not made again. None: nothing is written.
        tick: called with every outcome.
    Raises: ValueError as `prepare` and `run`.
    """
    outcomes = []
    for config in configs:
        outcomes.append(_outcome(config, folder and Path(folder) / run_name(config), checkpoint_every))
        tick(outcomes[-1])
    return outcomes


def best(outcomes: Sequence[Outcome], score: str = "train_loss") -> Outcome:
    """The complete outcome whose last evaluation has the smallest `score`, a field of `Evaluation`.

    Raises: ValueError if no outcome is complete and evaluated, or the field does not exist.
    """
    known(score, [field.name for field in fields(Evaluation) if field.name != "step"], "score")
    scores = {}
    for index, outcome in enumerate(outcomes):
        value = getattr(outcome.evaluations[-1], score) if outcome.is_complete and outcome.evaluations else math.nan
        if math.isfinite(value):
            scores[index] = value
    if not scores:
        raise ValueError(
            f"none of the {len(outcomes)} runs was completed with a finite {score}. Set evaluate_every, or lower the lr."
        )
    return outcomes[min(scores, key=scores.get)]


def run_name(config: ExperimentConfig) -> str:
    """A folder's name for `config`: readable, and another one for every other config; steps and device do not count."""
    plain = ExperimentConfig.to_json(replace(config, steps=0, device="auto"))
    return f"{config.dataset}-{config.method}-{config.seed}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"


def _outcome(config: ExperimentConfig, folder: Path | None, checkpoint_every: int) -> Outcome:
    if folder is not None and (done := _finished(config, folder)):
        return done
    training, records = prepare(config), []
    try:
        for record in run(config, training, folder=folder, resume=folder is not None, checkpoint_every=checkpoint_every):
            records.append(record)
    except (NonFiniteError, NotPositiveDefiniteError) as error:
        return Outcome(config, (), tuple(training.evaluations), f"{type(error).__name__}: {error}")
    kept = records if folder is None else RunFolder(folder).records()
    return Outcome(config, tuple(kept), tuple(training.evaluations))


def _finished(config: ExperimentConfig, folder: Path) -> Outcome | None:
    """The outcome of a run that is at its end, from its folder alone."""
    if not (folder / "config.json").is_file():
        return None
    store = RunFolder(folder)
    store.check(config, resume=True)
    records = store.records()[: config.steps]
    taken = sum(record.status == "ok" for record in records)
    if taken == len(records) < config.steps or store.saved_step() < taken:
        return None
    evaluations = [each for each in store.evaluations() if each.step <= len(records)]
    return Outcome(config, tuple(records), tuple(evaluations))
