"""Any rectangle of a Fisher too large to hold."""

import torch
from torch import nn

from natgrad_lab.fisher.gram import gram_fisher
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import Gram


def tiled_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Gram:
    """The same matrix as `dense_fisher`, of which `.tile(rows, columns)` gives any rectangle, exact, without the rest.

    Args, Raises: as `dense_fisher`.
    Cost: the pass once; then 2 K N operations per entry asked for.
    """
    return gram_fisher(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
