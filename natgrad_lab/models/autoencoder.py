"""Autoencoders: an encoder and its mirror image."""

from collections.abc import Sequence

import torch
from torch import nn

from natgrad_lab.models.mlp import check_sizes, mlp


def autoencoder(
    sizes: Sequence[int],
    activation: str = "sigmoid",
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """An `mlp` of widths `sizes` down to the code, whose units are linear, and back up; outputs as many as inputs.

    `autoencoder((784, 1000, 500, 250, 30))` is the MNIST autoencoder of Hinton and Salakhutdinov, with 2,837,314
    parameters. Its outputs are logits for a Bernoulli likelihood, or means for a Gaussian one.
    """
    sizes = check_sizes(sizes)
    layers = list(mlp((*sizes, *sizes[-2::-1]), activation, generator=generator, dtype=dtype))
    code = 2 * (len(sizes) - 1) - 1  # the activation after the code layer
    return nn.Sequential(*layers[:code], *layers[code + 1 :])
