"""From a config to the things of a run: network, data, likelihood and optimizer, all made from the one seed."""

import inspect
from dataclasses import dataclass, field

import torch
from torch import nn

from natgrad_lab import datasets
from natgrad_lab.datasets import Dataset
from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.experiments.config import ExperimentConfig
from natgrad_lab.experiments.evaluation import Evaluation, loss_and_error
from natgrad_lab.experiments.networks import MODELS, network
from natgrad_lab.likelihoods import LIKELIHOODS, Likelihood
from natgrad_lab.optimizers import METHODS, exponential_batch
from natgrad_lab.shapes import Tensor


@dataclass
class Training:
    """What a run works on. Plain parts: a widget may read the model or set `optimizer.param_groups` between steps.

    Attributes:
        inputs, targets: all examples, on the run's device.
        step: steps taken.
        test: inputs and targets to evaluate on besides; None if the data set has none.
        evaluations: what was measured so far, in the order of steps.
    """

    model: nn.Module
    likelihood: Likelihood
    inputs: Tensor
    targets: Tensor
    optimizer: torch.optim.Optimizer
    batch_size: int | None = None
    seed: int = 0
    step: int = 0
    batch_growth: tuple[int, ...] | None = None
    test: tuple[Tensor, Tensor] | None = None
    evaluations: list[Evaluation] = field(default_factory=list)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of step 0, 1, ...: a function of seed and step alone.

        It is the s-th piece of its epoch's permutation; while batches grow, each is drawn anew, without replacement.
        """
        total = len(self.inputs)
        size = self.batch_size or total
        grown = size
        if self.batch_growth is not None:
            first, until = self.batch_growth
            grown = exponential_batch(first, size, until)(step + 1)
        if grown == total:
            return self.inputs, self.targets
        epoch, piece = divmod(step, total // size) if grown == size else (step, 0)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(total, generator=generator)
        index = order[piece * grown : (piece + 1) * grown].to(self.inputs.device)
        return self.inputs[index], self.targets[index]


def prepare(config: ExperimentConfig) -> Training:
    """Build everything a run needs. The same config gives the same numbers.

    Targets that are classes become one-hot rows for a Bernoulli or Gaussian likelihood; an autoencoder's are its inputs.
    Raises: ValueError naming what does not fit: sizes and data, batch and data, likelihood and data, method, device.
    """
    dtype, device = getattr(torch, config.dtype), find_device(config.device)
    data, test = load_data(config, dtype)
    if config.num_examples is not None:
        if config.num_examples > len(data):
            raise ValueError(f"num_examples = {config.num_examples}, but {config.dataset} has only {len(data)}.")
        data = data.select(slice(config.num_examples))
    if config.batch_size is not None and config.batch_size > len(data):
        raise ValueError(
            f"batch_size = {config.batch_size} is more than the {len(data)} examples. Use at most that, or None for all."
        )
    if config.batch_growth is not None and config.batch_growth[0] > len(data):
        raise ValueError(f"batch_growth begins with {config.batch_growth[0]} examples, but there are only {len(data)}.")
    choices = {"activation": config.activation, "bias": config.bias}
    choices = {name: value for name, value in choices.items() if value is not None}
    model = network(config.model, data, config.sizes, choices, init=config.init, seed=config.seed, dtype=dtype)
    model = model.to(device)
    likelihood = make_likelihood(config, data)
    return Training(
        model, likelihood, *_tensors(likelihood, data, device), make_optimizer(config, model, likelihood),
        config.batch_size, config.seed, batch_growth=config.batch_growth, test=test and _tensors(likelihood, test, device),
    )  # fmt: skip


def load_data(config: ExperimentConfig, dtype: torch.dtype) -> tuple[Dataset, Dataset | None]:
    """The data set that the config names, and the test part if there is one; for an autoencoder the targets are the inputs."""
    taken = inspect.signature(datasets.DATASETS[config.dataset]).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    options = {**config.data_options} | ({"dtype": dtype} if "dtype" in taken or takes_any else {})
    data, test = datasets.load(config.dataset, **options), None
    if config.test_fraction is not None:
        if "split" in taken:
            raise ValueError(f"{config.dataset} has a test part of its own; leave test_fraction out.")
        data, test = datasets.train_test(data, config.test_fraction)
    elif config.evaluate_every is not None and "split" in taken:
        test = datasets.load(config.dataset, **{**options, "split": "test"})
    if config.model in MODELS and MODELS[config.model].is_autoencoder:
        return datasets.autoencoding(data), test and datasets.autoencoding(test)
    return data, test


def evaluate(training: Training, num_examples: int | None = None) -> Evaluation:
    """Loss and error now, on the first `num_examples` of the training and of the test set (all if None)."""
    sets = {"train": (training.inputs, training.targets)} | ({"test": training.test} if training.test else {})
    few, values = slice(num_examples), {}

    def measure(prefix: str) -> None:
        for name, (inputs, targets) in sets.items():
            loss, error = loss_and_error(training.model, training.likelihood, inputs[few], targets[few])
            values.update({f"{prefix}{name}_loss": loss, f"{prefix}{name}_error": error})

    measure("")
    if getattr(training.optimizer, "averaging", None) is not None:
        with training.optimizer.averaged():
            measure("averaged_")
    return Evaluation(training.step, **values)


def _tensors(likelihood: Likelihood, data: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets on the device; an autoencoder's once."""
    inputs, targets = data.inputs.to(device), targets_for(likelihood, data)
    return inputs, inputs if targets is data.inputs else targets.to(device)


def targets_for(likelihood: Likelihood, data: Dataset) -> Tensor:
    """The data's targets as the likelihood takes them: classes as one-hot rows unless it is categorical."""
    is_categorical, is_real = isinstance(likelihood, LIKELIHOODS["categorical"]), data.targets.is_floating_point()
    if is_categorical and is_real:
        raise ValueError(f"{data.name} has real-valued targets; use likelihood='gaussian' instead of 'categorical'.")
    if is_categorical or is_real:
        return data.targets
    return nn.functional.one_hot(data.targets, data.num_outputs).to(data.inputs.dtype)


def make_likelihood(config: ExperimentConfig, data: Dataset) -> Likelihood:
    """The likelihood that the config names; without a name Categorical for classes, Bernoulli for an autoencoder of
    inputs within [0, 1], Gaussian for all other real targets.
    """
    name = config.likelihood
    if name is None and not data.targets.is_floating_point():
        name = "categorical"
    elif name is None:
        low, high = data.targets.aminmax()
        name = "bernoulli" if data.targets is data.inputs and low >= 0 and high <= 1 else "gaussian"
    return LIKELIHOODS[name](config.variance) if name == "gaussian" else LIKELIHOODS[name]()


def make_optimizer(config: ExperimentConfig, model: nn.Module, likelihood: Likelihood) -> torch.optim.Optimizer:
    """The method that the config names, with its own defaults where lr or damping is None."""
    given = {"lr": config.lr, "damping": config.damping}
    choices = {name: value for name, value in given.items() if value is not None}
    try:
        optimizer = METHODS[config.method](model, likelihood, **choices, **config.options)
    except UnsupportedLayerError:
        raise
    except TypeError as error:
        raise ValueError(f"method {config.method!r} does not take these options: {dict(config.options)} ({error}).") from error
    if "seed" not in config.options and isinstance(getattr(optimizer, "generator", None), torch.Generator):
        optimizer.generator.manual_seed(config.seed)
    return optimizer


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
