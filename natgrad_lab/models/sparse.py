"""Sparse initialization: every unit listens to a few inputs only."""

import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError


@torch.no_grad()
def sparse_init(
    model: nn.Module,
    generator: torch.Generator | None = None,
    incoming: int = 15,
    *,
    weight_scale: float = 1.0,
    bias: float = 0.0,
) -> nn.Module:
    """Draw N(0, weight_scale²) for `incoming` weights of every unit, chosen at random, and 0 for its others; biases constant.

    The activations stay diverse and unsaturated however wide the layers are: what deep autoencoders of logistic units were
    trained from. Units with fewer inputs use all of them. For tanh units the authors take weight_scale 0.25 and bias 0.5.

    Args:
        model: its Linear layers are drawn anew, in place, in the order of `model.modules()`; others must have no parameters.
        generator: on the CPU (seed 0 if none is given).
    Returns: the model.
    References: [Martens2010] sec. 5.
    """
    if not isinstance(incoming, int) or incoming < 1:
        raise ValueError(f"incoming must be a positive integer; got {incoming!r}.")
    layers = list(model.modules())
    for layer in layers:
        if not isinstance(layer, nn.Linear) and any(True for _ in layer.parameters(recurse=False)):
            raise UnsupportedLayerError(f"sparse_init is for Linear layers; the model has a {type(layer).__name__}.")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    for layer in (layer for layer in layers if isinstance(layer, nn.Linear)):
        units, inputs = layer.weight.shape
        chosen = torch.rand(units, inputs, generator=generator).argsort(1)[:, :incoming]
        values = weight_scale * torch.randn(chosen.shape, generator=generator, dtype=layer.weight.dtype)
        weight = torch.zeros(units, inputs, dtype=layer.weight.dtype).scatter_(1, chosen, values)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.fill_(bias)
    return model
