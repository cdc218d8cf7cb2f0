"""The numbers of lesson 05."""

import math
import statistics

import torch

from natgrad_lab.course.cards import lesson05 as card
from natgrad_lab.course.measured import measured
from natgrad_lab.likelihoods import Categorical


def _whitened(**choices) -> dict:
    state = {"epsilon": 1e-5, "centred": True, "layers": "all layers", "data": "digits"}
    return card.whiten(state | choices)


def condition_before() -> float:
    """λ_max / mean λ of the digit network, seed 1."""
    return _whitened()["condition before"]


def condition_after() -> float:
    """The same after whitening with ε = 1e-5."""
    return _whitened()["condition after"]


def factor() -> float:
    """Their ratio."""
    return _whitened()["factor"]


def median_factor() -> float:
    """Median of that ratio over the ten seeds of the reproduction."""
    return statistics.median(seed["before"]["mean"] / seed["after"]["mean"] for seed in measured("prong_fig2")["seeds"])


def uncentred_factor() -> float:
    """Without subtracting the mean."""
    return _whitened(centred=False)["factor"]


def white_noise_factor() -> float:
    """For inputs that are standard Gaussian."""
    return _whitened(data="white noise")["factor"]


def large_epsilon_factor() -> float:
    """With ε = 1."""
    return _whitened(epsilon=1.0)["factor"]


def without_one() -> float:
    """Percent by which the first layer's undamped step differs if the homogeneous 1 is left out."""
    net = card.network("digits")
    model, a = net["model"], net["received"][0]
    targets = Categorical().sample(net["outputs"], 1, torch.Generator().manual_seed(0))[0]
    loss = Categorical().loss(model(a), targets)
    W, b = torch.autograd.grad(loss, [model[0].weight, model[0].bias])
    ones = torch.cat([a, a.new_ones(len(a), 1)], 1)
    right = torch.cat([W, b[:, None]], 1) @ torch.linalg.inv(ones.mT @ ones / len(a))
    wrong = torch.cat([W @ torch.linalg.inv(a.mT @ a / len(a)), b[:, None]], 1)
    return 100 * float((wrong - right).norm() / right.norm())


def _training(period: int) -> dict:
    return card.while_training({"period": period, "meaning": "λ_max / mean λ"})


def share_below_T100() -> float:
    """Percent of checkpoints of all seeds at which PRONG with T = 100 is the better conditioned one."""
    return 100 * _training(100)["share below"]


def factor_T100() -> float:
    """How many times, median of the checkpoints."""
    return float(torch.tensor(_training(100)["factors"]).median())


def factor_T1() -> float:
    """The same for T = 1."""
    return float(torch.tensor(_training(1)["factors"]).median())


def ordered_share() -> float:
    """Percent of the seeds whose mean log conditioning is in the order T = 1, 10, 100."""
    ordered = []
    for seed in measured("prong_fig2")["seeds"]:
        means = [statistics.mean(math.log(x) for x in seed["training"][T]["mean"]) for T in ("1", "10", "100")]
        ordered.append(means == sorted(means))
    return 100 * statistics.mean(ordered)


def tuned_epsilon() -> float:
    """ε of PRONG's best setting among those tried on the autoencoder."""
    return measured("prong_grid")["settings"]["PRONG"]["damping"]


def fresh_epsilon() -> float:
    """The ε at which T = 1 and T = 10 are compared."""
    return 1e-3


def grid_small_epsilon() -> float:
    """Final error at the smallest ε, T = 10."""
    return card.cell(1e-4, "10")["errors"][-1]


def grid_tuned_epsilon() -> float:
    """Final error at the tuned ε, T = 10."""
    return card.cell(tuned_epsilon(), "10")["errors"][-1]


def grid_fresh() -> float:
    """Final error at ε = 0.001, T = 1."""
    return card.cell(fresh_epsilon(), "1")["errors"][-1]


def grid_stale() -> float:
    """Final error at ε = 0.001, T = 10."""
    return card.cell(fresh_epsilon(), "10")["errors"][-1]


def grid_best() -> float:
    """Final error of the best cell."""
    return card.cell(*card.best_cell())["errors"][-1]


def batch_norm_error() -> float:
    """Of SGD with momentum and batch normalization."""
    return measured("prong_grid")["curves"]["SGD + BatchNorm"]["errors"][-1]


def momentum_error() -> float:
    """Of SGD with momentum."""
    return measured("prong_grid")["curves"]["momentum"]["errors"][-1]


def _seconds(period: str) -> float:
    return card.cell(tuned_epsilon(), period)["seconds"][-1] / measured("prong_grid")["curves"]["momentum"]["seconds"][-1]


def seconds_T1() -> float:
    """CPU seconds of an update with T = 1 over those of SGD with momentum."""
    return _seconds("1")


def seconds_T100() -> float:
    """The same with T = 100."""
    return _seconds("100")
