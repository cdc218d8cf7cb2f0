"""Recurrent networks that say something at every time step."""

import math

import torch
from torch import nn


class RecurrentNet(nn.Module):
    """Optional embedding, one recurrent module, and a linear layer at every step: (N, T) or (N, T, D) → (N, T, C)."""

    def __init__(self, embedding: nn.Embedding | None, recurrent: nn.RNNBase, readout: nn.Linear):
        """Keep the three parts."""
        super().__init__()
        self.embedding, self.recurrent, self.readout = embedding, recurrent, readout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs at every step."""
        return self.readout(self.recurrent(x if self.embedding is None else self.embedding(x))[0])


def lstm(
    num_inputs: int,
    hidden: int,
    num_outputs: int,
    *,
    num_layers: int = 1,
    vocabulary: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> RecurrentNet:
    """An LSTM with a linear readout at every time step.

    Args:
        num_inputs: D of the inputs (N, T, D); of the embedding, if there is a vocabulary.
        vocabulary: with it the inputs are token numbers (N, T), embedded first.
        generator: weights are uniform in ±1/√hidden, embeddings standard normal (seed 0 if none is given).
    """
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    options = {"dtype": dtype or torch.get_default_dtype()}
    embedding = None if vocabulary is None else nn.utils.skip_init(nn.Embedding, vocabulary, num_inputs, **options)
    recurrent = nn.LSTM(num_inputs, hidden, num_layers, batch_first=True, device="meta", **options).to_empty(device="cpu")
    model = RecurrentNet(embedding, recurrent, nn.utils.skip_init(nn.Linear, hidden, num_outputs, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("embedding"):
                parameter.normal_(generator=generator)
            else:
                parameter.uniform_(-1 / math.sqrt(hidden), 1 / math.sqrt(hidden), generator=generator)
    return model
