"""A run is a generator of `StepRecord`s: whoever iterates it drives it, and pauses it by not asking for the next."""

import os
from collections.abc import Iterator
from dataclasses import replace

from natgrad_lab.errors import NonFiniteError, NotPositiveDefiniteError
from natgrad_lab.experiments.config import ExperimentConfig
from natgrad_lab.experiments.storage import RunFolder
from natgrad_lab.experiments.training import Training, evaluate, prepare
from natgrad_lab.optimizers import StepRecord


def run(
    config: ExperimentConfig,
    training: Training | None = None,
    *,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int = 50,
) -> Iterator[StepRecord]:
    """Train by `config`, yielding one record per step, up to `config.steps` in all.

    A run that diverges, or whose damped Fisher can no longer be inverted, ends with a record whose `status` and `message`
    say so; its records and its last good checkpoint are kept. An error at the first step is raised: nothing is lost by it.
    What `config.evaluate_every` asks for is appended to `training.evaluations`.

    Args:
        training: what to train, if it was prepared (or built from one's own model) before; made from `config` otherwise.
        folder: where to keep config, records and checkpoints; nothing is written without it. It is locked until the
            iteration ends or is closed.
        resume: continue the run in `folder`. On the CPU with the same number of threads the result is bit for bit that of
            an uninterrupted run.
        checkpoint_every: steps between checkpoints; one more is written when the iteration ends or is closed.
    Raises: ValueError, before the first step, for a folder that cannot be written or holds another run; as `prepare`.
        OSError if something cannot be written later; the last good checkpoint stays.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be a positive number of steps; got {checkpoint_every}.")
    if folder is None:
        return _steps(config, prepare(config) if training is None else training, None, checkpoint_every)
    store = RunFolder(folder)
    store.lock()
    try:
        store.check(config, resume)
        training = prepare(config) if training is None else training
        (store.resume if resume else store.begin)(config, training)
    except BaseException:
        store.unlock()
        raise
    return _steps(config, training, store, checkpoint_every)


def _steps(
    config: ExperimentConfig, training: Training, store: RunFolder | None, checkpoint_every: int
) -> Iterator[StepRecord]:
    saved = training.step
    whole = True  # whether everything is as after training.step steps, not as in the middle of one
    try:
        _evaluate(config, training, store)
        while training.step < config.steps:
            whole = False
            record = _step(training)
            if store is not None:
                store.append(record)
            if record.status != "ok":
                whole = True
                yield record
                return
            training.step += 1
            _evaluate(config, training, store)
            if store is not None and training.step % checkpoint_every == 0:
                store.save(training)
                saved = training.step
            whole = True
            yield record
    finally:
        if store is not None:
            try:
                if whole and training.step > saved:
                    store.save(training)
            finally:
                store.unlock()


def _step(training: Training) -> StepRecord:
    inputs, targets = training.batch(training.step)
    try:
        record = training.optimizer.step(inputs, targets)
    except (NonFiniteError, NotPositiveDefiniteError) as error:
        if training.step == 0:
            raise
        record = StepRecord(training.step + 1, float("nan"), status="failed", message=str(error))
    return replace(record, step=training.step + 1)


def _evaluate(config: ExperimentConfig, training: Training, store: RunFolder | None) -> None:
    """Measure, where `config` asks for it after this step and it was not done yet."""
    done = training.evaluations and training.evaluations[-1].step == training.step
    if config.evaluate_every is None or training.step % config.evaluate_every or done:
        return
    evaluation = evaluate(training, config.evaluate_examples)
    if store is not None:
        store.append_evaluation(evaluation)
    training.evaluations.append(evaluation)
