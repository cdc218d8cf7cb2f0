"""First-order baselines: PyTorch's own SGD and Adam, stepped on a batch and recorded like every other method."""

import inspect
import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from natgrad_lab.derivatives import refuse_inputs, refuse_output_shape, refuse_weights, run_model
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.optimizers.base import check_lr, plain_groups, trained_parameters
from natgrad_lab.optimizers.record import StepRecord
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Tensor


class RecordedStep:
    """Mixed into a torch optimizer: `step(inputs, targets)` computes the mean nll, steps, and returns a `StepRecord`.

    Any module with a flat order will do, in train or eval mode: only the loss and its gradient are needed. `damping` is
    accepted so that all methods are made alike; a first-order method has none, and its records say nan.
    """

    add_param_group = plain_groups

    def _begin(self, model: nn.Module, likelihood: Likelihood) -> None:
        self.model, self.likelihood = model, likelihood
        self._layout = ParameterLayout(model)
        self.num_steps = 0

    def _recorded(self, apply: Callable[[], None], inputs: Tensor, targets: Tensor) -> StepRecord:
        started = time.perf_counter()
        parameters = [p for group in self.param_groups for p in group["params"]]
        rates = [check_lr(group["lr"]) for group in self.param_groups]
        refuse_inputs(self._layout, inputs)
        if self.num_steps == 0:
            refuse_weights(self._layout)
        trained = [p for p in parameters if p.requires_grad]
        with torch.enable_grad():
            outputs = run_model(self.model, inputs)
            refuse_output_shape(inputs, outputs)
            loss = self.likelihood.loss(outputs, targets)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        loss = float(loss.detach())
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        known = {"step": self.num_steps + 1, "loss": loss, "grad_norm": norm, "lr": rates[0]}
        if not math.isfinite(loss + norm):
            return StepRecord(status="diverged", message=f"loss {loss}, gradient norm {norm}", **known)
        before = [p.detach().clone() for p in trained]
        moved = self._moved(apply, parameters, dict(zip(trained, gradients, strict=True)), before)
        if not math.isfinite(moved):
            with torch.no_grad():
                for parameter, old in zip(trained, before, strict=True):
                    parameter.copy_(old)
            return StepRecord(status="diverged", message="the update is not finite; lower the learning rate", **known)
        self.num_steps += 1
        return StepRecord(update_norm=moved, seconds=time.perf_counter() - started, **known)

    @staticmethod
    def _moved(apply: Callable[[], None], parameters: list, gradients: dict, before: list) -> float:
        """Step with `gradients` lent as `.grad`, the users' own put back; the norm of the update, inf where it overflows."""
        kept = [p.grad for p in parameters]
        try:
            for parameter in parameters:
                parameter.grad = gradients.get(parameter)
            with torch.no_grad():
                apply()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            return math.inf
        finally:
            for parameter, gradient in zip(parameters, kept, strict=True):
                parameter.grad = gradient
        return math.sqrt(sum(float((p.detach() - b).square().sum()) for p, b in zip(gradients, before, strict=True)))

    def state_dict(self) -> dict:
        """PyTorch's state and the number of steps taken."""
        return {**super().state_dict(), "natgrad_lab": {"num_steps": self.num_steps}}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue where `state_dict` was taken; a state of PyTorch's own optimizer of the kind is taken too."""
        own = state_dict.get("natgrad_lab", {"num_steps": 0})
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "natgrad_lab"})
        self.num_steps = own["num_steps"]


def plain_step(kind: type[Optimizer]) -> Callable:
    """The step of PyTorch's own class without its wrappers: step hooks run once, by the wrapper that ours has too.

    The other wrapper turns gradients off, as the caller does here, and loads torch._dynamo.
    """
    return inspect.unwrap(kind.step)


class SGD(RecordedStep, torch.optim.SGD):
    """`torch.optim.SGD` on the mean nll; `momentum` as there."""

    def __init__(
        self, model: nn.Module, likelihood: Likelihood, *, lr: float, momentum: float = 0.0, damping: float | None = None
    ):
        """See the class."""
        super().__init__(trained_parameters(model, likelihood), lr=check_lr(lr), momentum=momentum)
        self._begin(model, likelihood)

    def step(self, inputs: Tensor, targets: Tensor) -> StepRecord:
        """One step on the batch."""
        return self._recorded(lambda: plain_step(torch.optim.SGD)(self), inputs, targets)


class Adam(RecordedStep, torch.optim.Adam):
    """`torch.optim.Adam` on the mean nll."""

    def __init__(self, model: nn.Module, likelihood: Likelihood, *, lr: float, damping: float | None = None):
        """See the class."""
        super().__init__(trained_parameters(model, likelihood), lr=check_lr(lr))
        self._begin(model, likelihood)

    def step(self, inputs: Tensor, targets: Tensor) -> StepRecord:
        """One step on the batch."""
        return self._recorded(lambda: plain_step(torch.optim.Adam)(self), inputs, targets)
