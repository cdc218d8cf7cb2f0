"""Numbers of a race: who needed how many updates or seconds to which error. Pure functions of plain curves.

A curve is {"updates": [...], "seconds": [...], "errors": [...]} at checkpoints; the error None is a run that diverged.
"""

import math
from collections.abc import Mapping, Sequence

from natgrad_lab.reproduce.base import Check, span

OF_SEEDS = 0.8  # at least so many of the seeds must pass, in every race


def or_inf(value: float | None) -> float:
    """None, which stands for diverged, as inf."""
    return math.inf if value is None else float(value)


def reaches(curve: Mapping, target: float, axis: str = "updates") -> float:
    """Updates (or seconds) at the first checkpoint whose error is at most `target`; inf if there is none."""
    pairs = zip(curve[axis], curve["errors"], strict=True)
    return next((float(at) for at, error in pairs if error is not None and error <= target), math.inf)


def ratios(seeds: Sequence[Mapping], problem: str, entrant: str, baseline: str, axis: str = "updates") -> list[float]:
    """Per seed: what `entrant` needs to the baseline's final error, over what the baseline itself needs to it."""
    found = []
    for seed in seeds:
        ours, theirs = seed["curves"][problem][entrant], seed["curves"][problem][baseline]
        target = or_inf(theirs["errors"][-1])
        if math.isinf(or_inf(ours["errors"][-1])):  # it diverged, whatever it reached before
            found.append(math.inf)
        elif math.isinf(target):  # the baseline did: whoever did not is there at once
            found.append(0.0)
        else:
            found.append(reaches(ours, target, axis) / max(reaches(theirs, target, axis), 1e-9))
    return found


def final_errors(seeds: Sequence[Mapping], problem: str, entrant: str) -> list[float]:
    """The last error of every seed, inf where it diverged."""
    return [or_inf(seed["curves"][problem][entrant]["errors"][-1]) for seed in seeds]


def at_equal_updates(seeds: Sequence[Mapping], problem: str, entrant: str, baseline: str) -> list[float]:
    """Per seed: the entrant's error over the baseline's, both at the last checkpoint that both have."""
    found = []
    for seed in seeds:
        curves = [seed["curves"][problem][label] for label in (entrant, baseline)]
        ours, theirs = (dict(zip(each["updates"], map(or_inf, each["errors"]), strict=True)) for each in curves)
        last = max(set(ours) & set(theirs))
        diverged = math.isinf(ours[max(ours)]), math.isinf(theirs[max(theirs)])
        found.append(math.inf if diverged[0] else 0.0 if diverged[1] else ours[last] / max(theirs[last], 1e-300))
    return found


def seconds_per_update(seeds: Sequence[Mapping], problem: str, entrant: str, baseline: str) -> list[float]:
    """Per seed: seconds of one update of the entrant over those of the baseline."""

    def own(seed: Mapping, label: str) -> float:
        curve = seed["curves"][problem][label]
        return curve["seconds"][-1] / max(curve["updates"][-1], 1)

    return [own(seed, entrant) / max(own(seed, baseline), 1e-12) for seed in seeds]


def at_most(text: str, values: Sequence[float], bound: float, beside: str = "") -> Check:
    """A check that at least `OF_SEEDS` of the seeds have a value of at most `bound`; `beside` is shown, not judged."""
    passed = sum(value <= bound for value in values) / max(len(values), 1)
    return Check(f"{text}, in ≥ {OF_SEEDS:.0%} of the seeds", f"{span(values)}, {passed:.0%}{beside}", passed >= OF_SEEDS)


def below(text: str, values: Sequence[float], bound: float = 1.0, beside: str = "") -> Check:
    """As `at_most`, with < in place of ≤."""
    passed = sum(value < bound for value in values) / max(len(values), 1)
    return Check(f"{text}, in ≥ {OF_SEEDS:.0%} of the seeds", f"{span(values)}, {passed:.0%}{beside}", passed >= OF_SEEDS)


def in_seconds(seeds: Sequence[Mapping], problem: str, entrant: str, baseline: str) -> str:
    """What to show beside a ratio of updates: the same in seconds."""
    return f"; in seconds, not judged: {span(ratios(seeds, problem, entrant, baseline, 'seconds'))}"
