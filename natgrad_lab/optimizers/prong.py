"""PRONG and PRONG+: gradient descent in coordinates in which every layer's inputs are white.

The model keeps its own weights (W, b); what descent does to (V, d) is written back into them. `WhitenedNetwork` holds (V, d)
themselves. The two take the same steps.
"""

import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from natgrad_lab.derivatives import refuse_inputs, refuse_output_shape, refuse_weights, run_model
from natgrad_lab.fisher.scores import ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import check_damping
from natgrad_lab.optimizers.base import Direction, Evaluation, FlatOptimizer
from natgrad_lab.optimizers.whitening import (
    InputMetric,
    InputMoments,
    Whitening,
    parts,
    recorded_inputs,
    rows_of,
    samples,
    seen_inputs,
    whitened_layers,
)
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockDiagonal, Diagonal, Kronecker


def prong(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.3,
    damping: float = 1e-2,
    reparametrize_every: int = 10,
    **choices,
) -> "Prong":
    """PRONG, natural neural networks: descent on V of V U (h − c) + d, U whitening the layer's inputs. See `Prong`.

    Args: choices: momentum, num_samples, statistics_inputs, plain, max_kl, seed.
    References: [Desjardins2015] algorithm 1.
    """
    return Prong(model, likelihood, lr=lr, damping=damping, reparametrize_every=reparametrize_every, **choices)


def prong_plus(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.3,
    damping: float = 1e-2,
    variance_damping: float = 0.1,
    reparametrize_every: int = 10,
    **choices,
) -> "Prong":
    """PRONG+: PRONG whose white inputs are scaled to unit variance on every batch. See `Prong` on `variance_damping`.

    Args: choices: momentum, num_samples, statistics_inputs, plain, max_kl, seed.
    References: [Desjardins2015].
    """
    choices |= {"variance_damping": variance_damping, "reparametrize_every": reparametrize_every}
    return Prong(model, likelihood, lr=lr, damping=damping, **choices)


class Prong(FlatOptimizer):
    """Gradient descent on (V, d), written in the model's own weights W = V U and b = d − W c.

    With c and Σ the mean and the covariance of a layer's inputs h at the last reparametrization, U = diag(λ + damping)^-½ Eᵀ
    for Σ = E diag(λ) Eᵀ, and δ the gradient of the loss at the layer's output, a step is

        W ← W − lr E[δ (h − c)ᵀ] (Σ + damping I)⁻¹,      b ← b − lr E[δ] − ΔW c.

    The metric is I ⊗ A per layer, A = E[h̄ h̄ᵀ] of homogeneous inputs h̄ = [h; 1]: K-FAC with G replaced by I. `damping` (the
    paper's ε) is added to the variances of the inputs; the bias is not damped. Undamped and with statistics of the step's own
    batch it is K-FAC with G = I, and a natural gradient where G is I: one layer with a Gaussian likelihood of variance 1.
    Elsewhere ½ δᵀ(I ⊗ A)δ, which the record gives as kl, takes for the predicted decrease and `max_kl` bounds, is not in nats.

    A convolution whitens its channels, pixels as samples; zero padding stays zero. A layer without a trained bias is not
    centred: Σ is then E[h hᵀ]. Normalizations, PReLU and what `plain` names get the plain gradient (their metric is I).

    Momentum is heavy-ball on (V, d). A reparametrization maps its buffer, M_V ← M_V U_old U_new⁻¹ and the bias' accordingly
    (a choice made here): that is heavy-ball on (W, b), whose velocity a change of coordinates does not touch.

    PRONG+ (`variance_damping` a number): the layer is V D U (h − c) + d, D diagonal with D_j = (v_j + variance_damping)^-½ for
    v_j the variance of (U(h − c))_j on the step's own batch, about the batch's mean. V takes up every change of D,
    V ← V D_old D_new⁻¹, so that the function changes by the step alone; in (W, b) that is the step above with UᵀD²U in place
    of (Σ + damping I)⁻¹. Choices made here: D is a constant to the gradient; it has a damping of its own, not tiny, since
    where the variance is below `damping` D takes that back, (λ_j + damping)(v_j + variance_damping) being what divides along
    eigenvector j; and D is diagonal in the eigenvectors as they come: where Σ has an eigenvalue several times (0, for dead
    units or fewer samples than units) they, and so the steps between reparametrizations, are a matter of convention. Batch
    normalization of the layers' outputs is another way to the same end: put BatchNorm layers into the model and use `prong`.

    Args:
        model, likelihood, lr, damping, max_kl, seed: as `FlatOptimizer`; only the loss is needed, so that batch norm and
            dropout may be in train mode.
        reparametrize_every: steps between reparametrizations (the paper's T, 10² to 10⁴), the first before the first step.
        momentum: of the buffer, in [0, 1).
        num_samples: examples drawn at each reparametrization for its statistics; None: all.
        statistics_inputs: inputs to take statistics from; None: those of the step.
        plain: names of modules that get the plain gradient.
        variance_damping: a positive number for PRONG+; None for PRONG.
    Raises: UnsupportedLayerError for layers that cannot be whitened, by name; NotPositiveDefiniteError for damping 0 where a
        direction of a layer's inputs has no variance; ValueError for bad numbers.
    Cost: one forward and one backward pass and two products of out D² per layer (PRONG+ four); per reparametrization
        R D² + 13 D³ for R samples, in float64; 6 D² numbers per layer.
    References: [Desjardins2015] algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        reparametrize_every: int = 10,
        momentum: float = 0.0,
        num_samples: int | None = None,
        statistics_inputs: Tensor | None = None,
        plain: Sequence[str] = (),
        variance_damping: float | None = None,
        **choices,
    ):
        """See the class."""
        super().__init__(model, likelihood, **choices)
        _check_counts(reparametrize_every=reparametrize_every, num_samples=1 if num_samples is None else num_samples)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum}.")
        if variance_damping is not None and not (math.isfinite(variance_damping) and variance_damping > 0):
            raise ValueError(f"variance_damping must be a positive number, or None (plain PRONG); got {variance_damping}.")
        whitened_layers(ParameterLayout(model), plain)
        self.reparametrize_every, self.momentum, self.plain = reparametrize_every, momentum, tuple(plain)
        self.num_samples, self.statistics_inputs, self.variance_damping = num_samples, statistics_inputs, variance_damping
        self.moments: dict[str, InputMoments] = {}
        self.whitenings: dict[str, Whitening] = {}
        self.metrics: dict[str, InputMetric] = {}
        self.velocity: dict[str, Tensor] = {}
        self._whitened_damping = None

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        """Loss and gradient by plain backpropagation; on the way, the inputs of the layers where statistics are due."""
        layout = ParameterLayout(self.model)
        layers = whitened_layers(layout, self.plain)
        due = self._is_due(layers)
        own = due and self.statistics_inputs is None and self.num_samples is None
        watched = {layer.name: layer.module for layer in layers if own or self.variance_damping is not None}
        with recorded_inputs(watched) as seen:
            scores, gradient = self._gradient(layout, inputs, targets)
        self._whiten(layers, seen if own or not due else self._seen(layers, inputs), due, gradient.dtype)
        self._normalize(layers, seen)
        return Evaluation(float(scores.loss), float(scores.loss), gradient, scores)

    def _gradient(self, layout: ParameterLayout, inputs: Tensor, targets: Tensor) -> tuple[ScorePass, Float[Tensor, " P"]]:
        """The mean nll (in a pass without scores) and its gradient in the flat order."""
        refuse_inputs(layout, inputs)
        if self.num_steps == 0:
            refuse_weights(layout)
        flat = torch.zeros(layout.dim, dtype=layout.dtype, device=layout.device)
        pairs = layout.split(flat)
        with torch.enable_grad():
            outputs = run_model(self.model, inputs)
            refuse_output_shape(inputs, outputs)
            loss = self.likelihood.loss(outputs, targets)
            wanted = [parameter for parameter, _ in pairs]
            found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        for (_, part), each in zip(pairs, found, strict=True):
            part.copy_(each)
        outputs = self.likelihood.positions(outputs.detach())
        return ScorePass(layout, "exact", outputs, (), loss.detach(), None, 0), flat

    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        """Descent on (V, d), as a direction of (W, b)."""
        started, layout = time.perf_counter(), scores.layout
        fresh = {layer.name: gradient[layer.slice] for layer in layout.layers}
        for layer in self._whitened(layout):
            rows = parts(fresh[layer.name].view(layer.shape), layer)
            fresh[layer.name] = rows_of(*self.metrics[layer.name].direction(*rows), layer).flatten()
        if self.momentum:
            fresh = self.velocity = {name: self._velocity(name, new) for name, new in fresh.items()}
        vector = torch.cat(list(fresh.values()))
        curvature = float(vector @ self._product(layout, vector))
        phases["solve"] = time.perf_counter() - started
        return Direction(vector, curvature, lambda vector: self._product(layout, vector))

    def _velocity(self, name: str, new: Tensor) -> Tensor:
        """Heavy-ball; a layer that did not train before starts at rest."""
        old = self.velocity.get(name)
        return new if old is None or old.shape != new.shape else self.momentum * old + new

    def _product(self, layout: ParameterLayout, vector: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        product = vector.clone()
        for layer in self._whitened(layout):
            rows = parts(vector[layer.slice].view(layer.shape), layer)
            product[layer.slice] = rows_of(*self.metrics[layer.name].product(*rows), layer).flatten()
        return product

    def _whitened(self, layout: ParameterLayout) -> list[Layer]:
        return [layer for layer in layout.layers if layer.name in self.metrics]

    def _is_due(self, layers: Sequence[Layer]) -> bool:
        """Every so many steps, and as soon as other layers train than at the last reparametrization."""
        known = {name: moments.centred for name, moments in self.moments.items()}
        return self.num_steps % self.reparametrize_every == 0 or known != {layer.name: layer.has_bias for layer in layers}

    def _seen(self, layers: Sequence[Layer], inputs: Tensor) -> dict[str, list[Tensor]]:
        given = inputs if self.statistics_inputs is None else self.statistics_inputs
        if self.num_samples is not None:
            if self.num_samples > len(given):
                raise ValueError(
                    f"num_samples = {self.num_samples} examples are to be drawn from {len(given)}. Take fewer, or pass more "
                    "as statistics_inputs=..."
                )
            order = torch.randperm(len(given), generator=self.generator, device=self.generator.device)
            given = given[order[: self.num_samples].to(given.device)]
        return seen_inputs(self.model, {layer.name: layer.module for layer in layers}, given)

    def _whiten(self, layers: Sequence[Layer], seen: dict, due: bool, dtype: torch.dtype) -> None:
        """New moments if due; new U where they, or the damping, have changed."""
        damping = check_damping(self.param_groups[0]["damping"])
        if due:
            self.moments = {
                layer.name: InputMoments.of(samples(layer.name, layer.module, seen[layer.name]), layer.has_bias, layer.name)
                for layer in layers
            }
        if due or damping != self._whitened_damping:
            self.whitenings = {name: each.whitening(damping, dtype, name) for name, each in self.moments.items()}
            self.metrics = {name: each.metric(damping, dtype) for name, each in self.moments.items()}
            self._whitened_damping = damping

    def _normalize(self, layers: Sequence[Layer], seen: dict) -> None:
        """PRONG+: the metric with the variances of this batch along the same axes."""
        metrics = {}
        for layer in layers if self.variance_damping is not None else ():
            whitening = self.whitenings[layer.name]
            white = whitening.whiten(samples(layer.name, layer.module, seen[layer.name]))
            variances = white.var(0, correction=0)
            covariance = (whitening.U_inverse, variances)
            inverse = (whitening.U.mT, 1 / (variances + self.variance_damping))
            metrics[layer.name] = InputMetric(whitening.c, covariance, inverse)
        self.metrics = metrics or self.metrics

    @property
    def fisher(self) -> BlockDiagonal:
        """The metric of the last step, undamped: I ⊗ A per layer in the flat order, formed when it is asked for.

        A = [[Σ + ccᵀ, c], [cᵀ, 1]]; for a convolution the same with its pixels uncorrelated, Σ between equal places of the
        kernel and ccᵀ between all. PRONG+ has U⁻¹ diag(v) U⁻ᵀ in place of Σ. Layers with the plain gradient have I.
        """
        blocks = []
        for layer in ParameterLayout(self.model).layers:
            one = layer.parameters[0].new_ones(1)
            if layer.name in self.metrics:
                places = layer.module.weight[0, 0].numel()
                A = self.metrics[layer.name].factor(places, layer.has_bias)
                blocks.append(Kronecker(one.expand(layer.shape[0]).diag(), A))
            else:
                blocks.append(Diagonal(one.repeat(layer.size)))
        return BlockDiagonal(tuple(blocks))

    def _memory(self) -> tuple:
        return self.moments, self.whitenings, self.metrics, self.velocity, self._whitened_damping

    def _remember(self, *memory: object) -> None:
        self.moments, self.whitenings, self.metrics, self.velocity, self._whitened_damping = memory

    def _own_state(self) -> dict:
        moments = {name: dict(vars(each)) for name, each in self.moments.items()}
        return {"moments": moments, "velocity": dict(self.velocity), "whitened_damping": self._whitened_damping}

    def _load_own_state(self, state: dict) -> None:
        self.moments = {name: InputMoments(**each) for name, each in state["moments"].items()}
        self.velocity, self._whitened_damping = dict(state["velocity"]), None  # U is made anew from the moments
        self.whitenings, self.metrics = {}, {}


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")
