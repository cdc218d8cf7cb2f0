"""What an experiment is, in plain values: everything a run depends on, and nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from natgrad_lab.datasets import DATASETS
from natgrad_lab.experiments.networks import INITS, MODELS
from natgrad_lab.experiments.own import is_own_model
from natgrad_lab.likelihoods import LIKELIHOODS
from natgrad_lab.models import ACTIVATIONS
from natgrad_lab.names import known
from natgrad_lab.optimizers import METHODS


@dataclass(frozen=True)
class ExperimentConfig:
    """One run: model, data, likelihood, method. Frozen, and the same as JSON.

    Attributes:
        model: a key of `networks.MODELS`, or "FILE.py:NAME", a module or a function without arguments that makes one.
        sizes: widths, as the model's entry in MODELS says; () for the model's own, which fit the data.
        activation, bias: of the model; None for its own.
        init: a key of `networks.INITS`, which draws the weights anew; None for the model's own.
        likelihood: a key of LIKELIHOODS; None for the one that goes with data and model. variance: of the Gaussian one.
        dataset: a key of `datasets.DATASETS`. data_options: its arguments. num_examples: the first so many; None for all.
        method: a key of METHODS. lr, damping: None for the method's own default. options: further arguments of the method.
        batch_size: None for full batches; else each epoch is a new permutation cut into whole batches.
        batch_growth: (first, until): batches grow exponentially from `first` examples at step 1 to `batch_size` at step
            `until`, as in [MartensGrosse2015] sec. 13. None: they do not grow.
        test_fraction: held back for testing, of a data set that has no test part of its own.
        evaluate_every: loss and error on the training and the test set before the first step and after every so many.
        evaluate_examples: on the first so many examples only; None for all.
        steps: at most. seed: of weights, batches and sampled targets.
        dtype: "float32" or "float64". device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
    """

    sizes: Sequence[int] = ()
    activation: str | None = None
    bias: bool | None = None
    likelihood: str | None = None
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
    model: str = "mlp"
    init: str | None = None
    data_options: Mapping[str, object] = field(default_factory=dict)
    batch_growth: Sequence[int] | None = None
    test_fraction: float | None = None
    evaluate_every: int | None = None
    evaluate_examples: int | None = None

    def __post_init__(self) -> None:
        """Refuse what can be refused without loading data."""
        object.__setattr__(self, "sizes", tuple(self.sizes))
        for name in ("options", "data_options"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))
        known(self.method, METHODS, "method")
        known(self.dataset, DATASETS, "data set")
        known(self.dtype, ("float32", "float64"), "dtype")
        if not is_own_model(self.model):
            known(self.model, MODELS, "model")
        if self.likelihood is not None:
            known(self.likelihood, LIKELIHOODS, "likelihood")
        if self.activation is not None:
            known(self.activation, ACTIVATIONS, "activation")
        if self.init is not None:
            known(self.init, INITS, "init")
        least = {"steps": 0, "seed": 0, "batch_size": 1, "num_examples": 1, "evaluate_every": 1, "evaluate_examples": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < smallest):
                raise ValueError(f"{name} must be an integer >= {smallest}; got {value!r}.")
        if self.batch_growth is not None:
            object.__setattr__(self, "batch_growth", _growth(self.batch_growth, self.batch_size))

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
        return ExperimentConfig(**values)


def _plain(name: str, values: Mapping[str, object]) -> dict[str, object]:
    """A copy that is the same as JSON, so that a kept config is the config."""
    try:
        plain = json.loads(json.dumps(dict(values)))
    except TypeError as error:
        raise ValueError(f"{name} must hold plain values (numbers, texts, lists, None); got {dict(values)!r}.") from error
    return plain


def _growth(growth: Sequence[int], batch_size: int | None) -> tuple[int, ...]:
    growth = tuple(growth)
    if len(growth) != 2 or any(type(value) is not int or value < 1 for value in growth) or growth[1] < 2:
        raise ValueError(
            f"batch_growth must be (first, until): examples at step 1, and the step >= 2 of the first full batch; got {growth}."
        )
    if batch_size is not None and growth[0] > batch_size:
        raise ValueError(f"batch_growth begins with {growth[0]} examples, more than batch_size = {batch_size}.")
    return growth
