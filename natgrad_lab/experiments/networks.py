"""Which networks a run can train: one line a kind in `MODELS`, and how each is built for a data set."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab import models
from natgrad_lab.datasets import Dataset
from natgrad_lab.experiments.own import is_own_model, own_model
from natgrad_lab.names import known

HIDDEN = (32, 32)
CLASSIC = (1000, 500, 250, 30)  # the MNIST autoencoder of Hinton and Salakhutdinov
CHANNELS = (16, 32)
RECURRENT = (64, 64)


@dataclass(frozen=True)
class ModelKind:
    """One kind of network.

    Attributes:
        make: the constructor in `natgrad_lab.models`.
        arguments: (data, sizes) → the constructor's arguments; with sizes = () the kind's own widths.
        widths: what `sizes` are, in words.
        is_autoencoder: whether targets are the inputs.
    """

    make: Callable[..., nn.Module]
    arguments: Callable[[Dataset, tuple[int, ...]], dict[str, object]]
    widths: str
    is_autoencoder: bool = False


def network(
    name: str,
    data: Dataset,
    sizes: tuple[int, ...] = (),
    choices: Mapping[str, object] | None = None,
    *,
    init: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network that `name` means for `data`, with weights drawn from `seed`; the global random state is left alone.

    Args:
        name: a key of MODELS, or FILE.py:NAME, which is executed with PyTorch's global generator at `seed`.
        choices: further arguments of the kind's constructor (activation, bias).
        init: a key of INITS, which draws the weights anew; None keeps the constructor's.
    Raises: ValueError for what the kind does not take, and where sizes and data do not fit.
    """
    choices, generator = choices or {}, torch.Generator().manual_seed(seed)
    draw = (lambda model, generator: model) if init is None else INITS[known(init, INITS, "init")]
    if is_own_model(name):
        if sizes or choices:
            raise ValueError(f"sizes, activation and bias are for the package's models; {name} says its own.")
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return draw(own_model(name).to(dtype), generator)
    kind = MODELS[known(name, MODELS, "model")]
    taken = inspect.signature(kind.make).parameters
    for choice in choices:
        if choice not in taken:
            raise ValueError(f"model {name!r} takes no {choice}.")
    return draw(kind.make(**kind.arguments(data, sizes), **choices, generator=generator, dtype=dtype), generator)


def _perceptron(data: Dataset, sizes: tuple[int, ...]) -> dict[str, object]:
    inputs, outputs = _row_length(data), data.num_outputs
    sizes = sizes or (inputs, *HIDDEN, outputs)
    if (sizes[0], sizes[-1]) != (inputs, outputs):
        raise ValueError(
            f"sizes {sizes} do not fit {data.name}: it has {inputs} inputs and {outputs} outputs, so sizes = ({inputs}, ..., "
            f"{outputs})."
        )
    return {"sizes": sizes}


def _autoencoder(data: Dataset, sizes: tuple[int, ...]) -> dict[str, object]:
    inputs = _row_length(data)
    sizes = sizes or (inputs, *(CLASSIC if inputs == 784 else HIDDEN))
    if sizes[0] != inputs:
        raise ValueError(f"sizes {sizes} do not fit {data.name}: it has {inputs} inputs, so sizes = ({inputs}, ..., code).")
    return {"sizes": sizes}


def _convnet(data: Dataset, sizes: tuple[int, ...]) -> dict[str, object]:
    if data.image_shape is None:
        raise ValueError(f"model 'convnet' needs images; {data.name} has none. Take mlp, or a data set of images.")
    shape = tuple(data.image_shape)
    shape = (1, *shape) if len(shape) == 2 else shape
    return {"image_shape": shape, "channels": sizes or CHANNELS, "num_outputs": data.num_outputs}


def _lstm(data: Dataset, sizes: tuple[int, ...]) -> dict[str, object]:
    inputs = data.inputs
    is_tokens = inputs.ndim == 2 and not inputs.is_floating_point()
    if not is_tokens and inputs.ndim != 3:
        raise ValueError(
            f"model 'lstm' needs sequences, (N, T) of tokens or (N, T, D); {data.name} has inputs {tuple(inputs.shape)} of "
            f"{inputs.dtype}. Take mlp or convnet."
        )
    embedding, *hidden = sizes or (RECURRENT if is_tokens else (inputs.shape[2], RECURRENT[1]))
    if len(set(hidden)) != 1 or not is_tokens and embedding != inputs.shape[2]:
        first = "embedding" if is_tokens else inputs.shape[2]
        raise ValueError(
            f"sizes of model 'lstm' on {data.name} are ({first}, hidden), hidden once for every layer; got {sizes}."
        )
    return {
        "num_inputs": embedding, "hidden": hidden[0], "num_layers": len(hidden), "num_outputs": data.num_outputs,
        "vocabulary": data.num_outputs if is_tokens else None,
    }  # fmt: skip


def _row_length(data: Dataset) -> int:
    if data.inputs.ndim != 2 or not data.inputs.is_floating_point():
        raise ValueError(
            f"this model needs rows of numbers; {data.name} has inputs {tuple(data.inputs.shape)} of {data.inputs.dtype}. "
            "Take lstm for tokens."
        )
    return data.inputs.shape[1]


MODELS: dict[str, ModelKind] = {
    "mlp": ModelKind(models.mlp, _perceptron, "inputs, hidden widths, outputs"),
    "deep_linear": ModelKind(models.deep_linear, _perceptron, "inputs, hidden widths, outputs"),
    "autoencoder": ModelKind(models.autoencoder, _autoencoder, "inputs, hidden widths, code", is_autoencoder=True),
    "convnet": ModelKind(models.convnet, _convnet, "channels of the convolutions"),
    "lstm": ModelKind(models.lstm, _lstm, "embedding, hidden width once for every layer"),
}

INITS: dict[str, Callable[[nn.Module, torch.Generator], nn.Module]] = {
    "sparse": models.sparse_init,
    "sparse_tanh": functools.partial(models.sparse_init, weight_scale=0.25, bias=0.5),
}
"""Ways to draw weights anew; the second is what the authors take for tanh units."""
