"""The error ladder: from the exact Fisher down to the identity, one assumption at a time, and what each costs.

Rungs are comparable because all directions are taken at the same λ and judged by the same exact Fisher. A cost may be
negative: an assumption is wrong as a statement about the matrix, and its direction can still happen to be the better one.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from statistics import fmean, stdev

from natgrad_lab import fisher
from natgrad_lab.comparison.directions import direction_numbers
from natgrad_lab.comparison.exact import Problem
from natgrad_lab.comparison.matrices import Pair, error_numbers
from natgrad_lab.comparison.rows import ALL, Numbers, Row
from natgrad_lab.progress import track

EXACT = "exact"
RUNGS = {  # name → what is assumed on this rung and not on the one above
    EXACT: "nothing",
    "block_tridiagonal": "layers interact with their neighbours only, through Kronecker products",
    "block_diagonal": "layers do not interact",
    "best_kronecker": "each layer's block has Kronecker rank one",
    "ekfac": "the block is diagonal in K-FAC's eigenbasis",
    "kfac": "inputs and scores are independent",
    "diagonal": "parameters do not interact",
    "identity": "all parameters have the same scale",
}
NOISE_SEEDS = 5


@dataclass(frozen=True)
class Rung:
    """One step down. `cost` is the efficiency lost since the rung above that is there (points of 1), None on the first."""

    name: str
    label: str
    assumption: str
    efficiency: float | None
    frobenius_error: float | None
    cost: float | None
    reason: str = ""


@dataclass(frozen=True)
class Noise:
    """What sampling one target per example does, over several seeds: mean and standard deviation."""

    name: str
    label: str
    num_seeds: int
    efficiency: float
    efficiency_deviation: float
    frobenius_error: float
    frobenius_deviation: float


@dataclass(frozen=True)
class Ladder:
    """The rungs, and the costs beside them.

    Attributes:
        shares: parts of ‖K-FAC - F‖² / ‖F‖², which add up because the errors are orthogonal: "missing cross-layer blocks",
            "Kronecker rank one" (blocks against their nearest Kronecker product), "independence" (what K-FAC's product
            loses to the nearest). The last two may be one entry where the nearest is not there.
        noise: of one sampled target: "monte_carlo" is the noise floor (no structure assumed), the other K-FAC's.
        damping: efficiency of K-FAC with exact damping λI and with its own factored damping.
    """

    rungs: tuple[Rung, ...]
    shares: dict[str, float] = field(default_factory=dict)
    noise: tuple[Noise, ...] = ()
    damping: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Ladder":
        """Undo `to_dict`."""
        rungs = tuple(Rung(**each) for each in values["rungs"])
        return cls(rungs, values["shares"], tuple(Noise(**each) for each in values["noise"]), values["damping"])


def build(rows: Sequence[Row], failures: dict[str, str], noise: Sequence[Noise]) -> Ladder:
    """The ladder from the rows of a report."""
    total = {row.approximation: row for row in rows if row.layer == ALL}
    rungs, above = [], None
    for name, assumption in RUNGS.items():
        row = total.get(name)
        if row is None:
            if name in failures:
                rungs.append(Rung(name, name.replace("_", " "), assumption, None, None, None, failures[name]))
            continue
        cost = None if above is None or row.efficiency is None else above - row.efficiency
        rungs.append(Rung(name, row.label, assumption, row.efficiency, row.frobenius_error, cost))
        above = row.efficiency if row.efficiency is not None else above
    damping = {
        kind: total[name].efficiency
        for kind, name in (("exact λI", "kfac"), ("factored", "kfac_factored"))
        if name in total and total[name].efficiency is not None
    }
    return Ladder(tuple(rungs), _shares(total), tuple(noise), damping)


def _shares(total: dict[str, Row]) -> dict[str, float]:
    """Squared Frobenius errors as shares of ‖F‖²: for block-diagonal F̂, ‖F̂ - F‖² = ‖B - F‖² + ‖F̂ - B‖²."""
    errors = {name: row.frobenius_error for name, row in total.items()}
    blocks, kfac, best = errors.get("block_diagonal"), errors.get("kfac"), errors.get("best_kronecker")
    if blocks is None or kfac is None:
        return {}
    shares = {"missing cross-layer blocks": blocks**2}
    if best is None:
        return shares | {"Kronecker rank one and independence": max(kfac**2 - blocks**2, 0.0)}
    return shares | {"Kronecker rank one": max(best**2 - blocks**2, 0.0), "independence": max(kfac**2 - best**2, 0.0)}


def sampling_noise(problem: Problem, damping: Real) -> list[Noise]:
    """Repeat the estimates with one sampled target per example over `NOISE_SEEDS` seeds."""
    kinds: dict[str, tuple[str, Callable]] = {
        "monte_carlo": ("no structure (noise floor)", fisher.ESTIMATORS["gram"]),
        "kfac": ("K-FAC", fisher.ESTIMATORS["kfac"]),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for seed in track(range(NOISE_SEEDS), "sampling noise"):
        for name, (_, estimate) in kinds.items():
            batch = problem.wide
            structure = estimate(
                batch.model, batch.likelihood, batch.inputs, "monte_carlo", num_samples=1, generator=batch.generator(seed)
            )
            numbers = Numbers()
            v = structure.solve(problem.gradient.to(structure.dtype), damping).double()
            direction_numbers(numbers, problem, v, damping, steps="none")
            error_numbers(numbers, Pair(problem.exact, structure), spectral=False)
            if {"efficiency", "frobenius_error"} <= numbers.values.keys():
                seen[name].append((numbers.values["efficiency"], numbers.values["frobenius_error"]))
    return [_noise(name, kinds[name][0], pairs) for name, pairs in seen.items() if len(pairs) > 1]


def _noise(name: str, label: str, pairs: list[tuple[float, float]]) -> Noise:
    efficiencies, errors = zip(*pairs, strict=True)
    return Noise(name, label, len(pairs), fmean(efficiencies), stdev(efficiencies), fmean(errors), stdev(errors))
