"""The one list of optimization methods: name → constructor, all called as method(model, likelihood, lr=..., damping=...)."""

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from natgrad_lab.fisher.kfac import kfac_from_scores
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.optimizers.baselines import SGD, Adam
from natgrad_lab.optimizers.damping import INVERSES
from natgrad_lab.optimizers.natural_gradient import ExactNaturalGradient, FisherEstimate, NaturalGradient
from natgrad_lab.optimizers.online_ngd import online_ngd


def sgd(model: nn.Module, likelihood: Likelihood, *, lr: float = 0.5, damping: float | None = None) -> SGD:
    """Plain gradient descent, δ = −lr g; `damping` means nothing to it."""
    return SGD(model, likelihood, lr=lr)


def momentum(
    model: nn.Module, likelihood: Likelihood, *, lr: float = 0.1, damping: float | None = None, momentum: float = 0.9
) -> SGD:
    """Gradient descent with heavy-ball momentum; `damping` means nothing to it."""
    return SGD(model, likelihood, lr=lr, momentum=momentum)


def adam(model: nn.Module, likelihood: Likelihood, *, lr: float = 1e-2, damping: float | None = None) -> Adam:
    """Adam with PyTorch's defaults; `damping` means nothing to it."""
    return Adam(model, likelihood, lr=lr)


def exact_ngd(
    model: nn.Module, likelihood: Likelihood, *, lr: float = 0.5, damping: float = 1e-2, **choices
) -> ExactNaturalGradient:
    """Exact natural gradient descent, δ = −lr (F + λI)⁻¹ g with the Fisher of the step's batch.

    Args: lr, damping (exact λI). choices: fisher_type, max_kl, seed.
    References: [Amari1998].
    """
    return ExactNaturalGradient(model, likelihood, lr=lr, damping=damping, **choices)


def kfac(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.3,
    damping: float = 1e-2,
    damping_form: str = "factored",
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> NaturalGradient:
    """K-FAC with running averages of the factors, a constant damping and a plain step.

    Args:
        damping_form: "factored": G + √λ/π I and A + π√λ I, as in the paper; "exact": λ on the eigenvalues of G ⊗ A.
        choices: of `FisherEstimate`: fisher_type ("monte_carlo"), num_samples, ema_decay (0.95), update_every, invert_every.
    References: [MartensGrosse2015] sec. 4.2, 6.3, without its adaptive damping, rescaling and momentum.
    """
    known(damping_form, INVERSES, "damping_form")
    estimate = FisherEstimate(kfac_from_scores, **{"fisher_type": "monte_carlo", "ema_decay": 0.95} | choices)
    return NaturalGradient(
        model, likelihood, estimate, INVERSES[damping_form], lr=lr, damping=damping, max_kl=max_kl, seed=seed
    )


class _Methods(dict[str, Callable[..., Optimizer]]):
    def __missing__(self, name: str) -> Callable[..., Optimizer]:
        return self[known(name, self, "method")]  # raises, with the nearest name


METHODS = _Methods(sgd=sgd, momentum=momentum, adam=adam, exact_ngd=exact_ngd, kfac=kfac, online_ngd=online_ngd)
