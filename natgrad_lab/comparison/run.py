"""`compare`: make every approximation, judge it against the exact natural gradient, and collect the report."""

import math
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from numbers import Real

import torch
from torch import nn

from natgrad_lab import __version__, fisher
from natgrad_lab.comparison import ladder
from natgrad_lab.comparison.batch import Batch
from natgrad_lab.comparison.candidate import GIB, Candidate, ambiguity, cost_numbers, make
from natgrad_lab.comparison.directions import direction_numbers, layer_numbers
from natgrad_lab.comparison.exact import Problem
from natgrad_lab.comparison.matrices import Pair, block_error_number, condition_numbers, error_numbers
from natgrad_lab.comparison.pictures import pictures
from natgrad_lab.comparison.products import NotAvailableError
from natgrad_lab.comparison.register import Approximation, chosen
from natgrad_lab.comparison.report import Report
from natgrad_lab.comparison.rows import ALL, Numbers, Row
from natgrad_lab.comparison.sweep import sweep
from natgrad_lab.comparison.watch import watch
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import check_damping
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.progress import announce, track
from natgrad_lab.shapes import Tensor

MEMORY_BUDGET = 2 * GIB
SWEEP_DECADES, SWEEP_POINTS = 3, 13
EXACT = Approximation(ladder.EXACT, fisher.gram_fisher, "exact natural gradient", "Nothing is approximated.", "estimator")


def compare(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    targets: Tensor,
    damping: Real | Sequence[Real] = 1e-2,
    approximations: Sequence[str] | Mapping[str, object] | None = None,
    *,
    seed: int = 0,
    memory_budget: Real = MEMORY_BUDGET,
) -> Report:
    """Judge approximations of the Fisher by the exact natural gradient on one batch, all at the same damping.

    Exact at every size: what is small is formed, what is not goes through products, inner products and Grams; what cannot be
    had exactly is None in the report, with the reason. The reference is computed in float64, whatever the model's dtype.

    Args:
        inputs, targets: N examples; loss, gradient and Fisher are means over them.
        damping: λ, added to every eigenvalue of the exact and of every approximate Fisher. The sweep goes three decades to
            both sides of it; or give the dampings of the sweep, whose middle one is then the headline.
        approximations: None for all (`comparison.default_approximations`); names; or {name: source}, where a source is an
            estimator, a structure, a function v = P(g), or a name.
        seed: of sampled targets.
        memory_budget: bytes; refused with the numbers if the exact Fisher needs more.
    Raises: ValueError if the budget is too small; as `fisher.score_pass`. An approximation that fails is in
        `report.failures`.
    Cost: one factorization of min(P, K·N) rows for each damping, and a few hundred products with F per approximation.
    """
    headline, dampings = _dampings(damping)
    table = chosen(approximations)
    if ladder.EXACT in table:
        raise ValueError(f"the name {ladder.EXACT!r} is taken: the exact natural gradient is in every report.")
    needed = memory_estimate(model, likelihood, inputs)
    if needed > memory_budget:
        raise ValueError(
            f"the exact Fisher of these {len(inputs)} examples needs about {needed / GIB:.1f} GiB; the budget is "
            f"{memory_budget / GIB:g} GiB. Give fewer examples, or a larger memory_budget (bytes)."
        )
    announce(needed, "the comparison")
    with watch() as work:
        problem = Problem(Batch(model, likelihood, inputs, targets, seed), headline)
        problem.natural_gradient(headline)
    rows, failures, candidates = list(_exact_rows(problem, work)), {}, []
    for name, each in track(list(table.items()), "approximations"):
        try:
            candidate = make(replace(each, name=name), problem, memory_budget)
        except Exception as error:  # one approximation must not take the others' numbers with it
            failures[name] = str(error) if isinstance(error, NotAvailableError) else f"{type(error).__name__}: {error}"
            continue
        candidates.append(candidate)
        rows.extend(_rows(candidate, headline))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings at the headline damping are in the rows; residuals beside the sweep
        curves = sweep(problem, candidates, dampings)
        noise = ladder.sampling_noise(problem, headline) if "kfac" in table and problem.gradient.any() else []
    return Report(
        rows=tuple(rows),
        ladder=ladder.build(rows, failures, noise),
        sweep=curves,
        failures=failures,
        about=_about(problem, work.warnings),
        pictures=pictures(problem, candidates),
        texts={name: each.about for name, each in table.items()} | {ladder.EXACT: EXACT.about},
    )


def memory_estimate(model: nn.Module, likelihood: Likelihood, inputs: Tensor) -> float:
    """Bytes that the exact side of a comparison takes, from one example's pass."""
    if not isinstance(inputs, Tensor) or inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError("inputs must be a tensor of one example or more, (N, ...).")
    layout = ParameterLayout(model)
    first = fisher.score_pass(model, likelihood, inputs[:1], verify=False)
    rows = first.num_scores * len(inputs)
    held = len(inputs) * sum(tensor.numel() for layer in first.layers for _, tensor in layer.rows.tensors())
    system = min(layout.dim, rows)
    lanczos = 2 * min(60 * layout.dim, 2**25)
    return 8.0 * (4 * held + 4 * system**2 + lanczos + 40 * layout.dim)


def _dampings(damping: Real | Sequence[Real]) -> tuple[float, list[float]]:
    if isinstance(damping, Sequence):
        dampings = sorted(check_damping(each) for each in damping)
        if not dampings:
            raise ValueError("damping is an empty sequence; give one number, or the dampings of the sweep.")
        return dampings[len(dampings) // 2], dampings
    headline = check_damping(damping)
    centre = math.log10(headline) if headline else -2.0
    places = torch.linspace(centre - SWEEP_DECADES, centre + SWEEP_DECADES, SWEEP_POINTS, dtype=torch.float64)
    return headline, [10.0 ** float(place) for place in places]


def _exact_rows(problem: Problem, work) -> list[Row]:
    """What the exact natural gradient itself does: errors 0, efficiency 1 (up to its residual)."""
    numbers, solved = Numbers(), problem.natural_gradient(problem.damping)
    direction_numbers(numbers, problem, solved.direction, problem.damping)
    zero = ("frobenius_error", "spectral_error", "laplace_kl", "affine_distance")
    system = min(problem.exact.dim, problem.exact.num_rows) ** 2
    numbers.values |= dict.fromkeys(zero, 0.0) | {
        "condition": 1.0, "condition_mean": 1.0, "residual": solved.residual, "seconds": work.seconds,
        "factorizations": float(work.factorizations), "memory_numbers": float(system), "clamped": float(work.clamped),
    }  # fmt: skip
    numbers.notes.append(f"route: {solved.route}")
    numbers.refuse("the same matrix", "seconds_solve", "seconds_next", "most_negative", "rounding", "condition_nonzero")
    pair = Pair(problem.exact, problem.exact.structure)
    block_error_number(numbers, problem, pair)
    row = _row(EXACT, ALL, problem.layout.dim, numbers, problem.gradient.dtype, tuple(work.warnings))
    return [row, *_layer_rows(problem, EXACT, pair, solved.direction, problem.gradient.dtype)]


def _rows(candidate: Candidate, damping: float) -> list[Row]:
    """The row for the whole network, then one for each layer."""
    problem, numbers = candidate.problem, Numbers()
    v, warned = cost_numbers(numbers, candidate, damping)
    if v is not None:
        direction_numbers(numbers, problem, v, damping)
    pair = None if candidate.matrix is None else Pair(problem.exact, candidate.matrix)
    if pair is None:
        names = ("frobenius_error", "spectral_error", "block_frobenius_error", "condition", "condition_mean", "laplace_kl")
        numbers.refuse("given as a direction, not as a matrix", *names, "affine_distance", "condition_nonzero")
    else:
        error_numbers(numbers, pair)
        block_error_number(numbers, problem, pair)
        condition_numbers(numbers, pair, damping)
        numbers.notes.extend(filter(None, [candidate.own.structure.note]))
    if candidate.approximation.name == "ekfac":
        numbers.notes.extend(filter(None, [_ekfac_note(problem)]))
    dtype = problem.layout.dtype if candidate.own.structure is None else candidate.own.structure.dtype
    row = _row(candidate.approximation, ALL, problem.layout.dim, numbers, dtype, warned)
    return [row, *_layer_rows(problem, candidate.approximation, pair, v, dtype)]


def _layer_rows(
    problem: Problem, approximation: Approximation, pair: Pair | None, v: Tensor | None, dtype: torch.dtype
) -> list[Row]:
    rows, layout, damping = [], problem.layout, problem.damping
    if len(layout.layers) == 1:
        return rows
    sizes = [layer.size for layer in layout.layers]
    best = problem.natural_gradient(damping).direction.double()
    for index, (layer, exact) in enumerate(zip(layout.layers, problem.layers, strict=True)):
        numbers, where = Numbers(), layer.slice
        if approximation is EXACT:
            numbers.values |= {"frobenius_error": 0.0, "spectral_error": 0.0}
        elif pair is not None:
            error_numbers(numbers, pair.layer(index, where, exact, sizes))
        if v is not None:
            layer_numbers(numbers, problem, index, v[where], best[where])
        rows.append(_row(approximation, layer.name or "model", layer.size, numbers, dtype))
    return rows


def _row(approximation: Approximation, layer: str, dim: int, numbers: Numbers, dtype: torch.dtype, warned=()) -> Row:
    kept = {name: reason for name, reason in numbers.not_available.items() if name not in numbers.values}
    return Row(
        approximation.name, approximation.label, layer, dim, **numbers.values, dtype=str(dtype).removeprefix("torch."),
        warnings=tuple(warned), notes=tuple(dict.fromkeys(numbers.notes)), not_available=kept,
    )  # fmt: skip


def _ekfac_note(problem: Problem) -> str:
    kfac = fisher.kfac_fisher(problem.wide.model, problem.wide.likelihood, problem.wide.inputs)
    return ambiguity(kfac, [layer.name for layer in problem.layout.layers])


def _about(problem: Problem, warned: list[str]) -> dict:
    """Everything a reader needs to believe or repeat the numbers."""
    device = problem.layout.device
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "natgrad_lab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "seed": problem.batch.seed,
        "likelihood": repr(problem.batch.likelihood),
        "num_examples": len(problem.batch.inputs),
        "num_parameters": problem.layout.dim,
        "num_frozen": problem.layout.num_frozen,
        "num_outputs": problem.scores.outputs.shape[2],
        "num_positions": problem.scores.outputs.shape[1],
        "num_rows": problem.exact.num_rows,
        "model_dtype": str(problem.layout.dtype).removeprefix("torch."),
        "layers": [[layer.name or "model", type(layer.module).__name__, *layer.shape] for layer in problem.layout.layers],
        "damping": problem.damping,
        "loss": float(problem.scores.loss),
        "gradient_norm": float(torch.linalg.vector_norm(problem.gradient)),
        "route": problem.natural_gradient(problem.damping).route,
        "residual": problem.natural_gradient(problem.damping).residual,
        "note": problem.note,
        "warnings": warned,
        "convention": (
            "F = (1/N) Σ_n J_nᵀ Λ_n J_n, the mean over examples, Λ_n the Fisher of the outputs under the likelihood; the loss "
            "is the mean negative log-likelihood in nats; no hidden ½. λ is added to every eigenvalue: F_λ = F + λI."
        ),
    }
