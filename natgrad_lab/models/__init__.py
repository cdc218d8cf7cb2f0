"""Networks as plain `torch.nn.Module`s; nothing here knows of Fisher matrices."""

from natgrad_lab.models.autoencoder import autoencoder
from natgrad_lab.models.convnet import convnet
from natgrad_lab.models.deep_linear import deep_linear
from natgrad_lab.models.mlp import ACTIVATIONS, mlp
from natgrad_lab.models.recurrent import RecurrentNet, lstm
from natgrad_lab.models.sparse import sparse_init

__all__ = ["ACTIVATIONS", "RecurrentNet", "autoencoder", "convnet", "deep_linear", "lstm", "mlp", "sparse_init"]
