"""What SNGD's authors released: a relative natural gradient, per unit, from a layer's inputs and gates alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from natgrad_lab.errors import NotPositiveDefiniteError, UnsupportedLayerError
from natgrad_lab.fisher.layers import homogeneous
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import zero_level
from natgrad_lab.optimizers.base import Direction, Evaluation, FlatOptimizer
from natgrad_lab.optimizers.record import StepRecord
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import KhatriRaoRows

_LARGEST = 2**28  # numbers in the metrics of one layer: 1 GiB in float32

# ν(z) of a unit with this activation: the squared derivative of its mean output by z = wᵀx̄. [SunNielsen2017] sec. 4.
GATES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: lambda z: z.sigmoid().square(),  # of softplus, of which ReLU is the limit: as released
    nn.Softplus: lambda z: z.sigmoid().square(),
    nn.Tanh: lambda z: (1 - z.tanh().square()).square(),
    nn.Sigmoid: lambda z: (z.sigmoid() * (-z).sigmoid()).square(),
    nn.ELU: lambda z: torch.where(z >= 0, 1.0, z.clamp(max=0).exp()).square(),
    nn.Identity: torch.ones_like,
}


@dataclass(frozen=True)
class _Stage:
    """A Linear layer by name, and the gate of its units; None for one metric with ν = 1 for all of them."""

    name: str
    gate: Callable[[Tensor], Tensor] | None


class RNGD(FlatOptimizer):
    """W ← W − lr ∇W M⁻¹ per layer, or w_j ← w_j − lr M_j⁻¹ ∇w_j per unit, M a running mean of ν x̄ x̄ᵀ. See `rngd`.

    Attributes:
        metrics: M by layer name, (1 or units, n, n). inverses: of M + damping tr(M) I, as last computed; until then I.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        ema_decay: float,
        invert_every: int,
        **choices,
    ):
        """See the class."""
        super().__init__(model, likelihood, **choices)
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1); got {ema_decay}. 0.995 is the released code's.")
        if not isinstance(invert_every, int) or invert_every < 1:
            raise ValueError(f"invert_every must be a positive integer; got {invert_every!r}.")
        self.ema_decay, self.invert_every = ema_decay, invert_every
        self.metrics: dict[str, Tensor] = {}
        self.inverses: dict[str, Tensor] = {}
        self._inverted_damping = None
        for stage, layer in _layers(model, ParameterLayout(model)):
            self._metric(stage, layer)  # refuses what is too large

    def step(self, inputs: Tensor, targets: Tensor) -> StepRecord:
        """One step on the batch; then the batch's metric, at the new weights, is averaged in."""
        record = super().step(inputs, targets)
        if record.status == "ok":
            self._observe(inputs)
        return record

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        plain = self._pass(inputs, None, None, loss_targets=targets)
        for each in plain.layers:
            if not isinstance(each.loss_rows, KhatriRaoRows):
                raise UnsupportedLayerError(
                    f"layer {each.layer.name!r} sees inputs of several positions; RNGD is for MLPs on rows (N, D). Use "
                    "METHODS['sngd'], whose metric is a mean over positions too."
                )
        return Evaluation(float(plain.loss), float(plain.loss), plain.gradient(), plain)

    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        started = time.perf_counter()
        stages = _layers(self.model, scores.layout)
        due = (self.num_steps - 1) % self.invert_every == 0 and self.num_steps > 0
        if due or (self.inverses and damping != self._inverted_damping):
            inverses = {stage.name: _inverse(self._metric(stage, layer), damping, stage.name) for stage, layer in stages}
            self.inverses, self._inverted_damping = inverses, damping
        vector = self._applied(self.inverses, stages, gradient)
        product = partial(self._applied, self.metrics, stages)
        curvature = float(vector @ product(vector))
        phases["solve"] = time.perf_counter() - started
        return Direction(vector, curvature, product)

    def _applied(self, matrices: dict[str, Tensor], stages: list, vector: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Each unit's part of the vector times its matrix; I for a layer that has none yet."""
        out = vector.clone()
        for stage, layer in stages:
            matrix = matrices.get(stage.name)
            if matrix is not None and matrix.shape == self._metric(stage, layer).shape:
                rows = vector[layer.slice].view(layer.shape)
                out[layer.slice] = (rows.unsqueeze(1) @ matrix).flatten()  # (units, 1, n) x (1 or units, n, n)
        return out

    def _metric(self, stage: _Stage, layer: Layer) -> Tensor:
        """M of a layer; I before the first batch, and where the layer's parameters are others than before."""
        count, size = 1 if stage.gate is None else layer.shape[0], layer.shape[1]
        if count * size**2 > _LARGEST:
            raise UnsupportedLayerError(
                f"layer {layer.name!r} would need {count} metrics of {size} x {size}, {count * size**2:,} numbers (at most "
                f"{_LARGEST:,}): a released RNGD has one for each hidden unit. Use METHODS['sngd'], one per layer."
            )
        kept = self.metrics.get(stage.name)
        if kept is not None and kept.shape == (count, size, size):
            return kept
        weight = layer.parameters[0]
        return torch.eye(size, dtype=weight.dtype, device=weight.device).expand(count, size, size)

    @torch.no_grad()
    def _observe(self, inputs: Tensor) -> None:
        """M ← ema_decay M + (1 − ema_decay) mean of ν x̄ x̄ᵀ over the batch; left alone if the network's numbers overflow."""
        layers = {stage.name: (stage, layer) for stage, layer in _layers(self.model, ParameterLayout(self.model))}
        new, x = {}, inputs
        for name, module in _leaves(self.model):
            z = module(x)
            if name in layers:
                stage, layer = layers[name]
                rows = homogeneous(x) if layer.has_bias else x
                nu = z.new_ones(len(z), 1) if stage.gate is None else stage.gate(z)  # (N, 1 or units)
                moment = (nu.mT.unsqueeze(2) * rows).mT @ rows / len(rows)
                new[name] = self.ema_decay * self._metric(stage, layer) + (1 - self.ema_decay) * moment
            x = z
        if all(torch.isfinite(metric).all() for metric in new.values()):
            self.metrics = new

    def _memory(self) -> tuple:
        return self.metrics, self.inverses, self._inverted_damping

    def _remember(self, *memory: object) -> None:
        self.metrics, self.inverses, self._inverted_damping = memory

    def _own_state(self) -> dict:
        own = {"metrics": dict(self.metrics), "inverses": dict(self.inverses)}
        return own | {"inverted_damping": self._inverted_damping}

    def _load_own_state(self, state: dict) -> None:
        self.metrics, self.inverses = dict(state["metrics"]), dict(state["inverses"])
        self._inverted_damping = state["inverted_damping"]


def _inverse(metric: Float[Tensor, "u n n"], damping: float, name: str) -> Float[Tensor, "u n n"]:
    """(M + damping tr(M) I)⁻¹ of every unit."""
    damped = metric.clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping * metric.diagonal(dim1=1, dim2=2).sum(1, keepdim=True))
    factors, failed = torch.linalg.cholesky_ex(damped)
    pivots = factors.diagonal(dim1=1, dim2=2).square()
    level = zero_level(metric.shape[1], damped.abs().max())
    if failed.any() or not pivots.min() > level:
        raise NotPositiveDefiniteError(
            f"a metric of layer {name!r} is singular at damping {damping:g} (times its trace): its smallest pivot is "
            f"{pivots.min().item():.3g}, and anything up to {level:.3g} is rounding. Raise the damping."
        )
    return torch.cholesky_inverse(factors)


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules of an nn.Sequential in the order they run; refuses other models, and modules other than an MLP's."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            continue
        if type(module) not in (nn.Linear, nn.Flatten, nn.Dropout, *GATES):
            names = ", ".join(kind.__name__ for kind in GATES)
            raise UnsupportedLayerError(
                f"RNGD is for nn.Sequential MLPs of Linear layers and the activations {names}; got {name or 'a model'!r} "
                f"({type(module).__name__}). Use METHODS['sngd'], or register the activation's gate in rngd.GATES."
            )
        found.append((name, module))
    return found


def _layers(model: nn.Module, layout: ParameterLayout) -> list[tuple[_Stage, Layer]]:
    """Trained Linear layers with their gates: none for the first and the last, as released."""
    leaves = _leaves(model)
    places = [place for place, (_, module) in enumerate(leaves) if isinstance(module, nn.Linear)]
    gates: dict[str, Callable | None] = {}
    for order, place in enumerate(places):
        between = leaves[place + 1 : places[order + 1]] if order + 1 < len(places) else []
        activations = [type(module) for _, module in between if type(module) in GATES and type(module) is not nn.Identity]
        if len(activations) > 1:
            raise UnsupportedLayerError(f"layer {leaves[place][0]!r} is followed by {len(activations)} activations; keep one.")
        inner = 0 < order < len(places) - 1 and activations
        gates[leaves[place][0]] = GATES[activations[0]] if inner else None
    return [(_Stage(layer.name, gates[layer.name]), layer) for layer in layout.layers]


def rngd(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.1,
    damping: float = 1e-4,
    ema_decay: float = 0.995,
    invert_every: int = 100,
    max_kl: float | None = None,
    seed: int = 0,
) -> RNGD:
    """Relative natural gradient descent, which is what the released code of SNGD runs: no square root, no new layers.

    A metric of a layer's inputs alone, M ← 0.995 M + 0.005 mean(ν x̄ x̄ᵀ) from M = I, is inverted every 100 steps and applied
    to the gradient. ν = 1 and one M for the first and the last layer; for each unit of the layers between ν = σ(z)² and an M
    of its own. No part of the loss enters M. Until the second step M⁻¹ = I. Equal to neither SNGD nor a natural gradient.

    The released code knows ReLU; the other activations of `GATES` take theirs from the same family of metrics. Its weight
    decay (in its loss) and its steps with the identity where an inversion fails are left out: that is an error here.

    Args:
        model: nn.Sequential of Linear layers and activations.
        damping: M + damping tr(M) I is inverted (the trace, not the mean eigenvalue).
        ema_decay: weight of the old M. invert_every: steps between inversions, the first after the first step.
    Raises: UnsupportedLayerError for other models, and for hidden layers too wide for a metric per unit.
    Cost: one more forward pass per step; units · N n² for the metrics of a hidden layer, units · n³ per inversion.
    References: [Liu2024], its code; [SunNielsen2017]. See docs/sngd.md.
    """
    choices = {"lr": lr, "damping": damping, "max_kl": max_kl, "seed": seed}
    return RNGD(model, likelihood, ema_decay=ema_decay, invert_every=invert_every, **choices)
