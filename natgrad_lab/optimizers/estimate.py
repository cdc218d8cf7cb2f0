"""Running estimates of a Fisher: from which scores, averaged how, refreshed how often.

All that is remembered are structures, so that a running average, a mean over machines, and a saved state are one `map` or
`state` each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from natgrad_lab.fisher.ekfac import ekfac_from_scores, kfac_basis, rebased
from natgrad_lab.fisher.kfac import kfac_from_scores
from natgrad_lab.fisher.scores import FISHER_TYPES, ScorePass
from natgrad_lab.names import known
from natgrad_lab.optimizers.step_size import check_fraction
from natgrad_lab.structures import StructuredMatrix

Statistics = tuple[StructuredMatrix, ...]


@dataclass(frozen=True)
class FisherEstimate:
    """How a running Fisher is made.

    Attributes:
        from_scores: ScorePass → structure, as `fisher.kfac.kfac_from_scores`.
        fisher_type, num_samples: of the scores.
        ema_decay: weight of the old estimate, min(1 − 1/k, ema_decay) at the k-th refresh, so that the first counts fully.
        update_every, invert_every: steps between refreshes, and between inversions.
        burn_in: the first steps, at which both happen whatever their periods.
        fraction: τ₁, the first part of the batch that the Fisher is estimated from.
        share: what every new statistic passes through before it is averaged: on several machines their mean.
    References: [MartensGrosse2015] sec. 5, 8.
    """

    from_scores: Callable[[ScorePass], StructuredMatrix]
    fisher_type: str = "exact"
    num_samples: int = 1
    ema_decay: float = 0.0
    update_every: int = 1
    invert_every: int = 1
    burn_in: int = 0
    fraction: float = 1.0
    share: Callable[[StructuredMatrix], StructuredMatrix] = lambda statistic: statistic

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        known(self.fisher_type, FISHER_TYPES, "fisher_type")
        check_fraction(self.fraction, "fraction")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1); got {self.ema_decay}. 0 keeps only the newest Fisher.")
        for name, least in (("num_samples", 1), ("update_every", 1), ("invert_every", 1), ("burn_in", 0)):
            if not isinstance(value := getattr(self, name), int) or value < least:
                kind = "a positive integer" if least else "an integer >= 0"
                raise ValueError(f"{name} must be {kind}; got {value!r}.")

    def is_update_due(self, steps: int) -> bool:
        """Whether the statistics are refreshed after so many steps."""
        return steps % self.update_every == 0 or steps < self.burn_in

    def is_inverse_due(self, steps: int) -> bool:
        """Whether the inverse is computed anew."""
        return steps % self.invert_every == 0 or steps < self.burn_in

    def decay(self, refreshes: int) -> float:
        """Weight of the old statistics at the k-th refresh, k = 1, 2, ..."""
        return min(1 - 1 / refreshes, self.ema_decay)

    def num_examples(self, batch: int) -> int:
        """How many examples of a batch the Fisher is estimated from."""
        return max(1, math.ceil(self.fraction * batch))

    def refreshed(self, old: Statistics, scores: ScorePass, decay: float, steps: int) -> Statistics:
        """The statistics with those of one more batch; the last of them is the Fisher."""
        return (average(old[0] if old else None, self.share(self.from_scores(scores)), decay),)


@dataclass(frozen=True)
class EkfacEstimate(FisherEstimate):
    """EKFAC: the Kronecker factors, and variances in their eigenbasis, which is renewed every `invert_every` steps.

    Between renewals the variances alone are estimated anew and averaged. A new basis takes over the old estimate's own diagonal
    in it. The inverse is elementwise, so it is as new as the variances.
    References: [George2018] sec. 3.
    """

    from_scores: Callable[[ScorePass], StructuredMatrix] = kfac_from_scores

    def is_inverse_due(self, steps: int) -> bool:
        """Whenever the variances are new."""
        return self.is_update_due(steps) or super().is_inverse_due(steps)

    def refreshed(self, old: Statistics, scores: ScorePass, decay: float, steps: int) -> Statistics:
        """Factors and variances with those of one more batch."""
        factors, variances = old or (None, None)
        factors = average(factors, self.share(self.from_scores(scores)), decay)
        if variances is not None and variances.dim != factors.dim:
            variances = None  # a layer was frozen meanwhile
        if variances is None or super().is_inverse_due(steps):
            basis = kfac_basis(factors)
            variances = None if variances is None else rebased(variances, basis)
        else:
            basis = variances
        return factors, average(variances, self.share(ekfac_from_scores(scores, basis=basis)), decay)


def average(old: StructuredMatrix | None, new: StructuredMatrix, decay: float) -> StructuredMatrix:
    """decay · old + (1 − decay) · new, tensor by tensor."""
    return new if old is None or decay == 0 else old.map(partial(_lerp, decay=decay), new)


def _lerp(old, new, decay: float):
    return new.lerp(old, decay)
