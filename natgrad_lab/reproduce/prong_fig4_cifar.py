"""PRONG on a convolutional network, against batch normalization. [Desjardins2015] figure 4 a and b."""

from collections.abc import Sequence

from natgrad_lab.reproduce.base import Check, Scale
from natgrad_lab.reproduce.race import race_reproduction
from natgrad_lab.reproduce.race_results import at_most, in_seconds, ratios

NO_MORE = 1.0  # updates to the final training loss of SGD with batch normalization, against its own


def judge(seeds: Sequence[dict]) -> list[Check]:
    """Updates to the target of PRONG and of PRONG+."""
    return [
        at_most(
            f"{problem}: {label} reaches the final training loss of SGD with batch normalization in ≤ {NO_MORE:g} of its "
            "updates",
            ratios(seeds, problem, label, "SGD + BatchNorm"), NO_MORE, in_seconds(seeds, problem, label, "SGD + BatchNorm"),
        )
        for problem in seeds[0]["curves"] for label in ("PRONG", "PRONG+")
    ]  # fmt: skip


LRS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
WHITE = [{"lr": lr, "damping": eps} for lr in (0.1, 0.03, 0.01) for eps in (1e-1, 1e-2)]
ENTRANTS = {
    "momentum": {"method": "momentum", "grid": [{"lr": lr, "momentum": 0.9} for lr in LRS]},
    "SGD + BatchNorm": {"method": "momentum", "batch_norm": True, "grid": [{"lr": lr, "momentum": 0.9} for lr in LRS]},
    "PRONG": {"method": "prong", "fixed": {"momentum": 0.9, "reparametrize_every": 20}, "grid": WHITE},
    "PRONG+": {"method": "prong_plus", "fixed": {"momentum": 0.9, "reparametrize_every": 20}, "grid": WHITE},
}
RACE = {"entrants": ENTRANTS, "measure": "loss"}

PRONG_FIG4_CIFAR = race_reproduction(
    name="prong-fig4-cifar",
    title="Does whitening the channels beat batch normalization?",
    claim="On CIFAR-10 PRONG trains a convolutional network faster than SGD with batch normalization.",
    source="[Desjardins2015] fig. 4a, 4b",
    criterion=f"4 of 5 seeds, PRONG and PRONG+: the final training loss of tuned SGD with batch normalization in ≤ {NO_MORE:g} "
    "of its updates; seconds are shown, not judged. Figures 4c and 4d (ImageNet) are not attempted: the data and the machines "
    "for them are not there",
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
            "12 x 12 pictures of noisy stripes and two convolutions of 6 channels, instead of CIFAR-10 and a VGG-like network",
        ),
        "full": Scale(
            RACE
            | {
                "updates": 20_000, "seconds": 1800, "evaluations": 40, "evaluate_examples": 10_000,
                "problems": {
                    "CIFAR-10": {"dataset": "cifar10", "likelihood": "categorical", "batch_size": 128,
                                 "network": {"kind": "convnet", "channels": (64, 64, 128, 128, 256, 256), "activation": "relu",
                                             "pool_every": 2}},
                },
            },
            "no crops and flips; test error is not judged",
        ),
    },
)  # fmt: skip
