"""Steps: each method is a torch optimizer whose `step(inputs, targets)` returns a `StepRecord`."""

from natgrad_lab.optimizers.damping import exact_inverse, factored_inverse
from natgrad_lab.optimizers.methods import METHODS
from natgrad_lab.optimizers.natural_gradient import ExactNaturalGradient, FisherEstimate, NaturalGradient
from natgrad_lab.optimizers.record import StepRecord

__all__ = [
    "METHODS",
    "ExactNaturalGradient",
    "FisherEstimate",
    "NaturalGradient",
    "StepRecord",
    "exact_inverse",
    "factored_inverse",
]
