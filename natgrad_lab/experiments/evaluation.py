"""Loss and error of a network on whole sets, between steps; the run is not touched by being measured."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from natgrad_lab.shapes import Float, Tensor

NAN = float("nan")
CHUNK = 1000  # examples per forward pass: memory stays bounded, and the order of sums does not depend on the machine


@dataclass(frozen=True)
class Evaluation:
    """Loss (nats per example) and error after `step` steps; test values are nan where there is no test set.

    The error of a Categorical likelihood is the fraction of wrong classes, of the others ‖y − mean‖² per example (for an
    autoencoder the reconstruction error, summed over pixels). A likelihood that is not in ERRORS has the error nan.
    `averaged_...` are the same with a method's averaged iterate in place of the parameters.
    """

    step: int
    train_loss: float
    train_error: float
    test_loss: float = NAN
    test_error: float = NAN
    averaged_train_loss: float = NAN
    averaged_train_error: float = NAN
    averaged_test_loss: float = NAN
    averaged_test_error: float = NAN


def _fraction_wrong(outputs: Float[Tensor, "N S C"], targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) != targets.reshape(outputs.shape[:2])).to(outputs.dtype).mean(1).sum()


def _squared_error(mean: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: (mean(outputs) - targets.reshape(outputs.shape)).square().sum()


ERRORS: dict[type[Likelihood], Callable[[Tensor, Tensor], Tensor]] = {
    Categorical: _fraction_wrong,
    Bernoulli: _squared_error(torch.sigmoid),
    Gaussian: _squared_error(lambda outputs: outputs),
}
"""Likelihood → sum over examples of the error, from outputs (N, S, C) at S positions and targets."""


@torch.no_grad()
def loss_and_error(model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean nll and mean error over all examples, the model in eval mode meanwhile, as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    loss = error = 0.0
    sum_of_errors = ERRORS.get(type(likelihood), lambda outputs, targets: NAN)
    try:
        for begin in range(0, len(inputs), CHUNK):
            x, y = inputs[begin : begin + CHUNK], targets[begin : begin + CHUNK]
            outputs = model(x)
            loss += float(likelihood.loss(outputs, y)) * len(x)
            error += float(sum_of_errors(likelihood.positions(outputs), y))
    finally:
        for module, mode in modes:
            module.training = mode
    return loss / len(inputs), error / len(inputs)
