"""Structured natural gradient descent against SGD and batch normalization. [Liu2024]: four training curves.

The paper's numbers could not be had; the claim taken is that of its abstract and captions: SNGD trains faster than gradient
descent (and, with local Fisher layers, than batch normalization).
"""

from collections.abc import Sequence

from natgrad_lab.reproduce.base import Check, Scale
from natgrad_lab.reproduce.race import race_reproduction
from natgrad_lab.reproduce.race_results import at_equal_updates, below, in_seconds

LOWER = 1.0  # training loss at equal updates, against the other's


def judge_pair(seeds: Sequence[dict]) -> list[Check]:
    """SNGD below SGD, both tuned, with and without momentum as they are entered."""
    return [_lower(seeds, problem, "SNGD", "sgd") for problem in seeds[0]["curves"]]


def judge_triple(seeds: Sequence[dict]) -> list[Check]:
    """SNGD below SGD with batch normalization below SGD."""
    pairs = ("SNGD", "SGD + BatchNorm"), ("SGD + BatchNorm", "sgd")
    return [_lower(seeds, problem, *pair) for problem in seeds[0]["curves"] for pair in pairs]


def _lower(seeds: Sequence[dict], problem: str, entrant: str, baseline: str) -> Check:
    text = f"{problem}: training loss of {entrant} at equal updates, against {baseline}'s, < {LOWER:g}"
    values = at_equal_updates(seeds, problem, entrant, baseline)
    return below(text, values, LOWER, in_seconds(seeds, problem, entrant, baseline))


LRS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
PAIRS = ((1.0, 1.0), (0.3, 1.0), (0.1, 1.0), (0.3, 0.1), (0.1, 0.1), (0.03, 0.01))  # lr, damping
SGD = {"method": "sgd", "grid": [{"lr": lr} for lr in LRS]}
BATCH_NORM = {"method": "sgd", "batch_norm": True, "grid": [{"lr": lr} for lr in LRS]}
SNGD = {"method": "sngd", "grid": [{"lr": lr, "damping": damping} for lr, damping in PAIRS]}
RNGD = {"method": "rngd", "grid": [{"lr": lr} for lr in LRS]}
BUDGET = {"measure": "loss", "evaluations": 24, "evaluate_examples": 1000}
PAIR = BUDGET | {"entrants": {"sgd": SGD, "SNGD": SNGD}}
WITH_RELEASED = BUDGET | {"entrants": {"sgd": SGD, "SNGD": SNGD, "RNGD (as released)": RNGD}}
TRIPLE = BUDGET | {"entrants": {"sgd": SGD, "SGD + BatchNorm": BATCH_NORM, "SNGD": SNGD}}
CRITERION = "4 of 5 seeds, every method tuned over the same number of settings: training loss at equal updates, "
SECONDS = ". Seconds to the other's final loss are shown, not judged"
FULL = {"updates": 20_000, "seconds": 1200, "evaluations": 40, "evaluate_examples": 10_000}


def _perceptron(dataset: str, batch_size: int, *hidden: int) -> dict:
    network = {"kind": "mlp", "hidden": hidden, "activation": "relu"}
    return {"dataset": dataset, "likelihood": "categorical", "batch_size": batch_size, "network": network}


def _pictures(version: str, channels: tuple[int, ...], **options: object) -> dict:
    network = {"kind": "convnet", "channels": channels, "activation": "relu"}
    return {"dataset": "cifar10", "data": {"version": version}, "likelihood": "categorical", "batch_size": 128,
            "network": network} | options  # fmt: skip


def _words(**network: int) -> dict:
    return {"dataset": "penn_treebank", "likelihood": "categorical", "network": {"kind": "lstm"} | network}


SNGD_MNIST = race_reproduction(
    name="sngd-mnist",
    title="Does SNGD train a perceptron faster than SGD?",
    claim="Gradient descent on w' = G^½ w with local Fisher matrices converges faster than gradient descent on MNIST.",
    source="[Liu2024] fig. 3",
    criterion=f"{CRITERION}SNGD's below SGD's{SECONDS}",
    judge=judge_pair,
    scales={
        "small": Scale(
            WITH_RELEASED | {"updates": 600, "seconds": 10, "problems": {"digits": _perceptron("digits", 50, 40, 40, 40)}},
            "8 x 8 digits, 64-40-40-40-10, instead of MNIST and 784-80-80-80-10",
        ),
        "full": Scale(WITH_RELEASED | FULL | {"problems": {"MNIST": _perceptron("mnist", 50, 80, 80, 80)}}),
    },
)
SNGD_BATCHNORM = race_reproduction(
    name="sngd-batchnorm",
    title="Do local Fisher layers beat batch normalization?",
    claim="The training loss with local Fisher layers is below that of SGD with batch normalization, which is below SGD's.",
    source="[Liu2024] fig. 4",
    criterion=f"{CRITERION}SNGD < SGD with batch normalization < SGD{SECONDS}",
    judge=judge_triple,
    scales={
        "small": Scale(
            TRIPLE | {"updates": 600, "seconds": 10, "problems": {"digits": _perceptron("digits", 50, 40, 40, 40)}},
            "8 x 8 digits, 64-40-40-40-10, instead of the paper's networks",
        ),
        "full": Scale(TRIPLE | FULL | {"problems": {"MNIST": _perceptron("mnist", 50, 80, 80, 80)}}),
    },
)
SNGD_CIFAR = race_reproduction(
    name="sngd-cifar",
    title="Does SNGD train a convolutional network faster than SGD?",
    claim="SNGD converges faster than gradient descent with a convolutional network on CIFAR-10.",
    source="[Liu2024] fig. 5",
    criterion=f"{CRITERION}SNGD's below SGD's{SECONDS}. ImageNet is not attempted: the data and the machines are not there",
    judge=judge_pair,
    scales={
        "small": Scale(
            PAIR | {"updates": 300, "seconds": 20,
                    "problems": {"CIFAR-10": _pictures("first4000", (8, 16), image_size=16)}},
            "the first 4,000 pictures at 16 x 16 and two convolutions, instead of CIFAR-10 and larger networks",
        ),
        "full": Scale(PAIR | FULL | {"problems": {"CIFAR-10": _pictures("binary", (32, 64, 128))}}, "no residual network"),
    },
)  # fmt: skip
SNGD_PTB = race_reproduction(
    name="sngd-ptb",
    title="Does SNGD train a language model faster than SGD?",
    claim="SNGD converges faster than gradient descent with an LSTM on the Penn Treebank.",
    source="[Liu2024]",
    criterion=f"{CRITERION}SNGD's below SGD's{SECONDS}",
    judge=judge_pair,
    scales={
        "small": Scale(
            PAIR | {"updates": 200, "seconds": 20, "evaluate_examples": 200, "problems": {
                "Penn Treebank": _words(embedding=32, hidden=64)
                | {"data": {"length": 20, "num_words": 200}, "num_examples": 2000, "batch_size": 20}}},
            "200 words, 2,000 rows of 20, 64 hidden units",
        ),
        "full": Scale(PAIR | FULL | {"evaluate_examples": 500, "problems": {
            "Penn Treebank": _words(embedding=200, hidden=200) | {"batch_size": 20}}}),
    },
)  # fmt: skip
