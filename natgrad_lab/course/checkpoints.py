"""A small network at a few moments of its training, with its exact Fisher and K-FAC's: what the lessons on K-FAC look at."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from natgrad_lab import datasets, likelihoods, models
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.optimizers import METHODS
from natgrad_lab.shapes import Float, Tensor

EXAMPLES = 300  # digits, shrunk to 4 x 4 pixels


@dataclass(frozen=True)
class Moment:
    """One moment: the Fisher `exact` and F̃ `kronecker` (P, P), the gradient (P,), K-FAC's factors of every pair of layers.

    `A[i][j]` is E[a_i a_jᵀ] of layer inputs with a 1 appended, `G[i][j]` is E[s_i s_jᵀ] of scores; block (i, j) of
    `kronecker` is G[i][j] ⊗ A[i][j].
    """

    steps: int
    model: nn.Module
    loss: float
    accuracy: float
    exact: Float[Tensor, "P P"]
    kronecker: Float[Tensor, "P P"]
    gradient: Float[Tensor, " P"]
    A: list[list[Tensor]]
    G: list[list[Tensor]]

    @property
    def layers(self) -> list[slice]:
        """Where each layer lies in the flat order."""
        ends = [0]
        for i in range(len(self.A)):
            ends.append(ends[-1] + len(self.A[i][i]) * len(self.G[i][i]))
        return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]

    @property
    def units(self) -> list[slice]:
        """Where each unit's weights and bias lie."""
        found = []
        for i, layer in enumerate(self.layers):
            width = len(self.A[i][i])
            found += [slice(start, start + width) for start in range(layer.start, layer.stop, width)]
        return found

    def only(self, matrix: Float[Tensor, "P P"], wanted: Callable[[int, int], bool]) -> Float[Tensor, "P P"]:
        """The blocks (i, j) of layers that are wanted, zeros elsewhere."""
        kept = torch.zeros_like(matrix)
        for i, rows in enumerate(self.layers):
            for j, columns in enumerate(self.layers):
                if wanted(i, j):
                    kept[rows, columns] = matrix[rows, columns]
        return kept


@cache
def small_digits() -> datasets.Dataset:
    """300 digits of 4 x 4 pixels in float64."""
    return datasets.resize(datasets.digits(torch.float64), 4).select(slice(EXAMPLES))


@cache
def moments(sizes: tuple[int, ...], steps: tuple[int, ...]) -> dict[int, Moment]:
    """Train tanh layers of `sizes` (16 inputs, 10 classes) by K-FAC, learning rate 0.3 and λ = 0.01, and look after `steps`."""
    digits = small_digits()
    model = models.mlp(sizes, "tanh", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    likelihood = likelihoods.Categorical()
    optimizer = METHODS["kfac"](model, likelihood, lr=0.3, damping=0.01)
    found = {}
    for step in range(max(steps) + 1):
        if step in steps:
            found[step] = _moment(model, likelihood, digits, step)
        optimizer.step(digits.inputs, digits.targets)
    return found


def _moment(model, likelihood, data, step: int) -> Moment:
    scores = score_pass(model, likelihood, data.inputs, loss_targets=data.targets)
    rows = [layer.rows for layer in scores.layers]
    inputs, backs = [each.inputs for each in rows], [each.scores.flatten(0, 1) for each in rows]
    A, G = ([[x.mT @ y / scores.num_examples for y in each] for x in each] for each in (inputs, backs))
    count = range(len(rows))
    blocks = [torch.cat([torch.kron(G[i][j].contiguous(), A[i][j].contiguous()) for j in count], 1) for i in count]
    right = scores.outputs[:, 0].argmax(1) == data.targets
    return Moment(
        step, copy.deepcopy(model), float(scores.loss), float(right.double().mean()),
        contract(rows, scores.num_examples), torch.cat(blocks), scores.gradient(), A, G,
    )  # fmt: skip
