"""The closed form of deep linear networks, used online on a nonlinear autoencoder. [Bernacchia2018] sec. 5."""

from collections.abc import Sequence

from natgrad_lab.reproduce.base import Check, Scale
from natgrad_lab.reproduce.race import race_reproduction
from natgrad_lab.reproduce.race_results import at_equal_updates, at_most, below, seconds_per_update

COST = 10.0  # seconds of an update against SGD's: "the same order"


def judge(seeds: Sequence[dict]) -> list[Check]:
    """Better per update, at a cost of the same order."""
    checks = []
    for problem in seeds[0]["curves"]:
        pair = problem, "online natural gradient", "sgd"
        text = f"{problem}: training error at equal updates, against tuned SGD's, < 1"
        checks.append(below(text, at_equal_updates(seeds, *pair)))
        text = f"{problem}: seconds of an update against SGD's ≤ {COST:g}"
        checks.append(at_most(text, seconds_per_update(seeds, *pair), COST))
    return checks


ENTRANTS = {
    "sgd": {"method": "sgd", "grid": [{"lr": lr} for lr in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)]},
    "online natural gradient": {
        "method": "online_ngd", "fixed": {"invert_every": 5},
        "grid": [{"lr": lr, "damping": damping} for lr in (1.0, 0.3) for damping in (1.0, 0.1, 0.01)],
    },
}  # fmt: skip
RACE = {"entrants": ENTRANTS, "measure": "error"}

ONLINE_NGD_AUTOENCODER = race_reproduction(
    name="online-ngd-autoencoder",
    title="Is the deep linear formula of use in a nonlinear network?",
    claim="The natural gradient of deep linear networks, with running averages and damping, outperforms SGD on an MNIST "
    "autoencoder at a similar cost per update.",
    source="[Bernacchia2018] sec. 5",
    criterion=f"4 of 5 seeds: training error below tuned SGD's at equal updates; an update costs at most {COST:g} times SGD's",
    judge=judge,
    scales={
        "small": Scale(
            RACE
            | {
                "updates": 1000, "seconds": 10, "evaluations": 24, "evaluate_examples": 1000,
                "problems": {
                    "digits": {"dataset": "digits", "likelihood": "bernoulli", "batch_size": 100,
                               "network": {"kind": "autoencoder", "sizes": (48, 24, 8), "activation": "tanh"}},
                },
            },
            "8 x 8 digits, autoencoder 64-48-24-8-24-48-64, instead of MNIST",
        ),
        "full": Scale(
            RACE
            | {
                "updates": 20_000, "seconds": 1200, "evaluations": 40, "evaluate_examples": 10_000,
                "problems": {
                    "MNIST": {"dataset": "mnist", "likelihood": "bernoulli", "batch_size": 100,
                              "network": {"kind": "autoencoder", "sizes": (400, 200, 100, 50, 10), "activation": "tanh"}},
                },
            },
        ),
    },
)  # fmt: skip
