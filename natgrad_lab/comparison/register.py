"""The table of approximations that a report goes through, and the one line that adds yours.

    ng.comparison.register("mine", my_direction)

An approximation is given as one of three things: an estimator with the signature of `fisher.dense_fisher`, a structure
already made, or a function v = P(g) (or P(g, damping)) from a gradient (P,) in the flat order to a direction uphill.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from natgrad_lab import fisher
from natgrad_lab.comparison.batch import Batch
from natgrad_lab.comparison.products import NotAvailableError
from natgrad_lab.names import known
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import (
    BlockDiagonal,
    Diagonal,
    Gram,
    Kronecker,
    StructuredMatrix,
    factored_tikhonov,
    tridiagonal_tikhonov,
)

EXACT_ROUTES = ("dense", "gram", "implicit", "tiled")  # the exact Fisher under other names: no approximation of it
Source = Callable | StructuredMatrix


@dataclass(frozen=True)
class Approximation:
    """One line of the table.

    Attributes:
        name: as typed. label: as shown. about: one sentence, what it assumes.
        kind: "estimator", "structure", "direction" (v = P(g)), "damped_direction" (v = P(g, damping)), or "batch" (of
            this package, made from the whole batch).
    """

    name: str
    source: Source
    label: str
    about: str
    kind: str

    def make(self, batch: Batch) -> object:
        """The structure, or the function (gradient, damping) → direction; not yet checked."""
        return _MAKE[self.kind](self.source, batch)


_MAKE = {
    "estimator": lambda source, batch: source(batch.model, batch.likelihood, batch.inputs),
    "structure": lambda source, batch: source,
    "direction": lambda source, batch: lambda gradient, damping: source(gradient),
    "damped_direction": lambda source, batch: source,
    "batch": lambda source, batch: source(batch),
}


def approximation(name: str, source: object, *, label: str | None = None, about: str = "") -> Approximation:
    """Wrap `source`, finding out from its type or signature what it is."""
    if not (isinstance(name, str) and name.strip()):
        raise ValueError(f"an approximation needs a name that is not empty; got {name!r}.")
    return Approximation(name, source, label or name.replace("_", " "), about or "Given by you.", _kind(name, source))


def register(name: str, source: object, *, label: str | None = None, about: str = "", replace: bool = False) -> None:
    """Add an approximation: it is in every report from now on. An estimator also joins `fisher.ESTIMATORS`.

    Args:
        source: an estimator, a structure, or a function from a gradient to a direction (see the module).
        label, about: how it is shown, and one sentence on what it assumes.
        replace: allow a name that is taken.
    """
    added = approximation(name, source, label=label, about=about)
    if not replace and name in default_approximations():
        raise ValueError(f"there is an approximation {name!r} already. Take another name, or give replace=True.")
    REGISTERED[name] = added
    if added.kind == "estimator":
        fisher.ESTIMATORS[name] = source


def unregister(name: str) -> None:
    """Take a registered approximation out again."""
    known(name, REGISTERED, "registered approximation")
    if REGISTERED.pop(name).kind == "estimator":
        fisher.ESTIMATORS.pop(name, None)


def default_approximations() -> dict[str, Approximation]:
    """Everything there is, in the order of the ladder: the package's estimators, variants of them, and yours."""
    table = {name: _of_estimator(name, source) for name, source in fisher.ESTIMATORS.items() if name not in EXACT_ROUTES}
    table |= OWN | REGISTERED
    order = {name: place for place, name in enumerate(LABELS)}
    return dict(sorted(table.items(), key=lambda item: order.get(item[0], len(order))))


def chosen(approximations: Sequence[str] | Mapping[str, object] | None) -> dict[str, Approximation]:
    """What `compare` was asked for: None for all, names, or {name: source}, where source may be the name of another."""
    table = default_approximations()
    if approximations is None:
        return table
    if isinstance(approximations, str):
        approximations = [approximations]
    if not isinstance(approximations, Mapping):
        approximations = {name: name for name in approximations}
    if not approximations:
        raise ValueError('approximations is empty. Leave it out for all, or name some: approximations=["kfac", "diagonal"].')
    return {name: _resolve(name, source, table) for name, source in approximations.items()}


def _resolve(name: str, source: object, table: dict[str, Approximation]) -> Approximation:
    if not isinstance(source, str):
        return approximation(name, source)
    if source in fisher.ESTIMATORS and source not in table:
        return _of_estimator(source, fisher.ESTIMATORS[source])
    return table[known(source, table, "approximation")]


def _of_estimator(name: str, source: Callable) -> Approximation:
    if name in REGISTERED:
        return REGISTERED[name]
    label, about = LABELS.get(name, (name.replace("_", " "), "An estimator of this package."))
    return Approximation(name, source, label, about, "estimator")


def _kind(name: str, source: object) -> str:
    if isinstance(source, StructuredMatrix):
        return "structure"
    if not callable(source):
        raise TypeError(
            f"approximation {name!r} must be a structure (ng.structures), an estimator like ng.fisher.kfac_fisher, or a "
            f"function v = P(g); got {type(source).__name__}."
        )
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):
        return "direction"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if len(required) >= 3:
        return "estimator"
    if len(required) == 2 or (len(required) == 1 and len(positional) > 1 and positional[1].name == "damping"):
        return "damped_direction"
    return "direction"


def _mean_identity(batch: Batch) -> Diagonal:
    """The multiple of I that is nearest to F: its mean eigenvalue."""
    values = fisher.diagonal_fisher(batch.model, batch.likelihood, batch.inputs).values
    return Diagonal(torch.full_like(values, float(values.mean())))


def _layer_grams(batch: Batch) -> BlockDiagonal:
    """The exact blocks: dense from the estimator where they fit, else the same matrices as RᵀR."""
    if all(layer.size <= 4096 for layer in batch.layout.layers):
        return fisher.block_diagonal_fisher(batch.model, batch.likelihood, batch.inputs)
    rows = fisher.gram_fisher(batch.model, batch.likelihood, batch.inputs).blocks
    return BlockDiagonal(tuple(Gram((block,)) for block in rows))


def _kfac_factored(batch: Batch) -> Callable[[Tensor, float], Tensor]:
    """K-FAC with its own damping, (G + √λ/π I) ⊗ (A + π√λ I)."""
    blocks = fisher.kfac_fisher(batch.model, batch.likelihood, batch.inputs).blocks
    if not all(isinstance(block, Kronecker) for block in blocks):
        raise NotAvailableError("some layer's block is no Kronecker product, so its factors cannot be damped")
    newest: dict[float, BlockDiagonal] = {}

    def direction(gradient: Tensor, damping: float) -> Tensor:
        if damping not in newest:
            newest.clear()
            newest[damping] = BlockDiagonal(tuple(factored_tikhonov(block, damping) for block in blocks))
        return newest[damping].solve(gradient)

    return direction


def _of_type(name: str, fisher_type: str) -> Callable[[Batch], StructuredMatrix]:
    """An estimator with scores of another type: sampled targets, or the observed ones."""

    def make(batch: Batch) -> StructuredMatrix:
        targets = batch.targets if fisher_type == "empirical" else None
        options = {"fisher_type": fisher_type, "targets": targets, "num_samples": 1, "generator": batch.generator()}
        return fisher.ESTIMATORS[name](batch.model, batch.likelihood, batch.inputs, **options)

    return make


def _krylov(batch: Batch) -> StructuredMatrix:
    """The Krylov space of the gradient: conjugate gradients, stopped early."""
    return fisher.krylov_fisher(batch.model, batch.likelihood, batch.inputs, "exact", batch.targets)


def _tridiagonal_factored(batch: Batch) -> Callable[[Tensor, float], Tensor]:
    """Block-tridiagonal K-FAC with its own damping, which keeps the chain."""
    chain = fisher.block_tridiagonal_fisher(batch.model, batch.likelihood, batch.inputs)
    return lambda gradient, damping: tridiagonal_tikhonov(chain, damping).solve(gradient)


LABELS = {  # name → (label, what it assumes), in the order of the ladder
    "block_tridiagonal": ("block-tridiagonal K-FAC", "Layers interact with neighbours only, through Kronecker products."),
    "block_tridiagonal_factored": ("block-tridiagonal, factored damping", "The same with K-FAC's own damping of the factors."),
    "block_diagonal": ("exact block-diagonal", "Layers do not interact; each layer's block is exact."),
    "unit_wise": ("unit-wise", "Units do not interact; each unit's block is exact."),
    "best_kronecker": ("best Kronecker (Van Loan)", "Each layer's block is one Kronecker product, the nearest there is."),
    "ekfac": ("EKFAC", "Each block is diagonal in K-FAC's eigenbasis, with exact variances there."),
    "kfac": ("K-FAC", "Layer inputs and output scores are independent, layer by layer."),
    "kfac_factored": ("K-FAC, factored damping", "K-FAC with its own damping of the factors (π) instead of λI."),
    "kfac_reduce": ("K-FAC, reduce", "K-FAC with inputs averaged and scores summed over shared positions."),
    "one_sided_input": ("one-sided, inputs (A)", "Scores are white: only the layers' inputs are whitened, as PRONG does."),
    "one_sided_score": ("one-sided, scores (G)", "The layers' inputs are white: only the scores are whitened."),
    "low_rank": ("low rank, 32 directions", "The leading eigenvectors of the exact Fisher; the rest is flat."),
    "krylov": ("conjugate gradients, 10 steps", "The exact system, solved by ten products with the exact Fisher."),
    "quasi_diagonal": ("quasi-diagonal", "Each weight interacts with its unit's bias only."),
    "diagonal": ("diagonal", "Parameters do not interact."),
    "identity": ("identity (gradient descent)", "The Fisher is a multiple of I: the step is along the gradient."),
    "monte_carlo": ("exact structure, 1 sampled target", "No structure is assumed; targets are sampled once per example."),
    "kfac_monte_carlo": ("K-FAC, 1 sampled target", "K-FAC with targets sampled once per example."),
    "empirical": ("exact structure, observed targets", "The empirical Fisher: observed targets in place of the model's own."),
    "kfac_empirical": ("K-FAC, observed targets", "K-FAC on the empirical Fisher."),
}
OWN = {
    name: Approximation(name, source, *LABELS[name], "batch")
    for name, source in {
        "block_diagonal": _layer_grams,
        "block_tridiagonal_factored": _tridiagonal_factored,
        "kfac_factored": _kfac_factored,
        "krylov": _krylov,
        "identity": _mean_identity,
        "monte_carlo": _of_type("gram", "monte_carlo"),
        "kfac_monte_carlo": _of_type("kfac", "monte_carlo"),
        "empirical": _of_type("gram", "empirical"),
        "kfac_empirical": _of_type("kfac", "empirical"),
    }.items()
}
SAMPLED = ("monte_carlo", "kfac_monte_carlo")  # whose estimates depend on drawn targets
REGISTERED: dict[str, Approximation] = {}


def checked_direction(name: str, v: object, gradient: Tensor) -> Tensor:
    """Return what an approximation gave as a direction, in float64, or refuse it."""
    if not isinstance(v, Tensor) or v.shape != gradient.shape:
        given = f"a tensor of shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
        raise ValueError(f"{name!r} must turn a gradient ({len(gradient)},) into a direction of that shape; got {given}.")
    if not math.isfinite(float(v.detach().abs().sum())):
        raise ValueError(f"{name!r} gave a direction with nan or infinity in it.")
    return v.detach().to(gradient)
