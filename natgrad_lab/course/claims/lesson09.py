"""The numbers of lesson 09: all from runs that are kept."""

import statistics

import torch

from natgrad_lab.course.cards.lesson09 import needs, part_ratios, relative_cost
from natgrad_lab.course.measured import measured

_MNIST = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)


def mnist_updates() -> float:
    """K-FAC's updates to momentum's final error, over momentum's."""
    return statistics.median(needs("MNIST, K-FAC", "updates"))


def mnist_updates_again() -> float:
    """The same."""
    return mnist_updates()


def mnist_seconds() -> float:
    """The same in CPU seconds."""
    return statistics.median(needs("MNIST, K-FAC", "seconds"))


def online_updates() -> float:
    """Online natural gradient against SGD, digits, updates."""
    return statistics.median(needs("digits, online NG", "updates"))


def online_seconds() -> float:
    """The same in CPU seconds."""
    return statistics.median(needs("digits, online NG", "seconds"))


def digits_seconds() -> float:
    """K-FAC against Adam on digits in the race by equal CPU seconds."""
    return statistics.median(needs("digits, 4 CPU seconds", "seconds"))


def prong_never_percent() -> float:
    """Share of 2000 bootstrap draws of five seeds in which PRONG's median never arrives."""
    found = torch.tensor(needs("digits, PRONG", "updates"), dtype=torch.float64)
    index = torch.randint(5, (2000, 5), generator=torch.Generator().manual_seed(0))
    return 100 * float(found[index].median(1).values.isinf().double().mean())


def _part(label: str) -> float:
    return statistics.median(part_ratios(label))


def no_rescaling() -> float:
    """Error after 120 updates with α = 1 and μ = 0, over that of the whole algorithm."""
    return _part("no rescaling (α = 1, μ = 0)")


def fixed_dampings() -> float:
    """With λ and γ fixed."""
    return _part("λ and γ fixed")


def data_labels() -> float:
    """With the empirical Fisher's factors."""
    return _part("labels of the data")


def no_momentum() -> float:
    """With μ = 0."""
    return _part("no momentum (μ = 0)")


def no_pi() -> float:
    """With √λ on both factors."""
    return _part("no π (√λ on both)")


def no_averages() -> float:
    """With the newest factors alone."""
    return _part("no running averages")


def tridiagonal() -> float:
    """With the block-tridiagonal inverse."""
    return _part("block-tridiagonal")


def online_error() -> float:
    """Final error of the online natural gradient over SGD's at equal updates, median over seeds."""
    curves = measured("kept_races")["online-ngd-autoencoder"]["curves"]
    pairs = zip(curves["online natural gradient"], curves["sgd"], strict=True)
    return statistics.median(ours["errors"][-1] / theirs["errors"][-1] for ours, theirs in pairs)


def counted_gradients() -> float:
    """Operations of a K-FAC update on the MNIST network, in gradients."""
    return relative_cost(_MNIST, 500, 20)


def timed_gradients() -> float:
    """CPU seconds of a K-FAC update over those of a momentum update there."""
    curves = measured("kept_races")["kfac-autoencoder"]["curves"]
    each = [
        statistics.median(run["seconds"][-1] / run["updates"][-1] for run in curves[name]) for name in ("K-FAC", "momentum")
    ]
    return each[0] / each[1]
