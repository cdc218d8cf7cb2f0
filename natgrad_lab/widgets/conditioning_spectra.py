"""How well conditioned the exact Fisher is: plain, damped, layer by layer, and after preconditioning. No widget here."""

import copy
import math
from functools import cached_property
from typing import Any

import torch
from torch import nn

from natgrad_lab.fisher import diagonal_fisher, gram_fisher, kfac_fisher, one_sided_input_fisher
from natgrad_lab.fisher.scores import FISHER_TYPES
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import psd_eigvalsh
from natgrad_lab.metrics import condition_number, numerical_rank
from natgrad_lab.names import known
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Gram, StructuredMatrix
from natgrad_lab.widgets.race_problem import check
from natgrad_lab.widgets.state import damped_condition_number

MOST_ROWS, MOST_NUMBERS = 3000, 2**26
PRECONDITIONERS = {  # name → estimator, with the colour's name in plots.style
    "K-FAC": (kfac_fisher, "kfac"),
    "PRONG's whitening": (lambda *args: one_sided_input_fisher(*args, scale="one"), "prong"),
    "diagonal": (diagonal_fisher, "diagonal"),
}


class Conditioning:
    """The spectra of one model on some inputs, computed in float64 on a copy; each answer is kept.

    The Fisher is held as RᵀR with K·N rows (`gram_fisher`): exact for any number of parameters. K-FAC, the diagonal and the
    whitening of PRONG (I ⊗ A) are estimated on the same inputs; a preconditioned Fisher is (M + λI)^-½ F (M + λI)^-½ with the
    damping λ added to the whole of M, and has the spectrum of R (M + λI)⁻¹ Rᵀ.

    Raises: ValueError if there are more than 3,000 rows or 67 million numbers in R; as `gram_fisher`.
    Cost: rows³ for every spectrum; rows solves with M for every preconditioner and damping.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, inputs: Tensor, fisher_type: str = "exact"):
        """One pass through the network."""
        known(fisher_type, [kind for kind in FISHER_TYPES if kind != "empirical"], "Fisher without targets")
        check(model, likelihood, inputs, None)
        self._model, self._likelihood = copy.deepcopy(model).double(), likelihood
        self._inputs = inputs.double() if inputs.is_floating_point() else inputs
        self.num_examples, self.layout = len(inputs), ParameterLayout(self._model)
        self._kind = fisher_type
        self.gram: Gram = gram_fisher(self._model, likelihood, self._inputs, fisher_type, generator=self._generator())
        rows, numbers = self.gram.num_rows, self.gram.num_rows * self.gram.dim
        if rows > MOST_ROWS or numbers > MOST_NUMBERS:
            raise ValueError(
                f"{len(inputs)} examples make {rows:,} rows of {self.gram.dim:,} numbers; up to {MOST_ROWS:,} rows and "
                f"{MOST_NUMBERS:,} numbers are taken. Pass fewer examples, as inputs[:{max(1, self._fitting(len(inputs)))}]."
            )
        self._kept: dict[tuple, Tensor] = {}

    def _fitting(self, count: int) -> int:
        rows = min(MOST_ROWS, MOST_NUMBERS // self.gram.dim)
        return count * rows // self.gram.num_rows

    def _generator(self) -> torch.Generator:
        return torch.Generator(device=self._inputs.device).manual_seed(0)

    @cached_property
    def eigenvalues(self) -> Float[Tensor, " R"]:
        """Of F, those that can differ from zero, descending."""
        return self.gram.eigvalsh().flip(0)

    @cached_property
    def layers(self) -> list[tuple[str, int, Tensor]]:
        """(name, parameters, eigenvalues of its diagonal block, descending) of each layer."""
        parts = zip(self.layout.layers, self.gram.blocks, strict=True)
        return [(layer.name or "model", layer.size, Gram((block,)).eigvalsh().flip(0)) for layer, block in parts]

    @cached_property
    def _matrices(self) -> dict[str, StructuredMatrix]:
        return {
            name: estimate(self._model, self._likelihood, self._inputs, self._kind, None, 1, self._generator())
            for name, (estimate, _) in PRECONDITIONERS.items()
        }

    @cached_property
    def _rows(self) -> Float[Tensor, "P R"]:
        return self.gram.rmatmul(torch.eye(self.gram.num_rows, dtype=self.gram.dtype, device=self.gram.device))

    def preconditioned(self, name: str, damping: float) -> Float[Tensor, " R"]:
        """Eigenvalues, descending, of the Fisher preconditioned by one of PRECONDITIONERS + damping I, damping > 0."""
        known(name, PRECONDITIONERS, "preconditioner")
        if (name, damping) not in self._kept:
            small = self._rows.mT @ self._matrices[name].solve(self._rows, damping)
            self._kept[name, damping] = psd_eigvalsh((small + small.mT) / 2).flip(0)
        return self._kept[name, damping]

    def result(self, damping: float) -> dict[str, Any]:
        """Everything the dashboard shows at this damping > 0: condition numbers, spectra as arrays, layers.

        "spectra": name → descending eigenvalues above rounding; "conditions": name → largest over smallest of these;
        "damped": κ(F + λI); "layers": (name, parameters, κ of its block, κ of its block + λI).
        """
        if not damping > 0 or not math.isfinite(damping):
            raise ValueError(f"the damping must be a number > 0; got {damping!r}.")
        spectra = {"F": self.eigenvalues} | {name: self.preconditioned(name, damping) for name in PRECONDITIONERS}
        return {
            "damping": damping, "dim": self.gram.dim, "rank": numerical_rank(self.eigenvalues),
            "num_examples": self.num_examples,
            "conditions": {name: _condition(values, self.gram.dim) for name, values in spectra.items()},
            "damped": damped_condition_number(self.eigenvalues, damping, self.gram.dim),
            "spectra": {name: _above_rounding(values) for name, values in spectra.items()},
            "layers": [
                (name, size, _condition(values, size), damped_condition_number(values, damping, size))
                for name, size, values in self.layers
            ],
        }  # fmt: skip


def _condition(values: Tensor, dim: int) -> float:
    return condition_number(values[:dim], "nonzero", dim=dim) if bool(values.max() > 0) else math.nan


def _above_rounding(values: Tensor):
    return values[: numerical_rank(values)].cpu().numpy() if bool(values.max() > 0) else values[:0].cpu().numpy()
