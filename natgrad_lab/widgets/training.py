"""The problem behind the training panel: steps of an experiment, and looks at it, for a `LiveRun`."""

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from natgrad_lab.experiments import ExperimentConfig, Training, prepare, run
from natgrad_lab.experiments.training import make_optimizer
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.widgets.state import ProbeFisher, compute, damped_condition_number, probe_fisher

Begin = Callable[[dict[str, Any]], tuple[Training, Iterator]]


class TrainingProblem:
    """Steps a training and looks at it; see `controller.Problem`.

    Args:
        begin: (choices) → a training at step 0 and the iterator of its records.
        probe_size: the Fisher is that of the first `probe_size` examples.
    """

    restarting = frozenset({"method", "seed"})

    def __init__(self, begin: Begin, *, probe_size: int = 50):
        """Nothing is built before the first `reset`."""
        if probe_size < 1:
            raise ValueError(f"probe_size must be at least 1; got {probe_size}.")
        self._begin, self._probe_size = begin, probe_size
        self._buffer: Tensor | None = None
        self._fisher: ProbeFisher | None = None
        self._thread: threading.Thread | None = None

    def reset(self, **choices) -> None:
        """Build the training anew."""
        self._leave_a_core()
        self._choices = dict(choices)
        self._training, self._records = self._begin(self._choices)
        self._inputs = self._training.inputs[: self._probe_size]
        self._fisher = None
        self.set(**choices)

    def step(self):
        """One optimizer step; None when the experiment is over."""
        record = next(self._records, None)
        if record is not None and record.status == "ok":
            self._fisher = None
        return record

    def set(self, **choices) -> None:
        """Learning rate and damping go to the optimizer; scale and picture to the next snapshot."""
        self._choices.update(choices)
        for group in self._training.optimizer.param_groups:
            group.update({name: float(choices[name]) for name in ("lr", "damping") if name in choices and name in group})

    def snapshot(self) -> dict[str, Any]:
        """Compute a frame; the Fisher only if the parameters have moved."""
        training = self._training
        if self._fisher is None:
            self._fisher = probe_fisher(training.model, training.likelihood, self._inputs, out=self._buffer)
            self._buffer = self._fisher.matrix
        state = {"model": training.model, "likelihood": training.likelihood, "inputs": self._inputs}
        return compute({**state, **self._choices, "fisher": self._fisher})

    def preview(self, arrays: Mapping[str, Any], changes: dict[str, Any]) -> Mapping[str, Any] | None:
        """Learning rate and damping leave the picture as it is; damping changes one number beside it."""
        if not changes.keys() <= {"lr", "damping"}:
            return None
        if "damping" not in changes:
            return arrays
        damped = damped_condition_number(arrays["eigenvalues"], float(changes["damping"]), arrays["dim"])
        return {**arrays, "damped_condition_number": damped}

    def _leave_a_core(self) -> None:
        if self._thread is not threading.current_thread():
            self._thread = threading.current_thread()
            leave_a_core()


def leave_a_core() -> None:
    """Let this thread's torch use all cores but one, which the browser needs; no other thread is changed.

    torch.set_num_threads sets the calling thread's number and the default of threads to come. The second is put back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - 1)))
    restore = threading.Thread(target=torch.set_num_threads, args=(before,))
    restore.start()
    restore.join()


def begin_config(config: ExperimentConfig) -> Begin:
    """Begin `config` anew for every set of choices."""

    def begin(choices: dict[str, Any]) -> tuple[Training, Iterator]:
        chosen = _chosen(config, choices)
        training = prepare(chosen)
        return training, run(chosen, training)

    return begin


def begin_model(config: ExperimentConfig, model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor) -> Begin:
    """Begin anew from the weights that `model` has now; a copy is trained, `model` stays as it is."""
    original = copy.deepcopy(model)

    def begin(choices: dict[str, Any]) -> tuple[Training, Iterator]:
        chosen = _chosen(config, choices)
        trained = copy.deepcopy(original)
        optimizer = make_optimizer(chosen, trained, likelihood)
        training = Training(trained, likelihood, inputs, targets, optimizer, chosen.batch_size, chosen.seed)
        return training, run(chosen, training)

    return begin


def _chosen(config: ExperimentConfig, choices: dict[str, Any]) -> ExperimentConfig:
    return replace(config, **{name: choices[name] for name in ("method", "lr", "damping", "seed") if name in choices})
