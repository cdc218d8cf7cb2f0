"""The numbers of lesson 06."""

import statistics

from natgrad_lab.course.cards import lesson06 as card
from natgrad_lab.course.measured import measured
from natgrad_lab.reproduce.race_results import ratios


def _path(period: int) -> dict:
    return card.same_path({"period": period, "lr": 0.1, "condition": 10.0})


def drift_T1() -> float:
    """Largest distance of the paths relative to the way, T = 1."""
    return _path(1)["furthest"]


def drift_T2() -> float:
    """In percent, T = 2."""
    return 100 * _path(2)["furthest"]


def drift_T5() -> float:
    """In percent, T = 5."""
    return 100 * _path(5)["furthest"]


def drift_never() -> float:
    """In percent, G never renewed."""
    return 100 * _path(card.NEVER)["furthest"]


def loss_T5() -> float:
    """Final loss with T = 5."""
    return _path(5)["losses"][0]


def loss_natural() -> float:
    """Final loss of natural gradient descent."""
    return _path(5)["losses"][1]


def _roots(**choices) -> dict:
    state = {"condition": 1e4, "dtype": "float64", "scaled": False, "update": card.UPDATES[0]}
    return card.roots(state | choices)


def iterations_plain() -> float:
    """Until ‖YZ − I‖ / √m < 1e-6, κ = 1e4."""
    return float(_roots()["iterations"])


def iterations_scaled() -> float:
    """The same with scaling."""
    return float(_roots(scaled=True)["iterations"])


def sequential_residual() -> float:
    """‖Y² − M‖ / ‖M‖ of the wrong order."""
    return float(_roots(update=card.UPDATES[1])["root"][-1])


def coarse_condition() -> float:
    """The condition number of the float32 example."""
    return 1e8


def coarse_residual() -> float:
    """‖Z M Z − I‖ / √m in float32."""
    return _roots(dtype="float32", condition=coarse_condition())["inverse"]


def _landmarks(count: int) -> dict:
    return card.landmarks({"count": count, "choice": card.CHOICES[0], "damping": 1e-2})


def nystrom_1() -> float:
    """Percent of the decrease with one landmark."""
    return 100 * _landmarks(1)["efficiency"]


def nystrom_10() -> float:
    """With ten."""
    return 100 * _landmarks(10)["efficiency"]


def nystrom_40() -> float:
    """With forty."""
    return 100 * _landmarks(40)["efficiency"]


def nystrom_plain() -> float:
    """Of a plain gradient step."""
    return 100 * _landmarks(1)["plain"]


def against_batch_norm() -> float:
    """Final training loss of SNGD over that of SGD with batch normalization, median of the seeds."""
    return statistics.median(card.final_ratios("SNGD", "SGD + BatchNorm"))


def batch_norm_against_sgd() -> float:
    """That of SGD with batch normalization over SGD's."""
    return statistics.median(card.final_ratios("SGD + BatchNorm", "sgd"))


def seconds_against_batch_norm() -> float:
    """CPU seconds of SNGD to the final loss of SGD with batch normalization, over what that took."""
    curves = measured("sngd_races")["curves"]
    seeds = [{"curves": {"digits": {name: runs[i] for name, runs in curves.items()}}} for i in range(5)]
    return statistics.median(ratios(seeds, "digits", "SNGD", "SGD + BatchNorm", "seconds"))
