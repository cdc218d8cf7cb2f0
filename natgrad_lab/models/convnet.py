"""Convolutional networks."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from natgrad_lab.models.mlp import ACTIVATIONS, linear_layers
from natgrad_lab.names import known


def convnet(
    image_shape: Sequence[int] = (1, 8, 8),
    channels: Sequence[int] = (8, 16),
    num_outputs: int = 10,
    activation: str = "relu",
    *,
    pool_every: int = 1,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """3 x 3 convolutions that keep the size, a 2 x 2 average pooling after every `pool_every`, and a linear layer.

    Takes pictures (N, *image_shape) or rows (N, pixels), which it reshapes. Weights are N(0, 2 / fan-in), biases zero, drawn
    from `generator` (seed 0 if none is given).

    Args: image_shape: (channels, height, width).
    Raises: ValueError where pooling leaves no pixel.
    """
    known(activation, ACTIVATIONS, "activation")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    depth, height, width = image_shape
    layers: list[nn.Module] = [_Reshape(depth, height, width)]
    for place, count in enumerate(channels, 1):
        layers += [_convolution(depth, count, generator, dtype), ACTIVATIONS[activation]()]
        depth = count
        if place % pool_every == 0:
            layers.append(nn.AvgPool2d(2))
            height, width = height // 2, width // 2
    if not height * width:
        raise ValueError(
            f"{len(channels)} convolutions with a pooling after every {pool_every} leave no pixel of {tuple(image_shape)}. "
            "Use fewer, or a larger pool_every."
        )
    last = linear_layers((depth * height * width, num_outputs), True, 1.0, generator, dtype)
    return nn.Sequential(*layers, nn.Flatten(), *last)


class _Reshape(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], *self.shape)


def _convolution(into: int, out: int, generator: torch.Generator, dtype: torch.dtype | None) -> nn.Conv2d:
    layer = nn.utils.skip_init(nn.Conv2d, into, out, 3, padding=1, dtype=dtype or torch.get_default_dtype())
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(2 / (9 * into)), generator=generator)
        layer.bias.zero_()
    return layer
