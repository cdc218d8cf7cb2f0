"""What a reproduction is: a claim of a paper, a criterion fixed before measuring, and how it is measured, judged and drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

import torch

from natgrad_lab.datasets import DATASETS
from natgrad_lab.optimizers import METHODS

REPRODUCED, MINIATURE, PARTLY, FAILED, NOT_ATTEMPTED = WORDS = (
    "reproduced", "reproduced in miniature", "partly", "not reproduced", "not attempted",
)  # fmt: skip


class NotAttempted(Exception):
    """A reproduction that cannot be tried here; the message says why."""


@dataclass(frozen=True)
class Check:
    """One part of a criterion: what is asked, with its threshold; what was measured; whether that is enough."""

    text: str
    measured: str
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """One of `WORDS`, what has to be said with it (the smaller scale, or why not attempted), and the checks behind it."""

    word: str
    why: str = ""
    checks: tuple[Check, ...] = ()

    def __str__(self) -> str:
        return f"{self.word} ({self.why})" if self.why else self.word


@dataclass(frozen=True)
class Scale:
    """One size of a reproduction: plain values, and what is smaller than in the source ("" if nothing is)."""

    config: Mapping[str, object]
    miniature: str = ""


@dataclass(frozen=True)
class Work:
    """What measuring may use: the scale's values, a device, what `tune` returned, and `keep`.

    `keep(key, make)` returns the plain dict that `make()` returns, or returned in an earlier run that was killed later.
    """

    config: Mapping[str, object]
    device: torch.device
    keep: Callable[[str, Callable[[], dict]], dict]
    tuned: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Reproduction:
    """One figure or statement of a paper.

    Attributes:
        name, title, claim, source: what is to be reproduced; `source` begins with a key of docs/references.md.
        criterion: what counts as reproduced, in words and thresholds.
        scales: "small" (minutes on 2 cores) and "full" (the source's own size).
        run: (seed, work) → plain dict of floats and lists, all randomness from `seed`.
        tune: work → plain dict, before the seeds and on none of them; `run` finds it in `work.tuned`.
        judge: the seeds' dicts → the checks, a pure function.
        figure: the seeds' dicts → plotly Figure, a pure function.
        min_seeds: fewer give no verdict.
        pieces: (config, number of seeds) → how many times `keep` is called in `tune` and `run`, for the progress bar.
        methods, data: keys of METHODS and DATASETS without which it cannot be tried.
    """

    name: str
    title: str
    claim: str
    source: str
    criterion: str
    scales: Mapping[str, Scale]
    run: Callable[[int, Work], dict]
    judge: Callable[[Sequence[dict]], list[Check]]
    figure: Callable[[Sequence[dict]], object]
    tune: Callable[[Work], dict] | None = None
    min_seeds: int = 5
    pieces: Callable[[Mapping, int], int] = field(default=lambda config, num_seeds: 0)
    methods: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def missing(self) -> str:
        """Which methods and data sets this version does not have; "" if it has all."""
        lacking = [f"the method {each!r}" for each in self.methods if each not in METHODS]
        lacking += [f"the data set {each!r}" for each in self.data if each not in DATASETS]
        return f"this version has not got {' and '.join(lacking)}" if lacking else ""


def conclude(checks: Sequence[Check], num_seeds: int, min_seeds: int, miniature: str) -> Verdict:
    """The verdict on the checks of `num_seeds` seeds.

    All passed: "reproduced", or "reproduced in miniature" where `miniature` says what is smaller; some: "partly"; none:
    "not reproduced". With fewer seeds than the criterion asks for: "not attempted", whatever the numbers are.
    """
    if num_seeds < min_seeds:
        why = f"{num_seeds} seed{'s' if num_seeds != 1 else ''}; the criterion asks for at least {min_seeds}"
        return Verdict(NOT_ATTEMPTED, why, tuple(checks))
    passed = sum(check.passed for check in checks)
    if passed == len(checks):
        return Verdict(MINIATURE if miniature else REPRODUCED, miniature, tuple(checks))
    why = f"{passed} of {len(checks)} checks"
    return Verdict(PARTLY if passed else FAILED, f"{why}; {miniature}" if miniature else why, tuple(checks))


def span(values: Sequence[Real | None], digits: int = 3) -> str:
    """The median of the seeds with the smallest and the largest: 0.44 (0.31 … 0.52); None is a run that diverged."""
    found = sorted(float("inf") if value is None else float(value) for value in values)
    if not found:
        return "nothing measured"
    middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2
    low, middle, high = (f"{value:.{digits}g}" for value in (found[0], middle, found[-1]))
    return middle if low == high else f"{middle} ({low} … {high})"
