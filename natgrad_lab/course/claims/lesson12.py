"""The numbers of lesson 12."""

from functools import cache

from natgrad_lab.comparison import Report, compare
from natgrad_lab.course.cards.lesson12 import CATEGORICAL, _healthy, _shown, network, report, small_digits


def _percent(name: str, steps: int) -> float:
    return 100 * report(steps).row(name).efficiency


def gradient_efficiency() -> float:
    """Plain gradient after ten steps, λ = 0.01, percent."""
    return _percent("identity", 10)


def gradient_cosine() -> float:
    """Its cosine."""
    return report(10).row("identity").cosine


def kfac_efficiency() -> float:
    """K-FAC after ten steps, percent."""
    return _percent("kfac", 10)


def kfac_cosine() -> float:
    """Its cosine."""
    return report(10).row("kfac").cosine


def kfac_start() -> float:
    """K-FAC before training, percent."""
    return _percent("kfac", 0)


def kfac_middle() -> float:
    """K-FAC after three steps, percent."""
    return _percent("kfac", 3)


def tridiagonal_start() -> float:
    """Block-tridiagonal K-FAC before training, percent."""
    return _percent("block_tridiagonal", 0)


def noise_start() -> float:
    """The Fisher with one sampled target, no structure assumed, before training: mean efficiency of five seeds, percent."""
    return 100 * report(0).ladder.noise[0].efficiency


def kfac_noise_start() -> float:
    """K-FAC with one sampled target."""
    return 100 * report(0).ladder.noise[1].efficiency


def promised() -> float:
    """What the quadratic model promises for the exact step before training, nats."""
    return report(0).row("exact").predicted_decrease


def achieved() -> float:
    """What the loss then does."""
    return report(0).row("exact").achieved_decrease


def kfac_achieved() -> float:
    """What K-FAC's step does to the loss there."""
    return report(0).row("kfac").achieved_decrease


@cache
def _tripled() -> Report:
    return compare(network(0), CATEGORICAL, *small_digits(), 3e-2, ["kfac"])


def exact_tripled() -> float:
    """Fall of the loss by the exact step at λ = 0.03."""
    return _tripled().row("exact").achieved_decrease


def kfac_tripled() -> float:
    """By K-FAC's."""
    return _tripled().row("kfac").achieved_decrease


def kl_ratio_full() -> float:
    """KL moved over ½ δᵀFδ for a full exact step before training."""
    row = report(0).row("exact")
    return row.kl_unit / row.kl_quadratic_unit


def _of(name: str) -> dict[str, float]:
    letters, numbers = _shown()
    return numbers[next(letter for letter, each in letters.items() if each == name)]


def healthy_diagonal() -> float:
    """The healthy diagonal's efficiency in the clinic, percent."""
    return 100 * _of("diagonal")["efficiency"]


def sick_damping() -> float:
    """Efficiency of the K-FAC whose factors are both damped by λ, percent."""
    return 100 * _of("damping")["efficiency"]


def sick_labels() -> float:
    """Relative change of the direction when the labels are permuted."""
    return _of("labels")["labels"]


def clinic_exact() -> float:
    """The exact one's best step."""
    return _healthy()["best_step"]
