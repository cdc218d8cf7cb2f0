"""From a config to the things of a run: network, data, likelihood and optimizer, all made from the one seed."""

from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab import datasets, models
from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.experiments.config import ExperimentConfig
from natgrad_lab.likelihoods import LIKELIHOODS, Likelihood
from natgrad_lab.optimizers import METHODS
from natgrad_lab.shapes import Tensor

HIDDEN = (32, 32)


@dataclass
class Training:
    """What a run works on. Plain parts: a widget may read the model or set `optimizer.param_groups` between steps.

    Attributes:
        inputs, targets: all examples, on the run's device.
        step: steps taken.
    """

    model: nn.Module
    likelihood: Likelihood
    inputs: Tensor
    targets: Tensor
    optimizer: torch.optim.Optimizer
    batch_size: int | None = None
    seed: int = 0
    step: int = 0

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of step 0, 1, ...: the s-th piece of its epoch's permutation, a function of seed and step alone."""
        if self.batch_size is None:
            return self.inputs, self.targets
        per_epoch = len(self.inputs) // self.batch_size
        epoch, piece = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.inputs), generator=generator)
        index = order[piece * self.batch_size : (piece + 1) * self.batch_size].to(self.inputs.device)
        return self.inputs[index], self.targets[index]


def prepare(config: ExperimentConfig) -> Training:
    """Build everything a run needs. The same config gives the same numbers.

    Targets that are classes become one-hot rows for a Bernoulli or Gaussian likelihood.
    Raises: ValueError naming what does not fit: sizes and data, batch and data, method, device.
    """
    dtype, device = getattr(torch, config.dtype), find_device(config.device)
    data = datasets.load(config.dataset, dtype=dtype)
    if config.num_examples is not None:
        if config.num_examples > len(data):
            raise ValueError(f"num_examples = {config.num_examples}, but {config.dataset} has only {len(data)}.")
        data = data.select(slice(config.num_examples))
    if config.batch_size is not None and config.batch_size > len(data):
        raise ValueError(
            f"batch_size = {config.batch_size} is more than the {len(data)} examples. Use at most that, or None for all."
        )
    likelihood = make_likelihood(config)
    targets = data.targets
    if config.likelihood != "categorical" and not targets.is_floating_point():
        targets = nn.functional.one_hot(targets, data.num_outputs).to(dtype)
    if config.likelihood == "categorical" and targets.is_floating_point():
        raise ValueError(f"{config.dataset} has real-valued targets; use likelihood='gaussian' instead of 'categorical'.")
    sizes = config.sizes or (data.inputs.shape[1], *HIDDEN, data.num_outputs)
    if (sizes[0], sizes[-1]) != (data.inputs.shape[1], data.num_outputs):
        raise ValueError(
            f"sizes {sizes} do not fit {config.dataset}: it has {data.inputs.shape[1]} inputs and {data.num_outputs} "
            f"outputs, so sizes = ({data.inputs.shape[1]}, ..., {data.num_outputs})."
        )
    generator = torch.Generator().manual_seed(config.seed)
    model = models.mlp(sizes, config.activation, config.bias, generator=generator, dtype=dtype).to(device)
    return Training(
        model, likelihood, data.inputs.to(device), targets.to(device), make_optimizer(config, model, likelihood),
        config.batch_size, config.seed,
    )  # fmt: skip


def make_likelihood(config: ExperimentConfig) -> Likelihood:
    """The likelihood that the config names."""
    if config.likelihood == "gaussian":
        return LIKELIHOODS["gaussian"](config.variance)
    return LIKELIHOODS[config.likelihood]()


def make_optimizer(config: ExperimentConfig, model: nn.Module, likelihood: Likelihood) -> torch.optim.Optimizer:
    """The method that the config names, with its own defaults where lr or damping is None."""
    given = {"lr": config.lr, "damping": config.damping}
    choices = {name: value for name, value in given.items() if value is not None}
    try:
        return METHODS[config.method](model, likelihood, **choices, **config.options)
    except UnsupportedLayerError:
        raise
    except TypeError as error:
        raise ValueError(f"method {config.method!r} does not take these options: {dict(config.options)} ({error}).") from error


def find_device(name: str) -> torch.device:
    """ "auto": CUDA where there is one, else the CPU; any other name as PyTorch reads it, refused if it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {name!r} here ({str(error).splitlines()[0]}). Use 'auto' or 'cpu'.") from error
    return device
