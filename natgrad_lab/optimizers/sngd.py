"""SNGD, structured natural gradient descent: gradient descent on w' = G^½ w, written as a step on the weights w themselves."""

import copy
import math
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from natgrad_lab.fisher.scores import FISHER_TYPES, ScorePass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.names import known
from natgrad_lab.optimizers.base import Direction, Evaluation, FlatOptimizer
from natgrad_lab.optimizers.local_fisher import METRICS, LocalFisher, LocalRoot, RootChoice, averaged, lacks_inputs
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor


class SNGD(FlatOptimizer):
    """w ← w − lr G^−½ G^−½ g with local Fisher matrices G + damping I, frozen for `update_every` steps.

    The user's model keeps its own weights and is updated in place; `reconstruction.reconstruct` builds the network in which
    the same steps are plain gradient descent. The record's kl and predicted decrease take I ⊗ G of the metric for the
    Fisher: with metric="inputs" ½ δᵀ(I ⊗ G)δ is no number of nats.

    Args: as `sngd`.
    Attributes:
        fishers: the local Fisher matrices, undamped. roots: their roots, with method and residuals.
        velocity: running sum of the directions, if there is momentum.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        metric: str = "inputs",
        fisher_type: str = "exact",
        update_every: int = 20,
        ema_decay: float = 0.0,
        momentum: float = 0.0,
        choice: RootChoice,
        **choices,
    ):
        """See the class."""
        super().__init__(model, likelihood, **choices)
        self.metric = known(metric, METRICS, "metric")
        self.fisher_type = known(fisher_type, FISHER_TYPES, "fisher_type")
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(f"update_every must be a positive integer; got {update_every!r}.")
        for name, value in (("ema_decay", ema_decay), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1); got {value}. 0 switches it off.")
        self.update_every, self.ema_decay, self.momentum, self.choice = update_every, ema_decay, momentum, choice
        self.fishers: tuple[LocalFisher, ...] = ()
        self.roots: tuple[LocalRoot, ...] = ()
        self.velocity: Tensor | None = None
        self._averaged, self._root_damping, self._places = 0, None, []

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        """Scores only where the metric is made of them, and is due."""
        due = self._is_due(ParameterLayout(self.model)) or self.ema_decay > 0
        if due and self.metric != "inputs":
            return super()._evaluate(inputs, targets)
        plain = self._pass(inputs, None, None, loss_targets=targets)
        if due and lacks_inputs(plain):
            return super()._evaluate(inputs, targets)
        return Evaluation(float(plain.loss), float(plain.loss), plain.gradient(), plain)

    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        started = time.perf_counter()
        due, places = self._is_due(scores.layout), _places(scores.layout)
        if moved := places != self._places:
            self._averaged, self.velocity, self._places = 0, None, places
        if due or self.ema_decay > 0:
            self._estimate(scores)
        phases["fisher"] = time.perf_counter() - started
        started = time.perf_counter()
        if due or moved or damping != self._root_damping:
            self.roots = tuple(self.choice.root(each, damping, gradient.dtype) for each in self.fishers)
            self._root_damping = damping
        inverse_roots = [root.inverse_root for root in self.roots]
        vector = self._applied(inverse_roots, self._applied(inverse_roots, gradient))
        if self.momentum:
            self.velocity = vector if self.velocity is None else self.momentum * self.velocity + vector
            vector = self.velocity
        product = partial(self._applied, [fisher.matrix for fisher in self.fishers])
        curvature = float(vector @ product(vector))
        phases["solve"] = time.perf_counter() - started
        return Direction(vector, curvature, product)

    def _is_due(self, layout: ParameterLayout) -> bool:
        """Every so many steps, and at once where other layers train than before."""
        return self.num_steps % self.update_every == 0 or _places(layout) != self._places

    def _estimate(self, scores: ScorePass) -> None:
        new = METRICS[self.metric](scores)
        self._averaged += 1
        decay = min(1 - 1 / self._averaged, self.ema_decay)
        self.fishers = new if decay == 0 else averaged(self.fishers, new, decay)

    def _applied(self, matrices: list, vector: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        pairs = zip(self.fishers, matrices, strict=True)
        return torch.cat([fisher.product(matrix, vector) for fisher, matrix in pairs])

    def _memory(self) -> tuple:
        return self.fishers, self.roots, self.velocity, self._averaged, self._root_damping, self._places

    def _remember(self, *memory: object) -> None:
        self.fishers, self.roots, self.velocity, self._averaged, self._root_damping, self._places = memory

    def _own_state(self) -> dict:
        return {
            "fishers": [fisher.state() for fisher in self.fishers],
            "roots": [root.state() for root in self.roots],
            "velocity": self.velocity,
            "averaged": self._averaged,
            "root_damping": self._root_damping,
            "places": list(self._places),
        }

    def _load_own_state(self, state: dict) -> None:
        self.fishers = tuple(LocalFisher.from_state(each) for each in state["fishers"])
        self.roots = tuple(LocalRoot.from_state(each) for each in state["roots"])
        self.velocity = None if state["velocity"] is None else state["velocity"].clone()
        self._averaged, self._root_damping = state["averaged"], state["root_damping"]
        self._places = [tuple(place) for place in state["places"]]


def _places(layout: ParameterLayout) -> list[tuple]:
    """What is trained: name, place and shape of every layer."""
    return [(layer.name, layer.start, *layer.shape) for layer in layout.layers]


def sngd(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    lr: float = 0.05,
    damping: float = 1e-2,
    metric: str = "inputs",
    landmarks: int = 256,
    dense_up_to: int = 512,
    **choices,
) -> SNGD:
    """SNGD as its paper states it: natural gradient descent with local Fisher matrices, as gradient descent on w' = G^½ w.

    On the weights w it is W ← W − lr ∇W (G + λI)⁻¹ per layer, with G frozen for `update_every` steps; the inverse is never
    formed, its root is applied twice, as the reconstructed network does. With metric "inputs" and no damping the direction
    is that of PRONG without damping and of K-FAC with G ⊗ A replaced by I ⊗ A; it knows nothing of the loss. With metric
    "exact", refreshed at every step, it is exact natural gradient descent; refreshed less often it leaves its path.

    Args:
        damping: λ, added to every local Fisher matrix before its root is taken.
        metric: "inputs": E[x̄ x̄ᵀ] of a layer's homogeneous inputs, shared by its units. "blocks": the layer's exact block.
            "exact": the whole Fisher. The last two for small networks.
        landmarks, dense_up_to: matrices up to size `dense_up_to` get Denman-Beavers roots, larger ones the roots of a
            Nystrom stand-in with `landmarks` columns; `roots` of the optimizer says which, with residuals.
        choices: update_every (20); ema_decay (0), of G over all steps; momentum (0), in the coordinates w', its velocity
            carried over when they change, which on w is heavy-ball momentum of the preconditioned gradients; fisher_type of
            "blocks" and "exact" ("exact"); max_kl; seed.
    References: [Liu2024]; docs/sngd.md says what the paper states, what its released code does, and what this does.
    """
    choice = RootChoice(dense_up_to, landmarks)
    return SNGD(model, likelihood, lr=lr, damping=damping, metric=metric, choice=choice, **choices)


def path_drift(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    targets: Tensor,
    *,
    update_every: int,
    steps: int,
    metric: str = "exact",
    **choices,
) -> Iterator[float]:
    """How far SNGD with G frozen for `update_every` steps is from SNGD refreshed at every step, after each step.

    Yields ‖w_T − w_1‖ / ‖w_1 − w_0‖, both from the same start w_0 on the same batch; the model itself is left alone. With
    metric "exact" w_1 is the path of exact natural gradient descent. 0 for update_every=1, and within the first period at
    its first step only.

    Args: choices: of `sngd`, such as lr and damping.
    """
    held, fresh = copy.deepcopy(model), copy.deepcopy(model)
    start = ParameterLayout(model).parameter_vector()
    runs = [
        sngd(each, likelihood, metric=metric, update_every=every, **choices)
        for each, every in ((held, update_every), (fresh, 1))
    ]
    for _ in range(steps):
        for run in runs:
            run.step(inputs, targets)
        there, here = (ParameterLayout(each).parameter_vector() for each in (fresh, held))
        length = float(torch.linalg.vector_norm(there - start))
        yield float(torch.linalg.vector_norm(here - there)) / length if length else math.nan
