"""The one step all methods share: a pass, a direction, an update, a record; and what makes it end as "diverged"."""

import math
import time
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from natgrad_lab.errors import NonFiniteError
from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood, check_likelihood
from natgrad_lab.linalg import check_damping
from natgrad_lab.optimizers.record import NAN, StepRecord
from natgrad_lab.optimizers.step_size import ConstantStep, Direction, KLClip, Move
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor

__all__ = ["Direction", "Evaluation", "FlatOptimizer", "Move", "check_lr", "trained_parameters"]


# PyTorch's wrapper of it only keeps torch.compile out, and imports torch._dynamo for that: a second at the first optimizer.
plain_groups = getattr(Optimizer.add_param_group, "__wrapped__", Optimizer.add_param_group)


@dataclass(frozen=True)
class Evaluation:
    """Objective and gradient at the present parameters, and the pass that a Fisher is estimated from.

    Attributes:
        loss: mean nll on the batch; objective: the same with the l2 term, if there is one.
        gradient: of the objective, (P,).
    """

    loss: float
    objective: float
    gradient: Float[Tensor, " P"]
    scores: ScorePass


class FlatOptimizer(Optimizer):
    """An optimizer whose direction is one vector in the flat order; subclasses define `_direction`.

    `lr` and `damping` live in `param_groups`, where schedulers and sliders may change them between steps.

    Args:
        model: its trainable parameters are updated in place; nothing else of it is touched.
        likelihood: defines the loss, its mean over the batch.
        lr: step length on the direction.
        damping: λ ≥ 0.
        max_kl: bound in nats on the KL moved by a step, ½ δᵀFδ; longer steps are shortened to it. None: no bound.
        seed: of the targets sampled for monte_carlo scores.
    """

    fisher_type = "exact"
    num_samples = 1
    add_param_group = plain_groups

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        lr: float,
        damping: float,
        max_kl: float | None = None,
        seed: int = 0,
    ):
        """See the class."""
        self.step_size = ConstantStep() if max_kl is None else KLClip(max_kl)
        defaults = {"lr": check_lr(lr), "damping": check_damping(damping)}
        super().__init__(trained_parameters(model, likelihood), defaults)
        self.model, self.likelihood = model, likelihood
        self.num_steps = 0
        self._signature: list | None = None  # of the parameters for which _layout is
        self._layout: ParameterLayout | None = None
        self._verified: set[torch.Size] = set()  # shapes of inputs for which a pass was checked
        device = self.param_groups[0]["params"][0].device
        self.generator = torch.Generator(device=device).manual_seed(seed)

    @abstractmethod
    def _direction(self, gradient: Tensor, scores: ScorePass, damping: float, phases: dict) -> Direction:
        """Turn the gradient of the pass into a direction."""

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor) -> StepRecord:
        """One step on the batch (inputs, targets).

        The first step also verifies that captured gradients equal PyTorch's (see `score_pass`).
        Returns: the record; with status "diverged" if loss or direction are not finite, and then nothing was changed.
        Raises: as `score_pass`; NotPositiveDefiniteError if the damped Fisher cannot be inverted. The optimizer is then as
            before the step: sampled targets and running averages of a step that was not taken leave no trace.
        """
        generator, memory = self.generator.get_state(), self._memory()
        record = None
        try:
            record = self._step(inputs, targets)
            return record
        finally:
            if record is None or record.status != "ok":
                self.generator.set_state(generator)
                self._remember(*memory)

    def _step(self, inputs: Tensor, targets: Tensor) -> StepRecord:
        started, phases = time.perf_counter(), {}
        group = self.param_groups[0]
        damping, step = check_damping(group["damping"]), self.num_steps + 1
        known = {"step": step, "lr": check_lr(group["lr"]), "damping": damping, "phases": phases}
        try:
            now = self._evaluate(inputs, targets)
        except NonFiniteError as error:
            if self.num_steps == 0:
                raise
            return StepRecord(loss=NAN, status="diverged", message=str(error), **known)
        phases["pass"] = time.perf_counter() - started
        known |= {"loss": now.loss, "grad_norm": float(torch.linalg.vector_norm(now.gradient))}
        if not math.isfinite(known["grad_norm"] + now.loss):
            return StepRecord(status="diverged", message=f"loss {now.loss}, gradient norm {known['grad_norm']}", **known)
        move = self._propose(now, inputs, damping, phases)
        known |= {"update_norm": float(torch.linalg.vector_norm(move.update)), "alpha": move.alpha, "mu": move.mu}
        if not math.isfinite(known["update_norm"]):
            return StepRecord(status="diverged", message="the update is not finite; raise the damping", **known)
        known |= self._look_ahead(now, move, inputs, targets, damping)
        for parameter, part in now.scores.layout.split(move.update):
            parameter.add_(part)
        self.num_steps = step
        known["seconds"] = time.perf_counter() - started
        phases["update"] = known["seconds"] - sum(phases.values())
        return StepRecord(predicted_decrease=-move.predicted_change, kl=move.curvature / 2, **known)

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        """Loss, gradient and scores, from one pass."""
        fisher_targets = targets if self.fisher_type == "empirical" else None
        scores = self._pass(inputs, self.fisher_type, fisher_targets, loss_targets=targets)
        gradient, loss = scores.gradient(), float(scores.loss)
        return Evaluation(loss, loss, gradient, scores)

    def _pass(self, inputs: Tensor, fisher_type: str | None, targets: Tensor | None, **choices) -> ScorePass:
        """`score_pass` with this optimizer's samples; the first one of every shape of inputs is verified."""
        known = getattr(inputs, "shape", None)
        scores = score_pass(
            self.model, self.likelihood, inputs, fisher_type, targets, self.num_samples, self.generator,
            verify=known not in self._verified, layout=self._present_layout(), **choices,
        )  # fmt: skip
        self._verified.add(known)
        return scores

    def _present_layout(self) -> ParameterLayout:
        """The model's layout, read off anew when its parameters are others, or train otherwise, than at the last step."""
        signature = [(id(p), p.requires_grad, p.shape, p.dtype) for p in self.model.parameters()]
        if signature != self._signature:
            self._signature, self._layout = signature, ParameterLayout(self.model)
        return self._layout

    def _propose(self, now: Evaluation, inputs: Tensor, damping: float, phases: dict) -> Move:
        """What to add to the parameters."""
        direction = self._direction(now.gradient, now.scores, damping, phases)
        return self.step_size.move(direction, now.gradient, self._lr_vector(now.scores))

    def _look_ahead(self, now: Evaluation, move: Move, inputs: Tensor, targets: Tensor, damping: float) -> dict:
        """What an adaptive method learns of a move before it is made, as fields of the record."""
        return {}

    def _lr_vector(self, scores: ScorePass) -> float | Tensor:
        """The learning rate: one number, or one per parameter (P,) where groups differ."""
        rates = {check_lr(group["lr"]) for group in self.param_groups}
        if len(rates) == 1:
            return rates.pop()
        flat = torch.empty(scores.layout.dim, dtype=scores.layout.dtype, device=scores.layout.device)
        rate = {id(p): float(group["lr"]) for group in self.param_groups for p in group["params"]}
        for parameter, part in scores.layout.split(flat):
            part.fill_(rate[id(parameter)])
        return flat

    def state_dict(self) -> dict:
        """PyTorch's state plus everything the next step depends on; tensors, strings and numbers only."""
        own = {"num_steps": self.num_steps, "generator": self.generator.get_state()}
        return {**super().state_dict(), "natgrad_lab": own | self._own_state()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue exactly where `state_dict` was taken."""
        if "natgrad_lab" not in state_dict:
            raise ValueError(
                f"this is no state of {type(self).__name__}: the entry 'natgrad_lab' is missing. Load what its own "
                "state_dict() returned."
            )
        own = state_dict["natgrad_lab"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "natgrad_lab"})
        self.num_steps = own["num_steps"]
        self.generator.set_state(own["generator"].cpu())
        self._load_own_state(own)

    def _memory(self) -> tuple:
        """What a step changes besides the parameters, for `_remember` to put back."""
        return ()

    def _remember(self, *memory: object) -> None:
        pass

    def _own_state(self) -> dict:
        return {}

    def _load_own_state(self, state: dict) -> None:
        pass


def trained_parameters(model: nn.Module, likelihood: Likelihood) -> list[nn.Parameter]:
    """What an optimizer of this model is to train; refuses a model without a flat order, and what is no likelihood."""
    check_likelihood(likelihood)
    ParameterLayout(model)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def check_lr(lr: float) -> float:
    """Return `lr` as a float, or refuse it."""
    value = float(lr)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"lr must be a finite number >= 0; got {lr}.")
    return value
