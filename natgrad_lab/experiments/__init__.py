"""Experiments: a config of plain values, a generator of records, a folder that survives being killed."""

from natgrad_lab.experiments.config import ExperimentConfig
from natgrad_lab.experiments.evaluation import Evaluation
from natgrad_lab.experiments.networks import MODELS
from natgrad_lab.experiments.run import run
from natgrad_lab.experiments.storage import RunFolder
from natgrad_lab.experiments.sweep import Outcome, best, grid, race
from natgrad_lab.experiments.training import Training, evaluate, prepare
from natgrad_lab.optimizers import StepRecord

__all__ = [
    "MODELS",
    "Evaluation",
    "ExperimentConfig",
    "Outcome",
    "RunFolder",
    "StepRecord",
    "Training",
    "best",
    "evaluate",
    "grid",
    "prepare",
    "race",
    "run",
]
