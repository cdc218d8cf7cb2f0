"""Deep linear networks: products of matrices, the case in which the natural gradient is known in closed form."""

from collections.abc import Sequence

import torch
from torch import nn

from natgrad_lab.models.mlp import check_sizes, linear_layers


def deep_linear(
    sizes: Sequence[int],
    *,
    bias: bool = False,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """f(x) = W_L … W_1 x, layers of widths `sizes` with N(0, 1 / fan-in) weights.

    With a Gaussian likelihood each layer's exact Fisher block is a Kronecker product, so that K-FAC's blocks are exact.
    [Bernacchia2018].

    Args: as `mlp`, without an activation; `bias` is False unless asked for.
    """
    return nn.Sequential(*linear_layers(check_sizes(sizes), bias, 1.0, generator, dtype))
