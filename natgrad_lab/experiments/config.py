"""What an experiment is, in plain values: everything a run depends on, and nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from natgrad_lab.datasets import DATASETS
from natgrad_lab.likelihoods import LIKELIHOODS
from natgrad_lab.models import ACTIVATIONS
from natgrad_lab.names import known
from natgrad_lab.optimizers import METHODS


@dataclass(frozen=True)
class ExperimentConfig:
    """One run: model, data, likelihood, method. Frozen, and the same as JSON.

    Attributes:
        sizes: widths of the network, inputs first; () takes inputs and outputs from the data and puts 32-32 between.
        activation: as `models.mlp`; "identity" makes a deep linear network.
        likelihood: a key of LIKELIHOODS. variance: of the Gaussian one.
        dataset: a key of `datasets.DATASETS`. num_examples: the first so many; None for all.
        method: a key of METHODS. lr, damping: None for the method's own default. options: further arguments of the method.
        batch_size: None for full batches; else each epoch is a new permutation cut into whole batches.
        steps: at most. seed: of weights, batches and sampled targets.
        dtype: "float32" or "float64". device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
    """

    sizes: Sequence[int] = (64, 32, 32, 10)
    activation: str = "tanh"
    bias: bool = True
    likelihood: str = "categorical"
    variance: float = 1.0
    dataset: str = "digits"
    num_examples: int | None = None
    method: str = "kfac"
    lr: float | None = None
    damping: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    batch_size: int | None = None
    steps: int = 100
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what can be refused without loading data."""
        object.__setattr__(self, "sizes", tuple(self.sizes))
        object.__setattr__(self, "options", dict(self.options))
        known(self.method, METHODS, "method")
        known(self.dataset, DATASETS, "data set")
        known(self.likelihood, LIKELIHOODS, "likelihood")
        known(self.activation, ACTIVATIONS, "activation")
        known(self.dtype, ("float32", "float64"), "dtype")
        for name, least in (("steps", 0), ("batch_size", 1), ("num_examples", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer >= {least}; got {value!r}.")

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "ExperimentConfig":
        """Undo `to_json`, refusing fields that do not exist."""
        values = json.loads(text)
        names = [f.name for f in fields(ExperimentConfig)]
        for name in values:
            known(name, names, "field of ExperimentConfig")
        if "sizes" in values:
            values["sizes"] = tuple(values["sizes"])
        return ExperimentConfig(**values)
