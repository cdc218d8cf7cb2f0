"""The problem behind the training panel: steps of an experiment, and the exact Fisher of a few probe examples.

`compute` is all a frame shows, as a pure function of a model and some choices; `TrainingProblem` gives it to a `LiveRun`.
"""

import copy
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from natgrad_lab.datasets import Dataset
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.metrics import condition_number, numerical_rank
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.heatmap import fisher_picture
from natgrad_lab.shapes import Float, Tensor

MOST_PARAMETERS = 12_000
WHOLE = "whole"


class Training(Protocol):
    """What `natgrad_lab.experiments.prepare` returns, as far as a panel needs it."""

    model: nn.Module
    likelihood: Likelihood
    dataset: Dataset
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, eq=False)
class ProbeFisher:
    """The exact Fisher of the probe examples: all of it for the picture, and its spectrum.

    `matrix` (P, P) is in float32, for looking at. `eigenvalues`, descending, come from the Gram matrix in float64: all
    that can be nonzero.
    """

    layout: ParameterLayout
    matrix: Float[Tensor, "P P"]
    eigenvalues: Float[Tensor, " r"]


def probe_fisher(model: nn.Module, likelihood: Likelihood, inputs: Tensor, *, out: Tensor | None = None) -> ProbeFisher:
    """Exact Fisher of `inputs` by one pass in float64 on a copy of `model`, which is left alone.

    Args: out: a (P, P) float32 buffer to write into.
    Raises: ValueError if the dense picture would be too large; as `score_pass`.
    """
    layout = ParameterLayout(model)
    if layout.dim > MOST_PARAMETERS:
        raise ValueError(
            f"the live picture forms the dense Fisher of {layout.dim:,} parameters ({layout.dim**2 * 4 / 1e9:.1f} GB) for "
            f"every frame; it takes up to {MOST_PARAMETERS:,}. Use a smaller network, or freeze layers with "
            "requires_grad_(False)."
        )
    double = copy.deepcopy(model).double()
    scores = score_pass(double, likelihood, inputs.double(), verify=False)
    eigenvalues = gram_from_scores(scores).eigvalsh().flip(0)
    rows = [layer.rows.map(lambda tensor: tensor.float()) for layer in scores.layers]
    return ProbeFisher(layout, contract(rows, out), eigenvalues)


def compute(state: dict[str, Any]) -> dict[str, Any]:
    """What the panel shows.

    Args:
        state: "model", "likelihood", "inputs" (the probe examples), "scale" (a key of `plots.SCALES`), "damping", and
            optionally "picture" ("whole", or names of two layers), "size" (cells a side) and "fisher" (a `ProbeFisher`
            of the same model and inputs, if there is one already).
    Returns:
        "picture", "layout", "eigenvalues" (descending, numpy), "rank", "dim", "condition_number" (largest over smallest
        nonzero eigenvalue), "damped_condition_number" (of F + damping I; infinite for 0).
    """
    fisher = state.get("fisher") or probe_fisher(state["model"], state["likelihood"], state["inputs"])
    rows, columns = _part(fisher.layout, state.get("picture", WHOLE))
    size = state.get("size", 300)
    if rows != columns or rows.stop - rows.start < fisher.layout.dim:
        size = max(size, 400)  # a block of the default net's last layer, 330 entries wide, at full resolution
    picture = fisher_picture(fisher.matrix.numpy(), state["scale"], rows=rows, columns=columns, size=size)
    dim, damping = fisher.layout.dim, float(state["damping"])
    is_zero = not bool(fisher.eigenvalues.max() > 0)
    return {
        "picture": picture,
        "layout": fisher.layout,
        "eigenvalues": fisher.eigenvalues.numpy(),
        "rank": 0 if is_zero else numerical_rank(fisher.eigenvalues),
        "dim": dim,
        "condition_number": float("nan") if is_zero else condition_number(fisher.eigenvalues, "nonzero", dim=dim),
        "damped_condition_number": damped_condition_number(fisher.eigenvalues, damping, dim),
    }


def damped_condition_number(eigenvalues: Tensor | np.ndarray, damping: float, dim: int) -> float:
    """Condition number of F + damping I; infinite if that is singular."""
    values = torch.as_tensor(eigenvalues)
    if damping <= 0 and (len(values) < dim or numerical_rank(values) < dim):
        return float("inf")
    return condition_number(values, "damped", damping, dim=dim)


class TrainingProblem:
    """Steps a training and looks at it; see `controller.Problem`.

    Args:
        begin: (choices) → a training at step 0 and the iterator of its records.
        probe_size: the Fisher is that of the first `probe_size` examples of the data set.
        size: cells a side of the picture.
    """

    restarting = frozenset({"method", "seed"})

    def __init__(
        self, begin: Callable[[dict[str, Any]], tuple[Training, Iterator]], *, probe_size: int = 50, size: int = 300
    ):
        """Nothing is built before the first `reset`."""
        if probe_size < 1:
            raise ValueError(f"probe_size must be at least 1; got {probe_size}.")
        self._begin, self._probe_size, self._size = begin, probe_size, size
        self._buffer: Tensor | None = None
        self._fisher: ProbeFisher | None = None
        self._thread: threading.Thread | None = None

    def reset(self, **choices) -> None:
        """Build the training anew."""
        self._leave_a_core()
        self._choices = dict(choices)
        self._training, self._records = self._begin(self._choices)
        self._inputs = self._training.dataset.inputs[: self._probe_size]
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
        state = {"model": training.model, "likelihood": training.likelihood, "inputs": self._inputs, "size": self._size}
        return compute({**state, **self._choices, "fisher": self._fisher})

    def _leave_a_core(self) -> None:
        """Let this thread's torch use all cores but one, which the browser needs; no other thread is changed.

        torch.set_num_threads sets the calling thread's number and the default of threads to come. The second is put back.
        """
        if self._thread is threading.current_thread():
            return
        self._thread = threading.current_thread()
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - 1)))
        restore = threading.Thread(target=torch.set_num_threads, args=(before,))
        restore.start()
        restore.join()


def picture_choices(layout: ParameterLayout) -> list[tuple[str, Any]]:
    """(label, choice) of the parts of the Fisher that can be looked at."""
    names = [(layer.name or "model", layer) for layer in layout.layers]
    parts = [(f"whole, {layout.dim:,} × {layout.dim:,}", WHOLE)]
    if len(names) == 1:
        return parts
    for i, (row, first) in enumerate(names):
        for column, second in names[i:]:
            parts.append((f"layer {row} × layer {column}, {first.size:,} × {second.size:,}", (first.name, second.name)))
    return parts


def _part(layout: ParameterLayout, choice) -> tuple[slice, slice]:
    if choice == WHOLE:
        return slice(0, layout.dim), slice(0, layout.dim)
    slices = {layer.name: layer.slice for layer in layout.layers}
    unknown = [name for name in choice if name not in slices]
    if unknown:
        raise ValueError(f"the model has no layer {unknown[0]!r}; its layers are {', '.join(map(repr, slices))}.")
    return slices[choice[0]], slices[choice[1]]
