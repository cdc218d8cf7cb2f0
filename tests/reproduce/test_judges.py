"""Every judge on made-up results: all checks pass, each one alone fails, none passes; and the verdict in each case."""

import copy

import pytest

from natgrad_lab.reproduce import REPRODUCTIONS, conclude
from natgrad_lab.reproduce.prong_fig3 import ONCE


def invariance():
    gaps = {"sgd": 0.5, "kfac 0": 1e-13, "kfac 1e-2": 0.2, "exact_ngd 0": 1e-11}
    return {
        "gaps": {"tanh to logistic": dict(gaps), "affine inputs": dict(gaps)},
        "slopes": {"log σ": {"gradient": 1.0, "natural": 2.0}},
    }


def deep_linear():
    each = {
        "depth": 2,
        "condition": 1.0,
        "rate": -2.01,
        "residual": 1e-14,
        "natural updates": [20, 40],
        "gradient updates": [10, 20],
    }
    deep = each | {"depth": 8, "gradient updates": [40, 80]}
    return {"networks": [each, deep, each | {"condition": 1e3, "gradient updates": [100, 1000]}]}


def kfac_quality():
    trained = {
        "kronecker error": 0.5, "kronecker error between layers": 0.8, "far share": 0.3, "far share of inverse": 0.05,
        "block-diagonal inverse error": 0.08, "tridiagonal inverse error": 0.03, "filled blocks error": 0.1,
        "block-diagonal inverse error, diagonal blocks": 0.04, "tridiagonal inverse error, diagonal blocks": 0.01,
    }  # fmt: skip
    return {"trained": trained, "start": {"efficiency": {"0.1": {"tridiagonal": 0.8, "block-diagonal": 0.7}}}}


def whitening():
    def path(level):
        return {kind: [1.0, level, level] for kind in ("mean", "damped", "top")}

    training = {"None": path(9.0), "1": path(1.0), "10": path(2.0), "100": path(3.0)}
    return {
        "function change": 1e-15, "before": {"mean": 150.0, "off diagonal": 0.9}, "after": {"mean": 12.0, "off diagonal": 0.4},
        "training": training,
    }  # fmt: skip


def curve(to_two, final, cost=1.0):
    """Error 9 at first, 2 after `to_two` updates, `final` after 100; `cost` seconds an update."""
    steps = [0, to_two, 100]
    return {"updates": steps, "seconds": [cost * step for step in steps], "errors": [9.0, 2.0, final]}


def race(problems, **entrants):
    return {"curves": {problem: {label: curve(*how) for label, how in entrants.items()} for problem in problems}}


def kfac_race():
    made = race(("MNIST", "CURVES"), momentum=(100, 2.0), tri=(8, 1.0))
    for entrants in made["curves"].values():
        entrants |= {"K-FAC": curve(10, 1.0), "K-FAC tridiagonal": entrants.pop("tri")}
    return made


def online():
    made = race(("digits",), sgd=(100, 2.0))
    made["curves"]["digits"]["online natural gradient"] = curve(20, 1.0, cost=3.0)
    return made


def prong_race():
    made = race(("digits",), sgd=(100, 2.0), momentum=(100, 2.0), PRONG=(30, 1.0))
    errors = {"ε = 0.1": 3.0, "ε = 0.01": 1.0, "T = 10": 1.0, "T = 100": 1.5, f"T = {ONCE:g}": 1.9}
    return made | {"sweeps": {"digits": {label: {"error": error} for label, error in errors.items()}}}


def channels():
    made = race(("textures",), PRONG=(50, 1.0))
    made["curves"]["textures"] |= {"SGD + BatchNorm": curve(100, 2.0), "PRONG+": curve(50, 1.0)}
    return made


def kfc():
    return race(("textures",), momentum=(100, 2.0), KFC=(20, 1.0))


def sngd_pair():
    return race(("digits",), sgd=(100, 2.0), SNGD=(30, 1.0))


def sngd_triple():
    made = race(("digits",), sgd=(100, 2.0), SNGD=(30, 0.5))
    made["curves"]["digits"]["SGD + BatchNorm"] = curve(50, 1.0)
    return made


def put(*path):
    """A change: the value at path[:-1] becomes path[-1]."""

    def change(seed):
        *places, last, value = path
        for place in places:
            seed = seed[place]
        seed[last] = value

    return change


SLOW = {"updates": [0, 100], "seconds": [0.0, 5000.0], "errors": [9.0, 8.0]}
# name → (a seed in which every check passes, for each check a change that breaks it)
CASES = {
    "invariance": (
        invariance,
        [put("gaps", "affine inputs", "kfac 0", 1e-6), put("gaps", "affine inputs", "exact_ngd 0", None),
         put("gaps", "tanh to logistic", "sgd", 1e-5), put("gaps", "tanh to logistic", "kfac 1e-2", 1e-3),
         put("slopes", "log σ", "gradient", 1.2), put("slopes", "log σ", "natural", 1.5)],
    ),
    "deep-linear-rate": (
        deep_linear,
        [put("networks", 1, "rate", -1.96), put("networks", 0, "residual", 1e-7),
         put("networks", 2, "gradient updates", [100, 100]), put("networks", 1, "gradient updates", [12, 80])],
    ),
    "kfac-fisher-quality": (
        kfac_quality,
        [put("trained", "kronecker error", 0.76), put("trained", "kronecker error between layers", 1.1),
         put("trained", "far share of inverse", 0.2), put("trained", "tridiagonal inverse error", 0.07),
         put("trained", "tridiagonal inverse error, diagonal blocks", 0.05), put("trained", "filled blocks error", 0.6),
         put("start", "efficiency", "0.1", "tridiagonal", 0.6)],
    ),
    "prong-fig2": (
        whitening,
        [put("function change", 1e-6), put("after", "mean", 40.0), put("after", "off diagonal", 0.95),
         put("training", "100", "mean", [1.0, 9.5, 9.5]), put("training", "10", "damped", [1.0, None, 9.5]),
         put("training", "1", "top", [1.0, 10.0, 10.0]), put("training", "1", "mean", [1.0, 5.0, 5.0])],
    ),
    "kfac-autoencoder": (
        kfac_race,
        [put("curves", "MNIST", "K-FAC", curve(30, 1.0)), put("curves", "MNIST", "K-FAC tridiagonal", curve(12, 1.0)),
         put("curves", "CURVES", "K-FAC", curve(100, None)), put("curves", "CURVES", "K-FAC tridiagonal", SLOW)],
    ),
    "online-ngd-autoencoder": (
        online,
        [put("curves", "digits", "online natural gradient", curve(100, 2.0)),
         put("curves", "digits", "online natural gradient", curve(20, 1.0, cost=11.0))],
    ),
    "prong-fig3": (
        prong_race,
        [put("sweeps", "digits", "ε = 0.1", {"error": 1.0}), put("sweeps", "digits", "T = 10", {"error": 1.6}),
         put("sweeps", "digits", f"T = {ONCE:g}", {"error": None}), put("curves", "digits", "PRONG", curve(60, 1.0, cost=0.5)),
         put("curves", "digits", "PRONG", curve(40, 1.0, cost=4.0))],
    ),
    "prong-fig4-cifar": (
        channels, [put("curves", "textures", "PRONG", SLOW), put("curves", "textures", "PRONG+", curve(50, None))],
    ),
    "kfc-cnn": (kfc, [put("curves", "textures", "KFC", curve(40, 1.0))]),
    "sngd-mnist": (sngd_pair, [put("curves", "digits", "SNGD", curve(30, 2.0))]),
    "sngd-batchnorm": (
        sngd_triple, [put("curves", "digits", "SNGD", curve(30, 1.5)), put("curves", "digits", "sgd", curve(100, 0.9))],
    ),
    "sngd-cifar": (sngd_pair, [put("curves", "digits", "SNGD", curve(30, None))]),
    "sngd-ptb": (sngd_pair, [put("curves", "digits", "SNGD", SLOW)]),
}  # fmt: skip


def judged(name, *changes, miniature=""):
    """The verdict on ten equal seeds after these changes to each, and which checks passed."""
    each, seed = REPRODUCTIONS[name], CASES[name][0]()
    for change in changes:
        change(seed)
    checks = each.judge([copy.deepcopy(seed) for _ in range(10)])
    return conclude(checks, 10, each.min_seeds, miniature), [check.passed for check in checks]


def test_every_reproduction_has_a_case():
    assert set(CASES) == set(REPRODUCTIONS)


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_asked_is_reproduced(name):
    verdict, passed = judged(name)
    assert verdict.word == "reproduced" and all(passed) and len(passed) == len(CASES[name][1])
    assert judged(name, miniature="small")[0].word == "reproduced in miniature"


@pytest.mark.parametrize("name, number", [(name, i) for name, (_, changes) in CASES.items() for i in range(len(changes))])
def test_each_check_can_fail(name, number):
    verdict, passed = judged(name, CASES[name][1][number])
    assert not passed[number]
    assert verdict.word == ("partly" if any(passed) else "not reproduced")


@pytest.mark.parametrize("name", [name for name in CASES if "curves" in CASES[name][0]()])
def test_one_seed_of_five_may_fail_in_a_race_and_two_may_not(name):
    if name == "prong-fig3":
        pytest.skip("its medians and order are not counts of seeds")
    make, changes = CASES[name]
    each, seeds = REPRODUCTIONS[name], [make() for _ in range(5)]
    changes[0](seeds[0])
    assert all(check.passed for check in each.judge(seeds))
    changes[0](seeds[1])
    assert not each.judge(seeds)[0].passed
