"""K-FAC for convolutions. [GrosseMartens2016]: training loss of a small convolutional network."""

from collections.abc import Sequence

from natgrad_lab.reproduce.base import Check, Scale
from natgrad_lab.reproduce.race import race_reproduction
from natgrad_lab.reproduce.race_results import at_most, in_seconds, ratios

FEWER = 1 / 3  # updates to SGD-momentum's final training loss, against its own


def judge(seeds: Sequence[dict]) -> list[Check]:
    """Updates to the baseline's final loss."""
    return [
        at_most(
            f"{problem}: KFC reaches the final training loss of SGD with momentum in ≤ {FEWER:.2g} of its updates",
            ratios(seeds, problem, "KFC", "momentum"), FEWER, in_seconds(seeds, problem, "KFC", "momentum"),
        )
        for problem in seeds[0]["curves"]
    ]  # fmt: skip


LRS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
ENTRANTS = {
    "momentum": {"method": "momentum", "grid": [{"lr": lr, "momentum": 0.9} for lr in LRS]},
    "adam": {"method": "adam", "grid": [{"lr": lr} for lr in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)]},
    "KFC": {
        "method": "kfac", "fixed": {"invert_every": 10, "max_kl": 0.05},
        "grid": [{"lr": lr, "damping": damping} for lr in (0.3, 0.1) for damping in (1e-1, 1e-2, 1e-3)],
    },
}  # fmt: skip
RACE = {"entrants": ENTRANTS, "measure": "loss"}

KFC_CNN = race_reproduction(
    name="kfc-cnn",
    title="Does K-FAC train a convolutional network in fewer updates?",
    claim="With Kronecker factors for convolutions K-FAC needs several times fewer updates than tuned SGD with momentum.",
    source="[GrosseMartens2016] sec. 5",
    criterion=f"4 of 5 seeds: the final training loss of tuned SGD with momentum in ≤ {FEWER:.2g} of its updates; seconds are "
    "shown, not judged",
    judge=judge,
    scales={
        "small": Scale(
            RACE
            | {
                "updates": 400, "seconds": 15, "evaluations": 24, "evaluate_examples": 1000,
                "problems": {
                    "textures": {"dataset": "textures", "data": {"num_examples": 2000, "num_classes": 8, "noise": 1.0},
                                 "likelihood": "categorical", "batch_size": 100,
                                 "network": {"kind": "convnet", "channels": (6, 6), "activation": "relu"}},
                },
            },
            "12 x 12 pictures of noisy stripes and two convolutions of 6 channels, instead of CIFAR-10 and SVHN",
        ),
        "full": Scale(
            RACE
            | {
                "updates": 20_000, "seconds": 1800, "evaluations": 40, "evaluate_examples": 10_000,
                "problems": {
                    "CIFAR-10": {"dataset": "cifar10", "likelihood": "categorical", "batch_size": 512,
                                 "network": {"kind": "convnet", "channels": (32, 32, 64), "activation": "relu"}},
                },
            },
        ),
    },
)  # fmt: skip
