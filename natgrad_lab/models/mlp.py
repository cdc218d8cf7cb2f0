"""Multi-layer perceptrons."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from natgrad_lab.names import known

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def mlp(
    sizes: Sequence[int],
    activation: str = "tanh",
    bias: bool = True,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Linear layers of widths `sizes`, the activation between them, none after the last.

    Weights are N(0, 1 / fan-in) (√2 larger for relu, gelu, elu and silu), biases zero, drawn from `generator` (seed 0 if
    none is given: the global random state is left alone). `mlp((64, 32, 32, 10))` has 3,466 parameters.

    Args:
        sizes: inputs, hidden widths, outputs: two or more positive integers.
        activation: a key of `ACTIVATIONS`.
        bias: with or without bias in every layer.
        generator: on the CPU.
        dtype: of the parameters; PyTorch's default if none is given.
    Raises: ValueError for sizes or an activation that do not exist.
    """
    sizes = check_sizes(sizes)
    known(activation, ACTIVATIONS, "activation")
    gain = math.sqrt(2) if activation in ("relu", "gelu", "elu", "silu") else 1.0
    layers: list[nn.Module] = []
    for i, layer in enumerate(linear_layers(sizes, bias, gain, generator, dtype)):
        layers += [layer] if i == len(sizes) - 2 else [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return `sizes` as a tuple of at least two positive integers, or refuse them."""
    try:
        checked = tuple(int(size) for size in sizes)
    except (TypeError, ValueError):
        checked = ()
    if len(checked) < 2 or any(size < 1 for size in checked) or checked != tuple(sizes):
        raise ValueError(
            f"sizes must be two or more positive integers, inputs first and outputs last, as (64, 32, 10); got {sizes!r}."
        )
    return checked


def linear_layers(
    sizes: tuple[int, ...], bias: bool, gain: float, generator: torch.Generator | None, dtype: torch.dtype | None
) -> list[nn.Linear]:
    """Linear layers with N(0, gain² / fan-in) weights and zero biases."""
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    layers = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=bias, dtype=dtype or torch.get_default_dtype())
        with torch.no_grad():
            layer.weight.normal_(0.0, gain / math.sqrt(fan_in), generator=generator)
            if bias:
                layer.bias.zero_()
        layers.append(layer)
    return layers
