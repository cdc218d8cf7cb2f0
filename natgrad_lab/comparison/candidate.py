"""An approximation at work: estimated once, asked for directions at any damping, and watched while it does so."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import torch

from natgrad_lab.comparison.batch import Batch
from natgrad_lab.comparison.exact import Problem
from natgrad_lab.comparison.products import NotAvailableError, in_double
from natgrad_lab.comparison.register import SAMPLED, Approximation, checked_direction
from natgrad_lab.comparison.rows import Numbers
from natgrad_lab.comparison.watch import Work, watch
from natgrad_lab.linalg import psd_eigvalsh, rounding_level
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Kronecker, StructuredMatrix

GIB = 2**30
DEAR = 10.0  # seconds of a direction above which it is not computed again in float64


@dataclass(frozen=True)
class Made:
    """An approximation made from a batch: a structure, or a function (gradient, damping) → direction."""

    name: str
    structure: StructuredMatrix | None
    function: Callable[[Tensor, float], Tensor] | None

    def direction(self, gradient: Float[Tensor, " P"], damping: Real) -> Float[Tensor, " P"]:
        """v, in the gradient's dtype; computed in the structure's own."""
        if self.structure is not None:
            return checked_direction(self.name, self.structure.solve(gradient.to(self.structure.dtype), damping), gradient)
        return checked_direction(self.name, self.function(gradient, damping), gradient)


@dataclass
class Candidate:
    """An approximation at work.

    Attributes:
        own: made in the model's own dtype, as it would be used: times, memory and numerical health are its.
        wide: made in float64, so that rounding is not mistaken for an assumption: quality is judged on this.
        work: what making `own` took. seconds_next: of a direction at another damping, once known.
    """

    approximation: Approximation
    problem: Problem
    own: Made
    wide: Made
    work: Work
    seconds_next: float = 0.0

    @property
    def matrix(self) -> StructuredMatrix | None:
        """The approximation as a float64 matrix, if it is one."""
        return self.wide.structure

    def direction(self, damping: Real) -> Float[Tensor, " P"]:
        """v in float64."""
        return self.wide.direction(self.problem.gradient, damping)


def make(approximation: Approximation, problem: Problem, budget: Real) -> Candidate:
    """Estimate. Raises: NotAvailableError if it would not fit the budget (bytes); whatever the estimator raises."""
    _refuse_too_large(approximation.name, problem, budget)
    with watch() as work:
        own = _made(approximation, problem.batch)
    if problem.wide is problem.batch:
        wide = own
    elif approximation.kind == "structure":
        wide = replace(own, structure=in_double(own.structure))
    elif approximation.kind in ("direction", "damped_direction"):
        dtype, function = problem.layout.dtype, own.function
        wide = replace(own, function=lambda gradient, damping: function(gradient.to(dtype), damping))
    else:
        with watch():
            wide = _made(approximation, problem.wide)
    return Candidate(approximation, problem, own, wide, work)


def _made(approximation: Approximation, batch: Batch) -> Made:
    made = approximation.make(batch)
    if not isinstance(made, StructuredMatrix):
        if not callable(made):
            raise TypeError(f"{approximation.name!r} must give a structure of natgrad_lab; got {type(made).__name__}.")
        return Made(approximation.name, None, made)
    if made.dim != batch.layout.dim:
        raise ValueError(f"{approximation.name!r} is for {made.dim} parameters; the model has {batch.layout.dim}.")
    return Made(approximation.name, made, None)


def cost_numbers(numbers: Numbers, candidate: Candidate, damping: Real) -> tuple[Tensor | None, tuple[str, ...]]:
    """The direction at `damping` in float64, and the warnings of the approximation in its own dtype.

    Fills times, memory, factorizations and numerical health.
    """
    own, gradient = candidate.own, candidate.problem.gradient.to(candidate.problem.layout.dtype)
    try:
        with watch() as work:
            narrow = own.direction(gradient, damping)
        again = work
        if work.seconds <= DEAR:
            with watch() as again:
                own.direction(gradient, 1.5 * damping or 1e-3)
    except Exception as error:  # the report states it
        numbers.attempt(lambda e=error: _raise(e), "seconds_solve", "seconds_next", "residual", "rounding")
        narrow, work, again = None, Work(), Work()
    first, v = candidate.work, None
    try:
        if narrow is not None and work.seconds > DEAR and candidate.wide is not own:
            v = narrow.double()
            numbers.notes.append(f"judged in {narrow.dtype}, its own precision: one direction takes {work.seconds:.0f} s")
        else:
            with watch():
                v = candidate.direction(damping)
    except Exception as error:
        numbers.attempt(lambda e=error: _raise(e), "efficiency", "cosine", "norm_ratio", "best_step")
    numbers.values |= {
        "seconds": first.seconds,
        "factorizations": float(first.factorizations + work.factorizations),
        "clamped": float(first.clamped + work.clamped),
        "most_negative": max(first.most_negative, work.most_negative),
    }
    if narrow is not None:
        candidate.seconds_next = again.seconds
        numbers.values |= {"seconds_solve": work.seconds, "seconds_next": again.seconds}
    if own.structure is None:
        numbers.refuse("given as a direction, not as a matrix", "memory_numbers", "residual")
    else:
        numbers.attempt(lambda: sum(t.numel() for _, t in own.structure.tensors()), "memory_numbers")
        if narrow is not None:
            numbers.attempt(lambda: _residual(own.structure, narrow, gradient, damping), "residual")
    if v is not None and narrow is not None:
        numbers.attempt(lambda: _relative(narrow.double() - v, v), "rounding")
        if candidate.approximation.name in SAMPLED and candidate.wide is not candidate.own:
            numbers.values.pop("rounding", None)
            numbers.refuse("targets are sampled anew in float64, so the two estimates differ by more than rounding", "rounding")
    return v, tuple(dict.fromkeys(first.warnings + work.warnings))


def _raise(error: Exception):
    raise error


def _residual(structure: StructuredMatrix, v: Tensor, gradient: Tensor, damping: Real) -> float:
    off = structure.matmul(v.to(structure.dtype)).double() + damping * v.double() - gradient.double()
    return _relative(off, gradient.double())


def _relative(off: Tensor, exact: Tensor) -> float:
    size = float(torch.linalg.vector_norm(exact))
    if size == 0:
        raise NotAvailableError("relative to a vector that is zero")
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


def _refuse_too_large(name: str, problem: Problem, budget: Real) -> None:
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
