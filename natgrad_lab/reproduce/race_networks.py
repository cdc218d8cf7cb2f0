"""The networks of the races: those of `models`, and the same with batch normalization for the baselines that have it."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from natgrad_lab import models
from natgrad_lab.datasets import Dataset


def autoencoder(
    data: Dataset, seed: int, batch_norm: bool, *, sizes: Sequence[int], activation: str = "sigmoid", sparse: int | None = None
) -> nn.Module:
    """`models.autoencoder` on the data's inputs; with `sparse`, so many N(0, 1) weights into a unit and zero biases.

    Args: sparse: as [Martens2010] initializes (15 there); for tanh units it would be another scale.
    """
    model = models.autoencoder((data.inputs.shape[1], *sizes), activation, generator=_generator(seed))
    if sparse is not None:
        sparsely(model, sparse, _generator(seed))
    return normalized(model) if batch_norm else model


def perceptron(data: Dataset, seed: int, batch_norm: bool, *, hidden: Sequence[int], activation: str = "relu") -> nn.Module:
    """`models.mlp` from the data's inputs to its classes."""
    sizes = (data.inputs.shape[1], *hidden, data.num_outputs)
    model = models.mlp(sizes, activation, generator=_generator(seed))
    return normalized(model) if batch_norm else model


def convnet(
    data: Dataset, seed: int, batch_norm: bool, *, channels: Sequence[int], activation: str = "relu", pool_every: int = 1
) -> nn.Module:
    """`models.convnet` on the data's pictures."""
    shape = data.image_shape if len(data.image_shape) == 3 else (1, *data.image_shape)
    model = models.convnet(
        shape, channels, data.num_outputs, activation, pool_every=pool_every, generator=_generator(seed)
    )  # fmt: skip
    return normalized(model) if batch_norm else model


def lstm(data: Dataset, seed: int, batch_norm: bool, *, embedding: int, hidden: int) -> nn.Module:
    """`models.lstm` on word numbers."""
    if batch_norm:
        raise ValueError("the recurrent network has no form with batch normalization.")
    return models.lstm(embedding, hidden, data.num_outputs, vocabulary=data.num_outputs, generator=_generator(seed))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "autoencoder": autoencoder, "mlp": perceptron, "convnet": convnet, "lstm": lstm,
}  # fmt: skip


def normalized(model: nn.Sequential) -> nn.Sequential:
    """The same layers with a BatchNorm after every Linear and convolution but the last; the layers' weights are shared."""
    layers: list[nn.Module] = []
    weighted = [each for each in model if isinstance(each, nn.Linear | nn.Conv2d)]
    for each in model:
        layers.append(each)
        if each in weighted[:-1]:
            kind, width = (
                (nn.BatchNorm1d, each.out_features) if isinstance(each, nn.Linear) else (nn.BatchNorm2d, each.out_channels)
            )
            layers.append(kind(width, dtype=each.weight.dtype, device=each.weight.device))
    return nn.Sequential(*layers)


@torch.no_grad()
def sparsely(model: nn.Module, count: int, generator: torch.Generator) -> None:
    """Zero all weights but `count` into every unit, which are N(0, 1), and the biases. [Martens2010] sec. 5."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            out, into = layer.weight.shape
            chosen = torch.rand(out, into, generator=generator).topk(min(count, into), 1).indices
            values = torch.randn(out, chosen.shape[1], generator=generator, dtype=layer.weight.dtype)
            layer.weight.zero_().scatter_(1, chosen, values)
            layer.bias.zero_()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
