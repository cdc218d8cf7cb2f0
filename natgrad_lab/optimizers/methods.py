"""The one list of optimization methods: name → constructor, all called as method(model, likelihood, lr=..., damping=...)."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn
from torch.optim import Optimizer

from natgrad_lab.fisher.block_tridiagonal import block_tridiagonal_from_scores
from natgrad_lab.fisher.diagonal import diagonal_from_scores
from natgrad_lab.fisher.kfac import WEIGHT_SHARING, kfac_from_scores
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.fisher.unit_wise import unit_wise_from_scores
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.optimizers.adaptive import AdaptiveNaturalGradient, IterateAverage
from natgrad_lab.optimizers.baselines import SGD, Adam
from natgrad_lab.optimizers.damping import (
    INVERSES,
    GammaSearch,
    LevenbergMarquardt,
    chain_inverse,
    exact_inverse,
    factored_inverse,
    unit_wise_inverse,
)
from natgrad_lab.optimizers.estimate import EkfacEstimate, FisherEstimate
from natgrad_lab.optimizers.natural_gradient import ExactNaturalGradient, NaturalGradient
from natgrad_lab.optimizers.online_ngd import online_ngd
from natgrad_lab.optimizers.prong import prong, prong_plus
from natgrad_lab.optimizers.rngd import rngd
from natgrad_lab.optimizers.sngd import sngd
from natgrad_lab.optimizers.step_size import QuadraticModel
from natgrad_lab.structures import BlockDiagonal

RUNNING = {"fisher_type": "monte_carlo", "ema_decay": 0.95}  # how all but exact_ngd estimate their Fisher unless told otherwise


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
    weight_sharing: str = "expand",
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> NaturalGradient:
    """K-FAC with running averages of the factors, a constant damping and a plain step. `kfac_adaptive` is the whole algorithm.

    Args:
        damping_form: "factored": G + √λ/π I and A + π√λ I, as in the paper; "exact": λ on the eigenvalues of G ⊗ A.
        weight_sharing: "expand" (KFC for convolutions) or "reduce", as `kfac_fisher`.
        choices: of `FisherEstimate`: fisher_type ("monte_carlo"), num_samples, ema_decay (0.95), update_every, invert_every,
            burn_in, fraction.
    References: [MartensGrosse2015] sec. 4.2, 6.3.
    """
    known(damping_form, INVERSES, "damping_form")
    estimate = FisherEstimate(_kfac_factors(weight_sharing), **RUNNING | choices)
    return NaturalGradient(
        model, likelihood, estimate, INVERSES[damping_form], lr=lr, damping=damping, max_kl=max_kl, seed=seed
    )


def kfac_block_tridiagonal(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.3,
    damping: float = 1e-2,
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> NaturalGradient:
    """Block-tridiagonal K-FAC: neighbouring layers interact, F̂⁻¹ is the precision of a chain of layers; plain steps.

    Running averages of the factors within and between layers; factored damping, of the former only. For Linear layers that see
    one vector per example.

    Args: as `kfac`.
    References: [MartensGrosse2015] sec. 4.3, 6.3.
    """
    estimate = FisherEstimate(block_tridiagonal_from_scores, **RUNNING | choices)
    return NaturalGradient(model, likelihood, estimate, chain_inverse, lr=lr, damping=damping, max_kl=max_kl, seed=seed)


BLOCKS = {
    "diagonal": (kfac_from_scores, factored_inverse),
    "tridiagonal": (block_tridiagonal_from_scores, chain_inverse),
}


def kfac_adaptive(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 1.0,
    damping: float = 0.1,
    blocks: str = "diagonal",
    quadratic: Mapping = MappingProxyType({}),
    levenberg: Mapping | None = MappingProxyType({}),
    gamma_search: Mapping | None = MappingProxyType({}),
    averaging: Mapping | None = None,
    weight_decay: float = 0.0,
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> AdaptiveNaturalGradient:
    """K-FAC as in the paper: length and momentum from the exact Fisher, adaptive λ and γ, periods, averages.

    The authors ran it with damping 150 (and advise about 1 for classification), weight_decay 1e-5, fraction 1/8, averaging
    from step 200, batches that grow (`exponential_batch`) and sparse initial weights (`models.sparse_init`).

    Args:
        lr: on the whole step; 1 is what the model chooses. damping: λ at the start.
        blocks: of the preconditioner, "diagonal" or "tridiagonal".
        quadratic, levenberg, gamma_search, averaging: plain dicts of fields of `QuadraticModel`, `LevenbergMarquardt`,
            `GammaSearch`, `IterateAverage`; None leaves one of the last three out.
        weight_decay: η of ½ η ‖θ‖² in the objective.
        choices: of `FisherEstimate`, as `kfac`; inverses every 20 steps and at the first 3.
    References: [MartensGrosse2015] sec. 8, 13.
    """
    from_scores, invert = BLOCKS[known(blocks, BLOCKS, "blocks")]
    estimate = FisherEstimate(from_scores, **RUNNING | {"invert_every": 20, "burn_in": 3} | choices)
    kinds = {"levenberg": LevenbergMarquardt, "gamma_search": GammaSearch, "averaging": IterateAverage}
    given = {"levenberg": levenberg, "gamma_search": gamma_search, "averaging": averaging}
    rules = {name: None if fields is None else kinds[name](**fields) for name, fields in given.items()}
    return AdaptiveNaturalGradient(
        model, likelihood, estimate, invert, quadratic=QuadraticModel(**quadratic), **rules,
        lr=lr, damping=damping, weight_decay=weight_decay, max_kl=max_kl, seed=seed,
    )  # fmt: skip


def ekfac(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.1,
    damping: float = 1e-2,
    weight_sharing: str = "expand",
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> NaturalGradient:
    """EKFAC: K-FAC's eigenbasis, renewed every `invert_every` steps (10), and variances in it, averaged at every step.

    λ is added to the variances, exactly.

    Args: as `kfac`.
    References: [George2018] sec. 3.
    """
    estimate = EkfacEstimate(_kfac_factors(weight_sharing), **RUNNING | {"invert_every": 10} | choices)
    return NaturalGradient(model, likelihood, estimate, exact_inverse, lr=lr, damping=damping, max_kl=max_kl, seed=seed)


def diagonal(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.1,
    damping: float = 0.1,
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> NaturalGradient:
    """Every entry of the gradient divided by its own Fisher information + λ: (F_pp + λ)⁻¹ g_p, running averages of F_pp.

    The Fisher's diagonal, not Adam's square root of the gradient's: no root is taken. Args: as `kfac`.
    """
    estimate = FisherEstimate(diagonal_from_scores, **RUNNING | choices)
    return NaturalGradient(model, likelihood, estimate, exact_inverse, lr=lr, damping=damping, max_kl=max_kl, seed=seed)


def unit_wise(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.1,
    damping: float = 1e-2,
    max_kl: float | None = None,
    seed: int = 0,
    **choices,
) -> NaturalGradient:
    """Unit-wise natural gradient: every unit's exact block, (M_c + λI)⁻¹ of its gradient, running averages of the M_c.

    Undamped it does not change with affine maps of a unit's inputs or of its activity. Memory and inverses grow with units
    times the square and the cube of their inputs. Args: as `kfac`.
    References: [Ollivier2015].
    """
    estimate = FisherEstimate(unit_wise_from_scores, **RUNNING | choices)
    return NaturalGradient(model, likelihood, estimate, unit_wise_inverse, lr=lr, damping=damping, max_kl=max_kl, seed=seed)


def _kfac_factors(weight_sharing: str) -> Callable[[ScorePass], BlockDiagonal]:
    return partial(kfac_from_scores, weight_sharing=known(weight_sharing, WEIGHT_SHARING, "weight_sharing"))


class _Methods(dict[str, Callable[..., Optimizer]]):
    def __missing__(self, name: str) -> Callable[..., Optimizer]:
        return self[known(name, self, "method")]  # raises, with the nearest name


METHODS = _Methods(
    sgd=sgd,
    momentum=momentum,
    adam=adam,
    exact_ngd=exact_ngd,
    diagonal=diagonal,
    unit_wise=unit_wise,
    kfac=kfac,
    kfac_block_tridiagonal=kfac_block_tridiagonal,
    kfac_adaptive=kfac_adaptive,
    ekfac=ekfac,
    prong=prong,
    prong_plus=prong_plus,
    sngd=sngd,
    rngd=rngd,
    online_ngd=online_ngd,
)
