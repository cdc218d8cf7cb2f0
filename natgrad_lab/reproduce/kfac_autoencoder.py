"""Does K-FAC train deep autoencoders in fewer updates? [MartensGrosse2015] sec. 13, figures 9 and 10."""

from collections.abc import Sequence

from natgrad_lab.reproduce.base import Check, Scale
from natgrad_lab.reproduce.race import race_reproduction
from natgrad_lab.reproduce.race_results import at_most, in_seconds, ratios

FEWER = 0.2  # updates to SGD-momentum's final training error, against its own
TRIDIAGONAL = 1.0  # updates of the tridiagonal one to that error, against the block-diagonal one


def judge(seeds: Sequence[dict]) -> list[Check]:
    """Both statements on every problem; seconds beside them."""
    checks = []
    for problem in seeds[0]["curves"]:
        fewer = ratios(seeds, problem, "K-FAC", "momentum")
        text = f"{problem}: K-FAC reaches the final training error of SGD with momentum in ≤ {FEWER:g} of its updates"
        checks.append(at_most(text, fewer, FEWER, in_seconds(seeds, problem, "K-FAC", "momentum")))
        if "K-FAC tridiagonal" not in seeds[0]["curves"][problem]:
            continue
        tri = [
            ours / theirs if theirs > 0 else 1.0
            for ours, theirs in zip(ratios(seeds, problem, "K-FAC tridiagonal", "momentum"), fewer, strict=True)
        ]
        text = f"{problem}: tridiagonal K-FAC needs at most as many updates as block-diagonal (ratio ≤ {TRIDIAGONAL:g})"
        checks.append(at_most(text, tri, TRIDIAGONAL, in_seconds(seeds, problem, "K-FAC tridiagonal", "momentum")))
    return checks


ADAPTIVE = [{"damping": damping} for damping in (0.1, 0.3, 1.0, 3.0)]
ENTRANTS = {
    "momentum": {
        "method": "momentum",
        "grid": [{"lr": lr, "momentum": mu} for lr, mu in ((0.1, 0.9), (0.03, 0.9), (0.01, 0.9), (0.01, 0.99))],
    },
    "adam": {"method": "adam", "grid": [{"lr": lr} for lr in (3e-2, 1e-2, 3e-3, 1e-3)]},
    "K-FAC": {"method": "kfac_adaptive", "fixed": {"weight_decay": 1e-5}, "grid": ADAPTIVE},
    "K-FAC tridiagonal": {
        "method": "kfac_adaptive", "fixed": {"weight_decay": 1e-5, "blocks": "tridiagonal"}, "grid": ADAPTIVE,
    },
}  # fmt: skip
MNIST_ENTRANTS = {
    "momentum": {
        "method": "momentum",
        "grid": [{"lr": lr, "momentum": mu} for lr, mu in ((0.01, 0.9), (0.003, 0.9), (0.001, 0.9), (0.001, 0.99))],
    },
    "adam": {"method": "adam", "grid": [{"lr": lr} for lr in (1e-2, 3e-3, 1e-3, 3e-4)]},
    "K-FAC": {
        "method": "kfac_adaptive", "fixed": {"weight_decay": 1e-5}, "updates": 80,
        "grid": [{"damping": damping} for damping in (0.3, 1.0, 3.0, 10.0)],
    },
}  # fmt: skip
RACE = {"entrants": ENTRANTS, "measure": "error"}


def _network(*sizes: int) -> dict:
    return {"kind": "autoencoder", "sizes": sizes, "activation": "sigmoid", "sparse": 15}


KFAC_AUTOENCODER = race_reproduction(
    name="kfac-autoencoder",
    title="Does K-FAC train deep autoencoders in fewer updates?",
    claim="On the deep autoencoders for MNIST, CURVES and FACES K-FAC makes far more progress per update than SGD with "
    "momentum, tuned; the block-tridiagonal form somewhat more than the block-diagonal one.",
    source="[MartensGrosse2015] sec. 13, fig. 9-10",
    criterion=f"on each of three problems, 4 of 5 seeds: K-FAC reaches the final training error of tuned SGD with momentum in "
    f"≤ {FEWER:g} of its updates; the tridiagonal form in at most as many as the block-diagonal one. Seconds are shown, not "
    "judged. CURVES and FACES are stand-ins for the originals at either scale",
    judge=judge,
    scales={
        "small": Scale(
            RACE
            | {
                "updates": 600, "seconds": 12, "evaluations": 24, "evaluate_examples": 1000,
                "problems": {
                    "MNIST": {"dataset": "mnist", "num_examples": 4000, "image_size": 14, "likelihood": "bernoulli",
                              "batch_size": 500, "network": _network(60, 30, 12)},
                    "CURVES (stand-in)": {"dataset": "curves", "data": {"num_examples": 4000}, "image_size": 14,
                                          "likelihood": "bernoulli", "batch_size": 500, "network": _network(60, 30, 6)},
                    "FACES (stand-in)": {"dataset": "faces", "data": {"num_examples": 4000}, "image_size": 12,
                                         "likelihood": "gaussian", "batch_size": 500, "network": _network(60, 30, 12)},
                },
            },
            "4,000 pictures of 14 x 14 (faces 12 x 12), codes of 6 and 12 units after layers of 60 and 30, 600 updates or 12 "
            "CPU seconds a run; CURVES and FACES are stand-ins",
        ),
        "mnist": Scale(
            RACE
            | {
                "entrants": MNIST_ENTRANTS, "updates": 400, "seconds": 600, "evaluations": 40, "evaluate_examples": 2000,
                "problems": {
                    "MNIST": {"dataset": "mnist", "likelihood": "bernoulli", "batch_size": 500,
                              "network": _network(1000, 500, 250, 30)},
                },
            },
            "the paper's MNIST network and all 60,000 pictures, but a cut-down budget: 400 updates of 500 pictures for the "
            "baselines, at most 80 for K-FAC; block-diagonal only",
        ),
        "full": Scale(
            RACE
            | {
                "updates": 5000, "seconds": 1200, "evaluations": 40, "evaluate_examples": 10_000,
                "problems": {
                    "MNIST": {"dataset": "mnist", "likelihood": "bernoulli", "batch_size": 6000,
                              "network": _network(1000, 500, 250, 30)},
                    "CURVES (stand-in)": {"dataset": "curves", "likelihood": "bernoulli", "batch_size": 4000,
                                          "network": _network(400, 200, 100, 50, 25, 6)},
                    "FACES (stand-in)": {"dataset": "faces", "data": {"num_examples": 50_000}, "likelihood": "gaussian",
                                         "batch_size": 5000, "network": _network(2000, 1000, 500, 30)},
                },
            },
            "CURVES and FACES are stand-ins, FACES with 50,000 patches; batches do not grow",
        ),
    },
)  # fmt: skip
