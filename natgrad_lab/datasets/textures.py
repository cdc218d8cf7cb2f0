"""Small pictures of noisy stripes, for experiments with convolutions."""

import math

import torch

from natgrad_lab.datasets.about import credit
from natgrad_lab.datasets.dataset import Dataset, check_counts, check_positive, floating


def textures(
    num_examples: int = 1000,
    num_classes: int = 4,
    *,
    size: int = 12,
    period: float = 4.0,
    noise: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Stripes in one of `num_classes` directions at a random phase, plus noise; pictures of size x size.

    Class k has stripes √2 cos(2π (x cos a + y sin a) / period + phase) at the angle a = πk / num_classes. Because the phase
    is uniform, every pixel has mean 0 in every class: no linear function of the pixels is of any use, while squares of
    two small filters a class tell them apart. That is what a convolution with pooling can learn, and a linear model cannot.

    Class n mod num_classes gives example n. The noise is Gaussian of deviation `noise`; the stripes have variance 1.
    """
    check_counts(num_examples=num_examples, num_classes=num_classes, size=size)
    check_positive(period=period)
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a finite number >= 0; got {noise}.")
    dtype, generator = floating(dtype), torch.Generator().manual_seed(seed)
    targets = torch.arange(num_examples) % num_classes
    phase = 2 * math.pi * torch.rand(num_examples, generator=generator, dtype=torch.float64)
    grain = noise * torch.randn(num_examples, size * size, generator=generator, dtype=torch.float64)
    angle = math.pi / num_classes * torch.arange(num_classes, dtype=torch.float64)
    grid = torch.arange(size, dtype=torch.float64)
    along = angle.cos()[:, None, None] * grid + angle.sin()[:, None, None] * grid[:, None]  # (classes, rows, columns)
    waves = (2 * math.pi / period) * along.flatten(1)
    inputs = math.sqrt(2) * (waves[targets] + phase[:, None]).cos() + grain
    classes = tuple(f"{180 * k / num_classes:g}°" for k in range(num_classes))
    about = credit("textures", f"textures(size={size}, period={period}, noise={noise}, seed={seed})")
    return Dataset("textures", inputs.to(dtype), targets, classes, image_shape=(size, size), **about)
