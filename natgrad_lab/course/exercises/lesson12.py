"""Exercises of lesson 12: judge a direction, diagnose a clinic, split the data, sum up a report."""

import math

import torch
from torch import Tensor

from natgrad_lab.course.cards.lesson12 import DIAGNOSES, PROBES, clinic
from natgrad_lab.course.diagnose import Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "12-undamped": "The damping is missing in one of the places where F stands: both have to be F + λI.",
    "12-root": "The efficiency is a squared cosine in the metric; yours is the cosine itself.",
    "12-half": "The quadratic model is gᵀd + ½ dᵀ(F + λI)d: the decrease at its best step has a factor ½.",
    "12-length": "The efficiency of a direction must not depend on its length.",
    "12-step": "The best step is where the quadratic model along −v is lowest, not step 1.",
    "12-dealt": "The same letters get the same diagnoses in another clinic: they are dealt anew, so read the numbers.",
    "12-weak": "A healthy approximation was called faulty: a low efficiency alone is no fault.",
    "12-labels": "A direction that changes when labels are permuted was not recognized.",
    "12-copies": "A direction that changes when the data set is copied was not recognized.",
    "12-unused": "One of them hands the gradient back, whatever the damping: that was not recognized.",
    "12-damping": "One of them damps each factor by λ: look at what is left at a very large damping.",
    "12-order": "One has its factors in the wrong order: on one example a Kronecker product should be exact.",
    "12-missed": "A healthy approximation was taken for another healthy one.",
    "12-lost": "Some examples are in neither part, or there are more than there should be.",
    "12-unshuffled": "The parts are the first and the last examples: data files are often sorted. Shuffle.",
    "12-size": "The test part has the wrong size.",
    "12-schema": "The summary lacks an entry, or an entry has the wrong kind.",
    "12-exact": "The exact natural gradient is the yardstick; it cannot be the best approximation.",
    "12-layer": "A row about one layer was taken for one about the whole network.",
    "12-silent": "What could not be judged is missing from the list: failures, and rows without an efficiency.",
    "12-cosine": "The best is chosen by the cosine; it is to be chosen by the efficiency.",
    "12-numbers": "An entry of the summary is not what the report says.",
}
F64 = torch.float64

# ---- 12.1


def validate(v: Tensor, g: Tensor, F: Tensor, damping: float) -> tuple[float, float, float]:
    """Efficiency of the direction v, its best step length, and the decrease that the quadratic model promises there."""
    damped = F + damping * torch.eye(len(g), dtype=F.dtype)
    slope, bend = g @ v, v @ damped @ v
    best = g @ torch.linalg.solve(damped, g)
    return float(slope**2 / (bend * best)), float(slope / bend), float(slope**2 / (2 * bend))


def _problem(generator, dim=5, examples=7):
    rows = torch.randn(examples, dim, generator=generator, dtype=F64) * torch.logspace(0, -1.5, dim, dtype=F64)
    g, v = torch.randn(2, dim, generator=generator, dtype=F64)
    return rows.mT @ rows / examples, g, v + 0.7 * g


def _three(got) -> list[float]:
    if got is None:
        raise Mistake("nothing", "return three numbers")
    try:
        values = [float(as_tensor(value).reshape(())) for value in got]
    except (TypeError, RuntimeError):
        raise Mistake("kind", "return three numbers") from None
    if len(values) != 3:
        raise Mistake("shape", f"return three numbers; got {len(values)}")
    if not all(map(math.isfinite, values)):
        raise Mistake("not_finite", f"got {values}")
    return values


def _euclidean(v, g, F, damping):
    """Squared Euclidean cosine to the exact natural gradient."""
    exact = torch.linalg.solve(F + damping * torch.eye(len(g), dtype=F64), g)
    return float((v @ exact) ** 2 / (v @ v) / (exact @ exact))


def _half_damped(v, g, F, damping):
    """Two wrong efficiencies: λ is missing in one of the two places."""
    damped = F + damping * torch.eye(len(g), dtype=F64)
    best, flat = g @ torch.linalg.solve(damped, g), g @ torch.linalg.solve(F, g)
    slope = (g @ v) ** 2
    return [float(slope / (v @ F @ v) / best), float(slope / (v @ damped @ v) / flat), float(slope / (v @ F @ v) / flat)]


def _efficiency(answer, generator):
    F, g, v = _problem(generator)
    damping = 0.05
    want, got = validate(v, g, F, damping)[0], _three(answer(v, g, F, damping))[0]
    suspects = {"M22": _euclidean(v, g, F, damping), "12-root": math.sqrt(want)}
    for wrong in _half_damped(v, g, F, damping):
        if math.isclose(got, wrong, rel_tol=1e-9):
            raise Mistake("12-undamped")
    again = _three(answer(3 * v, g, F, damping))[0]
    if not math.isclose(got, again, rel_tol=1e-8):
        raise Mistake("12-length", f"{got:.4g} for v and {again:.4g} for 3v")
    expect(got, want, suspects=suspects, about="the efficiency")


def _exact_is_one(answer, generator):
    F, g, _ = _problem(generator)
    exact = torch.linalg.solve(F + 0.05 * torch.eye(len(g), dtype=F64), g)
    efficiency, step, _ = _three(answer(exact, g, F, 0.05))
    if abs(efficiency - 1) > 1e-8:
        raise Mistake("unrecognized", f"the exact natural gradient should get the efficiency 1, not {efficiency:.6g}")
    if abs(step - 1) > 1e-8:
        raise Mistake("unrecognized", f"the exact natural gradient should get the best step 1, not {step:.6g}")


def _step_and_decrease(answer, generator):
    F, g, v = _problem(generator)
    _, step, decrease = validate(v, g, F, 0.05)
    _, got_step, got_decrease = _three(answer(v, g, F, 0.05))
    expect(got_step, step, suspects={"12-step": 1.0, "12-undamped": float(g @ v / (v @ F @ v))}, about="the best step")
    at_one = float(g @ v - 0.5 * (v @ F @ v + 0.05 * v @ v))
    expect(got_decrease, decrease, suspects={"12-step": at_one}, keys={"2": "12-half"}, about="the decrease")


def _validate_by_search(v, g, F, damping):
    """The best step by Newton's method on the quadratic model."""
    model = lambda t: -t * (g @ v) + 0.5 * t**2 * (v @ F @ v + damping * (v @ v))  # noqa: E731
    step = -(model(1.0) - model(-1.0)) / 2 / (model(1.0) + model(-1.0))
    top = g @ torch.linalg.lstsq(F + damping * torch.eye(len(g)), g[:, None]).solution.flatten()
    return torch.stack([-model(step) / (0.5 * top), step, -model(step)])


def _wrong(place, value):
    """The reference with one of its three numbers replaced."""

    def answer(v, g, F, damping):
        numbers = list(validate(v, g, F, damping))
        numbers[place] = value(v, g, F, damping, numbers[place])
        return tuple(numbers)

    return answer


# ---- 12.2


def diagnose(numbers: dict[str, dict[str, float]]) -> dict[str, str]:
    """Letter → diagnosis, from letter → probe → number."""

    def one(probe: dict[str, float]) -> str:
        if probe["labels"] > 1e-6:
            return "labels"
        if probe["copies"] > 1e-6:
            return "no mean"
        if not 0.9 < probe["large_damping"] < 1.1:
            return "unused" if probe["large_damping"] > 1 else "damping"
        if probe["spread"] < 1e-9:
            return "diagonal"
        if probe["one_example"] < 1 - 1e-6:
            return "order"
        return "exact" if probe["efficiency"] > 1 - 1e-6 else "kfac"

    return {letter: one(probe) for letter, probe in numbers.items()}


_MISSED = {
    "labels": "12-labels", "no mean": "12-copies", "unused": "12-unused", "damping": "12-damping", "order": "12-order",
}  # fmt: skip


def _one_clinic(answer, generator):
    truth, numbers = clinic(generator)
    got = answer(numbers)
    if not isinstance(got, dict) or set(got) != set(truth):
        raise Mistake("kind", "return a dict from the letters A to H to diagnoses")
    unknown = [word for word in got.values() if word not in DIAGNOSES]
    if unknown:
        raise Mistake("kind", f"{str(unknown[0])[:40]!r} is no diagnosis; there are {', '.join(DIAGNOSES)}")
    wrong = [letter for letter in truth if got[letter] != truth[letter]]
    if wrong and answer(clinic(generator)[1]) == got:
        raise Mistake("12-dealt", f"{len(wrong)} of {len(truth)} are wrong")
    for letter in wrong:
        evidence = f"patient {letter} was called {got[letter]!r}"
        if truth[letter] in _MISSED:
            raise Mistake(_MISSED[truth[letter]], evidence)
    for letter in wrong:
        raise Mistake("12-weak" if got[letter] in _MISSED else "12-missed", f"patient {letter} was called {got[letter]!r}")


def _confused(truth: str, said: str):
    """A diagnosis that takes one condition for another."""
    return lambda numbers: {letter: said if word == truth else word for letter, word in diagnose(numbers).items()}


def _by_elimination(numbers):
    """One patient for each diagnosis, the most striking one first."""
    left, found = dict(numbers), {}
    for name, key, sign in (
        ("unused", "large_damping", 1), ("damping", "large_damping", -1), ("labels", "labels", 1), ("no mean", "copies", 1),
        ("exact", "efficiency", 1), ("diagonal", "spread", -1), ("kfac", "one_example", 1), ("order", "efficiency", -1),
    ):  # fmt: skip
        letter = max(left, key=lambda each: sign * left[each][key])  # noqa: B023
        found[letter] = name
        del left[letter]
    return found


# ---- 12.3


def split(num_examples: int, num_test: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of the training and of the test examples, shuffled."""
    order = torch.randperm(num_examples, generator=generator)
    return order[num_test:], order[:num_test]


def _parts(answer, generator):
    for total, test in ((23, 6), (11, 1)):
        got = answer(total, test, torch.Generator().manual_seed(int(torch.randint(2**40, (), generator=generator))))
        if not isinstance(got, list | tuple) or len(got) != 2:
            raise Mistake("kind", "return the places of the training and of the test examples")
        train, held = (as_tensor(part).flatten().tolist() for part in got)
        if set(train) & set(held):
            raise Mistake("M24", f"{len(set(train) & set(held))} of {total} examples are in both parts")
        if len(held) != test:
            raise Mistake("12-size", f"{len(held)} instead of {test}")
        if sorted(train + held) != list(range(total)):
            found = len(set(train + held) & set(range(total)))
            raise Mistake("12-lost", f"{len(train + held)} places, among them {found} of the {total} examples")


def _shuffled(answer, generator):
    seed = int(torch.randint(2**40, (), generator=generator))
    own, again = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    held = [tuple(sorted(as_tensor(answer(50, 10, each)[1]).flatten().tolist())) for each in (own, own, own, again)]
    if len(set(held)) == 1:
        raise Mistake("12-unshuffled", "three draws from the generator give the same test part")
    if held[0] != held[3]:
        raise Mistake("global_rng", "the same generator gives another test part")


def _with_replacement(total, test, generator):
    return torch.randint(total, (total - test,), generator=generator), torch.randint(total, (test,), generator=generator)


def _forgot_the_rest(total, test, generator):
    order = torch.randperm(total, generator=generator)
    return order[test : total - 1], order[:test]


def _with_numpy(total, test, generator):
    import numpy as np

    order = np.random.default_rng().permutation(total)
    return order[test:], order[:test]


def _by_keys(total, test, generator):
    keys = torch.rand(total, generator=generator)
    bound = keys.sort()[0][test]
    places = torch.arange(total)
    return places[keys >= bound].tolist(), places[keys < bound].tolist()


# ---- 12.4


def summarize(report: dict) -> dict:
    """What a reader of a report needs first."""
    rows = [row for row in report["rows"] if row["layer"] == "all" and row["approximation"] != "exact"]
    judged = [row for row in rows if row["efficiency"] is not None]
    best = max(judged, key=lambda row: row["efficiency"])
    skipped = [row["approximation"] for row in rows if row["efficiency"] is None]
    return {
        "damping": report["about"]["damping"], "examples": report["about"]["num_examples"], "best": best["approximation"],
        "efficiency": best["efficiency"], "not_judged": sorted([*skipped, *report["failures"]]),
    }  # fmt: skip


def _a_report(generator) -> dict:
    """Made up, in the shape of `Report.to_dict()`: the best by efficiency is not the best by cosine, and a layer beats all."""
    u = torch.rand(8, generator=generator, dtype=F64).tolist()
    row = lambda name, layer, efficiency, cosine: {  # noqa: E731
        "approximation": name, "layer": layer, "efficiency": efficiency, "cosine": cosine,
    }  # fmt: skip
    names = [("kfac", "ekfac", "unit_wise"), ("ekfac", "unit_wise", "kfac"), ("unit_wise", "kfac", "ekfac")][int(3 * u[0])]
    rows = [
        row("exact", "all", 1.0, 1.0), row("exact", "0", 1.0, 1.0), row(names[0], "all", 0.4 + 0.1 * u[1], 0.97 + 0.01 * u[2]),
        row(names[0], "0", 0.3 * u[3], 0.5), row(names[1], "all", 0.6 + 0.1 * u[4], 0.8 + 0.05 * u[5]),
        row(names[1], "0", 0.8 + 0.05 * u[3], 0.7),
        row(names[2], "all", 0.2, 0.3), row(names[2], "0", 0.9 + 0.05 * u[6], 0.9), row("mine", "all", None, None),
    ]  # fmt: skip
    about = {"damping": 10 ** (-1 - 3 * u[7]), "num_examples": 20 + int(50 * u[1]), "num_parameters": 334}
    return {
        "schema": "natgrad_lab.report",
        "about": about,
        "rows": rows,
        "failures": {"theirs": "ValueError: no rule for Conv3d"},
    }


_KINDS = {"damping": float, "examples": int, "best": str, "efficiency": float, "not_judged": list}


def _schema(answer, generator):
    got = answer(_a_report(generator))
    if not isinstance(got, dict):
        raise Mistake("nothing" if got is None else "kind", f"got {type(got).__name__}; return a dict")
    for key, kind in _KINDS.items():
        if key not in got:
            raise Mistake("12-schema", f"there is no {key!r}")
        if not isinstance(got[key], (float, int) if kind is float else kind) or isinstance(got[key], bool):
            raise Mistake("12-schema", f"{key!r} is {type(got[key]).__name__} and should be {kind.__name__}")


def _contents(answer, generator):
    report = _a_report(generator)
    want, got = summarize(report), answer(report)
    judged = [row for row in report["rows"] if row["approximation"] != "exact" and row["efficiency"] is not None]
    whole = [row for row in judged if row["layer"] == "all"]
    if got["best"] == "exact":
        raise Mistake("12-exact")
    if got["best"] != want["best"]:
        by_cosine = max(whole, key=lambda row: row["cosine"])["approximation"]
        by_layer = max(judged, key=lambda row: row["efficiency"])["approximation"]
        reasons = {by_cosine: "12-cosine", by_layer: "12-layer"}
        raise Mistake(reasons.get(got["best"], "12-numbers"), f"you chose {str(got['best'])[:40]!r}")
    if sorted(map(str, got["not_judged"])) != want["not_judged"]:
        raise Mistake("12-silent", f"your list has {len(got['not_judged'])} names")
    for key in ("damping", "examples", "efficiency"):
        if not math.isclose(got[key], want[key], rel_tol=1e-9):
            raise Mistake("12-numbers", f"{key!r}")


def _changed(**entries):
    """The reference with some entries replaced by functions of the report."""
    return lambda report: {**summarize(report), **{key: make(report) for key, make in entries.items()}}


def _by_loop(report):
    best, value, unjudged = "", -1.0, list(report["failures"])
    for row in report["rows"]:
        if row["layer"] != "all" or row["approximation"] == "exact":
            continue
        if row["efficiency"] is None:
            unjudged.append(row["approximation"])
        elif row["efficiency"] > value:
            best, value = row["approximation"], row["efficiency"]
    about = report["about"]
    return dict(damping=about["damping"], examples=about["num_examples"], best=best, efficiency=value, not_judged=unjudged)


def _best_by(key, layers=("all",), names=None):
    def best(report):
        rows = [row for row in report["rows"] if row["layer"] in layers and row[key] is not None]
        rows = [row for row in rows if names is None or row["approximation"] != names]
        return max(rows, key=lambda row: row[key])["approximation"]

    return best


def _highest_of_the_best(report):
    best = summarize(report)["best"]
    return max(row["efficiency"] for row in report["rows"] if row["approximation"] == best)


EXERCISES = (
    Exercise(
        key="12.1",
        name="validate",
        reference=validate,
        parts=(Part("efficiency", 4, _efficiency), Part("exact", 2, _exact_is_one), Part("step", 3, _step_and_decrease)),
        wrong=(
            ("M22", _wrong(0, lambda v, g, F, damping, right: _euclidean(v, g, F, damping))),
            ("12-undamped", _wrong(0, lambda v, g, F, damping, right: _half_damped(v, g, F, damping)[0])),
            ("12-undamped", _wrong(0, lambda v, g, F, damping, right: _half_damped(v, g, F, damping)[1])),
            ("12-root", _wrong(0, lambda v, g, F, damping, right: math.sqrt(right))),
            ("12-length", _wrong(0, lambda v, g, F, damping, right: right * float(v @ v))),
            ("12-step", _wrong(1, lambda v, g, F, damping, right: 1.0)),
            ("12-half", _wrong(2, lambda v, g, F, damping, right: 2 * right)),
        ),
        others=(_validate_by_search,),
        read="The yardstick",
    ),
    Exercise(
        key="12.2",
        name="diagnose",
        reference=diagnose,
        parts=(Part("your clinics", 9, _one_clinic),),
        wrong=(
            ("12-dealt", lambda numbers: dict(zip(numbers, DIAGNOSES, strict=True))),
            ("12-weak", _confused("diagonal", "order")),
            ("12-labels", _confused("labels", "kfac")),
            ("12-copies", _confused("no mean", "kfac")),
            ("12-unused", _confused("unused", "diagonal")),
            ("12-damping", _confused("damping", "kfac")),
            ("12-order", _confused("order", "diagonal")),
            ("12-missed", _confused("kfac", "exact")),
        ),
        others=(_by_elimination,),
        read="The clinic",
    ),
    Exercise(
        key="12.3",
        name="split",
        reference=split,
        parts=(Part("parts", 6, _parts), Part("shuffled", 3, _shuffled)),
        wrong=(
            ("M24", _with_replacement),
            ("M24", lambda total, test, generator: (torch.arange(total), torch.randperm(total, generator=generator)[:test])),
            ("12-lost", _forgot_the_rest),
            ("12-unshuffled", lambda total, test, generator: (torch.arange(total - test), torch.arange(total - test, total))),
            ("12-size", lambda total, test, generator: split(total, total - test, generator)),
            ("global_rng", lambda total, test, generator: torch.randperm(total).tensor_split([total - test])),
            ("global_rng", _with_numpy),
        ),
        others=(_by_keys,),
        read="On which examples?",
    ),
    Exercise(
        key="12.4",
        name="summarize",
        reference=summarize,
        parts=(Part("schema", 3, _schema), Part("contents", 6, _contents)),
        wrong=(
            ("12-schema", lambda report: {"best": "kfac"}),
            ("12-exact", _changed(best=_best_by("efficiency"))),
            ("12-cosine", _changed(best=_best_by("cosine", names="exact"))),
            ("12-layer", _changed(best=_best_by("efficiency", ("all", "0"), "exact"))),
            ("12-silent", _changed(not_judged=lambda report: [])),
            ("12-silent", _changed(not_judged=lambda report: list(report["failures"]))),
            ("12-numbers", _changed(efficiency=lambda report: 1.0)),
            ("12-numbers", _changed(efficiency=_highest_of_the_best)),
        ),
        others=(_by_loop,),
        read="The report",
    ),
)  # fmt: skip
assert set(_MISSED) < set(DIAGNOSES) and "one_example" in PROBES
