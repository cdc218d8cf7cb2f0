"""Steps: each method is a torch optimizer whose `step(inputs, targets)` returns a `StepRecord`."""

from natgrad_lab.optimizers.adaptive import AdaptiveNaturalGradient, IterateAverage
from natgrad_lab.optimizers.damping import GammaSearch, LevenbergMarquardt, exact_inverse, factored_inverse
from natgrad_lab.optimizers.estimate import EkfacEstimate, FisherEstimate
from natgrad_lab.optimizers.methods import METHODS
from natgrad_lab.optimizers.natural_gradient import ExactNaturalGradient, NaturalGradient
from natgrad_lab.optimizers.prong import Prong
from natgrad_lab.optimizers.reconstruction import LocalFisherLayer, ReconstructedNetwork, reconstruct
from natgrad_lab.optimizers.record import StepRecord
from natgrad_lab.optimizers.rngd import RNGD
from natgrad_lab.optimizers.schedule import exponential_batch
from natgrad_lab.optimizers.sngd import SNGD, path_drift
from natgrad_lab.optimizers.step_size import ConstantStep, KLClip, QuadraticModel
from natgrad_lab.optimizers.whitened import WhitenedNetwork

__all__ = [
    "METHODS",
    "RNGD",
    "SNGD",
    "AdaptiveNaturalGradient",
    "ConstantStep",
    "EkfacEstimate",
    "ExactNaturalGradient",
    "FisherEstimate",
    "GammaSearch",
    "IterateAverage",
    "KLClip",
    "LevenbergMarquardt",
    "LocalFisherLayer",
    "NaturalGradient",
    "Prong",
    "QuadraticModel",
    "ReconstructedNetwork",
    "StepRecord",
    "WhitenedNetwork",
    "exact_inverse",
    "exponential_batch",
    "factored_inverse",
    "path_drift",
    "reconstruct",
]
