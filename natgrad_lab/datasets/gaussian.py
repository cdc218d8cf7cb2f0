"""Sets drawn from Gaussians: clusters to classify, and a linear teacher to regress on."""

import math

import torch

from natgrad_lab.datasets.dataset import Dataset, check_counts, floating


def gaussian_blobs(
    num_examples: int = 300,
    num_classes: int = 3,
    dim: int = 2,
    *,
    separation: float = 3.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Classes drawn from unit Gaussians whose centres are drawn from a Gaussian of deviation `separation`.

    Class n mod num_classes gives example n, so the classes are as equal in size as they can be.
    """
    check_counts(num_examples=num_examples, num_classes=num_classes, dim=dim)
    if not (math.isfinite(separation) and separation >= 0):
        raise ValueError(f"separation must be a finite number >= 0; got {separation}.")
    generator, dtype = torch.Generator().manual_seed(seed), floating(dtype)
    centres = separation * torch.randn(num_classes, dim, generator=generator, dtype=dtype)  # (classes, D)
    targets = torch.arange(num_examples) % num_classes
    noise = torch.randn(num_examples, dim, generator=generator, dtype=dtype)
    classes = tuple(str(label) for label in range(num_classes))
    source = f"generated: gaussian_blobs(separation={separation}, seed={seed})"
    return Dataset("gaussian_blobs", centres[targets] + noise, targets, classes, source=source, licence="CC0")


def linear_teacher(
    num_examples: int = 200,
    dim: int = 8,
    num_outputs: int = 3,
    *,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Regression: targets = W x + b + noise, with x, √dim · W, b and noise / `noise` standard normal.

    With noise 0 a linear network reaches loss 0, and one undamped exact natural-gradient step takes it there.
    """
    check_counts(num_examples=num_examples, dim=dim, num_outputs=num_outputs)
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a finite number >= 0; got {noise}.")
    generator, dtype = torch.Generator().manual_seed(seed), floating(dtype)
    inputs = torch.randn(num_examples, dim, generator=generator, dtype=dtype)
    weight = torch.randn(num_outputs, dim, generator=generator, dtype=dtype) / math.sqrt(dim)
    bias = torch.randn(num_outputs, generator=generator, dtype=dtype)
    error = noise * torch.randn(num_examples, num_outputs, generator=generator, dtype=dtype)
    source = f"generated: linear_teacher(noise={noise}, seed={seed})"
    return Dataset("linear_teacher", inputs, inputs @ weight.T + bias + error, source=source, licence="CC0")
