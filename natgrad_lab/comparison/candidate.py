"""An approximation at work: estimated once, asked for directions at any damping, and watched while it does so."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from natgrad_lab.comparison.exact import Problem
from natgrad_lab.comparison.products import NotAvailableError, in_double
from natgrad_lab.comparison.register import Approximation, checked_direction
from natgrad_lab.comparison.rows import Numbers
from natgrad_lab.comparison.watch import Work, watch
from natgrad_lab.linalg import psd_eigvalsh, rounding_level
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Kronecker, StructuredMatrix

GIB = 2**30


@dataclass
class Candidate:
    """A made approximation.

    Attributes:
        structure: as it was estimated, in the model's dtype; None for one given as a direction.
        matrix: the same in float64, for the numbers about the matrix.
        work: of the estimate.
    """

    approximation: Approximation
    problem: Problem
    structure: StructuredMatrix | None
    matrix: StructuredMatrix | None
    function: Callable[[Tensor, float], Tensor] | None
    work: Work = field(default_factory=Work)

    def direction(self, damping: float) -> Float[Tensor, " P"]:
        """v in float64, computed in the approximation's own dtype."""
        gradient = self.problem.gradient
        if self.structure is not None:
            v = self.structure.solve(gradient.to(self.structure.dtype), damping)
        else:
            v = self.function(gradient.to(self.problem.layout.dtype), damping)
        return checked_direction(self.approximation.name, v, gradient)


def make(approximation: Approximation, problem: Problem, budget: float) -> Candidate:
    """Estimate. Raises: NotAvailableError if it would not fit the budget (bytes); whatever the estimator raises."""
    _refuse_too_large(approximation.name, problem, budget)
    with watch() as work:
        made = approximation.make(problem)
    if not isinstance(made, StructuredMatrix):
        if not callable(made):
            raise TypeError(f"{approximation.name!r} must give a structure of natgrad_lab; got {type(made).__name__}.")
        return Candidate(approximation, problem, None, None, made, work)
    if made.dim != problem.layout.dim:
        raise ValueError(f"{approximation.name!r} is for {made.dim} parameters; the model has {problem.layout.dim}.")
    return Candidate(approximation, problem, made, in_double(made), None, work)


def cost_numbers(numbers: Numbers, candidate: Candidate, damping: float) -> tuple[Tensor | None, tuple[str, ...]]:
    """The direction at `damping`, with what it took; and the warnings. Fills time, memory, factorizations and health."""
    solving, moving = watch(), watch()
    try:
        with solving as work:
            v = candidate.direction(damping)
        with moving as again:
            candidate.direction(1.5 * damping or 1e-3)
    except Exception as error:  # the report states it
        numbers.attempt(lambda e=error: _raise(e), "seconds_solve", "seconds_next", "residual")
        return None, tuple(candidate.work.warnings)
    first = candidate.work
    numbers.values |= {
        "seconds": first.seconds,
        "seconds_solve": work.seconds,
        "seconds_next": again.seconds,
        "factorizations": float(first.factorizations + work.factorizations),
        "clamped": float(first.clamped + work.clamped),
        "most_negative": max(first.most_negative, work.most_negative),
    }
    if candidate.structure is None:
        numbers.refuse("given as a direction, not as a matrix", "memory_numbers", "residual")
    else:
        numbers.attempt(lambda: sum(t.numel() for _, t in candidate.structure.tensors()), "memory_numbers")
        numbers.attempt(lambda: _residual(candidate, v, damping), "residual")
    return v, tuple(dict.fromkeys(first.warnings + work.warnings))


def _raise(error: Exception):
    raise error


def _residual(candidate: Candidate, v: Tensor, damping: float) -> float:
    g, matrix = candidate.problem.gradient, candidate.matrix
    off = matrix.matmul(v.to(matrix.dtype)).double() + damping * v - g
    size = float(torch.linalg.vector_norm(g))
    if size == 0:
        raise NotAvailableError("the gradient is zero")
    return float(torch.linalg.vector_norm(off)) / size


def ambiguity(kfac: StructuredMatrix, names: list[str]) -> str:
    """Where EKFAC depends on an arbitrary choice: factors of K-FAC with repeated eigenvalues that are not 0; "" if nowhere.

    Any basis of such an eigenspace is legitimate, and EKFAC differs between them.
    """
    found = []
    for name, block in zip(names, kfac.blocks if isinstance(kfac, BlockDiagonal) else (), strict=False):
        for side, factor in (("G", block.left), ("A", block.right)) if isinstance(block, Kronecker) else ():
            values = psd_eigvalsh(factor)
            level = 10 * rounding_level(len(values), values[-1])
            values = values[values > level]
            repeated = int((values.diff() <= level).sum())
            if repeated:
                found.append(f"{side} of layer {name!r} ({repeated + 1} of its eigenvalues)")
    return f"EKFAC is ambiguous here: repeated eigenvalues in {', '.join(found)}" if found else ""


def _refuse_too_large(name: str, problem: Problem, budget: float) -> None:
    """Refuse what is known to need more numbers than fit."""
    count = _NUMBERS.get(name)
    if count is None:
        return
    needed = count(problem.layout.layers) * 8.0 * 2  # the estimate, and its float64 twin
    if needed > budget:
        raise NotAvailableError(f"needs about {needed / GIB:,.1f} GiB at this size; the budget is {budget / GIB:g} GiB")


_NUMBERS = {  # name → numbers held, by layer
    "unit_wise": lambda layers: sum(layer.shape[0] * layer.shape[1] ** 2 for layer in layers if layer.has_rows),
}
