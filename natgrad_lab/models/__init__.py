"""Networks as plain `torch.nn.Module`s; nothing here knows of Fisher matrices."""

from natgrad_lab.models.deep_linear import deep_linear
from natgrad_lab.models.mlp import ACTIVATIONS, mlp

__all__ = ["ACTIVATIONS", "deep_linear", "mlp"]
