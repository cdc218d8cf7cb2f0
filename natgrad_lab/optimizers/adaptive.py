"""K-FAC as in the paper's experiments: everything that surrounds the preconditioner and chooses λ, γ, α and μ by itself."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call

from natgrad_lab.fisher.forward_products import ForwardProducts
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.linalg import check_damping
from natgrad_lab.optimizers.base import Evaluation, Move
from natgrad_lab.optimizers.damping import GammaSearch, LevenbergMarquardt
from natgrad_lab.optimizers.estimate import FisherEstimate
from natgrad_lab.optimizers.natural_gradient import NaturalGradient
from natgrad_lab.optimizers.step_size import QuadraticModel
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import StructuredMatrix


@dataclass(frozen=True)
class IterateAverage:
    """θ̄ ← ξ θ̄ + (1 − ξ) θ from step `start` on, ξ = min(1 − 1/(k − start + 1), decay) at step k.

    References: [MartensGrosse2015] sec. 13.
    """

    start: int = 200
    decay: float = 0.99

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not isinstance(self.start, int) or self.start < 1 or not 0 <= self.decay < 1:
            raise ValueError(f"averaging needs start >= 1 and decay in [0, 1); got {self.start!r} and {self.decay!r}.")

    def averaged(self, old: Tensor | None, parameters: Tensor, step: int) -> Tensor | None:
        """The average after step k; None before it begins."""
        if step < self.start:
            return None
        weight = min(1 - 1 / (step - self.start + 1), self.decay)
        return parameters if old is None or old.shape != parameters.shape else parameters.lerp(old, weight)


class AdaptiveNaturalGradient(NaturalGradient):
    """δ = lr (α Δ + μ δ₀), Δ = −P ∇h: the direction is the preconditioner's, lengths and dampings are those that work.

    The objective is h = loss + ½ η ‖θ‖². α and μ minimize a quadratic model with the exact Fisher (`QuadraticModel`), λ follows
    how well it predicts (`LevenbergMarquardt`), the preconditioner's γ what it prefers (`GammaSearch`). Moving "damping" in
    `param_groups` from outside starts γ anew.

    Args:
        model, likelihood, estimate, invert: as `NaturalGradient`; `invert` gets γ².
        lr: on the whole update; 1 is the model's own choice.
        damping: λ at the start. Later it is `param_groups[0]["damping"]`.
        quadratic, levenberg, gamma_search: the three rules; without the last two λ stays and γ = √(λ + η).
        averaging: of the iterates; None for none.
        weight_decay: η, in objective, gradient and model, for all parameters.
        choices: max_kl, seed.
    References: [MartensGrosse2015] sec. 6, 7, 8, 13.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        estimate: FisherEstimate,
        invert: Callable[[StructuredMatrix, float], StructuredMatrix],
        *,
        quadratic: QuadraticModel,
        levenberg: LevenbergMarquardt | None = None,
        gamma_search: GammaSearch | None = None,
        averaging: IterateAverage | None = None,
        weight_decay: float = 0.0,
        **choices,
    ):
        """See the class."""
        super().__init__(model, likelihood, estimate, invert, **choices)
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay must be a finite number >= 0; got {weight_decay}.")
        self.quadratic, self.levenberg, self.gamma_search = quadratic, levenberg, gamma_search
        self.averaging, self.weight_decay = averaging, float(weight_decay)
        self.gamma: float | None = None
        self._left_damping: float | None = None  # λ as the last step left it
        self._last_update: Tensor | None = None
        self._average: Tensor | None = None

    def averaged_parameters(self) -> Float[Tensor, " P"]:
        """The averaged iterate in the flat order; the parameters themselves before averaging begins."""
        return ParameterLayout(self.model).parameter_vector() if self._average is None else self._average.clone()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Lend the model the averaged parameters, to evaluate with; its own are put back."""
        layout = ParameterLayout(self.model)
        own = layout.parameter_vector()
        try:
            _assign(layout, self.averaged_parameters())
            yield
        finally:
            _assign(layout, own)

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        now = super()._evaluate(inputs, targets)
        if self.weight_decay == 0:
            return now
        parameters = now.scores.layout.parameter_vector()
        l2 = self.weight_decay / 2 * float(parameters.square().sum())
        return replace(now, objective=now.loss + l2, gradient=now.gradient + self.weight_decay * parameters)

    def _propose(self, now: Evaluation, inputs: Tensor, damping: float, phases: dict) -> Move:
        started = time.perf_counter()
        self._refresh(now.scores)
        phases["fisher"] = time.perf_counter() - started
        started = time.perf_counter()
        if self.gamma is None or self.gamma_search is None or damping != self._left_damping:
            self.gamma = math.sqrt(damping + self.weight_decay)
        tried = (self.gamma,)
        if self.gamma_search is not None and self.gamma_search.is_due(self.num_steps):
            tried = self.gamma_search.candidates(self.gamma, self.weight_decay)
        moves = self._moves(tried, now, inputs, damping)
        best, (self.inverse, move) = min(moves.items(), key=lambda each: self._model_change(each[1][1], damping))
        self.gamma, self._inverted_damping = best, best**2
        phases["solve"] = time.perf_counter() - started
        return move

    def _moves(self, gammas: tuple[float, ...], now: Evaluation, inputs: Tensor, damping: float) -> dict:
        """For every γ the inverse, and the best move that it leads to."""
        layout, lr = now.scores.layout, self._lr_vector(now.scores)
        part = max(1, math.ceil(self.quadratic.fraction * len(inputs)))
        products = ForwardProducts(self.model, self.likelihood, layout, inputs[:part])
        last = self._last_update if self.quadratic.momentum else None
        kept = [] if last is None or last.shape != now.gradient.shape else [(last, products(last))]
        moves = {}
        for gamma in gammas:
            inverse = self._inverted(gamma**2)
            proposal = -inverse.matmul(now.gradient)
            vectors, roots = (torch.stack(each) for each in zip((proposal, products(proposal)), *kept, strict=True))
            model = vectors, roots, now.gradient, products.num_examples, damping + self.weight_decay
            moves[gamma] = inverse, self.step_size.clipped(self._scaled(self.quadratic.move(*model), lr, now, products))
        return moves

    def _scaled(self, move: Move, lr: float | Tensor, now: Evaluation, products: ForwardProducts) -> Move:
        """The move times the learning rate, and its l2 term; rates that differ among parameters need one more product."""
        if isinstance(lr, Tensor):
            update = lr * move.update
            curvature = float(products(update).square().sum()) / products.num_examples
            move = replace(move, update=update, slope=float(now.gradient @ update), curvature=curvature)
        elif lr != 1:
            move = move.scaled(lr)
        return replace(move, l2=self.weight_decay * float(move.update @ move.update))

    def _model_change(self, move: Move, damping: float) -> float:
        """M(δ) with λ in it; what is not finite is worst."""
        change = move.predicted_change + damping / 2 * float(move.update @ move.update)
        return change if math.isfinite(change) else math.inf

    def _look_ahead(self, now: Evaluation, move: Move, inputs: Tensor, targets: Tensor, damping: float) -> dict:
        step, known = self.num_steps + 1, {"gamma": self.gamma}
        self._last_update = move.update
        if self.averaging is not None:
            parameters = now.scores.layout.parameter_vector() + move.update
            self._average = self.averaging.averaged(self._average, parameters, step)
        if self.levenberg is not None and self.levenberg.is_due(step):
            change = self._objective_at(now, move, inputs, targets) - now.objective
            predicted = self._model_change(move, damping) if self.levenberg.include_damping else move.predicted_change
            rho = change / predicted if predicted else math.nan
            known |= {"actual_decrease": -change, "rho": rho}
            if predicted:
                went_up = not change <= 0
                self._set_damping(self.levenberg.adapted(damping, -math.inf if went_up else rho))
        self._left_damping = self.param_groups[0]["damping"]
        return known

    def _objective_at(self, now: Evaluation, move: Move, inputs: Tensor, targets: Tensor) -> float:
        """h(θ + δ) on the step's batch; the model's parameters stay."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        moved = {names[id(p)]: p + part for p, part in now.scores.layout.split(move.update)}
        loss = float(self.likelihood.loss(functional_call(self.model, moved, (inputs,)), targets))
        return loss + self.weight_decay / 2 * sum(float(p.square().sum()) for p in moved.values())

    def _set_damping(self, damping: float) -> None:
        for group in self.param_groups:
            group["damping"] = check_damping(damping)

    def _memory(self) -> tuple:
        own = self.gamma, self._left_damping, self._last_update, self._average
        return own, [group["damping"] for group in self.param_groups], super()._memory()

    def _remember(self, own: tuple, dampings: list[float], rest: tuple) -> None:
        self.gamma, self._left_damping, self._last_update, self._average = own
        for group, damping in zip(self.param_groups, dampings, strict=True):
            group["damping"] = damping
        super()._remember(*rest)

    def _own_state(self) -> dict:
        own = {"gamma": self.gamma, "left_damping": self._left_damping}
        return super()._own_state() | own | {"last_update": self._last_update, "average": self._average}

    def _load_own_state(self, state: dict) -> None:
        super()._load_own_state(state)
        self.gamma, self._left_damping = state["gamma"], state["left_damping"]
        self._last_update, self._average = state["last_update"], state["average"]


@torch.no_grad()
def _assign(layout: ParameterLayout, vector: Tensor) -> None:
    for parameter, part in layout.split(vector):
        parameter.copy_(part)
